//! A service that ended or hangs while its node lives: the standby takes it if it has everything, else it is started
//! again here, and not for ever.

use crate::action::Actions;
use crate::event::{Link, Timer};
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::state::{RETRY_MS, State, Voting};
use crate::types::{Observed, ResourceId, Tick};

/// So many crashes within [`CRASHES_WITHIN_MS`], and it is not started again without an operator.
pub const CRASHES_MAX: u8 = 3;
/// See [`CRASHES_MAX`].
pub const CRASHES_WITHIN_MS: u64 = 300_000;

impl State {
    pub(crate) fn ended(&mut self, now: Tick, r: ResourceId) {
        let phase = self.seat(r).phase;
        let at_head = self.seat(r).link == Observed::Known(Link::AtHead);
        self.seat_mut(r).link = Observed::Known(Link::Down);
        if phase.serves() {
            let seat = self.seat_mut(r);
            seat.crashed = at_head;
            seat.crashes = seat.crashes.saturating_add(1);
            self.arm(Timer::Crashes(r), now.plus(CRASHES_WITHIN_MS));
            self.go(r, Phase::Fenced);
        } else if matches!(phase, Phase::Following | Phase::Renouncing) {
            self.arm(Timer::Retry(Some(r)), now.plus(RETRY_MS));
            self.go(r, Phase::Inspecting);
        } else if phase == Phase::Unlearned {
            self.seat_mut(r).running = None;
        }
    }

    pub(crate) fn unhealthy(&mut self, now: Tick, r: ResourceId) {
        // A service that hangs has not ended: the ladder makes sure of that before anybody else is let in.
        if self.seat(r).phase.admits() {
            self.ended(now, r);
        }
    }

    /// Nothing of the service runs any more.
    pub(crate) fn killed(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        self.vms_left(r);
        if self.may_release(r) {
            self.seat_mut(r).running = None;
            self.go(r, Phase::Released);
            self.arm(Timer::HandOver(r), now.plus(self.config.lease_ms));
            self.repeat_release(now, r, out);
        } else if self.seat(r).crashes >= CRASHES_MAX {
            self.seat_mut(r).running = None;
            self.go(r, Phase::Refused);
        } else {
            self.forget(r);
        }
    }

    /// Everything acknowledged is on the standby (the register says Sync, and nothing was acknowledged without it), and
    /// somebody is there to take it.
    fn may_release(&self, r: ResourceId) -> bool {
        let sync = self.holds(r)
            && (self.pact(r).is_some() || self.broken(Mutation::CrashReleasesSolo))
            && self.register(r).is_some_and(|register| register.epoch == self.seat(r).epoch)
            && !self.mirror.no_arbiter.contains_key(&r);
        sync && self.seat(r).crashed && self.may_hand_over() && !self.frozen()
    }

    /// An arbiter that grants and a peer that lives.
    pub(crate) fn may_hand_over(&self) -> bool {
        self.config.voting == Voting::Arbiter
            && self.arbiter.session.is_some()
            && !self.arbiter.silent
            && self.arbiter.heard_both
            && !self.peer_silent
    }
}
