//! Actions of the core, carried out in the simulated world.

use dyad_cluster::action::{Action, Control, Issued, Need, Outcome, Relation, Report};
use dyad_cluster::event::Event;
use dyad_cluster::types::{Generation, Node, ResourceId, SystemId, Timeline};

use super::cluster::{Cluster, Happening, LOOK_MS, Wire};
use super::database::Service;
use super::oracles;

impl Cluster {
    /// Starts an action: messages leave at once, everything else takes its time.
    pub(crate) fn begin(&mut self, node: Node, run: u64, issued: Issued) {
        let clock = self.machines[node.index()].clock;
        match issued.action {
            Action::ToArbiter(message) => {
                return self.send(Wire::ToWitness(node), Happening::Ask(node, message));
            }
            Action::ToPeer(message) => {
                let peer = node.peer();
                let peer_run = self.machines[peer.index()].run;
                return self
                    .send(Wire::ToPeer(node), Happening::Event(peer, peer_run, Event::FromPeer(message)));
            }
            Action::Deadman(tick) => return self.machines[node.index()].deadman = tick,
            Action::OpenGate(until) => return self.machines[node.index()].gate_until = clock.when(until),
            Action::CloseGate => {
                self.machines[node.index()].gate_until = self.now;
                let harmless = self.class == super::faults::Class::Harmless;
                return self.complain(oracles::o9_nothing_moves(harmless, "the address was closed"));
            }
            _ => {}
        }
        let (low, high) = duration_ms(&issued.action);
        let kills = self.kills(node, issued.id.resource);
        let at = self.now + self.random.between(low, high);
        self.put(at, Happening::Finish(node, run, issued, kills));
    }

    fn kills(&self, node: Node, resource: Option<ResourceId>) -> u64 {
        resource.map_or(0, |r| self.machines[node.index()].databases[usize::from(r.0)].kills)
    }

    fn needs_hold(&self, node: Node, needs: &[Need]) -> bool {
        let machine = &self.machines[node.index()];
        let service = |r: ResourceId| machine.databases[usize::from(r.0)].service;
        needs.iter().all(|need| match *need {
            Need::IntentDurable(request) => {
                machine.mirror.intent.as_ref().is_some_and(|i| i.request == request)
            }
            Need::RegisterDurable(r, epoch) => {
                machine.mirror.registers.get(&r).is_some_and(|reg| reg.epoch == epoch)
            }
            Need::NoArbiterDurable(r, epoch) => machine.mirror.no_arbiter.get(&r) == Some(&epoch),
            Need::MarkerDurable(r, pact, generation) => {
                let marker = machine.markers.get(&r).and_then(|file| file.marker);
                marker.is_some_and(|m| m.pact == pact && m.generation == generation)
            }
            Need::MarkerCleared(r) => machine.markers.get(&r).is_none_or(|file| file.marker.is_none()),
            Need::Stopped(r) => service(r) == Service::Stopped,
            Need::NotFollowing(r) => service(r) != Service::Following,
        })
    }

