//! The world of the explorer: two nodes that run the real `step`, the real arbiter, and all that can happen between
//! them, as one value. What is left out, and why that loses nothing, stands in docs/protocol.md.

use std::collections::{BTreeMap, BTreeSet};

use dyad_cluster::action::{Action, ActionId, Control, Issued, Kind, Need, Outcome, Relation, Report};
use dyad_cluster::arbiter::{Arbiter, Durable};
use dyad_cluster::disk::{MarkerFile, Mirror};
use dyad_cluster::event::{Event, Link, Timer};
use dyad_cluster::message::{Answer, Authenticated, FromArbiter, ToArbiter, ToPeer};
use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::{Mode, Reason, Register};
use dyad_cluster::types::{
    BootId, Epoch, Generation, Greeting, Incarnation, Node, ResourceId, SystemId, Tick, Timeline,
};
use dyad_cluster::{Config, Found, Mutations, Running, State, Voting, step};

use super::shared::Shared;

/// The one resource of the explored cluster.
pub(crate) const R: ResourceId = ResourceId(0);
/// All clocks stand: every timer may fire at any moment instead.
const NOW: Tick = Tick(1_000_000);
const LEASE_MS: u64 = 3_000;

/// How much of everything may happen in one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Client writes.
    pub writes: u8,
    /// Highest epoch.
    pub epochs: u8,
    /// Crashes of a node, with reboot.
    pub crashes: u8,
    /// Standby copies found unusable, or disks swapped while a node is down.
    pub reclones: u8,
    /// Times that the holder sees its standby go.
    pub cuts: u8,
    /// Times that a standby suspects its holder.
    pub suspicions: u8,
    /// Restarts of the arbiter.
    pub restarts: u8,
    /// Restarts of the arbiter from an old copy of its disk.
    pub rollbacks: u8,
    /// The arbiter may be taken for gone (rule 10).
    pub gone: bool,
    /// Planned hand-overs.
    pub switchovers: u8,
    /// Restarts of a supervisor alone: same boot, the services run on.
    pub supervisors: u8,
    /// Leases that end early.
    pub lease_ends: u8,
}

/// A message under way. It stays: it may arrive late, more than once, or never.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Letter {
    /// To the arbiter.
    Ask(Node, Greeting, ToArbiter),
    /// From it.
    Tell(Node, Greeting, FromArbiter),
    /// To a node from the other.
    Peer(Node, ToPeer),
}

/// What runs on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    Stopped,
    Following,
    /// `armed`: the setting; `published`: what the backends go by.
    Serving {
        armed: bool,
        published: bool,
        admitted: bool,
    },
}

/// A node: its mind (none while it is down), its disk and what runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Machine {
    pub(crate) state: Option<State>,
    pub(crate) boot: u64,
    pub(crate) mirror: Mirror,
    pub(crate) marker: MarkerFile,
    pub(crate) generation: u64,
    /// The writes in this copy of the data, in order.
    pub(crate) log: Vec<u8>,
    pub(crate) service: Service,
    pub(crate) pending: BTreeMap<ActionId, Issued>,
    pub(crate) link: Option<Link>,
    /// What its questions are asked under now.
    pub(crate) greeting: Greeting,
}

/// Everything.
#[derive(Debug, Clone, Hash)]
pub(crate) struct World {
    pub(crate) left: Bounds,
    pub(crate) machines: [Shared<Machine>; 2],
    pub(crate) arbiter: Shared<Arbiter>,
    pub(crate) old_disk: Shared<Durable>,
    pub(crate) incarnation: u64,
    pub(crate) generations: u64,
    pub(crate) letters: Shared<BTreeSet<Shared<Letter>>>,
    pub(crate) written: u8,
    pub(crate) acknowledged: BTreeSet<u8>,
    pub(crate) mutations: Mutations,
    pub(crate) voting: Voting,
    /// Edges of the phase table since they were last taken from here; empty whenever worlds are compared.
    pub(crate) edges: Vec<(Phase, Phase)>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What.
    pub what: String,
}

