//! The virtual address answers only where clients are served.

use crate::action::{Action, Actions};
use crate::event::Timer;
use crate::phase::Phase;
use crate::state::State;
use crate::types::{Observed, Tick};

impl State {
    /// The address belongs to the first resource, the database.
    pub(crate) fn advance_gate(&mut self, now: Tick, out: &mut Actions) {
        let Some(seat) = self.config.resources.first().map(|r| self.seat(*r)) else { return };
        let open = seat.phase.admits();
        // A service that outlived its supervisor goes on behind the gate as it was left, until its role is learned.
        let left_alone = self.gate == Observed::Unknown
            && seat.running
            && matches!(
                seat.phase,
                Phase::Unlearned | Phase::Resuming | Phase::Starting | Phase::HeldBack | Phase::Admitting
            );
        if open && self.gate != Observed::Known(true) {
            self.gate = Observed::Known(true);
            let until = self.gate_until(now);
            self.tell(now, out, Action::OpenGate(until), vec![]);
        } else if !open && !left_alone {
            self.close_gate(now, out);
        }
    }

    /// Also when it is not known to be open.
    pub(crate) fn close_gate(&mut self, now: Tick, out: &mut Actions) {
        if self.gate != Observed::Known(false) {
            self.gate = Observed::Known(false);
            self.tell(now, out, Action::CloseGate, vec![]);
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
