//! The virtual address answers only where clients are served.

use crate::action::{Action, Actions};
use crate::event::Timer;
use crate::state::State;
use crate::types::Tick;

impl State {
    /// The address belongs to the first resource, the database.
    pub(crate) fn advance_gate(&mut self, now: Tick, out: &mut Actions) {
        let open = self.config.resources.first().is_some_and(|r| self.seat(*r).phase.admits());
        if open != self.gate_open {
            self.gate_open = open;
            let action = if open { Action::OpenGate(self.gate_until(now)) } else { Action::CloseGate };
            self.tell(now, out, action, vec![]);
        }
    }

    /// T from now, but not past the lease.
    pub(crate) fn gate_until(&self, now: Tick) -> Tick {
        let full = now.plus(self.config.lease_ms);
        match self.timers.get(&Timer::LeaseEnd) {
            Some(end) if self.any_needs_lease() => full.min(*end),
            Some(_) | None => full,
        }
    }
}
