//! Actions of the core, carried out in the simulated world.

use dyad_cluster::action::{Action, Control, Issued, Kind, Need, Outcome, Relation, Report};
use dyad_cluster::event::Event;
use dyad_cluster::mutation::{Mutation, Mutations};
use dyad_cluster::types::{Generation, Node, ResourceId, SystemId, Timeline};

use super::cluster::{Cluster, DATABASE, Happening, LOOK_MS};
use super::database::{Database, Kind as Data, Rewound, Service};
use super::faults::{Fault, Wire};
use super::oracles;

/// A machine that was switched off through its fence device is switched on again after this.
const POWER_ON_MS: u64 = 8_000;
/// Somebody may do that earlier, but a machine needs some time to start.
const BOOT_MS: u64 = 2 * dyad_cluster::PEER_OFF_MS;

impl Cluster {
    /// Starts an action: messages leave at once, everything else takes its time.
    pub(crate) fn begin(&mut self, node: Node, run: u64, issued: Issued) {
        let clock = self.machines[node.index()].clock;
        match issued.action {
            Action::ToArbiter(greeting, message) => {
                return self.send(Wire::ToWitness(node), Happening::Ask(node, greeting, message));
            }
            Action::ToPeer(message) => {
                let peer = node.peer();
                let peer_run = self.machines[peer.index()].run;
                return self
                    .send(Wire::ToPeer(node), Happening::Event(peer, peer_run, Event::FromPeer(message)));
            }
            Action::Deadman(tick) => return self.machines[node.index()].deadman = tick,
            Action::OpenGate { vip, until } => {
                let until = clock.when(until);
                if self.machines[node.index()].gates.insert(vip, until).is_none() {
                    self.note(|| format!("{node:?} address {} opens", vip.0));
                }
                return;
            }
            Action::CloseGate(vip) => {
                self.machines[node.index()].gates.remove(&vip);
                self.note(|| format!("{node:?} address {} closes", vip.0));
                return self.moved("the address was closed");
            }
            _ => {}
        }
        if let (Action::Kill, Some(r)) = (&issued.action, issued.id.resource) {
            let now = self.now;
            let database = &mut self.machines[node.index()].databases[usize::from(r.0)];
            if database.service != Service::Stopped {
                database.killing_since = database.killing_since.or(Some(now));
            }
        }
        let (low, high) = duration_ms(&issued.action);
        let busy = if self.has(Fault::Busy(node)) { 4 } else { 1 };
        let kills = self.kills(node, issued.id.resource);
        let slow = self.has(Fault::SlowDisk(node))
            && matches!(issued.id.kind, Kind::WriteMirror | Kind::WriteMarker);
        let at = self.now + self.random.between(low, high) * busy + if slow { 1_000 } else { 0 };
        self.put(at, Happening::Finish(node, run, issued, kills));
    }

    fn kills(&self, node: Node, resource: Option<ResourceId>) -> u64 {
        resource.map_or(0, |r| self.machines[node.index()].databases[usize::from(r.0)].kills)
    }

    fn needs_hold(&self, node: Node, needs: &[Need]) -> bool {
        let machine = &self.machines[node.index()];
        let service = |r: ResourceId| machine.databases[usize::from(r.0)].service;
        let mirror =
            |held: &dyn Fn(&dyad_cluster::disk::Mirror) -> bool| machine.mirror.as_ref().is_some_and(held);
        needs.iter().all(|need| match *need {
            Need::IntentDurable(request) => {
                mirror(&|m| m.intent.as_ref().is_some_and(|i| i.request == request))
            }
            Need::RegisterDurable(r, epoch) => {
                mirror(&|m| m.registers.get(&r).is_some_and(|reg| reg.epoch == epoch))
            }
            Need::NoArbiterDurable(r, epoch) => mirror(&|m| m.no_arbiter.get(&r) == Some(&epoch)),
            Need::MarkerDurable(r, pact, generation) => {
                let marker = machine.markers.get(&r).and_then(|file| file.marker);
                marker.is_some_and(|m| m.pact == pact && m.generation == generation)
            }
            Need::MarkerCleared(r) => machine.markers.get(&r).is_none_or(|file| file.marker.is_none()),
            Need::Stopped(r) => service(r) == Service::Stopped,
            Need::NotFollowing(r) => service(r) != Service::Following,
            Need::Before(end) => machine.clock.read(self.now) < end,
        })
    }

