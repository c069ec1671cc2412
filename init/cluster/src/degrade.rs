//! Leaving Sync (rule 2): Solo is won and on disk before anything is acknowledged alone.

use crate::action::{Action, Actions, Kind, Need};
use crate::event::Link;
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::register::Change;
use crate::state::{State, Voting};
use crate::types::{Observed, ResourceId, Tick};

impl State {
    /// Synchronous acknowledgement has no other side any more.
    pub(crate) fn standby_is_lost(&self, r: ResourceId) -> bool {
        let down = self.seat(r).link == Observed::Known(Link::Down);
        (down || self.renounced_by_peer(r)) && self.config.voting != Voting::Strict
    }

    /// The standby said that it will never take over under this pact.
    pub(crate) fn renounced_by_peer(&self, r: ResourceId) -> bool {
        self.pact(r).is_some() && self.pact(r) == self.seat(r).renounced
    }

    /// Rule 10's way where the standby renounced and the arbiter is gone, else rule 2's.
    pub(crate) fn leave_sync(&mut self, r: ResourceId) {
        let next = if self.may_record(r) { Phase::Recording } else { Phase::Degrading };
        self.go(r, next);
        self.flapped(r);
    }

    fn may_record(&self, r: ResourceId) -> bool {
        self.config.voting == Voting::Arbiter && self.arbiter.gone && self.renounced_by_peer(r)
    }

    pub(crate) fn synchronous(&mut self, r: ResourceId) {
        if self.standby_is_lost(r) {
            return self.leave_sync(r);
        }
        self.consider_leaving(r);
    }

    pub(crate) fn degrading(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let epoch = self.seat(r).epoch;
        match self.seat(r).phase {
            Phase::Degrading => {
                if self.may_record(r) {
                    return self.go(r, Phase::Recording);
                }
                let timeout = self.broken(Mutation::SyncLeftByTimeout) && self.arbiter.silent;
                if timeout || self.broken(Mutation::DropBeforeSolo) {
                    let needs = vec![Need::RegisterDurable(r, epoch.next())];
                    self.issue(now, out, Some(r), Action::DropSync, needs);
                }
            }
            Phase::Recording => {
                self.mirror.no_arbiter.insert(r, epoch);
                let recorded = self.durable.as_ref().and_then(|m| m.no_arbiter.get(&r)) == Some(&epoch);
                if recorded || self.broken(Mutation::AloneNotRecorded) {
                    self.go(r, Phase::Dropping);
                }
            }
            Phase::Dropping => {
                let recorded = self.mirror.no_arbiter.get(&r) == Some(&epoch);
                let need =
                    if recorded { Need::NoArbiterDurable(r, epoch) } else { Need::RegisterDurable(r, epoch) };
                if recorded || (self.register_durable(r) && self.stays_off(now, r, out)) {
                    self.issue(now, out, Some(r), Action::DropSync, vec![need]);
                }
            }
            Phase::Disarming => {
                // A request for Sync that a crash could send again must be forgotten on disk first: after it was won
                // the standby may take over, without what is acknowledged alone from here on.
                let asked = self.intent_open(r, |c| matches!(c, Change::Protect(_)));
                let arming = self.pending.keys().any(|id| id.resource == Some(r) && id.kind == Kind::ArmSync);
                if !asked && !arming {
                    self.issue(now, out, Some(r), Action::DropSync, vec![Need::RegisterDurable(r, epoch)]);
                }
            }
            // Only the four above are sent here.
            Phase::Unlearned
            | Phase::Founding
            | Phase::Resuming
            | Phase::Starting
            | Phase::HeldBack
            | Phase::Admitting
            | Phase::Alone
            | Phase::Reporting
            | Phase::Arming
            | Phase::Barrier
            | Phase::Canary
            | Phase::Marking
            | Phase::Protecting
            | Phase::Sync
            | Phase::HandingOver
            | Phase::Released
            | Phase::Fenced
            | Phase::Inspecting
            | Phase::Clearing
            | Phase::Rewinding
            | Phase::Cloning
            | Phase::Attaching
            | Phase::Following
            | Phase::Renouncing
            | Phase::Stopping
            | Phase::Claiming
            | Phase::Checking
            | Phase::Promoting
            | Phase::Forcing
            | Phase::Refused => {}
        }
    }
}
