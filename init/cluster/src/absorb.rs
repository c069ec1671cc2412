//! Events become knowledge; what follows from it is decided afterwards, by the phase.

use crate::action::{Action, ActionId, Actions, Kind, Outcome, Relation, Report};
use crate::event::{Command, Event, Link, Timer, Trouble};
use crate::message::ToPeer;
use crate::phase::Phase;
use crate::state::{RETRY_MS, State};
use crate::types::{Observed, ResourceId, Tick};

impl State {
    pub(crate) fn absorb(&mut self, now: Tick, event: Event, out: &mut Actions) {
        match event {
            Event::Completed(id, outcome) => self.completed(now, id, outcome, out),
            Event::Fired(timer) => self.fired(now, timer, out),
            Event::FromArbiter(message) => self.hear_arbiter(now, &message, out),
            Event::FromPeer(message) => self.hear_peer(now, message, out),
            Event::Link(r, link) if self.seats.contains_key(&r) => {
                self.seat_mut(r).link = Observed::Known(link)
            }
            Event::Ended(r) if self.seats.contains_key(&r) => self.ended(now, r),
            Event::Trouble(r, Trouble::ClientNetwork | Trouble::DiskFull | Trouble::Unhealthy)
                if self.seats.contains_key(&r) =>
            {
                self.seat_mut(r).leave = !self.frozen();
            }
            // Of a resource that is not configured: an adapter and the core disagree; nothing can follow from it.
            Event::Link(..) | Event::Ended(_) | Event::Trouble(..) => {}
            Event::Command(command) => self.command(now, command),
        }
    }

    fn ended(&mut self, now: Tick, r: ResourceId) {
        let phase = self.seat(r).phase;
        self.seat_mut(r).link = Observed::Known(Link::Down);
        if phase.serves() {
            self.go(r, Phase::Fenced);
        } else if phase == Phase::Following {
            self.arm(Timer::Retry(Some(r)), now.plus(RETRY_MS));
            self.go(r, Phase::Inspecting);
        }
    }

    fn command(&mut self, now: Tick, command: Command) {
        match command {
            Command::Found(r) => {
                let founds = self
                    .seats
                    .get(&r)
                    .is_some_and(|s| s.phase == Phase::Unlearned && matches!(s.control, Observed::Known(_)));
                if founds && self.register(r).is_none() {
                    self.go(r, Phase::Founding);
                }
            }
            Command::SwitchOver(r) => {
                if let Some(seat) = self.seats.get_mut(&r) {
                    seat.leave = true;
                }
            }
            Command::Drain => self.drained = true,
            Command::Undrain => self.drained = false,
            Command::Freeze(0) => {
                self.timers.remove(&Timer::Freeze);
            }
            Command::Freeze(span_ms) => self.arm(Timer::Freeze, now.plus(span_ms)),
            Command::Force(r) => self.force(r),
        }
    }

    fn fired(&mut self, now: Tick, timer: Timer, out: &mut Actions) {
        if self.timers.remove(&timer).is_none() {
            return;
        }
        match timer {
            Timer::Beat => self.beat(now, out),
            Timer::LeaseEnd => self.lease_ended(now, out),
            Timer::PeerSilent => self.peer_silent = true,
            Timer::ArbiterSilent => self.arbiter.silent = true,
            Timer::ArbiterGone => self.arbiter.gone = true,
            Timer::HandOver(r) => self.hand_over_expired(r),
            Timer::Backoff(r) => self.backoff_over(r),
            Timer::Resend | Timer::Promise | Timer::Retry(_) | Timer::RetryMarker(_) | Timer::Freeze => {}
        }
    }

    fn hear_peer(&mut self, now: Tick, message: ToPeer, out: &mut Actions) {
        self.peer_silent = false;
        self.peer_off = false;
        self.arm(Timer::PeerSilent, now.plus(self.config.lease_ms));
        match message {
            ToPeer::Mirror(registers) => self.peer_mirror(&registers),
            ToPeer::RenewLease { boot, sequence } => self.promise(now, boot, sequence, out),
            ToPeer::LeasePromised { boot, sequence } => {
                if boot == self.boot {
                    self.extend_lease(now, sequence, out);
                }
            }
            ToPeer::Mark { resource, pact, generation } if self.seats.contains_key(&resource) => {
                self.mark(now, resource, pact, generation, out);
            }
            ToPeer::Marked { resource, pact } if self.seats.contains_key(&resource) => {
                let seat = self.seat_mut(resource);
                seat.marked |= seat.phase == Phase::Marking && seat.pact == Some(pact);
            }
            ToPeer::HandOver { resource, epoch } if self.seats.contains_key(&resource) => {
                self.seat_mut(resource).handed_over = Some(epoch);
            }
            ToPeer::Renounced { resource, pact } if self.seats.contains_key(&resource) => {
                self.seat_mut(resource).renounced = Some(pact);
            }
            // Of a resource that is not configured here: the peer runs another configuration; nothing to say.
            ToPeer::Mark { .. }
            | ToPeer::Marked { .. }
            | ToPeer::HandOver { .. }
            | ToPeer::Renounced { .. } => {}
        }
    }

