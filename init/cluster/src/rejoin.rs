//! Becoming a standby again: compare, and only if need be quarantine and replace, never delete.

use crate::absorb::control;
use crate::action::{Action, Actions, Kind, Need, Outcome, Relation};
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::state::State;
use crate::types::{ResourceId, Tick};

impl State {
    pub(crate) fn rejoining(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let phase = self.seat(r).phase;
        if phase == Phase::Inspecting {
            if !self.start_claim(r) {
                self.issue(now, out, Some(r), Action::Inspect, vec![Need::Stopped(r)]);
            }
        } else if phase == Phase::Attaching {
            if !self.start_claim(r) {
                self.issue(now, out, Some(r), Action::Follow, vec![Need::Stopped(r)]);
            }
        } else if phase == Phase::Clearing {
            // While a take-over is open the data that it was asked with must stay (rule 3).
            let diverged = self.seat(r).relation == Some(Relation::Diverged);
            let careless = self.broken(Mutation::MarkerNotCleared);
            // And the register that says so must be on the disk: after a crash nobody else may remember it.
            let open = self.take_over_open(r) && !self.broken(Mutation::ReplacedWhileOpen);
            let free = self.register_durable(r) && !open;
            if careless || (free && self.clear_marker(r, None)) {
                self.go(r, if diverged { Phase::Rewinding } else { Phase::Cloning });
            }
        } else {
            let action = if phase == Phase::Rewinding { Action::Rewind } else { Action::Clone };
            self.issue(now, out, Some(r), action, vec![Need::Stopped(r), Need::MarkerCleared(r)]);
        }
    }

    pub(crate) fn repaired(&mut self, r: ResourceId, kind: Kind, outcome: Outcome) {
        let done = matches!(outcome, Outcome::Done(_));
        let phase = self.seat(r).phase;
        if matches!(phase, Phase::Rewinding | Phase::Cloning) {
            self.seat_mut(r).control = control(outcome);
            if done {
                self.go(r, Phase::Inspecting);
            } else if kind == Kind::Rewind && phase == Phase::Rewinding {
                self.go(r, Phase::Cloning);
            }
        }
    }
}
