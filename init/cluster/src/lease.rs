//! Leases and promises (section 3): they bound side effects, never decide about data.

use crate::action::{Action, Actions, Need};
use crate::event::Timer;
use crate::message::{Registers, ToArbiter, ToPeer};
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::state::{Running, State, Voting};
use crate::types::{BootId, ResourceId, Tick};

/// Clocks may differ in speed by this much, in parts per million; a lease allows for it twice.
pub const DRIFT_PPM: u64 = 1_000;
/// Renewals per lease.
const BEATS: u64 = 6;

impl State {
    /// Somebody else could be granted the resource while this node serves it.
    pub(crate) fn needs_lease(&self, r: ResourceId) -> bool {
        let phase = self.seat(r).phase;
        // After a restart of the supervisor alone the service runs on while nothing is learned yet.
        let runs_on = matches!(phase, Phase::Unlearned | Phase::Resuming)
            && self.seat(r).running == Some(Running::Serving);
        let serves = phase.serves() || runs_on;
        let outstanding =
            self.pact(r).is_some() && self.mirror.no_arbiter.get(&r) != Some(&self.seat(r).epoch);
        let outstanding = outstanding || (runs_on && self.runs_lost(r));
        self.config.voting == Voting::Arbiter && serves && (outstanding || phase == Phase::Protecting)
    }

    /// What lets somebody in begins before the lease that it needs ends.
    pub(crate) fn while_leased(&self, r: ResourceId) -> Vec<Need> {
        let end = self.timers.get(&Timer::LeaseEnd).filter(|_| self.needs_lease(r));
        end.map(|end| Need::Before(*end)).into_iter().collect()
    }

    pub(crate) fn any_needs_lease(&self) -> bool {
        self.config.resources.iter().any(|r| self.needs_lease(*r))
    }

    /// There is a lease, or none is needed in this mode.
    pub(crate) fn leased(&self) -> bool {
        self.config.voting != Voting::Arbiter
            || self.armed(Timer::LeaseEnd)
            || self.broken(Mutation::NoLeaseBeforeSync)
    }

    pub(crate) fn beat(&mut self, now: Tick, out: &mut Actions) {
        let lease_ms = self.config.lease_ms;
        self.arm(Timer::Beat, now.plus(lease_ms / BEATS));
        if self.config.voting == Voting::Arbiter {
            match self.arbiter.session {
                Some(incarnation) => {
                    let renew = ToArbiter::Renew { boot: self.boot, incarnation, sequence: now.0 };
                    self.tell(now, out, Action::ToArbiter(self.arbiter.greetings, renew), vec![]);
                }
                None => self.hello(now, out),
            }
        }
        self.send_peer(now, out, ToPeer::Mirror(self.recorded()));
        let takes_over = !self.drained && !self.frozen() && self.mirror_readable;
        let condition = self.condition.clone();
        let marked = self.marked_pacts();
        self.send_peer(now, out, ToPeer::Condition { condition, takes_over, marked });
        let mut lease_wanted = false;
        for r in self.config.resources.clone() {
            lease_wanted |= self.holds(r) && (self.pact(r).is_some() || self.seat(r).phase == Phase::Marking);
            self.repeat_mark(now, r, out);
            self.repeat_release(now, r, out);
            self.repeat_renounced(now, r, out);
        }
        if lease_wanted {
            self.send_peer(now, out, ToPeer::RenewLease { boot: self.boot, sequence: now.0 });
        }
        if !self.any_needs_lease() {
            self.deadman(now, now.plus(lease_ms), out);
        }
        self.refresh_gates(now, out);
    }

    /// What this node's mirror holds for certain. While a write is not known to have ended nobody can say that, which is not
    /// the same as nothing.
    fn recorded(&self) -> Option<Registers> {
        let durable = self.durable.as_ref().filter(|_| self.mirror_readable)?;
        Some(durable.registers.iter().map(|(id, r)| (*id, *r)).collect())
    }

    /// A renewal that was sent at `sequence` was heard.
    pub(crate) fn extend_lease(&mut self, now: Tick, sequence: u64, out: &mut Actions) {
        let span_ms = self.config.lease_ms - self.config.lease_ms * 2 * DRIFT_PPM / 1_000_000;
        let from = if self.broken(Mutation::LeaseFromAnswer) { now } else { Tick(sequence) };
        let end = from.plus(span_ms);
        let later = self.timers.get(&Timer::LeaseEnd).is_none_or(|old| *old < end);
        if sequence <= now.0 && end > now && later {
            self.arm(Timer::LeaseEnd, end);
            let lost = self.config.resources.iter().any(|r| self.runs_lost(*r));
            if self.any_needs_lease() && !lost {
                self.deadman(now, end, out);
            }
        }
    }

    /// PID 1 kills what may not run past this, whether or not the supervisor lives.
    pub(crate) fn deadman(&mut self, now: Tick, end: Tick, out: &mut Actions) {
        if !self.broken(Mutation::DeadmanNotArmed) {
            self.tell(now, out, Action::Deadman(end), vec![]);
        }
    }

    /// The holder asks this node not to take over for T.
    pub(crate) fn promise(&mut self, now: Tick, boot: BootId, sequence: u64, out: &mut Actions) {
        let open = self.config.resources.iter().any(|r| {
            self.take_over_open(*r)
                || matches!(self.seat(*r).phase, Phase::Stopping | Phase::Claiming | Phase::Forcing)
        });
        if open && !self.broken(Mutation::PromiseWithTakeOverOpen) {
            return;
        }
        let Some(mut registers) = self.recorded() else { return };
        if self.broken(Mutation::PromiseTellsNothing) {
            registers.clear();
        }
        self.arm(Timer::Promise, now.plus(self.config.lease_ms));
        self.send_peer(now, out, ToPeer::LeasePromised { boot, sequence, registers });
    }

    /// Before anything else is looked at: whatever woke this node up, a lease that has ended has ended.
    pub(crate) fn expire_lease(&mut self, now: Tick) {
        if self.timers.get(&Timer::LeaseEnd).is_some_and(|end| *end <= now) {
            self.timers.remove(&Timer::LeaseEnd);
            self.lease_ended();
        }
    }

    /// The end without Solo: the gate closes and everything is killed.
    pub(crate) fn lease_ended(&mut self) {
        if self.broken(Mutation::LeaseEndIgnored) {
            return;
        }
        for r in self.config.resources.clone() {
            if self.needs_lease(r) {
                self.go(r, Phase::Fenced);
            }
        }
    }
}