    pub(crate) fn finish(&mut self, node: Node, run: u64, issued: Issued, kills: u64) {
        if self.machines[node.index()].run != run {
            return;
        }
        let id = issued.id;
        let kill = matches!(issued.action, Action::Kill);
        // The driver's second look at a clause is broken with it.
        let checked = self.mutations == Mutations::default();
        let outcome = if self.machines[node.index()].clock.read(self.now) > issued.deadline {
            // Nobody knows: a write may have reached the disk all the same.
            if self.random.permille(500) {
                self.write(node, &issued);
            }
            Outcome::TimedOut
        } else if !kill && self.kills(node, id.resource) != kills
            || checked && !self.needs_hold(node, &issued.needs)
        {
            Outcome::Failed
        } else {
            match self.carry_out(node, &issued) {
                Some(outcome) => outcome,
                None => return self.put(self.now + LOOK_MS, Happening::Finish(node, run, issued, kills)),
            }
        };
        self.event(node, run, Event::Completed(id, outcome));
    }

    /// `None`: not yet.
    fn carry_out(&mut self, node: Node, issued: &Issued) -> Option<Outcome> {
        let done = Some(Outcome::Done(Report::Nothing));
        let hangs = self.has(Fault::HungDisk(node));
        if let Action::WriteMirror(_) | Action::WriteMarker(_) = issued.action {
            return if hangs { None } else { Some(self.write(node, issued)) };
        }
        if issued.action == Action::FencePeer {
            let peer = node.peer();
            self.note(|| format!("{node:?} switches {peer:?} off"));
            self.power_off(peer);
            self.machines[peer.index()].off_until = self.now + BOOT_MS;
            let boot = self.machines[peer.index()].boot;
            self.put(self.now + POWER_ON_MS, Happening::PowerOn(peer, boot));
            return done;
        }
        let Some(r) = issued.id.resource else { return done };
        let index = usize::from(r.0);
        if hangs && self.machines[node.index()].databases[index].service == Service::Serving {
            return None;
        }
        match issued.action {
            Action::Inspect | Action::Follow | Action::Rewind | Action::Clone => {
                self.with_holder(node, index, &issued.action)
            }
            Action::Canary
                if self.at_head(node, index) || self.mutations.broken(Mutation::CanaryNotAwaited) =>
            {
                let peer = &self.machines[node.peer().index()].databases[index];
                Some(Outcome::Done(Report::Canary(Generation(peer.generation))))
            }
            Action::Canary => None,
            Action::StopClean if !self.at_head(node, index) => Some(Outcome::Failed),
            _ => self.alone(node, r, &issued.action),
        }
    }

    /// What needs the other node's running service.
    fn with_holder(&mut self, node: Node, index: usize, action: &Action) -> Option<Outcome> {
        let reachable = self.connected();
        let [a, b] = &mut self.machines;
        let (own, peer) = if node == Node::A { (a, b) } else { (b, a) };
        let holder = &peer.databases[index];
        if !reachable || holder.service != Service::Serving {
            return Some(Outcome::Failed);
        }
        let fresh = self.generations + 1;
        let database = &mut own.databases[index];
        let tail = match action {
            Action::Inspect => return Some(Outcome::Done(Report::Relation(relation(database, holder)))),
            Action::Follow => {
                database.follow();
                // It takes part again: from here on nothing that it acknowledges may be lost.
                self.forced_from[index] = self.forced_from[index].filter(|loser| *loser != node);
                return Some(Outcome::Done(Report::Nothing));
            }
            Action::Rewind => match database.rewind_to(holder, fresh) {
                Rewound::Done(tail) => tail,
                Rewound::NotRequired => return Some(Outcome::Failed),
            },
            _ => database.clone_of(holder, fresh),
        };
        let control = control(database);
        self.generations = fresh;
        if self.forced_from[index] != Some(node) {
            self.complain(oracles::o10_quarantined(&tail, &self.acknowledged[index]));
        }
        self.note(|| format!("{node:?} {index} repaired, {} writes in quarantine", tail.len()));
        Some(Outcome::Done(Report::Control(control)))
    }

