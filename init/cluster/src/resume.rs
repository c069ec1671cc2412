//! Boot as nobody (rule 5), and the way of a holder back to serving.

use crate::action::{Action, Actions, Need};
use crate::event::Link;
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::state::{Running, State};
use crate::types::{Observed, ResourceId, Tick};

impl State {
    pub(crate) fn unlearned(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        // Before anything is read from a disk: it may hang.
        if self.runs_lost(r) {
            return self.go(r, Phase::Fenced);
        }
        if self.seat(r).control == Observed::Unknown {
            self.issue(now, out, Some(r), Action::ReadControl, vec![]);
            return;
        }
        if self.seat(r).split {
            return self.go(r, Phase::Refused);
        }
        let Some(register) = self.register(r) else { return };
        let mine = register.holder == self.config.me;
        if mine && self.broken(Mutation::RoleFromDisk) {
            return self.go(r, Phase::Starting);
        }
        let as_won = self.data_is_as_won(r);
        if !self.seat(r).learned {
            // Rule 10: the standby gave its marker up, so its word is enough while the arbiter is away.
            let alone = self.mirror.no_arbiter.get(&r) == Some(&register.epoch);
            if mine && alone && as_won && self.arbiter.gone && self.peer_consulted {
                self.go(r, Phase::Starting);
            }
            return;
        }
        if !mine {
            // If only the supervisor restarted, its standby streams on.
            let follows = self.seat(r).running.is_some();
            return self.go(r, if follows { Phase::Following } else { Phase::Inspecting });
        }
        if self.intent_open(r, |_| true) {
            return; // The answer to what was asked before the restart comes first.
        }
        if !as_won {
            return self.go(r, Phase::Refused);
        }
        let unraised = self.broken(Mutation::EpochNotRaisedOnResume);
        self.go(r, if unraised { Phase::Starting } else { Phase::Resuming });
    }

    /// What is on the disk is the copy that the register was won with (rule 5).
    pub(crate) fn data_is_as_won(&self, r: ResourceId) -> bool {
        let Observed::Known(control) = self.seat(r).control else { return false };
        self.mirror.won.get(&r) == Some(&control.generation)
            || self.broken(Mutation::GenerationNotCheckedOnResume)
    }

    /// It outlived an earlier run of the supervisor, and whoever said so: somebody else holds it by now.
    pub(crate) fn runs_lost(&self, r: ResourceId) -> bool {
        let lost = self.register(r).is_some() && !self.holds(r) && !self.broken(Mutation::RunsOnUnheld);
        lost && self.seat(r).running == Some(Running::Serving)
    }

    fn acknowledges_alone(&self, r: ResourceId) -> bool {
        self.pact(r).is_none() || self.mirror.no_arbiter.get(&r) == Some(&self.seat(r).epoch)
    }

    pub(crate) fn starting(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let alone = self.acknowledges_alone(r);
        if self.register_durable(r) && (alone || self.leased()) {
            let needs = vec![Need::RegisterDurable(r, self.seat(r).epoch)];
            self.issue(now, out, Some(r), Action::Serve { sync: !alone }, needs);
        }
    }

    pub(crate) fn served(&mut self, r: ResourceId, done: bool) {
        if self.seat(r).phase == Phase::Starting {
            // Perhaps it was a standby's data until now: whoever rewinds to it needs a checkpoint of this timeline.
            self.seat_mut(r).checkpoint_due = done;
            let next = match (done, self.acknowledges_alone(r)) {
                (false, _) => Phase::Fenced,
                (true, true) => Phase::Alone,
                (true, false) => Phase::HeldBack,
            };
            self.go(r, next);
        }
    }

    /// What recovery brought back was perhaps acknowledged to nobody and is on no other disk: it is shown to nobody
    /// until the standby has it or Solo is won.
    pub(crate) fn held_back(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        if self.standby_is_lost(r) {
            return self.leave_sync(r);
        }
        if self.broken(Mutation::NoHoldBack) {
            return self.go(r, Phase::Admitting);
        }
        if self.seat(r).link == Observed::Known(Link::AtHead) {
            self.issue(now, out, Some(r), Action::Canary, vec![]);
        }
    }
}