impl World {
    /// A holds `Solo` at epoch 1 with an empty log; both nodes have just booted.
    pub(crate) fn new(bounds: Bounds, broken: &[Mutation], voting: Voting) -> World {
        let mutations = Mutations::of(broken);
        let founded =
            Register { epoch: Epoch(1), mode: Mode::Solo, holder: Node::A, reason: Reason::Founded };
        let machine = |node: Node| {
            Shared::new(Machine {
                state: None,
                boot: 0,
                mirror: Mirror {
                    registers: BTreeMap::from([(R, founded)]),
                    won: if node == Node::A { BTreeMap::from([(R, Generation(1))]) } else { BTreeMap::new() },
                    ..Mirror::default()
                },
                marker: MarkerFile::default(),
                generation: if node == Node::A { 1 } else { 2 },
                log: Vec::new(),
                service: Service::Stopped,
                pending: BTreeMap::new(),
                link: None,
                greeting: Greeting(0),
            })
        };
        let durable = Durable { registers: BTreeMap::from([(R, founded)]), ..Durable::default() };
        let mut world = World {
            left: bounds,
            machines: [machine(Node::A), machine(Node::B)],
            arbiter: Shared::new(
                Arbiter::start(durable.clone(), Incarnation(1), NOW, 0, false).with(mutations),
            ),
            old_disk: Shared::new(durable),
            incarnation: 1,
            generations: 2,
            letters: Shared::new(BTreeSet::new()),
            written: 0,
            acknowledged: BTreeSet::new(),
            mutations,
            voting,
            edges: Vec::new(),
        };
        for node in Node::BOTH {
            world.boot(node);
        }
        world
    }

    pub(crate) fn boot(&mut self, node: Node) {
        self.machines[node.index()].change().boot += 1;
        self.start(node);
    }

    /// A supervisor starts; what ran before it still runs, what it had asked for it has forgotten.
    pub(crate) fn start(&mut self, node: Node) {
        let (mutations, voting) = (self.mutations, self.voting);
        let machine = self.machines[node.index()].change();
        machine.pending.clear();
        machine.link = None;
        let config = Config {
            me: node,
            lease_ms: LEASE_MS,
            voting,
            resources: vec![R],
            vms: Vec::new(),
            memory_mib: [0; 2],
            vips: Vec::new(),
            mutations,
        };
        let found = Found {
            mirror: Some(machine.mirror.clone()),
            markers: BTreeMap::from([(R, machine.marker)]),
            running: match machine.service {
                Service::Stopped => BTreeMap::new(),
                Service::Following => BTreeMap::from([(R, Running::Following)]),
                Service::Serving { .. } => BTreeMap::from([(R, Running::Serving)]),
            },
            vms: BTreeSet::new(),
        };
        let boot = BootId { count: machine.boot, nonce: machine.boot * 2 + node.index() as u64 };
        machine.state = Some(State::new(config, boot, NOW, found));
        self.tell(node, Event::Fired(Timer::Freeze));
    }

    pub(crate) fn crash(&mut self, node: Node) {
        let machine = self.machines[node.index()].change();
        machine.state = None;
        machine.service = Service::Stopped;
        machine.pending.clear();
        machine.link = None;
        // Answers to a boot that is over are dropped by the node; dropping them here keeps equal worlds equal.
        self.letters.change().retain(|letter| !matches!(**letter, Letter::Tell(to, ..) if to == node));
    }

