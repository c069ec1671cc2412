//! Earning Sync (rule 4), on both sides: the holder's steps and the standby's marker.

use crate::action::{Action, Actions, Outcome, Report};
use crate::disk::{Marker, MarkerFile};
use crate::event::{Link, Timer};
use crate::message::ToPeer;
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::register::Mode;
use crate::state::{RETRY_MS, State, Voting};
use crate::types::{Generation, Observed, Pact, ResourceId, Tick};

/// First wait before protecting again after a link was lost; it doubles with every loss.
pub(crate) const BACKOFF_MS: u64 = 1_000;
/// It doubles so often at most.
pub(crate) const FLAPS_MAX: u8 = 6;

impl State {
    pub(crate) fn alone(&mut self, r: ResourceId) {
        if self.pact(r).is_some() {
            // Rule 10: the register still says Sync. It is set right before anything else is done with the arbiter.
            if self.arbiter.session.is_some() && !self.arbiter.gone && !self.arbiter.silent {
                self.go(r, Phase::Reporting);
            }
            return;
        }
        let vote = self.config.voting != Voting::Arbiter
            || (self.arbiter.session.is_some() && !self.arbiter.silent && self.arbiter.heard_both);
        let ready =
            self.seat(r).link == Observed::Known(Link::AtHead) && !self.armed(Timer::Backoff(r)) && vote;
        // A completion from an earlier attempt must not be taken for one of this.
        if ready && self.register_durable(r) && !self.busy(r) && !self.armed(Timer::Retry(Some(r))) {
            self.go(r, Phase::Arming);
        }
    }

    pub(crate) fn protecting(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        if self.seat(r).link != Observed::Known(Link::AtHead) {
            return self.give_up(now, r);
        }
        let phase = self.seat(r).phase;
        if phase == Phase::Arming && self.broken(Mutation::NotArmed) {
            self.go(r, Phase::Barrier);
        } else if phase == Phase::Arming {
            self.issue(now, out, Some(r), Action::ArmSync, vec![]);
        } else if phase == Phase::Barrier && self.broken(Mutation::NoBarrier) {
            self.go(r, Phase::Canary);
        } else if phase == Phase::Barrier {
            self.issue(now, out, Some(r), Action::Barrier, vec![]);
        } else if phase == Phase::Canary {
            self.issue(now, out, Some(r), Action::Canary, vec![]);
        } else if (self.seat(r).marked || self.broken(Mutation::MarkNotAwaited)) && self.leased() {
            self.go(r, Phase::Protecting);
        }
    }

    pub(crate) fn protect_step(&mut self, now: Tick, r: ResourceId, expected: Phase, next: Option<Phase>) {
        if self.seat(r).phase == expected {
            match next {
                Some(next) => self.go(r, next),
                None => self.give_up(now, r),
            }
        }
    }

    pub(crate) fn canary_done(&mut self, now: Tick, r: ResourceId, outcome: Outcome) {
        let phase = self.seat(r).phase;
        let flushed = match outcome {
            Outcome::Done(Report::Canary(generation)) => Some(generation),
            Outcome::Done(Report::Nothing | Report::Control(_) | Report::Relation(_))
            | Outcome::Failed
            | Outcome::TimedOut => None,
        };
        match (phase, flushed) {
            (Phase::HeldBack, Some(_)) => self.go(r, Phase::Admitting),
            (Phase::Canary, Some(generation)) => {
                self.go(r, Phase::Marking);
                let nonce = self.boot.nonce;
                let seat = self.seat_mut(r);
                seat.attempt += 1;
                seat.pact = Some(Pact { epoch: seat.epoch, attempt: seat.attempt, nonce });
                seat.peer_generation = Some(generation);
                seat.marked = false;
                self.arm(Timer::Beat, now);
                self.arm(Timer::Mark(r), now.plus(self.config.lease_ms));
            }
            (Phase::Canary, None) => self.give_up(now, r),
            (_, _) => {}
        }
    }

    /// The standby has another copy than the one that flushed the canary, and will never mark.
    pub(crate) fn not_marked(&mut self, now: Tick, r: ResourceId) {
        if self.seats.contains_key(&r) && self.seat(r).phase == Phase::Marking && !self.seat(r).marked {
            self.give_up(now, r);
        }
    }

