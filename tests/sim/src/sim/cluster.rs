//! The simulated cluster: what happens when, and who is told.

use std::collections::{BTreeMap, BTreeSet};

use dyad_cluster::action::{Issued, VmId};
use dyad_cluster::arbiter::{Arbiter, Durable};
use dyad_cluster::event::{Command, Event};
use dyad_cluster::eventlog::Entry;
use dyad_cluster::gate::Vip;
use dyad_cluster::message::{Authenticated, ToArbiter};
use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase;
use dyad_cluster::placement::Vm;
use dyad_cluster::register::{Mode, Reason, Register};
use dyad_cluster::report::{Price, Protection};
use dyad_cluster::types::{Epoch, Greeting, Incarnation, Node, ResourceId, Tick};
use dyad_cluster::{Config, Mutations, Voting, step};

use super::faults::{Fault, Wire};
use super::machine::Machine;
use super::oracles;
use super::plan::{Class, Plan};
use super::random::Random;

/// Replication, clients and oracles look around this often.
pub(crate) const LOOK_MS: u64 = 20;
/// The database's virtual address.
pub(crate) const VIP: dyad_cluster::action::VipId = dyad_cluster::action::VipId(0);
/// The database.
pub(crate) const DATABASE: ResourceId = ResourceId(0);

/// Something that happens at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A node's timer may be due.
    Wake(Node, u64),
    /// A message or completion reaches a node, in this run of its supervisor.
    Event(Node, u64, Event),
    /// A message reaches the arbiter.
    Ask(Node, Greeting, ToArbiter),
    /// An action ends; the number is the database's count of kills when it began.
    Finish(Node, u64, Issued, u64),
    Look,
    /// A fault begins, and will be over at the moment given.
    Begin(Fault, u64),
    End(Fault),
    /// A machine that was switched off in this boot comes back; one that came back since is left alone.
    PowerOn(Node, u64),
    Peace,
}

/// Moments that figures are made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    /// Database: (register's reason, when).
    pub(crate) changes: Vec<(Reason, u64)>,
    /// Closures of the address, promotions, and starts of services after the first.
    pub(crate) moved: u64,
}

/// Everything, and what the oracles remember.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) random: Random,
    /// Boxed: the tree moves its entries about, and a happening is large.
    queue: BTreeMap<(u64, u64), Box<Happening>>,
    sequence: u64,
    pub(crate) machines: [Machine; 2],
    pub(crate) arbiter: Option<Arbiter>,
    pub(crate) arbiter_disk: Durable,
    /// A copy that somebody made of the arbiter's disk, and when.
    pub(crate) arbiter_copy: (u64, Durable),
    pub(crate) incarnation: u64,
    cut: [u32; 6],
    /// What lasts now; one of a kind may last twice. A handful at most, asked for at every look: a list is fastest.
    pub(crate) active: Vec<Fault>,
    pub(crate) mutations: Mutations,
    pub(crate) generations: u64,
    pub(crate) written: u64,
    /// By resource: write, node, epoch under which it was acknowledged.
    pub(crate) acknowledged: Vec<Vec<(u64, Node, u64)>>,
    /// An operator took the resource from this node: what it still acknowledges is the price.
    pub(crate) forced_from: Vec<Option<Node>>,
    /// The epoch of an operator's last word.
    pub(crate) forced_at: Vec<Epoch>,
    /// The operator was told that taking the resource costs nothing.
    pub(crate) free: Vec<bool>,
    /// Acknowledged writes that a forced take-over gave up.
    pub(crate) given_up: usize,
    /// Since when a status screen says "full" and the standby has no marker.
    pub(crate) untrue_since: BTreeMap<(usize, usize), u64>,
    /// By resource and timeline: the node that writes on it.
    pub(crate) timelines: BTreeMap<(usize, u32), Node>,
    pub(crate) changes: u64,
    pub(crate) take_overs: u64,
    pub(crate) faults: usize,
    pub(crate) peaceful_since: Option<u64>,
    pub(crate) best_since: Option<u64>,
    /// Edges, and when each was first taken.
    pub(crate) edges: BTreeMap<(Phase, Phase), u64>,
    /// Edges with the faults that were there when they were taken.
    pub(crate) matrix: BTreeSet<((Phase, Phase), &'static str)>,
    pub(crate) moments: Moments,
    /// Short lines, if somebody wants to read them.
    pub(crate) log: Option<Vec<String>>,
    /// Node A's event log, if somebody wants to play it again.
    pub(crate) recorded: Option<Vec<Entry>>,
    told: [Vec<Protection>; 2],
    pub(crate) violation: Option<String>,
}

