//! Taking over (rules 3 and 7), and giving the marker up (rule 10).

use crate::action::{Action, Actions, Need};
use crate::disk::Marker;
use crate::event::{Link, Timer};
use crate::message::ToPeer;
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::state::{State, Voting};
use crate::types::{Observed, Pact, ResourceId, Tick};

impl State {
    fn marker(&self, r: ResourceId) -> Option<Marker> {
        match self.seat(r).marker {
            Observed::Known(file) => file.marker,
            Observed::Unknown => None,
        }
    }

    /// Markers that stand, for the peer's status screen.
    pub(crate) fn marked_pacts(&self) -> Vec<(ResourceId, Pact)> {
        let good = |r: &ResourceId| {
            self.marker(*r).filter(|m| self.marker_is_good(*r, m.pact)).map(|m| (*r, m.pact))
        };
        self.config.resources.iter().filter_map(good).collect()
    }

    /// The marker speaks of the data that is here, for this promise.
    fn marker_is_good(&self, r: ResourceId, pact: Pact) -> bool {
        let Observed::Known(control) = self.seat(r).control else { return false };
        let own = |m: &Marker| m.generation == control.generation || self.broken(Mutation::MarkerOfOtherData);
        self.marker(r).is_some_and(|m| m.pact == pact && own(&m))
    }

    /// The promise that a take-over needs: the register's.
    fn promised(&self, r: ResourceId) -> Option<Pact> {
        let any = self.broken(Mutation::TakeOverFromSolo);
        self.pact(r).or_else(|| self.marker(r).filter(|_| any).map(|m| m.pact))
    }

    /// The pact under which this node may ask for the resource now.
    pub(crate) fn claim(&self, r: ResourceId) -> Option<Pact> {
        let register = self.register(r)?;
        let pact = self.promised(r).filter(|_| register.holder == self.config.me.peer())?;
        let seat = self.seat(r);
        let vote = match self.config.voting {
            Voting::Arbiter => {
                self.arbiter.session.is_some() && !self.arbiter.silent && self.arbiter.heard_both
            }
            // Within one unbroken boot in which the peer was met: never boot, fence, promote.
            Voting::FenceDevice => self.peer_consulted,
            Voting::Strict | Voting::PrimaryBiased => false,
        };
        let handed_over = seat.handed_over == Some(register.epoch);
        let suspected =
            self.peer_silent && !self.armed(Timer::Promise) || self.broken(Mutation::PromiseNotKept);
        let lost = suspected && seat.link != Observed::Known(Link::AtHead);
        let marked = self.marker_is_good(r, pact) || self.broken(Mutation::TakeOverWithoutMarker);
        let free =
            !self.frozen() && !self.drained && self.mirror_readable && !self.armed(Timer::Retry(Some(r)));
        (vote && (handed_over || lost) && marked && seat.marker_wanted.is_none() && free && seat.learned)
            .then_some(pact)
    }

    pub(crate) fn start_claim(&mut self, r: ResourceId) -> bool {
        let claims = self.claim(r).is_some();
        if claims {
            self.go(r, Phase::Stopping);
        }
        claims
    }

    /// An operator says that this side goes on; the price was shown ([`State::price`]). It takes what the peer holds, or goes on
    /// with what it holds itself and nobody else answers for any more.
    pub(crate) fn force(&mut self, r: ResourceId) {
        let waits = self.waits_for_a_word(r);
        let Some(seat) = self.seats.get_mut(&r) else { return };
        let alone = self.config.voting != Voting::Arbiter && seat.phase == Phase::Unlearned && !seat.learned;
        if (seat.phase == Phase::Refused && seat.split) || alone {
            return self.keep_this_side(r);
        }
        if matches!(seat.phase, Phase::Following | Phase::Inspecting | Phase::Attaching | Phase::Cloning) {
            seat.forced = true;
            self.go(r, Phase::Stopping);
        } else if seat.phase == Phase::Claiming {
            // Nobody may ever answer what it asks.
            seat.forced = true;
            self.go(r, Phase::Forcing);
        } else if waits {
            seat.forced = true;
        }
    }

    /// Its way on leads through an arbiter: what an operator says meanwhile counts once that is gone.
    pub(crate) fn waits_for_a_word(&self, r: ResourceId) -> bool {
        let Some(seat) = self.seats.get(&r) else { return false };
        let asks =
            matches!(seat.phase, Phase::Unlearned | Phase::Resuming | Phase::Degrading | Phase::Fenced);
        let unleased = seat.phase == Phase::Starting && self.pact(r).is_some() && !self.leased();
        self.config.voting == Voting::Arbiter && self.register(r).is_some() && (asks || unleased)
    }

    /// Carries out a word that came to a node whose arbiter does not answer. The arbiter will find itself behind.
    pub(crate) fn obey(&mut self, r: ResourceId) {
        let seat = self.seat(r);
        if !seat.forced || self.config.voting != Voting::Arbiter || !self.arbiter.gone {
            return;
        }
        let known = matches!(seat.control, Observed::Known(_));
        match (seat.phase, self.holds(r)) {
            // What the register says then leads on: to the end of the synchronous setting, or to serving.
            (Phase::Degrading | Phase::Resuming, true) if known => self.keep_this_side(r),
            (Phase::Unlearned, true) if known && !self.runs_lost(r) => {
                // Its own data, and no other: what an exchanged disk holds nobody has priced.
                let as_won = self.data_is_as_won(r);
                if as_won {
                    self.keep_this_side(r);
                }
                self.seat_mut(r).forced = false;
                self.go(r, if as_won { Phase::Starting } else { Phase::Refused });
            }
            (Phase::Unlearned, false) if known && !self.runs_lost(r) => {
                self.seat_mut(r).learned = true;
                self.go(r, Phase::Inspecting);
                self.go(r, Phase::Stopping);
            }
            (Phase::Starting, true) if !self.leased() && !self.busy(r) => self.go(r, Phase::Fenced),
            (_, _) => {}
        }
    }

