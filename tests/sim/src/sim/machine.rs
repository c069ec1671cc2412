//! One simulated machine, its power, and what faults do to it.

use std::collections::{BTreeMap, BTreeSet};

use dyad_cluster::action::{VipId, VmId};
use dyad_cluster::arbiter::enrol_again;
use dyad_cluster::disk::{MarkerFile, Mirror};
use dyad_cluster::event::{Command, Condition, Event};
use dyad_cluster::eventlog::Entry;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::Register;
use dyad_cluster::report::Cause;
use dyad_cluster::types::{BootId, Generation, Node, ResourceId, Tick};
use dyad_cluster::{Found, Running, State, Voting};

use super::cluster::{Cluster, Happening, LOOK_MS};
use super::database::{Clock, Database, Kind, Service};
use super::faults::{Fault, Wire};
use super::random::Random;

/// The copy of the arbiter's disk that somebody restores is at least this old.
const COPY_MS: u64 = 10_000;
/// Whoever founds says it again this often; it means nothing once somebody holds the resource.
const FOUND_EVERY_MS: u64 = 1_000;
/// After a reset by its own PID 1 a machine is back in this time.
const RESET_MS: u64 = 5_000;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) state: Option<State>,
    pub(crate) run: u64,
    pub(crate) boot: u64,
    pub(crate) powered: bool,
    /// Switched off from outside: nothing runs here before then, whoever switches it on.
    pub(crate) off_until: u64,
    pub(crate) clock: Clock,
    /// `None`: neither slot can be read.
    pub(crate) mirror: Option<Mirror>,
    pub(crate) markers: BTreeMap<ResourceId, MarkerFile>,
    pub(crate) databases: Vec<Database>,
    pub(crate) vms: BTreeSet<VmId>,
    /// True time until which each virtual address answers.
    pub(crate) gates: BTreeMap<VipId, u64>,
    pub(crate) deadman: Tick,
    /// The next wake-up of this run that is on its way.
    pub(crate) wakes_at: Option<u64>,
    pub(crate) stalled_until: u64,
    /// The supervisor is stopped until then.
    pub(crate) hung_until: u64,
    pub(crate) clients_up: bool,
    pub(crate) full_percent: u8,
}

impl Machine {
    pub(crate) fn new(
        node: Node,
        holders: &[Node],
        registers: &BTreeMap<ResourceId, Register>,
        random: &mut Random,
    ) -> Machine {
        let mine = registers.iter().filter(|(_, register)| register.holder == node);
        let database = |(r, holder): (usize, &Node)| {
            let kind = if r == 0 { Kind::Postgres } else { Kind::Volume };
            Database::new(kind, if *holder == node { 1 } else { 2 })
        };
        Machine {
            state: None,
            run: 0,
            boot: 0,
            powered: false,
            off_until: 0,
            clock: Clock { offset_ms: random.between(5_000, 1 << 40), rate_ppm: random.between(0, 2_000) },
            mirror: Some(Mirror {
                registers: registers.clone(),
                won: mine.map(|(id, _)| (*id, Generation(1))).collect(),
                ..Mirror::default()
            }),
            markers: BTreeMap::new(),
            databases: holders.iter().enumerate().map(database).collect(),
            vms: BTreeSet::new(),
            gates: BTreeMap::new(),
            deadman: Tick(u64::MAX),
            wakes_at: None,
            stalled_until: 0,
            hung_until: 0,
            clients_up: true,
            full_percent: 40,
        }
    }

    /// Since when something was killed and still lives.
    pub(crate) fn killing_since(&self) -> Option<u64> {
        self.databases.iter().filter_map(|d| d.killing_since).min()
    }

    pub(crate) fn condition(&self) -> Condition {
        let full = (0..self.databases.len()).map(|r| (ResourceId(r as u16), self.full_percent)).collect();
        Condition { clients_up: Some(self.clients_up), full_percent: full }
    }
}

impl Cluster {
    pub(crate) fn power_on(&mut self, node: Node) {
        let machine = &mut self.machines[node.index()];
        let (earliest, boot) = (machine.off_until, machine.boot);
        if earliest > self.now {
            self.put(earliest, Happening::PowerOn(node, boot));
        } else if !machine.powered {
            machine.powered = true;
            machine.boot += 1;
            self.start_supervisor(node);
        }
    }

