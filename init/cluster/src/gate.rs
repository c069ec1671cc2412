//! The virtual address answers only where clients are served.

use crate::action::{Action, Actions};
use crate::state::State;
use crate::types::Tick;

impl State {
    /// The address belongs to the first resource, the database.
    pub(crate) fn advance_gate(&mut self, now: Tick, out: &mut Actions) {
        let open = self.config.resources.first().is_some_and(|r| self.seat(*r).phase.admits());
        if open != self.gate_open {
            self.gate_open = open;
            let action = if open { Action::OpenGate } else { Action::CloseGate };
            self.tell(now, out, action, vec![]);
        }
    }
}