    /// The driver's contract: one completion for each action that owes one.
    fn completed(&mut self, now: Tick, id: ActionId, outcome: Outcome, out: &mut Actions) {
        if self.pending.remove(&id).is_none() {
            return;
        }
        match (id.kind, id.resource) {
            (Kind::WriteMirror, _) => self.mirror_written(now, outcome),
            (Kind::FencePeer, _) => {
                self.peer_off = matches!(outcome, Outcome::Done(_));
                if !self.peer_off {
                    self.arm(Timer::Retry(None), now.plus(RETRY_MS));
                }
            }
            (Kind::StartVm(vm), _) => {
                if matches!(outcome, Outcome::Done(_)) {
                    self.vms_running.insert(vm);
                }
            }
            (Kind::StopVm(vm), _) => {
                if matches!(outcome, Outcome::Done(_)) {
                    self.vms_running.remove(&vm);
                }
            }
            (_, Some(r)) if self.seats.contains_key(&r) => {
                if matches!(outcome, Outcome::Failed | Outcome::TimedOut) && id.kind != Kind::WriteMarker {
                    self.arm(Timer::Retry(Some(r)), now.plus(RETRY_MS));
                }
                self.completed_one(now, r, id.kind, outcome, out);
            }
            (_, _) => {}
        }
    }

    fn completed_one(&mut self, now: Tick, r: ResourceId, kind: Kind, outcome: Outcome, out: &mut Actions) {
        let done = matches!(outcome, Outcome::Done(_));
        let phase = self.seat(r).phase;
        match kind {
            Kind::WriteMarker => self.marker_written(now, r, outcome, out),
            Kind::ReadControl => self.seat_mut(r).control = control(outcome),
            Kind::Serve => self.served(r, done),
            Kind::Admit => {
                if phase == Phase::Admitting && done {
                    self.go(r, Phase::Sync);
                }
            }
            Kind::ArmSync => self.protect_step(now, r, Phase::Arming, done.then_some(Phase::Barrier)),
            Kind::Barrier => self.protect_step(now, r, Phase::Barrier, done.then_some(Phase::Canary)),
            Kind::Canary => self.canary_done(now, r, outcome),
            Kind::DropSync => {
                if done && matches!(phase, Phase::Dropping | Phase::Disarming) {
                    self.go(r, Phase::Alone);
                }
            }
            Kind::StopClean => self.stopped_clean(now, r, done),
            Kind::Kill => {
                if phase == Phase::Fenced && done && !self.busy(r) {
                    self.forget(r);
                }
            }
            Kind::Inspect => self.inspected(r, outcome),
            Kind::Follow => {
                if phase == Phase::Attaching {
                    self.go(r, if done { Phase::Following } else { Phase::Inspecting });
                }
            }
            Kind::StopFollowing => self.stopped_following(r, done),
            Kind::Rewind | Kind::Clone => self.repaired(r, kind, outcome),
            Kind::Promote => {
                if phase == Phase::Promoting {
                    self.go(r, if done { Phase::Alone } else { Phase::Fenced });
                }
            }
            // Told, not asked, or the node's own: handled above.
            Kind::WriteMirror
            | Kind::ToArbiter
            | Kind::ToPeer
            | Kind::Deadman
            | Kind::OpenGate
            | Kind::CloseGate
            | Kind::FencePeer
            | Kind::StartVm(_)
            | Kind::StopVm(_) => {}
        }
    }

    /// Back to nobody: whatever is believed now must come from somebody else (rule 5).
    pub(crate) fn forget(&mut self, r: ResourceId) {
        self.go(r, Phase::Unlearned);
        let seat = self.seat_mut(r);
        seat.learned = false;
        seat.running = false;
        seat.control = Observed::Unknown;
        seat.link = Observed::Unknown;
        seat.handed_over = None;
        seat.leave = false;
        seat.pact = None;
    }

    fn inspected(&mut self, r: ResourceId, outcome: Outcome) {
        if self.seat(r).phase != Phase::Inspecting {
            return;
        }
        match outcome {
            Outcome::Done(Report::Relation(relation)) => {
                self.seat_mut(r).relation = Some(relation);
                let next = match relation {
                    Relation::Streams => Phase::Attaching,
                    Relation::Diverged | Relation::Unusable => Phase::Clearing,
                    Relation::Foreign => Phase::Refused,
                };
                self.go(r, next);
            }
            Outcome::Done(Report::Nothing | Report::Control(_) | Report::Canary(_))
            | Outcome::Failed
            | Outcome::TimedOut => {}
        }
    }
}

/// A control record, if that is what came back.
pub(crate) fn control(outcome: Outcome) -> Observed<crate::action::Control> {
    match outcome {
        Outcome::Done(Report::Control(control)) => Observed::Known(control),
        Outcome::Done(Report::Nothing | Report::Canary(_) | Report::Relation(_))
        | Outcome::Failed
        | Outcome::TimedOut => Observed::Unknown,
    }
}

impl State {
    pub(crate) fn send_peer(&mut self, now: Tick, out: &mut Actions, message: ToPeer) {
        self.tell(now, out, Action::ToPeer(message), vec![]);
    }
}
