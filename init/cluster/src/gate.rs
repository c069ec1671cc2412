//! A virtual address answers only where its resource is served to clients.

use serde::{Deserialize, Serialize};

use crate::action::{Action, Actions, Issued, VipId};
use crate::action::{ActionId, Kind};
use crate::event::Timer;
use crate::phase::Phase;
use crate::state::State;
use crate::types::{ResourceId, Tick};

/// One virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vip {
    /// Its id.
    pub id: VipId,
    /// It answers where this is served.
    pub resource: ResourceId,
}

/// On the way back to serving after a restart of the supervisor.
fn coming_back(phase: Phase) -> bool {
    matches!(phase, Phase::Unlearned | Phase::Resuming | Phase::Starting | Phase::HeldBack | Phase::Admitting)
}

impl State {
    pub(crate) fn advance_gate(&mut self, now: Tick, out: &mut Actions) {
        for vip in self.config.vips.clone() {
            let Some(phase) = self.phase(vip.resource) else { continue };
            // What was open when only the supervisor restarted is left alone until it knows more; nothing refreshes it.
            let left = coming_back(phase);
            let open = self.admits(vip.resource);
            if open && self.gates_open.insert(vip.id) {
                let until = self.gate_until(now);
                self.tell(now, out, Action::OpenGate { vip: vip.id, until }, vec![]);
            } else if !open && !left && self.gates_open.remove(&vip.id) {
                let action = Action::CloseGate(vip.id);
                let id = ActionId { resource: None, kind: Kind::CloseGate };
                // Before whatever else this step wants: nobody may be answered while the service is being stopped.
                out.insert(0, Issued { id, deadline: now.plus(action.limit_ms()), needs: vec![], action });
            }
        }
        // A lease has begun to matter: what was handed out for longer before is shortened to it.
        let needed = self.any_needs_lease();
        if needed && !self.lease_was_needed {
            // None known yet: a new supervisor leaves what the one before it handed out.
            if let Some(end) = self.timers.get(&Timer::LeaseEnd).copied() {
                self.deadman(now, end, out);
            }
            self.refresh_gates(now, out);
        }
        self.lease_was_needed = needed;
    }

    pub(crate) fn refresh_gates(&mut self, now: Tick, out: &mut Actions) {
        let until = self.gate_until(now);
        let open = |vip: &&Vip| self.admits(vip.resource);
        let vips: Vec<_> = self.config.vips.iter().filter(open).map(|vip| vip.id).collect();
        for vip in vips {
            self.tell(now, out, Action::OpenGate { vip, until }, vec![]);
        }
    }

    /// T from now, but not past the lease.
    fn gate_until(&self, now: Tick) -> Tick {
        let full = now.plus(self.config.lease_ms);
        match self.timers.get(&Timer::LeaseEnd) {
            Some(end) if self.any_needs_lease() => full.min(*end),
            Some(_) | None => full,
        }
    }
}