    pub(crate) fn stopped_following(&mut self, r: ResourceId, done: bool) {
        if self.seat(r).phase == Phase::Stopping && done {
            self.claim_or_return(r);
        }
    }

    fn claim_or_return(&mut self, r: ResourceId) {
        self.seat_mut(r).link = Observed::Known(Link::Down);
        if self.seat(r).forced {
            return self.go(r, Phase::Forcing);
        }
        // What began this must still hold: the peer may be heard again, and an operator's word counts for one register only.
        let claim = self.claim(r);
        if let Some(pact) = claim {
            self.seat_mut(r).pact = Some(pact);
        }
        self.go(r, if claim.is_some() { Phase::Claiming } else { Phase::Inspecting });
    }

    pub(crate) fn taking_over(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let epoch = self.seat(r).epoch;
        let phase = self.seat(r).phase;
        if phase == Phase::Stopping {
            if self.broken(Mutation::ReceiverNotStopped) {
                self.claim_or_return(r);
            } else if self.seat(r).control == Observed::Unknown && !self.busy(r) {
                self.issue(now, out, Some(r), Action::ReadControl, vec![]);
            } else if !self.busy(r) {
                self.issue(now, out, Some(r), Action::StopFollowing, vec![]);
            }
        } else if phase == Phase::Checking {
            let good = self.seat(r).pact.is_some_and(|pact| self.marker_is_good(r, pact));
            let good = good || self.broken(Mutation::MarkerNotRechecked);
            match self.seat(r).control {
                Observed::Unknown => {
                    self.issue(now, out, Some(r), Action::ReadControl, vec![]);
                }
                Observed::Known(_) => self.go(r, if good { Phase::Promoting } else { Phase::Refused }),
            }
        } else if phase == Phase::Promoting && self.register_durable(r) && self.stays_off(now, r, out) {
            let needs = vec![Need::RegisterDurable(r, epoch), Need::NotFollowing(r)];
            self.issue(now, out, Some(r), Action::Promote, needs);
        }
    }

    /// The peer was heard, or was switched off for so long ago that it may be on again without being heard.
    pub(crate) fn peer_may_be_on(&mut self) {
        self.peer_off = false;
        if self.config.voting != Voting::FenceDevice {
            return;
        }
        for r in self.config.resources.clone() {
            let open = matches!(self.seat(r).phase, Phase::Promoting | Phase::Dropping | Phase::Checking);
            let renounced = self.seat(r).phase == Phase::Dropping && self.seat(r).renounced.is_some();
            self.seat_mut(r).fence_again |= open && !renounced && !self.register_durable(r);
        }
    }

    /// What was won over a peer that was switched off is carried out only over one that is still off.
    pub(crate) fn stays_off(&mut self, now: Tick, r: ResourceId, out: &mut Actions) -> bool {
        if self.seat(r).fence_again && !self.peer_off {
            self.issue(now, out, None, Action::FencePeer, vec![]);
            return false;
        }
        self.seat_mut(r).fence_again = false;
        true
    }

    pub(crate) fn following(&mut self, r: ResourceId) {
        let pact = self.pact(r);
        if self.seat(r).phase == Phase::Renouncing {
            if self.clear_marker(r, pact) {
                self.go(r, Phase::Following);
            }
            return;
        }
        if self.start_claim(r) {
            return;
        }
        let Some(pact) = pact else { return };
        // A standby whose marker is not this promise's can never take over under it, so it says so, and the holder
        // makes a new one. While the arbiter is gone, a good marker is given up as well.
        let arbiter_gone = self.config.voting == Voting::Arbiter && self.arbiter.gone && !self.peer_silent;
        let settled = self.seat(r).marker_wanted.is_none();
        let useless = !self.marker_is_good(r, pact) || arbiter_gone;
        if settled
            && useless
            && !self.renounced(r, pact)
            && !self.take_over_open(r)
            && !self.broken(Mutation::RenounceLast)
        {
            self.go(r, Phase::Renouncing);
        }
    }

    /// On disk: no marker, and this pact will never be marked.
    fn renounced(&self, r: ResourceId, pact: Pact) -> bool {
        match self.seat(r).marker {
            Observed::Known(file) => file.marker.is_none() && file.last >= Some(pact),
            Observed::Unknown => false,
        }
    }

    pub(crate) fn repeat_renounced(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        let Some(pact) = self.pact(r).filter(|_| self.seat(r).phase == Phase::Following) else { return };
        let early = self.broken(Mutation::RenounceLast) && self.arbiter.gone;
        if (self.renounced(r, pact) && !self.take_over_open(r)) || early {
            self.send_peer(now, out, ToPeer::Renounced { resource: r, pact });
        }
    }
}