impl Cluster {
    pub(crate) fn new(plan: &Plan, broken: &[Mutation], tell: bool) -> Cluster {
        let mut random = Random(plan.seed);
        let founded =
            |holder| Register { epoch: Epoch(1), mode: Mode::Solo, holder, reason: Reason::Founded };
        let count = usize::from(plan.volumes) + 1;
        let holders: Vec<Node> = (0..count).map(|r| Node::BOTH[r % 2]).collect();
        let known = if plan.blank { &[] } else { holders.as_slice() };
        let registers: BTreeMap<_, _> =
            (0..).map(ResourceId).zip(known).map(|(r, holder)| (r, founded(*holder))).collect();
        let machines = Node::BOTH.map(|node| Machine::new(node, &holders, &registers, &mut random));
        let durable = match plan.voting {
            Voting::Arbiter => Durable { registers, ..Durable::default() },
            Voting::Strict | Voting::PrimaryBiased | Voting::FenceDevice => Durable::default(),
        };
        let mut cluster = Cluster {
            plan: plan.clone(),
            now: 0,
            random,
            queue: BTreeMap::new(),
            sequence: 0,
            machines,
            arbiter: None,
            arbiter_copy: (0, durable.clone()),
            arbiter_disk: durable,
            incarnation: 0,
            cut: [0; 6],
            active: Vec::new(),
            mutations: Mutations::of(broken),
            generations: 2,
            written: 0,
            acknowledged: vec![Vec::new(); count],
            forced_from: vec![None; count],
            forced_at: vec![Epoch(0); count],
            free: vec![false; count],
            untrue_since: BTreeMap::new(),
            given_up: 0,
            timelines: BTreeMap::new(),
            changes: 0,
            take_overs: 0,
            faults: 0,
            peaceful_since: None,
            best_since: None,
            edges: BTreeMap::new(),
            matrix: BTreeSet::new(),
            moments: Moments::default(),
            log: tell.then(Vec::new),
            recorded: tell.then(Vec::new),
            told: [Vec::new(), Vec::new()],
            violation: None,
        };
        if plan.voting == Voting::Arbiter {
            cluster.start_arbiter();
        }
        cluster.power_on(Node::A);
        cluster.power_on(Node::B);
        cluster.put(LOOK_MS, Happening::Look);
        for event in &plan.events {
            cluster.put(event.at_ms, Happening::Begin(event.fault, event.until_ms));
            cluster.put(event.until_ms, Happening::End(event.fault));
        }
        cluster.put(plan.peace_ms, Happening::Peace);
        cluster
    }

    pub(crate) fn config(&self, me: Node) -> Config {
        let volumes = 1..=self.plan.volumes;
        Config {
            me,
            lease_ms: self.plan.lease_ms,
            voting: self.plan.voting,
            resources: (0..=self.plan.volumes).map(ResourceId).collect(),
            vms: volumes
                .map(|v| Vm { id: VmId(v), volume: ResourceId(v), memory_mib: 1_024, priority: v as u8 })
                .collect(),
            memory_mib: [64 * 1_024; 2],
            vips: vec![Vip { id: VIP, resource: DATABASE }],
            mutations: self.mutations,
        }
    }

    pub(crate) fn resources(&self) -> usize {
        self.acknowledged.len()
    }