    /// Back to acknowledging alone; the register said Solo all the time.
    pub(crate) fn give_up(&mut self, now: Tick, r: ResourceId) {
        self.go(r, Phase::Disarming);
        self.flapped(r);
        let wait_ms = BACKOFF_MS << self.seat(r).flaps;
        self.arm(Timer::Backoff(r), now.plus(wait_ms));
    }

    pub(crate) fn flapped(&mut self, r: ResourceId) {
        let seat = self.seat_mut(r);
        seat.flaps = (seat.flaps + 1).min(FLAPS_MAX);
    }

    /// A wait passed without another loss.
    pub(crate) fn backoff_over(&mut self, r: ResourceId) {
        if self.seats.contains_key(&r) && self.seat(r).phase == Phase::Sync {
            self.seat_mut(r).flaps = 0;
        }
    }

    pub(crate) fn repeat_mark(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let seat = self.seat(r);
        if let (Phase::Marking, Some(pact), Some(generation)) = (seat.phase, seat.pact, seat.peer_generation)
        {
            self.send_peer(now, out, ToPeer::Mark { resource: r, pact, generation });
        }
    }

    /// The standby's side of rule 4d.
    pub(crate) fn mark(
        &mut self,
        now: Tick,
        r: ResourceId,
        pact: Pact,
        generation: Generation,
        out: &mut Actions,
    ) {
        let (Observed::Known(file), Observed::Known(control)) = (self.seat(r).marker, self.seat(r).control)
        else {
            return;
        };
        let own = control.generation == generation || self.broken(Mutation::GenerationNotCompared);
        if self.seat(r).phase != Phase::Following || self.seat(r).marker_wanted.is_some() || !own {
            return;
        }
        if file.marker.is_some_and(|m| m.pact == pact && m.generation == control.generation) {
            return self.send_peer(now, out, ToPeer::Marked { resource: r, pact });
        }
        let current = self.register(r).is_some_and(|reg| {
            reg.holder == self.config.me.peer() && reg.mode == Mode::Solo && reg.epoch == pact.epoch
        });
        let fresh = current && file.last.is_none_or(|last| pact > last);
        if (fresh || self.broken(Mutation::OldPactMarked)) && !self.take_over_open(r) {
            let marker = Marker {
                pact,
                system: control.system,
                timeline: control.timeline,
                generation: control.generation,
            };
            self.seat_mut(r).marker_wanted =
                Some(MarkerFile { last: file.last.max(Some(pact)), marker: Some(marker) });
        }
    }

    /// Writes the marker file until it is what it should be.
    pub(crate) fn advance_marker(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let seat = self.seat(r);
        let (Some(wanted), None) = (seat.marker_wanted, seat.marker_writing) else { return };
        if self.issue(now, out, Some(r), Action::WriteMarker(wanted), vec![]) {
            self.seat_mut(r).marker_writing = Some(wanted);
            // From here until the completion nobody can say what is on the disk.
            self.seat_mut(r).marker = Observed::Unknown;
        }
    }

    pub(crate) fn marker_written(&mut self, now: Tick, r: ResourceId, outcome: Outcome, out: &mut Actions) {
        let Some(written) = self.seat_mut(r).marker_writing.take() else { return };
        match outcome {
            Outcome::Done(_) => {
                let seat = self.seat_mut(r);
                seat.marker = Observed::Known(written);
                seat.marker_wanted.take_if(|wanted| *wanted == written);
                if let (Some(marker), Phase::Following, None) =
                    (written.marker, seat.phase, seat.marker_wanted)
                {
                    self.send_peer(now, out, ToPeer::Marked { resource: r, pact: marker.pact });
                }
            }
            Outcome::Failed | Outcome::TimedOut => self.arm(Timer::RetryMarker(r), now.plus(RETRY_MS)),
        }
    }

    /// Wants the marker gone; true once it is, on disk. `pact` is never marked again either.
    pub(crate) fn clear_marker(&mut self, r: ResourceId, pact: Option<Pact>) -> bool {
        let seat = self.seat_mut(r);
        let last = match (seat.marker, seat.marker_writing) {
            (_, Some(file)) | (Observed::Known(file), None) => file.last,
            (Observed::Unknown, None) => seat.marker_wanted.and_then(|file| file.last),
        };
        let cleared = MarkerFile { last: last.max(pact), marker: None };
        if seat.marker == Observed::Known(cleared) {
            seat.marker_wanted = None;
            return true;
        }
        seat.marker_wanted = Some(cleared);
        false
    }
}
