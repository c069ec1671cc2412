//! What a node knows of itself beside its services, and when that is reason enough to hand over: client network and
//! room on the disks. The checkpoint after a promotion and the limit on writers go on beside the protocol.

use crate::action::{Action, Actions};
use crate::event::{Condition, Timer};
use crate::state::State;
use crate::types::{ResourceId, Tick};

/// Client ports must have been down here and up there for this long.
pub(crate) const CLIENTS_LOST_MS: u64 = 2_000;
/// From here on new writers are refused.
pub(crate) const LIMIT_PERCENT: u8 = 95;
/// Below this they are let in again.
pub(crate) const RELAX_PERCENT: u8 = 90;
/// From here on the resource is handed over, if the standby has more room.
pub(crate) const LEAVE_PERCENT: u8 = 97;

impl State {
    pub(crate) fn see_condition(&mut self, now: Tick, condition: Condition) {
        self.condition = condition;
        self.judge_clients(now);
    }

    pub(crate) fn see_peer_condition(&mut self, now: Tick, condition: Condition) {
        self.peer_condition = condition;
        self.judge_clients(now);
    }

    fn judge_clients(&mut self, now: Tick) {
        let lost = self.condition.clients_up == Some(false) && self.peer_condition.clients_up == Some(true);
        if !lost {
            self.timers.remove(&Timer::ClientsLost);
            self.clients_lost = false;
        } else if !self.armed(Timer::ClientsLost) && !self.clients_lost {
            self.arm(Timer::ClientsLost, now.plus(CLIENTS_LOST_MS));
        }
    }

    /// A reason to hand over that no operator gave.
    pub(crate) fn better_elsewhere(&self, r: ResourceId) -> bool {
        let (own, theirs) = (self.condition.full(r), self.peer_condition.full(r));
        let full = own.is_some_and(|own| own >= LEAVE_PERCENT && theirs.is_some_and(|t| t < LIMIT_PERCENT));
        (full || self.clients_lost) && !self.frozen()
    }

    /// Writers are refused because the volume is nearly full.
    pub(crate) fn nearly_full(&self, r: ResourceId) -> bool {
        let floor = if self.seat(r).limited == Some(true) { RELAX_PERCENT } else { LIMIT_PERCENT };
        self.condition.full(r).is_some_and(|percent| percent >= floor)
    }

    pub(crate) fn advance_aside(&mut self, now: Tick, out: &mut Actions) {
        for r in self.config.resources.clone() {
            if !self.admits(r) {
                continue;
            }
            if self.seat(r).checkpoint_due {
                self.issue(now, out, Some(r), Action::Checkpoint, vec![]);
            }
            let limit = self.nearly_full(r);
            if self.seat(r).limited.unwrap_or(false) != limit {
                self.issue(now, out, Some(r), Action::LimitWrites(limit), vec![]);
            }
        }
    }
}