    pub(crate) fn power_off(&mut self, node: Node) {
        let machine = &mut self.machines[node.index()];
        (machine.powered, machine.state) = (false, None);
        (machine.stalled_until, machine.hung_until) = (0, 0);
        machine.gates.clear();
        machine.vms.clear();
        machine.run += 1;
        machine.deadman = Tick(u64::MAX);
        machine.databases.iter_mut().for_each(Database::stop);
    }

    /// PID 1 resets its machine: something that was killed does not die.
    pub(crate) fn reset(&mut self, node: Node) {
        self.note(|| format!("{node:?} resets itself"));
        self.power_off(node);
        let boot = self.machines[node.index()].boot;
        self.put(self.now + RESET_MS, Happening::PowerOn(node, boot));
    }

    pub(crate) fn start_supervisor(&mut self, node: Node) {
        let (now, config) = (self.now, self.config(node));
        let machine = &mut self.machines[node.index()];
        machine.run += 1;
        (machine.hung_until, machine.wakes_at) = (0, None);
        let running = machine.databases.iter().enumerate().filter_map(|(r, d)| match d.service {
            Service::Stopped => None,
            Service::Following => Some((ResourceId(r as u16), Running::Following)),
            Service::Serving => Some((ResourceId(r as u16), Running::Serving)),
        });
        let found = Found {
            mirror: machine.mirror.clone(),
            markers: machine.markers.clone(),
            running: running.collect(),
            vms: machine.vms.clone(),
        };
        let boot = BootId { count: machine.boot, nonce: machine.boot * 2 + node.index() as u64 };
        let at = machine.clock.read(now);
        if let (Node::A, Some(recorded)) = (node, &mut self.recorded) {
            recorded.push(Entry::Start { config: config.clone(), boot, at, found: found.clone() });
        }
        machine.state = Some(State::new(config, boot, at, found));
        machine.databases.iter_mut().for_each(|d| d.link_told = None);
        let (run, condition) = (machine.run, machine.condition());
        self.put(now, Happening::Wake(node, run));
        self.put(now, Happening::Event(node, run, Event::Condition(condition)));
    }

    fn tell_both(&mut self, event: &Event) {
        for node in Node::BOTH {
            self.tell_node(node, event.clone());
        }
    }

    pub(crate) fn tell_node(&mut self, node: Node, event: Event) {
        let run = self.machines[node.index()].run;
        self.event(node, run, event);
    }

    fn tell_condition(&mut self, node: Node) {
        let condition = self.machines[node.index()].condition();
        self.tell_node(node, Event::Condition(condition));
    }

    /// Every service of a machine ends, and its supervisor hears of it.
    pub(crate) fn end_services(&mut self, node: Node) {
        let run = self.machines[node.index()].run;
        self.machines[node.index()].vms.clear();
        for r in 0..self.resources() {
            let database = &mut self.machines[node.index()].databases[r];
            if database.service != Service::Stopped {
                database.stop();
                self.put(self.now, Happening::Event(node, run, Event::Ended(ResourceId(r as u16))));
            }
        }
    }

    /// What a watch says.
    fn second(&self) -> u64 {
        1_700_000_000 + self.now / 1_000
    }

    fn force(&mut self, node: Node) {
        let second = self.second();
        for r in 0..self.resources() {
            self.tell_node(node, Event::Command(Command::Force(ResourceId(r as u16), second)));
        }
    }

    fn commands(&mut self, node: Node, command: fn(ResourceId) -> Command) {
        for r in 0..self.resources() {
            self.tell_node(node, Event::Command(command(ResourceId(r as u16))));
        }
    }

    fn set_postgres(&mut self, node: Node, change: fn(&mut Database)) {
        let database = &mut self.machines[node.index()].databases[0];
        if database.service == Service::Serving {
            change(database);
        }
    }

