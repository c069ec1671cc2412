//! The simulated cluster: what happens when, and who is told.

use std::collections::{BTreeMap, BTreeSet};

use dyad_cluster::action::Issued;
use dyad_cluster::arbiter::{Arbiter, Durable};
use dyad_cluster::disk::{MarkerFile, Mirror};
use dyad_cluster::event::{Command, Event};
use dyad_cluster::message::{Authenticated, ToArbiter};
use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::{Mode, Reason, Register};
use dyad_cluster::types::{BootId, Epoch, Generation, Incarnation, Node, ResourceId, Tick};
use dyad_cluster::{Config, Found, Mutations, State, Voting, step};

use super::database::{Clock, Database};
use super::faults::{Class, Fault};
use super::oracles;
use super::random::Random;

/// T of every simulated cluster.
pub(crate) const LEASE_MS: u64 = 3_000;
/// Replication, clients and oracles look around this often.
pub(crate) const LOOK_MS: u64 = 20;
/// Resources of every simulated cluster.
pub(crate) const RESOURCES: usize = 2;

/// One direction of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    ToPeer(Node),
    ToWitness(Node),
    FromWitness(Node),
}

impl Wire {
    pub(crate) const ALL: [Wire; 6] = [
        Wire::ToPeer(Node::A),
        Wire::ToPeer(Node::B),
        Wire::ToWitness(Node::A),
        Wire::ToWitness(Node::B),
        Wire::FromWitness(Node::A),
        Wire::FromWitness(Node::B),
    ];

    fn index(self) -> usize {
        match self {
            Wire::ToPeer(n) => n.index(),
            Wire::ToWitness(n) => 2 + n.index(),
            Wire::FromWitness(n) => 4 + n.index(),
        }
    }
}

/// Something that happens at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A node's timer may be due.
    Wake(Node, u64),
    /// A message or completion reaches a node, in this run of its supervisor.
    Event(Node, u64, Event),
    /// A message reaches the arbiter.
    Ask(Node, ToArbiter),
    /// An action ends; the number is the database's count of kills when it began.
    Finish(Node, u64, Issued, u64),
    Look,
    /// A fault begins, and will be over at the moment given.
    Begin(Fault, u64),
    End(Fault),
    Peace,
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) state: Option<State>,
    pub(crate) run: u64,
    pub(crate) boot: u64,
    pub(crate) powered: bool,
    pub(crate) clock: Clock,
    pub(crate) mirror: Mirror,
    pub(crate) markers: BTreeMap<ResourceId, MarkerFile>,
    pub(crate) databases: Vec<Database>,
    /// True time until which the virtual address answers.
    pub(crate) gate_until: u64,
    pub(crate) deadman: Tick,
    pub(crate) stalled_until: u64,
    pub(crate) disk_fails: bool,
}

/// Everything, and what the oracles remember.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) now: u64,
    pub(crate) random: Random,
    pub(crate) class: Class,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    pub(crate) machines: [Machine; 2],
    pub(crate) arbiter: Option<Arbiter>,
    pub(crate) arbiter_disk: Durable,
    incarnation: u64,
    cut: [u32; 6],
    bad: u32,
    mutations: Mutations,
    pub(crate) generations: u64,
    pub(crate) written: u64,
    /// By resource: write, node, epoch under which it was acknowledged.
    pub(crate) acknowledged: Vec<Vec<(u64, Node, u64)>>,
    /// By resource and timeline: the node that writes on it.
    pub(crate) timelines: BTreeMap<(usize, u32), Node>,
    pub(crate) changes: u64,
    pub(crate) take_overs: u64,
    pub(crate) faults: usize,
    pub(crate) peaceful_since: Option<u64>,
    pub(crate) edges: BTreeSet<(Phase, Phase)>,
    pub(crate) log: Vec<String>,
    pub(crate) violation: Option<String>,
}

impl Cluster {
    pub(crate) fn new(seed: u64, class: Class, broken: &[Mutation]) -> Cluster {
        let mut random = Random(seed);
        let founded =
            |holder| Register { epoch: Epoch(1), mode: Mode::Solo, holder, reason: Reason::Founded };
        let registers: BTreeMap<_, _> =
            (0..RESOURCES).map(|r| (ResourceId(r as u16), founded(Node::BOTH[r % 2]))).collect();
        let machine = |node: Node, random: &mut Random| Machine {
            state: None,
            run: 0,
            boot: 0,
            powered: false,
            clock: Clock { offset_ms: random.between(5_000, 1 << 40), rate_ppm: random.between(0, 2_000) },
            mirror: Mirror {
                registers: registers.clone(),
                won: registers
                    .iter()
                    .filter(|(_, r)| r.holder == node)
                    .map(|(id, _)| (*id, Generation(1)))
                    .collect(),
                ..Mirror::default()
            },
            markers: BTreeMap::new(),
            databases: (0..RESOURCES)
                .map(|r| Database::new(if Node::BOTH[r % 2] == node { 1 } else { 2 }))
                .collect(),
            gate_until: 0,
            deadman: Tick(u64::MAX),
            stalled_until: 0,
            disk_fails: false,
        };
        let machines = [machine(Node::A, &mut random), machine(Node::B, &mut random)];
        let mut cluster = Cluster {
            now: 0,
            random,
            class,
            queue: BTreeMap::new(),
            sequence: 0,
            machines,
            arbiter: None,
            arbiter_disk: Durable { registers, ..Durable::default() },
            incarnation: 0,
            cut: [0; 6],
            bad: 0,
            mutations: Mutations::of(broken),
            generations: 2,
            written: 0,
            acknowledged: vec![Vec::new(); RESOURCES],
            timelines: BTreeMap::new(),
            changes: 0,
            take_overs: 0,
            faults: 0,
            peaceful_since: None,
            edges: BTreeSet::new(),
            log: Vec::new(),
            violation: None,
        };
        cluster.start_arbiter();
        cluster.power_on(Node::A);
        cluster.power_on(Node::B);
        cluster.put(LOOK_MS, Happening::Look);
        cluster
    }