    fn alone(&mut self, node: Node, r: ResourceId, action: &Action) -> Option<Outcome> {
        let index = usize::from(r.0);
        let now = self.now;
        let machine = &mut self.machines[node.index()];
        let database = &mut machine.databases[index];
        let done = Some(Outcome::Done(Report::Nothing));
        let was_serving = database.service == Service::Serving;
        match action {
            Action::ReadControl => return Some(Outcome::Done(Report::Control(control(database)))),
            // A running one goes on; what its file says is set again.
            Action::Serve { sync } if was_serving => database.arm(*sync),
            // Only a stream that stays away for its timeout is told to be down.
            Action::Serve { sync } => {
                database.serve(*sync);
                database.streamed = Some(now);
            }
            Action::Admit => database.admitted = true,
            Action::ArmSync => database.arm(true),
            // Two checkpoints: the checkpointer has told everybody.
            Action::Barrier if database.checkpointer_runs => {
                database.publish();
                database.checkpoint();
            }
            Action::Checkpoint if database.checkpointer_runs => {
                database.checkpoint();
            }
            Action::Barrier | Action::Checkpoint => return None,
            Action::DropSync => {
                database.armed = false;
                if !database.checkpointer_runs {
                    return None;
                }
            }
            Action::StopClean => database.stop_clean(),
            Action::Kill | Action::StopFollowing => {
                database.stop();
            }
            Action::Promote => database.serve(false),
            Action::StartVm(vm) => {
                machine.vms.insert(*vm);
            }
            _ => {}
        }
        if matches!(action, Action::StopClean | Action::Kill) {
            machine.vms.retain(|vm| vm.0 != r.0);
        }
        self.after(node, r, action, was_serving, now);
        done
    }

    /// What clients and oracles see of it.
    fn after(&mut self, node: Node, r: ResourceId, action: &Action, was_serving: bool, now: u64) {
        let index = usize::from(r.0);
        match action {
            Action::DropSync => {
                // It may go on by an operator's word.
                self.settle_price(node, index);
                let let_go = self.machines[node.index()].databases[index].publish();
                self.machines[node.index()].databases[index].admitted = true;
                let_go.into_iter().for_each(|at| self.acknowledge(node, index, at));
            }
            // Readers see everything that is in the log, acknowledged before or not.
            Action::Admit => self.show_all(node, index),
            Action::Serve { sync } if !was_serving => {
                self.settle_price(node, index);
                if !sync {
                    self.show_all(node, index);
                }
                // The first start of a pair is no restart.
                if self.machines[node.index()].boot > 1 || now > 15_000 {
                    self.moved("a service was started");
                }
            }
            Action::Promote => {
                self.moved("a standby was promoted");
                self.settle_price(node, index);
                let log = &self.machines[node.index()].databases[index].log;
                self.complain(oracles::o1_acknowledged_is_there(log, &self.acknowledged[index]));
                self.show_all(node, index);
            }
            Action::StartVm(vm) => {
                let log = &self.machines[node.index()].databases[index].log;
                // Of a machine that an operator said is off, whatever was under way there may still begin.
                if self.forced_from[index] != Some(node) {
                    self.complain(oracles::o7_counter_is_monotone(log, &self.acknowledged[index]));
                }
                self.note(|| format!("{node:?} machine {} starts", vm.0));
            }
            _ => {}
        }
    }

    /// What an operator's take-over gave up, now that the other side serves.
    fn settle_price(&mut self, node: Node, index: usize) {
        let Some(loser) = self.forced_from[index].filter(|loser| *loser != node) else { return };
        let log = &self.machines[node.index()].databases[index].log;
        // Its timelines went with what it wrote.
        self.timelines.retain(|(r, _), owner| *r != index || *owner != loser);
        let before = self.acknowledged[index].len();
        self.acknowledged[index].retain(|(write, by, _)| *by != loser || log.contains(write));
        let given_up = before - self.acknowledged[index].len();
        self.given_up += given_up;
        self.complain(oracles::price_was_true(self.free[index], given_up));
        self.note(|| format!("forced take-over of {index} gave up {given_up} acknowledged writes"));
    }