    pub(crate) fn begin_fault(&mut self, fault: Fault, until: u64) {
        match fault {
            Fault::Crash(node) => self.power_off(node),
            Fault::CrashBoth => Node::BOTH.into_iter().for_each(|node| self.power_off(node)),
            Fault::Stall(node) => {
                let machine = &mut self.machines[node.index()];
                machine.stalled_until = machine.stalled_until.max(until);
            }
            Fault::Supervisor(node) if self.machines[node.index()].powered => self.start_supervisor(node),
            Fault::HangSupervisor(node) => {
                let machine = &mut self.machines[node.index()];
                machine.hung_until = machine.hung_until.max(until);
            }
            Fault::Service(node) | Fault::Eio(node) => self.end_services(node),
            Fault::HangPostmaster(node) => self.set_postgres(node, |d| d.postmaster_runs = false),
            Fault::HangCheckpointer(node) => self.set_postgres(node, |d| d.checkpointer_runs = false),
            Fault::Witness => self.arbiter = None,
            Fault::Rollback if self.plan.voting == Voting::Arbiter => {
                self.arbiter_disk = self.arbiter_copy.1.clone();
                self.start_arbiter();
            }
            Fault::MirrorLost(node) => {
                self.power_off(node);
                self.machines[node.index()].mirror = None;
            }
            Fault::NewDisk(node) => {
                self.power_off(node);
                for r in 0..self.resources() {
                    self.generations += 1;
                    let kind = self.machines[node.index()].databases[r].kind;
                    let empty = Database { blank: true, ..Database::new(kind, self.generations) };
                    self.machines[node.index()].databases[r] = empty;
                }
            }
            Fault::ClientLan(node) => {
                self.machines[node.index()].clients_up = false;
                self.tell_condition(node);
            }
            Fault::NearlyFull(node) => self.fill(node, 96),
            Fault::Full(node) => self.fill(node, 98),
            Fault::HandPromote(node) => self.promote_by_hand(node),
            Fault::SwitchOver => {
                for node in Node::BOTH {
                    self.commands(node, Command::SwitchOver);
                }
            }
            Fault::Drain(node) => self.tell_node(node, Event::Command(Command::Drain)),
            Fault::Freeze => self.tell_both(&Event::Command(Command::Freeze(until - self.now))),
            Fault::Force(node) => self.force(node),
            Fault::Retry(node) => self.commands(node, Command::Retry),
            // What these do is looked up while they last, or is nothing that anybody could notice.
            Fault::Supervisor(_)
            | Fault::Rollback
            | Fault::Stream
            | Fault::Cancels
            | Fault::Flaps
            | Fault::Bad
            | Fault::StateDisk(_)
            | Fault::HungDisk(_)
            | Fault::SlowDisk(_)
            | Fault::Busy(_)
            | Fault::BondMember(_)
            | Fault::WallClock(_) => {}
            Fault::OneWay(_) | Fault::Between | Fault::Isolated(_) | Fault::NoWitness(_) => {
                wires(fault).into_iter().for_each(|wire| self.cut_wire(wire, true));
            }
        }
    }