    pub(crate) fn put(&mut self, at: u64, what: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), Box::new(what));
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>8} {}", self.now, line()));
        }
    }

    pub(crate) fn start_arbiter(&mut self) {
        self.incarnation += 1;
        // Arbiter's time is true time: nobody compares it with another clock.
        let (nonce, now) = (Incarnation(self.incarnation), Tick(self.now));
        let arbiter = Arbiter::start(self.arbiter_disk.clone(), nonce, now, self.plan.lease_ms, false);
        self.arbiter = Some(arbiter.with(self.mutations));
    }

    pub(crate) fn advance(&mut self) {
        let Some(((at, _), what)) = self.queue.pop_first() else { return };
        self.now = at;
        match *what {
            Happening::Wake(node, run) => self.wake(node, run),
            Happening::Event(node, run, event) => self.event(node, run, event),
            Happening::Ask(node, greeting, message) => self.ask(node, greeting, message),
            Happening::Finish(node, run, issued, kills) => match self.deaf(node) {
                Some(later) => self.put(later, Happening::Finish(node, run, issued, kills)),
                None => self.finish(node, run, issued, kills),
            },
            Happening::Look => {
                self.look();
                self.put(at + LOOK_MS, Happening::Look);
            }
            Happening::Begin(fault, until) => {
                self.faults += 1;
                self.active.push(fault);
                self.note(|| format!("begins: {fault}"));
                self.begin_fault(fault, until);
            }
            Happening::End(fault) => {
                self.note(|| format!("ends: {fault}"));
                self.end_fault(fault);
                if let Some(at) = self.active.iter().position(|active| *active == fault) {
                    self.active.swap_remove(at);
                }
            }
            Happening::PowerOn(node, boot) if self.machines[node.index()].boot == boot => self.power_on(node),
            Happening::PowerOn(..) => {}
            Happening::Peace => {
                self.note(|| "peace".into());
                self.peaceful_since = Some(at);
            }
        }
    }

    pub(crate) fn stalled(&self, node: Node) -> Option<u64> {
        let until = self.machines[node.index()].stalled_until;
        (until > self.now).then_some(until)
    }

    /// The supervisor hears nothing now: stalled with its machine, or stopped alone.
    pub(crate) fn deaf(&self, node: Node) -> Option<u64> {
        let machine = &self.machines[node.index()];
        let until = machine.stalled_until.max(machine.hung_until);
        (until > self.now).then_some(until)
    }

    fn wake(&mut self, node: Node, run: u64) {
        if let Some(later) = self.deaf(node) {
            return self.put(later, Happening::Wake(node, run));
        }
        let machine = &mut self.machines[node.index()];
        if machine.run != run {
            return;
        }
        machine.wakes_at = None;
        let now = machine.clock.read(self.now);
        let timers = machine.state.iter().flat_map(|s| s.timers());
        let due = timers.filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).next();
        match due {
            Some(timer) => self.event(node, run, Event::Fired(timer)),
            None => self.wake_later(node, run),
        }
    }

    /// One wake-up for the next timer, unless one is on its way that is early enough.
    fn wake_later(&mut self, node: Node, run: u64) {
        let now = self.now;
        let machine = &mut self.machines[node.index()];
        let timers = machine.state.iter().flat_map(|s| s.timers().values());
        let Some(next) = timers.min().map(|at| machine.clock.when(*at).max(now)) else { return };
        if machine.wakes_at.is_none_or(|at| at > next) {
            machine.wakes_at = Some(next);
            self.put(next, Happening::Wake(node, run));
        }
    }

    /// One event to the core, and its actions to the world.
    pub(crate) fn event(&mut self, node: Node, run: u64, event: Event) {
        if let Some(later) = self.deaf(node) {
            return self.put(later, Happening::Event(node, run, event));
        }
        let now = self.now;
        let machine = &mut self.machines[node.index()];
        if machine.run != run {
            return;
        }
        let clock = machine.clock;
        let tick = clock.read(now);
        let Some(state) = &mut machine.state else { return };
        let logged = self.recorded.as_ref().map(|_| event.clone());
        let ordered = match event {
            Event::Command(Command::Force(r, _)) => {
                self.free[usize::from(r.0)] = state.price(r) == Price::Nothing;
                Some((r, state.register(r).map_or(Epoch(0), |register| register.epoch)))
            }
            _ => None,
        };
        let issued = step(state, tick, event);
        // An operator's word that no arbiter heard counts at once, perhaps with what follows from it in the same step, and
        // what the mirror says next is a later change.
        for r in (0..self.forced_from.len() as u16).map(ResourceId) {
            let Some(register) = state.register(r).filter(|register| register.holder == node) else {
                continue;
            };
            let at_once = ordered.is_some_and(|(asked, before)| asked == r && register.epoch > before);
            let index = usize::from(r.0);
            if (at_once || register.reason == Reason::Forced) && register.epoch > self.forced_at[index] {
                (self.forced_from[index], self.forced_at[index]) = (Some(node.peer()), register.epoch);
            }
        }
        let edges: Vec<_> = state.edges().to_vec();
        if let (Node::A, Some(event), Some(recorded)) = (node, logged, &mut self.recorded) {
            recorded.push(Entry::Step { at: tick, event, actions: issued.clone() });
        }
        for (r, from, to) in edges {
            self.edges.entry((from, to)).or_insert(now);
            let active: Vec<_> = match self.active.is_empty() {
                true => vec!["none"],
                false => self.active.iter().map(|fault| fault.name()).collect(),
            };
            self.matrix.extend(active.into_iter().map(|fault| ((from, to), fault)));
            self.note(|| format!("{node:?} {} {from:?} -> {to:?}", r.0));
        }
        self.tell_protection(node);
        self.wake_later(node, run);
        for action in issued {
            self.begin(node, run, action);
        }
    }

    /// The first line of the status screen, whenever it changes.
    fn tell_protection(&mut self, node: Node) {
        if self.log.is_none() {
            return;
        }
        let Some(state) = &self.machines[node.index()].state else { return };
        let all = (0..=self.plan.volumes).map(ResourceId);
        let lines: Vec<_> = all.map(|r| (state.protection(r), state.why(r))).collect();
        let told = std::mem::take(&mut self.told[node.index()]);
        for (r, (protection, why)) in lines.iter().enumerate() {
            if told.get(r) != Some(protection) {
                self.note(|| format!("{node:?} {r} says {protection:?} {why:?}"));
            }
        }
        self.told[node.index()] = lines.into_iter().map(|(protection, _)| protection).collect();
    }

    fn ask(&mut self, from: Node, greeting: Greeting, message: ToArbiter) {
        let Some(arbiter) = &mut self.arbiter else { return };
        let answer = arbiter.handle(Tick(self.now), &Authenticated { from, message });
        let run = self.machines[from.index()].run;
        if *arbiter.durable() != self.arbiter_disk {
            let fresh = arbiter.durable().clone();
            let complaint = oracles::o3_epochs_rise(&self.arbiter_disk, &fresh);
            for (id, register) in &fresh.registers {
                if self.arbiter_disk.registers.get(id) != Some(register) {
                    self.changed(*id, *register);
                }
            }
            self.arbiter_disk = fresh;
            self.complain(complaint);
        }
        let heard = Event::FromArbiter(greeting, answer);
        self.send(Wire::FromWitness(from), Happening::Event(from, run, heard));
    }

    /// A register changed, at the arbiter or (without one) on a node.
    pub(crate) fn changed(&mut self, id: ResourceId, register: Register) {
        self.changes += 1;
        self.take_overs += u64::from(register.reason == Reason::TookOver);
        if id == DATABASE {
            self.moments.changes.push((register.reason, self.now));
        }
        if register.reason == Reason::Forced {
            let r = usize::from(id.0);
            (self.forced_from[r], self.forced_at[r]) = (Some(register.holder.peer()), register.epoch);
        }
        self.note(|| {
            let Register { epoch, mode, holder, reason } = register;
            let mode = if mode == Mode::Solo { "Solo" } else { "Sync" };
            format!("register {}: epoch {} {mode} of {holder:?}, {reason:?}", id.0, epoch.0)
        });
    }

    pub(crate) fn complain(&mut self, complaint: Option<String>) {
        if self.violation.is_none() {
            self.violation = complaint;
        }
    }

    /// Something moved, closed or restarted.
    pub(crate) fn moved(&mut self, what: &str) {
        self.moments.moved += 1;
        let harmless = self.plan.class == Class::Harmless;
        self.complain(oracles::o9_nothing_moves(harmless, what));
    }

    /// Nothing cuts this way.
    pub(crate) fn passes(&self, wire: Wire) -> bool {
        self.cut[wire.index()] == 0
    }

    pub(crate) fn send(&mut self, wire: Wire, what: Happening) {
        if !self.passes(wire) {
            return;
        }
        let bad = self.has(Fault::Bad);
        let copies = if bad && self.random.permille(100) { 2 } else { 1 };
        for _ in 0..copies {
            if bad && self.random.permille(200) {
                continue;
            }
            let delay = self.random.between(1, if bad { 900 } else { self.plan.latency_ms });
            self.put(self.now + delay, what.clone());
        }
    }

    /// The fault is there now.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.active.contains(&fault)
    }

    pub(crate) fn cut_wire(&mut self, wire: Wire, begins: bool) {
        let cuts = &mut self.cut[wire.index()];
        *cuts = if begins { *cuts + 1 } else { cuts.saturating_sub(1) };
    }
}