    pub(crate) fn finish(&mut self, node: Node, run: u64, issued: Issued, kills: u64) {
        if self.machines[node.index()].run != run {
            return;
        }
        let id = issued.id;
        let kill = matches!(issued.action, Action::Kill);
        let outcome = if self.machines[node.index()].clock.read(self.now) > issued.deadline {
            Outcome::TimedOut
        } else if !kill && self.kills(node, id.resource) != kills || !self.needs_hold(node, &issued.needs) {
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
        if let Action::WriteMirror(_) | Action::WriteMarker(_) = issued.action {
            return Some(self.write(node, issued));
        }
        let Some(r) = issued.id.resource else { return done };
        let index = usize::from(r.0);
        let reachable = self.connected();
        let at_head = self.at_head(node, index);
        let [a, b] = &mut self.machines;
        let (own, peer) = if node == Node::A { (a, b) } else { (b, a) };
        let holder = &peer.databases[index];
        let from_peer = reachable && holder.service == Service::Serving;
        let fresh = self.generations + 1;
        let database = &mut own.databases[index];
        match &issued.action {
            Action::ReadControl => {}
            Action::Serve { sync } => {
                if database.service != Service::Serving {
                    database.serve(*sync);
                } else if !sync {
                    database.drop_sync();
                }
            }
            Action::Admit => database.admitted = true,
            Action::ArmSync => database.armed = true,
            Action::Barrier => database.published = database.armed,
            Action::Canary if at_head => {
                return Some(Outcome::Done(Report::Canary(Generation(holder.generation))));
            }
            Action::Canary => return None,
            Action::DropSync => database.drop_sync(),
            Action::StopClean if !at_head => return Some(Outcome::Failed),
            Action::StopClean | Action::Kill | Action::StopFollowing => database.stop(),
            Action::Inspect if !from_peer => return Some(Outcome::Failed),
            Action::Inspect => {
                let streams = database.is_prefix_of(holder);
                let relation = if streams { Relation::Streams } else { Relation::Diverged };
                return Some(Outcome::Done(Report::Relation(relation)));
            }
            Action::Follow if !from_peer => return Some(Outcome::Failed),
            Action::Follow => {
                database.service = Service::Following;
                database.in_recovery = true;
            }
            Action::Rewind | Action::Clone if !from_peer => return Some(Outcome::Failed),
            Action::Rewind | Action::Clone => {
                let tail = database.rewind_to(&holder.log, fresh);
                self.generations = fresh;
                self.complain(oracles::o10_quarantined(&tail, &self.acknowledged[index]));
            }
            Action::Promote => database.serve(false),
            Action::WriteMirror(_)
            | Action::WriteMarker(_)
            | Action::ToArbiter(_)
            | Action::ToPeer(_)
            | Action::Deadman(_)
            | Action::OpenGate(_)
            | Action::CloseGate
            | Action::FencePeer
            | Action::StartVm(_)
            | Action::StopVm(_) => {}
        }
        let database = &self.machines[node.index()].databases[index];
        let control = Control {
            system: SystemId(1),
            timeline: Timeline(database.timeline),
            generation: Generation(database.generation),
        };
        match issued.action {
            Action::ReadControl | Action::Rewind | Action::Clone => {
                Some(Outcome::Done(Report::Control(control)))
            }
            Action::Promote => {
                let harmless = self.class == super::faults::Class::Harmless;
                self.complain(oracles::o9_nothing_moves(harmless, "a standby was promoted"));
                let log = &self.machines[node.index()].databases[index].log;
                self.complain(oracles::o1_acknowledged_is_there(log, &self.acknowledged[index]));
                done
            }
            _ => done,
        }
    }

    fn write(&mut self, node: Node, issued: &Issued) -> Outcome {
        let machine = &mut self.machines[node.index()];
        if machine.disk_fails {
            return Outcome::Failed;
        }
        match (&issued.action, issued.id.resource) {
            (Action::WriteMirror(mirror), _) => machine.mirror = mirror.clone(),
            (Action::WriteMarker(marker), Some(r)) => {
                machine.markers.insert(r, *marker);
            }
            (_, _) => {}
        }
        Outcome::Done(Report::Nothing)
    }
}

fn duration_ms(action: &Action) -> (u64, u64) {
    match action {
        Action::WriteMirror(_) | Action::WriteMarker(_) => (1, 30),
        Action::ReadControl | Action::ArmSync | Action::StopFollowing => (5, 50),
        Action::Serve { .. } => (200, 800),
        Action::Barrier | Action::Inspect => (20, 300),
        Action::DropSync | Action::Admit => (1, 20),
        Action::StopClean => (100, 500),
        Action::Kill => (1, 50),
        Action::Follow => (100, 500),
        Action::Rewind => (500, 2_000),
        Action::Clone => (2_000, 10_000),
        Action::Promote => (120, 400),
        Action::Canary | Action::FencePeer | Action::StartVm(_) | Action::StopVm(_) => (5, 20),
        Action::ToArbiter(_)
        | Action::ToPeer(_)
        | Action::Deadman(_)
        | Action::OpenGate(_)
        | Action::CloseGate => (0, 0),
    }
}