    pub(crate) fn end_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(node) | Fault::MirrorLost(node) | Fault::NewDisk(node) => self.power_on(node),
            Fault::CrashBoth => Node::BOTH.into_iter().for_each(|node| self.power_on(node)),
            Fault::HangPostmaster(node) => self.set_postgres(node, |d| d.postmaster_runs = true),
            Fault::HangCheckpointer(node) => self.set_postgres(node, |d| d.checkpointer_runs = true),
            Fault::Witness if self.plan.voting == Voting::Arbiter && self.arbiter.is_none() => {
                self.start_arbiter()
            }
            Fault::ClientLan(node) => {
                self.machines[node.index()].clients_up = true;
                self.tell_condition(node);
            }
            Fault::NearlyFull(node) | Fault::Full(node) => self.fill(node, 40),
            Fault::Drain(node) => self.tell_node(node, Event::Command(Command::Undrain)),
            Fault::OneWay(_) | Fault::Between | Fault::Isolated(_) | Fault::NoWitness(_) => {
                wires(fault).into_iter().for_each(|wire| self.cut_wire(wire, false));
            }
            // Over by themselves.
            Fault::Stall(_)
            | Fault::Supervisor(_)
            | Fault::HangSupervisor(_)
            | Fault::Service(_)
            | Fault::Eio(_)
            | Fault::Stream
            | Fault::Cancels
            | Fault::Flaps
            | Fault::Bad
            | Fault::Witness
            | Fault::Rollback
            | Fault::StateDisk(_)
            | Fault::HungDisk(_)
            | Fault::SlowDisk(_)
            | Fault::Busy(_)
            | Fault::BondMember(_)
            | Fault::WallClock(_)
            | Fault::HandPromote(_)
            | Fault::SwitchOver
            | Fault::Freeze
            | Fault::Force(_)
            | Fault::Retry(_) => {}
        }
    }

    fn fill(&mut self, node: Node, percent: u8) {
        self.machines[node.index()].full_percent = percent;
        self.tell_condition(node);
    }

    /// The adapter finds a server that is no standby any more, and stops it: it is nobody's.
    fn promote_by_hand(&mut self, node: Node) {
        let machine = &mut self.machines[node.index()];
        let run = machine.run;
        let database = &mut machine.databases[0];
        if database.service == Service::Following {
            database.serve(true);
            database.in_recovery = true;
            database.stop_clean();
            self.put(self.now, Happening::Event(node, run, Event::Ended(ResourceId(0))));
        }
    }

    /// What a person does once all faults are over and the screen says that it needs one.
    pub(crate) fn operator(&mut self) {
        let copy_due = self.now >= self.arbiter_copy.0 + COPY_MS;
        if copy_due && self.peaceful_since.is_none() {
            self.arbiter_copy = (self.now, self.arbiter_disk.clone());
        }
        if self.plan.blank && self.now % FOUND_EVERY_MS < LOOK_MS {
            // With a third vote, two operators who do not know of each other: one of them loses.
            let both = self.plan.seed % 2 == 0 && self.plan.voting == Voting::Arbiter;
            self.commands(Node::A, Command::Found);
            if both {
                self.commands(Node::B, Command::Found);
            }
        }
        if self.peaceful_since.is_none_or(|at| self.now < at + 10_000 || self.now % 5_000 >= 20) {
            return;
        }
        let amnesia = self.arbiter.as_ref().is_some_and(|a| a.has_amnesia());
        let [a, b] = [0, 1].map(|n: usize| self.machines[n].mirror.as_ref());
        if let (true, Some(a), Some(b)) = (amnesia, a, b) {
            let known = |m: &Mirror| m.registers.iter().map(|(id, r)| (*id, *r)).collect::<Vec<_>>();
            if let Ok(durable) = enrol_again([&known(a), &known(b)]) {
                self.note(|| "operator: witness enrolled again".into());
                self.arbiter_disk = durable;
                self.start_arbiter();
            }
        }
        for node in Node::BOTH {
            self.tell_node(node, Event::Command(Command::Undrain));
            for r in (0..self.resources()).map(|r| ResourceId(r as u16)) {
                let Some(state) = &self.machines[node.index()].state else { continue };
                let holds = state.register(r).is_some_and(|register| register.holder == node);
                let forgot = state.why(r).contains(&Cause::MirrorUnreadable);
                if forgot && self.plan.voting != Voting::Arbiter {
                    self.note(|| format!("operator: {node:?} forgot, {:?} goes on", node.peer()));
                    self.tell_node(node.peer(), Event::Command(Command::Force(r, self.second())));
                    self.tell_node(node, Event::Command(Command::Retry(r)));
                    // The word that the other node knows all there is to know: what only this one knew, of any resource,
                    // is given up.
                    self.forced_from.fill(Some(node));
                    continue;
                }
                if state.phase(r) != Some(Phase::Refused) {
                    continue;
                }
                let unexpected = state.why(r).contains(&Cause::DataUnexpected);
                let split = state.why(r).contains(&Cause::Split);
                self.note(|| format!("operator: {node:?} {} was refused", r.0));
                // Its own data is not what it won with: what the other node has is all there is.
                if holds && unexpected {
                    self.tell_node(node.peer(), Event::Command(Command::Force(r, self.second())));
                }
                let keep = split && node == Node::A;
                let command = if keep { Command::Force(r, self.second()) } else { Command::Retry(r) };
                self.tell_node(node, Event::Command(command));
            }
        }
    }
}

fn wires(fault: Fault) -> Vec<Wire> {
    let between = [Wire::ToPeer(Node::A), Wire::ToPeer(Node::B)];
    match fault {
        Fault::OneWay(wire) => vec![wire],
        Fault::Between => between.to_vec(),
        Fault::Isolated(node) => [between, [Wire::ToWitness(node), Wire::FromWitness(node)]].concat(),
        Fault::NoWitness(node) => vec![Wire::ToWitness(node), Wire::FromWitness(node)],
        _ => Vec::new(),
    }
}
