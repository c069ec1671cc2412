//! Events become knowledge; what follows from it is decided afterwards, by the phase.

use crate::action::{Action, ActionId, Actions, Kind, Outcome, Relation, Report};
use crate::event::{Command, Event, Timer};
use crate::message::ToPeer;
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::state::{PEER_OFF_MS, RETRY_MS, State, Voting};
use crate::types::{Observed, ResourceId, Tick};

impl State {
    pub(crate) fn absorb(&mut self, now: Tick, event: Event, out: &mut Actions) {
        match event {
            Event::Completed(id, outcome) => self.completed(now, id, outcome, out),
            Event::Fired(timer) => self.fired(now, timer, out),
            Event::FromArbiter(asked, message) => self.hear_arbiter(now, asked, &message, out),
            Event::FromPeer(message) => self.hear_peer(now, message, out),
            Event::Link(r, link) if self.seats.contains_key(&r) => {
                self.seat_mut(r).link = Observed::Known(link)
            }
            Event::Ended(r) if self.seats.contains_key(&r) => self.ended(now, r),
            Event::Unhealthy(r) if self.seats.contains_key(&r) => self.unhealthy(now, r),
            // Of a resource that is not configured: an adapter and the core disagree; nothing can follow from it.
            Event::Link(..) | Event::Ended(_) | Event::Unhealthy(_) => {}
            Event::Condition(condition) => self.see_condition(now, condition),
            Event::VmEnded(vm) => {
                self.vms_running.remove(&vm);
            }
            Event::Command(command) => self.command(now, command),
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
                // Only the holder can: a wish kept by the other node would move the resource straight back.
                let holds = self.holds(r);
                if let Some(seat) = self.seats.get_mut(&r) {
                    seat.leave = holds;
                }
            }
            Command::Drain => self.drained = true,
            Command::Undrain => self.drained = false,
            Command::Freeze(0) => {
                self.timers.remove(&Timer::Freeze);
            }
            Command::Freeze(span_ms) => self.arm(Timer::Freeze, now.plus(span_ms)),
            Command::Force(r, second) => self.force(r, second),
            Command::Retry(r) => {
                // Without a third vote only an operator can say that what the peer knows is all there is to know.
                self.mirror_readable |= self.config.voting != Voting::Arbiter;
                if self.seats.get(&r).is_some_and(|seat| seat.phase == Phase::Refused) {
                    self.seat_mut(r).crashes = 0;
                    self.seat_mut(r).split = false;
                    self.forget(r);
                }
            }
        }
    }

    fn fired(&mut self, now: Tick, timer: Timer, out: &mut Actions) {
        if self.timers.remove(&timer).is_none() {
            return;
        }
        match timer {
            Timer::Beat => self.beat(now, out),
            Timer::LeaseEnd => self.lease_ended(),
            Timer::PeerSilent => self.peer_silent = true,
            Timer::ArbiterSilent => self.arbiter.silent = true,
            Timer::ArbiterGone => self.arbiter.gone = true,
            Timer::HandOver(r) => self.hand_over_expired(r),
            Timer::Backoff(r) => self.backoff_over(r),
            Timer::Mark(r) => self.not_marked(now, r),
            Timer::ClientsLost => self.clients_lost = true,
            Timer::PeerOff if self.broken(Mutation::FenceRemembered) => {}
            Timer::PeerOff => self.peer_may_be_on(),
            Timer::Crashes(r) => {
                if let Some(seat) = self.seats.get_mut(&r) {
                    seat.crashes = 0;
                }
            }
            Timer::Resend
            | Timer::Promise
            | Timer::Retry(_)
            | Timer::RetryMarker(_)
            | Timer::RetryAside(_)
            | Timer::Freeze => {}
        }
    }

    fn hear_peer(&mut self, now: Tick, message: ToPeer, out: &mut Actions) {
        self.peer_silent = false;
        self.peer_may_be_on();
        // It is not off, as an operator believed.
        self.config.resources.clone().into_iter().for_each(|r| self.void_word(r));
        self.arm(Timer::PeerSilent, now.plus(self.config.lease_ms));
        match message {
            ToPeer::Mirror(Some(registers)) => self.peer_mirror(&registers),
            ToPeer::Mirror(None) => {}
            ToPeer::Condition { condition, takes_over, marked } => {
                self.peer_takes_over = takes_over;
                self.peer_marked = marked;
                self.see_peer_condition(now, condition);
            }
            ToPeer::RenewLease { boot, sequence } => self.promise(now, boot, sequence, out),
            ToPeer::LeasePromised { boot, sequence, registers } => {
                if boot == self.boot {
                    self.adopt(&registers);
                    self.extend_lease(now, sequence, out);
                }
            }
            ToPeer::Mark { resource, pact, generation } if self.seats.contains_key(&resource) => {
                self.mark(now, resource, pact, generation, out);
            }
            ToPeer::Marked { resource, pact } if self.seats.contains_key(&resource) => {
                self.peer_marked.retain(|(r, _)| *r != resource);
                self.peer_marked.push((resource, pact));
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
                match self.peer_off {
                    true => self.arm(Timer::PeerOff, now.plus(PEER_OFF_MS)),
                    false => self.arm(Timer::Retry(None), now.plus(RETRY_MS)),
                }
            }
            (kind, Some(r)) if kind.aside() && self.seats.contains_key(&r) => {
                self.aside_done(now, r, kind, outcome);
            }
            (_, Some(r)) if self.seats.contains_key(&r) => {
                let failed = matches!(outcome, Outcome::Failed | Outcome::TimedOut);
                // What failed before the ladder is climbed holds it up no longer, also if that is heard of only now.
                let past = self.seat(r).phase == Phase::Fenced && id.kind != Kind::Kill;
                if failed && !past && id.kind != Kind::WriteMarker {
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
                    self.killed(now, r, out);
                }
            }
            Kind::Inspect => self.inspected(now, r, outcome),
            Kind::Follow => {
                if phase == Phase::Attaching {
                    self.go(r, if done { Phase::Following } else { Phase::Inspecting });
                }
            }
            Kind::StopFollowing => self.stopped_following(r, done),
            Kind::Rewind | Kind::Clone => self.repaired(r, kind, outcome),
            Kind::Promote => {
                if phase == Phase::Promoting {
                    self.seat_mut(r).checkpoint_due = true;
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
            | Kind::Checkpoint
            | Kind::LimitWrites => {}
        }
    }

    /// Of what goes on beside the protocol: a failure is tried again, and holds nothing else up.
    fn aside_done(&mut self, now: Tick, r: ResourceId, kind: Kind, outcome: Outcome) {
        if !matches!(outcome, Outcome::Done(_)) {
            return self.arm(Timer::RetryAside(r), now.plus(RETRY_MS));
        }
        if let Kind::StartVm(vm) = kind {
            self.vms_running.insert(vm);
        } else if kind == Kind::Checkpoint {
            self.seat_mut(r).checkpoint_due = false;
        } else if self.seat(r).phase.admits() {
            self.seat_mut(r).limited = Some(!self.seat(r).limited.unwrap_or(false));
        }
    }

    /// Back to nobody: whatever is believed now must come from somebody else (rule 5).
    pub(crate) fn forget(&mut self, r: ResourceId) {
        self.go(r, Phase::Unlearned);
        let seat = self.seat_mut(r);
        seat.learned = false;
        seat.running = None;
        seat.crashed = false;
        seat.limited = None;
        seat.control = Observed::Unknown;
        seat.link = Observed::Unknown;
        seat.handed_over = None;
        seat.leave = false;
        seat.pact = None;
    }

    fn inspected(&mut self, now: Tick, r: ResourceId, outcome: Outcome) {
        if self.seat(r).phase != Phase::Inspecting {
            return;
        }
        match outcome {
            Outcome::Done(Report::Relation(relation)) => {
                self.seat_mut(r).relation = Some(relation);
                let next = match relation {
                    Relation::Streams => Phase::Attaching,
                    // The holder checkpoints soon; until then a rewind would keep the wrong tail.
                    Relation::TooEarly => {
                        return self.arm(Timer::Retry(Some(r)), now.plus(RETRY_MS));
                    }
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