    pub(crate) fn put(&mut self, at: u64, what: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), what);
    }

    pub(crate) fn note(&mut self, line: String) {
        self.log.push(format!("{:>9} {line}", self.now));
    }

    fn start_arbiter(&mut self) {
        self.incarnation += 1;
        // Arbiter's time is true time: nobody compares it with another clock.
        let (nonce, now) = (Incarnation(self.incarnation), Tick(self.now));
        let arbiter = Arbiter::start(self.arbiter_disk.clone(), nonce, now, LEASE_MS, false);
        self.arbiter = Some(arbiter.with(self.mutations));
    }

    fn power_on(&mut self, node: Node) {
        let machine = &mut self.machines[node.index()];
        if !machine.powered {
            machine.powered = true;
            machine.boot += 1;
            self.start_supervisor(node);
        }
    }

    fn power_off(&mut self, node: Node) {
        let machine = &mut self.machines[node.index()];
        (machine.powered, machine.state, machine.gate_until) = (false, None, 0);
        machine.run += 1;
        machine.deadman = Tick(u64::MAX);
        machine.databases.iter_mut().for_each(Database::stop);
    }

    fn start_supervisor(&mut self, node: Node) {
        let now = self.now;
        let machine = &mut self.machines[node.index()];
        machine.run += 1;
        let running = |r: &usize| machine.databases[*r].service != super::database::Service::Stopped;
        let config = Config {
            me: node,
            lease_ms: LEASE_MS,
            voting: Voting::Arbiter,
            resources: (0..RESOURCES as u16).map(ResourceId).collect(),
            vms: Vec::new(),
            memory_mib: 0,
            mutations: self.mutations,
        };
        let found = Found {
            mirror: Some(machine.mirror.clone()),
            markers: machine.markers.clone(),
            running: (0..RESOURCES).filter(running).map(|r| ResourceId(r as u16)).collect(),
        };
        let boot = BootId { count: machine.boot, nonce: machine.boot * 2 + node.index() as u64 };
        machine.state = Some(State::new(config, boot, machine.clock.read(now), found));
        machine.databases.iter_mut().for_each(|d| d.link_told = None);
        let run = machine.run;
        self.put(now, Happening::Wake(node, run));
    }

    pub(crate) fn advance(&mut self) {
        let Some(((at, _), what)) = self.queue.pop_first() else { return };
        self.now = at;
        match what {
            Happening::Wake(node, run) => self.wake(node, run),
            Happening::Event(node, run, event) => self.event(node, run, event),
            Happening::Ask(node, message) => self.ask(node, message),
            Happening::Finish(node, run, issued, kills) => {
                if let Some(later) = self.stalled(node) {
                    return self.put(later, Happening::Finish(node, run, issued, kills));
                }
                self.finish(node, run, issued, kills);
            }
            Happening::Look => {
                self.look();
                self.put(at + LOOK_MS, Happening::Look);
            }
            Happening::Begin(fault, until) => {
                self.faults += 1;
                self.note(format!("begins: {fault:?}"));
                if let Fault::Stall(node) = fault {
                    let machine = &mut self.machines[node.index()];
                    machine.stalled_until = machine.stalled_until.max(until);
                }
                self.fault(fault, true);
            }
            Happening::End(fault) => {
                self.note(format!("ends: {fault:?}"));
                self.fault(fault, false);
            }
            Happening::Peace => {
                self.note("peace".into());
                self.peaceful_since = Some(at);
            }
        }
    }

    pub(crate) fn stalled(&self, node: Node) -> Option<u64> {
        let until = self.machines[node.index()].stalled_until;
        (until > self.now).then_some(until)
    }

    fn wake(&mut self, node: Node, run: u64) {
        if let Some(later) = self.stalled(node) {
            return self.put(later, Happening::Wake(node, run));
        }
        let machine = &self.machines[node.index()];
        if machine.run != run {
            return;
        }
        let now = machine.clock.read(self.now);
        let due = machine
            .state
            .iter()
            .flat_map(|s| s.timers())
            .find(|(_, at)| **at <= now)
            .map(|(timer, _)| *timer);
        if let Some(timer) = due {
            self.event(node, run, Event::Fired(timer));
        }
    }

    /// One event to the core, and its actions to the world.
    pub(crate) fn event(&mut self, node: Node, run: u64, event: Event) {
        if let Some(later) = self.stalled(node) {
            return self.put(later, Happening::Event(node, run, event));
        }
        let now = self.now;
        let machine = &mut self.machines[node.index()];
        if machine.run != run {
            return;
        }
        let tick = machine.clock.read(now);
        let clock = machine.clock;
        let Some(state) = &mut machine.state else { return };
        let issued = step(state, tick, event);
        let edges: Vec<_> = state.edges().to_vec();
        let next = state.timers().values().min().map(|at| clock.when(*at).max(now));
        for (r, from, to) in edges {
            self.edges.insert((from, to));
            self.note(format!("{node:?} {} {from:?} -> {to:?}", r.0));
        }
        if let Some(next) = next {
            self.put(next, Happening::Wake(node, run));
        }
        for action in issued {
            self.begin(node, run, action);
        }
    }

    fn ask(&mut self, from: Node, message: ToArbiter) {
        let Some(arbiter) = &mut self.arbiter else { return };
        let answer = arbiter.handle(Tick(self.now), &Authenticated { from, message });
        let fresh = arbiter.durable().clone();
        let complaint = oracles::o3_epochs_rise(&self.arbiter_disk, &fresh);
        for (id, register) in &fresh.registers {
            if self.arbiter_disk.registers.get(id) != Some(register) {
                self.changes += 1;
                self.take_overs += u64::from(register.reason == Reason::TookOver);
                self.note(format!("register {}: {register:?}", id.0));
            }
        }
        self.arbiter_disk = fresh;
        self.complain(complaint);
        let run = self.machines[from.index()].run;
        self.send(Wire::FromWitness(from), Happening::Event(from, run, Event::FromArbiter(answer)));
    }

    pub(crate) fn complain(&mut self, complaint: Option<String>) {
        if self.violation.is_none() {
            self.violation = complaint;
        }
    }

    /// Both ends and the way between them work.
    pub(crate) fn passes(&self, wire: Wire) -> bool {
        self.cut[wire.index()] == 0
    }

    pub(crate) fn send(&mut self, wire: Wire, what: Happening) {
        if !self.passes(wire) {
            return;
        }
        let bad = self.bad > 0;
        let copies = if bad && self.random.permille(100) { 2 } else { 1 };
        for _ in 0..copies {
            if bad && self.random.permille(200) {
                continue;
            }
            let slow = if self.class == Class::Harmless { LEASE_MS / 4 / 4 } else { 5 };
            let delay = self.random.between(1, if bad { 900 } else { slow });
            self.put(self.now + delay, what.clone());
        }
    }

    fn fault(&mut self, fault: Fault, begins: bool) {
        match fault {
            Fault::Crash(node) if begins => self.power_off(node),
            Fault::Crash(node) => self.power_on(node),
            Fault::CrashBoth => {
                for node in Node::BOTH {
                    self.fault(Fault::Crash(node), begins);
                }
            }
            // Its end was given when it began.
            Fault::Stall(_) => {}
            Fault::Supervisor(node) => {
                if begins && self.machines[node.index()].powered {
                    self.start_supervisor(node);
                }
            }
            Fault::Service(node) => {
                if begins {
                    self.end_services(node);
                }
            }
            Fault::OneWay(wire) => self.cut_wire(Wire::ALL[wire], begins),
            Fault::Between => {
                self.cut_wire(Wire::ToPeer(Node::A), begins);
                self.cut_wire(Wire::ToPeer(Node::B), begins);
            }
            Fault::Isolated(node) => {
                for wire in [
                    Wire::ToPeer(node),
                    Wire::ToPeer(node.peer()),
                    Wire::ToWitness(node),
                    Wire::FromWitness(node),
                ] {
                    self.cut_wire(wire, begins);
                }
            }
            Fault::Bad => self.bad = if begins { self.bad + 1 } else { self.bad.saturating_sub(1) },
            Fault::Witness if begins => self.arbiter = None,
            Fault::Witness => self.start_arbiter(),
            Fault::Disk(node) => self.machines[node.index()].disk_fails = begins,
            Fault::SwitchOver => {
                if begins {
                    for node in Node::BOTH {
                        let run = self.machines[node.index()].run;
                        self.event(node, run, Event::Command(Command::SwitchOver(ResourceId(0))));
                    }
                }
            }
        }
    }

    fn cut_wire(&mut self, wire: Wire, begins: bool) {
        let cuts = &mut self.cut[wire.index()];
        *cuts = if begins { *cuts + 1 } else { cuts.saturating_sub(1) };
    }

    /// Every service of a machine ends, and its supervisor hears of it.
    pub(crate) fn end_services(&mut self, node: Node) {
        let run = self.machines[node.index()].run;
        for r in 0..RESOURCES {
            let database = &mut self.machines[node.index()].databases[r];
            if database.service != super::database::Service::Stopped {
                database.stop();
                self.put(self.now, Happening::Event(node, run, Event::Ended(ResourceId(r as u16))));
            }
        }
    }
}
