//! Handing over on purpose: switchover, drain, and a holder in trouble with a healthy standby.

use crate::action::{Action, Actions};
use crate::event::{Link, Timer};
use crate::message::{ToArbiter, ToPeer};
use crate::phase::Phase;
use crate::state::State;
use crate::types::{Observed, ResourceId, Tick};

impl State {
    /// Only from Sync, with the standby at head and an arbiter to tell: without one, a hand-over that the other node
    /// has not heard of yet and a holder that goes on could both be right.
    pub(crate) fn consider_leaving(&mut self, r: ResourceId) {
        let wanted = self.seat(r).leave || self.drained || self.better_elsewhere(r);
        let able = self.may_hand_over()
            && self.seat(r).link == Observed::Known(Link::AtHead)
            && !self.armed(Timer::Retry(Some(r)));
        if wanted && able && !self.busy(r) {
            self.seat_mut(r).leave = false;
            self.go(r, Phase::HandingOver);
        }
    }

    pub(crate) fn handing_over(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        if self.seat(r).phase == Phase::HandingOver {
            self.issue(now, out, Some(r), Action::StopClean, vec![]);
        }
    }

    pub(crate) fn stopped_clean(&mut self, now: Tick, r: ResourceId, done: bool) {
        if self.seat(r).phase != Phase::HandingOver {
            return;
        }
        if !done {
            return self.go(r, Phase::Fenced);
        }
        self.go(r, Phase::Released);
        self.seat_mut(r).running = None;
        self.vms_left(r);
        self.arm(Timer::HandOver(r), now.plus(self.config.lease_ms));
        self.arm(Timer::Beat, now);
    }

    /// Said again with every beat until the register changes.
    pub(crate) fn repeat_release(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        if self.seat(r).phase != Phase::Released {
            return;
        }
        let epoch = self.seat(r).epoch;
        if let Some(incarnation) = self.arbiter.session {
            let release = ToArbiter::Release { boot: self.boot, incarnation, resource: r, epoch };
            self.tell(now, out, Action::ToArbiter(self.arbiter.greetings, release), vec![]);
        }
        self.send_peer(now, out, ToPeer::HandOver { resource: r, epoch });
    }

    /// The other node did not come: back as after a restart, at a higher epoch, so that it cannot come any more.
    pub(crate) fn hand_over_expired(&mut self, r: ResourceId) {
        if self.seats.contains_key(&r) && self.seat(r).phase == Phase::Released {
            self.forget(r);
        }
    }
}