    fn show_all(&mut self, node: Node, index: usize) {
        let shown = self.acknowledged[index].last().map_or(0, |(write, _, _)| *write);
        let log = &self.machines[node.index()].databases[index].log;
        let waiting = &self.machines[node.index()].databases[index].waiting;
        let fresh: Vec<usize> = (0..log.len()).rev().take_while(|at| log[*at] > shown).collect();
        let seen: Vec<usize> = fresh.into_iter().rev().filter(|at| !waiting.contains(at)).collect();
        for at in seen {
            self.acknowledge(node, index, at);
        }
    }

    fn write(&mut self, node: Node, issued: &Issued) -> Outcome {
        let failing = self.has(Fault::StateDisk(node));
        let machine = &mut self.machines[node.index()];
        if failing {
            return Outcome::Failed;
        }
        match (&issued.action, issued.id.resource) {
            (Action::WriteMirror(mirror), _) => {
                let before = machine.mirror.replace(mirror.clone());
                if self.plan.voting != dyad_cluster::Voting::Arbiter {
                    let old = before.map(|m| m.registers).unwrap_or_default();
                    let own = mirror.registers.iter().filter(|(id, register)| {
                        register.holder == node && old.get(id).is_none_or(|o| o.epoch < register.epoch)
                    });
                    own.for_each(|(id, register)| self.changed(*id, *register));
                }
            }
            (Action::WriteMarker(marker), Some(r)) => {
                machine.markers.insert(r, *marker);
            }
            (_, _) => {}
        }
        Outcome::Done(Report::Nothing)
    }
}

fn control(database: &Database) -> Control {
    Control {
        system: SystemId(1),
        timeline: Timeline(database.timeline),
        generation: Generation(database.generation),
    }
}

/// What the adapter finds when it compares control files, histories and the checksum of the last common WAL page.
pub(crate) fn relation(own: &Database, holder: &Database) -> Relation {
    let mut asked = own.clone();
    asked.service = Service::Following;
    if own.blank {
        Relation::Unusable
    } else if own.is_prefix_of(holder) && asked.may_stream_from(holder) {
        Relation::Streams
    } else if own.kind == Data::Volume {
        Relation::Diverged
    } else if own.timeline == holder.timeline {
        Relation::Unusable
    } else if holder.control_timeline != holder.timeline {
        Relation::TooEarly
    } else if own.control_timeline == holder.control_timeline {
        Relation::Unusable
    } else {
        Relation::Diverged
    }
}

fn duration_ms(action: &Action) -> (u64, u64) {
    match action {
        Action::WriteMirror(_) | Action::WriteMarker(_) => (1, 30),
        Action::ReadControl | Action::ArmSync | Action::StopFollowing | Action::LimitWrites(_) => (5, 50),
        Action::Serve { .. } => (200, 800),
        Action::Barrier | Action::Inspect | Action::Checkpoint => (20, 300),
        Action::DropSync | Action::Admit => (1, 20),
        Action::StopClean => (100, 500),
        Action::Kill => (1, 50),
        Action::Follow => (100, 500),
        Action::Rewind => (500, 2_000),
        Action::Clone => (2_000, 10_000),
        Action::Promote => (120, 400),
        Action::FencePeer => (1_000, 4_000),
        Action::Canary | Action::StartVm(_) => (5, 20),
        Action::ToArbiter(..)
        | Action::ToPeer(_)
        | Action::Deadman(_)
        | Action::OpenGate { .. }
        | Action::CloseGate(_) => (0, 0),
    }
}

/// The database's gate, on the true clock.
pub(crate) fn gate_until(cluster: &Cluster, node: Node) -> u64 {
    debug_assert_eq!(DATABASE.0, 0);
    cluster.machines[node.index()].gates.get(&super::cluster::VIP).copied().unwrap_or(0)
}