    /// One event to a node, and everything that follows at once and can interleave with nothing.
    pub(crate) fn tell(&mut self, node: Node, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(state) = &mut self.machines[node.index()].change().state else { return };
            let issued = step(state, NOW, event);
            self.edges.extend(state.edges().iter().map(|(_, from, to)| (*from, *to)));
            let boot = self.machines[node.index()].boot;
            for action in issued {
                self.carry(node, action);
            }
            let read =
                self.machines[node.index()].pending.keys().find(|id| id.kind == Kind::ReadControl).copied();
            if let Some(id) = read {
                // What it reads changes only while the node is down.
                let generation = self.machines[node.index()].generation;
                self.machines[node.index()].change().pending.remove(&id);
                events.push(Event::Completed(id, Outcome::Done(Report::Control(control(generation)))));
                continue;
            }
            let Some(state) = &self.machines[node.index()].state else { return };
            // Waits that only slow things down are over at once; leases are granted whenever one is wanted.
            let idle = |t: &&Timer| matches!(t, Timer::Retry(_) | Timer::RetryMarker(_) | Timer::Backoff(_));
            if let Some(timer) = state.timers().keys().find(idle) {
                events.push(Event::Fired(*timer));
            } else if state.phase(R) == Some(Phase::Marking) && !state.timers().contains_key(&Timer::LeaseEnd)
                || state.phase(R) == Some(Phase::Starting) && !state.timers().contains_key(&Timer::LeaseEnd)
            {
                let boot = BootId { count: boot, nonce: boot * 2 + node.index() as u64 };
                events.push(Event::FromPeer(ToPeer::LeasePromised {
                    boot,
                    sequence: NOW.0,
                    registers: Vec::new(),
                }));
            }
        }
        // These change nothing but what is under way, and what is under way may be late or lost: so they come at once.
        for timer in [Timer::Resend, Timer::Beat] {
            let Some(state) = &mut self.machines[node.index()].change().state else { return };
            for action in step(state, NOW, Event::Fired(timer)) {
                self.carry(node, action);
            }
        }
    }

    fn carry(&mut self, node: Node, issued: Issued) {
        match issued.action {
            // Renewals are a move of their own; mirrors teach nothing that the arbiter's answers do not, if there is one.
            Action::ToPeer(message @ ToPeer::Mirror(_)) if self.voting != Voting::Arbiter => {
                self.post(Letter::Peer(node.peer(), message));
            }
            Action::ToArbiter(greeting, message) => {
                self.machines[node.index()].change().greeting = greeting;
                if !matches!(message, ToArbiter::Renew { .. }) {
                    self.post(Letter::Ask(node, greeting, message));
                }
            }
            Action::ToPeer(
                ToPeer::Mirror(_)
                | ToPeer::Condition { .. }
                | ToPeer::RenewLease { .. }
                | ToPeer::LeasePromised { .. },
            ) => {}
            Action::ToPeer(message) => {
                self.post(Letter::Peer(node.peer(), message));
            }
            Action::Deadman(_) | Action::OpenGate { .. } | Action::CloseGate(_) => {}
            // These go on beside the protocol; the simulator has them.
            Action::Checkpoint | Action::LimitWrites(_) | Action::StartVm(_) => {}
            _ => {
                self.machines[node.index()].change().pending.insert(issued.id, issued);
            }
        }
    }

    fn post(&mut self, letter: Letter) {
        let letter = Shared::new(letter);
        if !self.letters.contains(&letter) {
            self.letters.change().insert(letter);
        }
    }

    /// The real arbiter handles a message; the answer is under way.
    pub(crate) fn ask(&mut self, from: Node, greeting: Greeting, message: ToArbiter) {
        let answer = self.arbiter.change().handle(NOW, &Authenticated { from, message });
        let machine = &self.machines[from.index()];
        let alive = machine.state.is_some() && answer.boot.count == machine.boot;
        if alive {
            self.post(Letter::Tell(from, greeting, answer));
        }
    }

    /// A renewal there and back: it only tells the registers, and an old one would tell older ones.
    pub(crate) fn renew(&mut self, node: Node) -> bool {
        let boot = self.machines[node.index()].boot;
        let message = ToArbiter::Renew {
            boot: BootId { count: boot, nonce: boot * 2 + node.index() as u64 },
            incarnation: Incarnation(self.incarnation),
            sequence: NOW.0,
        };
        let answer = self.arbiter.change().handle(NOW, &Authenticated { from: node, message });
        let renewed = matches!(answer.answer, Answer::Renewed { .. });
        let greeting = self.machines[node.index()].greeting;
        if renewed {
            self.tell(node, Event::FromArbiter(greeting, answer));
        } else {
            self.post(Letter::Tell(node, greeting, answer));
        }
        renewed
    }

    pub(crate) fn restart_arbiter(&mut self, rolled_back: bool) {
        let disk = if rolled_back { (*self.old_disk).clone() } else { self.arbiter.durable().clone() };
        self.incarnation += 1;
        self.arbiter = Shared::new(
            Arbiter::start(disk, Incarnation(self.incarnation), NOW, 0, false).with(self.mutations),
        );
    }

    fn follows(&self, standby: Node) -> bool {
        self.machines[standby.index()].service == Service::Following
            && matches!(self.machines[standby.peer().index()].service, Service::Serving { .. })
            && self.machines[standby.peer().index()].log.starts_with(&self.machines[standby.index()].log)
    }

    /// The standby has all that the holder has.
    pub(crate) fn at_head(&self, holder: Node) -> bool {
        self.follows(holder.peer()) && self.machines[0].log == self.machines[1].log
    }

    /// One more write reaches the standby's disk.
    pub(crate) fn stream(&mut self, standby: Node) -> bool {
        let follows = self.follows(standby);
        let have = self.machines[standby.index()].log.len();
        let next = self.machines[standby.peer().index()].log.get(have).copied();
        if let (true, Some(next)) = (follows, next) {
            self.machines[standby.index()].change().log.push(next);
            return true;
        }
        false
    }

    fn needs_hold(&self, node: Node, needs: &[Need]) -> bool {
        let machine = &self.machines[node.index()];
        needs.iter().all(|need| match *need {
            Need::IntentDurable(request) => {
                machine.mirror.intent.as_ref().is_some_and(|i| i.request == request)
            }
            Need::RegisterDurable(_, epoch) => {
                machine.mirror.registers.get(&R).is_some_and(|r| r.epoch == epoch)
            }
            Need::NoArbiterDurable(_, epoch) => machine.mirror.no_arbiter.get(&R) == Some(&epoch),
            Need::MarkerDurable(_, pact, generation) => {
                machine.marker.marker.is_some_and(|m| m.pact == pact && m.generation == generation)
            }
            Need::MarkerCleared(_) => machine.marker.marker.is_none(),
            Need::Stopped(_) => machine.service == Service::Stopped,
            Need::NotFollowing(_) => machine.service != Service::Following,
            // Clocks stand.
            Need::Before(_) => true,
        })
    }

    /// Carries an action out. `None`: it cannot end yet. A mutated core skips what its clause would have needed.
    pub(crate) fn finish(&mut self, node: Node, id: ActionId) -> Option<Outcome> {
        let issued = self.machines[node.index()].pending.get(&id)?.clone();
        let checked = self.mutations == Mutations::default();
        if checked && !self.needs_hold(node, &issued.needs) {
            return Some(Outcome::Failed);
        }
        let peer = node.peer();
        let at_head = self.at_head(node);
        let seen = at_head || self.mutations.broken(Mutation::CanaryNotAwaited);
        let peer_log = self.machines[peer.index()].log.clone();
        let peer_serves = matches!(self.machines[peer.index()].service, Service::Serving { .. });
        let peer_generation = Generation(self.machines[peer.index()].generation);
        let fresh = self.generations + 1;
        let machine = self.machines[node.index()].change();
        let done = Some(Outcome::Done(Report::Nothing));
        match issued.action {
            Action::WriteMirror(mirror) => machine.mirror = mirror,
            Action::WriteMarker(marker) => machine.marker = marker,
            Action::ReadControl => return Some(Outcome::Done(Report::Control(control(machine.generation)))),
            Action::Serve { sync } if matches!(machine.service, Service::Serving { .. }) => {
                set(machine, |armed, published, admitted| {
                    (*armed, *published, *admitted) = (sync, sync, !sync || *admitted);
                })
            }
            Action::Serve { sync } => {
                machine.service = Service::Serving { armed: sync, published: sync, admitted: !sync }
            }
            Action::Admit => set(machine, |_, _, admitted| *admitted = true),
            Action::ArmSync => set(machine, |armed, _, _| *armed = true),
            Action::Barrier => set(machine, |armed, published, _| *published = *armed),
            Action::Canary if seen => return Some(Outcome::Done(Report::Canary(peer_generation))),
            Action::Canary => return Some(Outcome::Failed),
            Action::DropSync => set(machine, |armed, published, admitted| {
                *armed = false;
                *published = false;
                *admitted = true;
            }),
            Action::StopClean if at_head => machine.service = Service::Stopped,
            Action::StopClean => return Some(Outcome::Failed),
            Action::Kill | Action::StopFollowing => machine.service = Service::Stopped,
            Action::Inspect if !peer_serves => return None,
            Action::Inspect => {
                return Some(Outcome::Done(Report::Relation(relation(&machine.log, &peer_log))));
            }
            Action::Follow => machine.service = Service::Following,
            Action::Rewind | Action::Clone if !peer_serves => return None,
            Action::Rewind => {
                let common = machine.log.iter().zip(&peer_log).take_while(|(a, b)| a == b).count();
                machine.log.truncate(common);
                machine.generation = fresh;
                self.generations = fresh;
                return Some(Outcome::Done(Report::Control(control(fresh))));
            }
            Action::Clone => {
                // A copy is worth nothing until the stream has filled it: the worst that a base backup can be.
                machine.log.clear();
                machine.generation = fresh;
                self.generations = fresh;
                return Some(Outcome::Done(Report::Control(control(fresh))));
            }
            Action::Promote => {
                machine.service = Service::Serving { armed: false, published: false, admitted: true }
            }
            Action::FencePeer => self.crash(peer),
            Action::ToArbiter(..)
            | Action::ToPeer(_)
            | Action::Deadman(_)
            | Action::OpenGate { .. }
            | Action::CloseGate(_)
            | Action::Checkpoint
            | Action::LimitWrites(_)
            | Action::StartVm(_) => {}
        }
        done
    }

    /// A holder that can acknowledge without its standby.
    pub(crate) fn alone(&self, node: Node) -> bool {
        matches!(
            self.machines[node.index()].service,
            Service::Serving { published: false, admitted: true, .. }
        )
    }

    pub(crate) fn can_acknowledge(&self, node: Node, write: u8) -> bool {
        let machine = &self.machines[node.index()];
        let serving = matches!(machine.service, Service::Serving { admitted: true, .. });
        let flushed = self.follows(node.peer()) && self.machines[node.peer().index()].log.contains(&write);
        serving && machine.log.contains(&write) && (self.alone(node) || flushed)
    }

    /// What must hold in every world.
    pub(crate) fn check(&self) -> Result<(), Violation> {
        if self.alone(Node::A) && self.alone(Node::B) {
            return Err(Violation { what: "O2: both nodes acknowledge alone".into() });
        }
        for node in Node::BOTH {
            let missing = self.acknowledged.iter().find(|w| !self.machines[node.index()].log.contains(w));
            if let (true, Some(write)) = (self.alone(node), missing) {
                return Err(Violation {
                    what: format!("O1: {node:?} serves alone without acknowledged write {write}"),
                });
            }
        }
        Ok(())
    }
}

fn relation(mine: &[u8], theirs: &[u8]) -> Relation {
    if theirs.starts_with(mine) { Relation::Streams } else { Relation::Diverged }
}

fn control(generation: u64) -> Control {
    Control { system: SystemId(1), timeline: Timeline(1), generation: Generation(generation) }
}

fn set(machine: &mut Machine, change: impl FnOnce(&mut bool, &mut bool, &mut bool)) {
    if let Service::Serving { armed, published, admitted } = &mut machine.service {
        change(armed, published, admitted);
    }
}
