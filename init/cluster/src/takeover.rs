//! Taking over (rules 3 and 7), and giving the marker up (rule 10).

use crate::action::{Action, Actions, Need};
use crate::disk::Marker;
use crate::event::{Link, Timer};
use crate::message::ToPeer;
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::report::{Price, Word};
use crate::state::{State, Voting};
use crate::types::{Observed, Pact, ResourceId, SystemId, Tick};

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
    pub(crate) fn force(&mut self, r: ResourceId, second: u64) {
        let (word, free) = (self.word(r), self.price(r) == Price::Nothing);
        let Some(seat) = self.seats.get_mut(&r).filter(|_| word == Word::Counts) else { return };
        seat.free = free;
        match seat.phase {
            Phase::Following | Phase::Inspecting | Phase::Attaching | Phase::Cloning => {
                seat.forced = Some(second);
                self.go(r, Phase::Stopping);
            }
            // Nobody may ever answer what it asks.
            Phase::Claiming => {
                seat.forced = Some(second);
                self.go(r, Phase::Forcing);
            }
            _ if self.config.voting == Voting::Arbiter => seat.forced = Some(second),
            _ => self.keep_this_side(r, second),
        }
    }

    /// What an operator's word would do now.
    pub fn word(&self, r: ResourceId) -> Word {
        let Some(seat) = self.seats.get(&r) else { return Word::NotNow };
        let follows = matches!(
            seat.phase,
            Phase::Following | Phase::Inspecting | Phase::Attaching | Phase::Cloning | Phase::Claiming
        );
        let unlearned = seat.phase == Phase::Unlearned && !seat.learned;
        let alone = self.config.voting != Voting::Arbiter && unlearned;
        if follows || alone || (seat.phase == Phase::Refused && seat.split) {
            return Word::Counts;
        }
        if self.asks_an_arbiter(r) {
            return match (self.arbiter_is_out(), self.mirror_readable) {
                (false, _) => Word::Asked,
                (true, true) => Word::Counts,
                (true, false) => Word::NotNow,
            };
        }
        if seat.phase.serves() { Word::Holds } else { Word::NotNow }
    }

    /// Its way on leads through an arbiter.
    fn asks_an_arbiter(&self, r: ResourceId) -> bool {
        let Some(seat) = self.seats.get(&r) else { return false };
        let asks =
            matches!(seat.phase, Phase::Unlearned | Phase::Resuming | Phase::Degrading | Phase::Fenced);
        let unleased = seat.phase == Phase::Starting && self.pact(r).is_some() && !self.leased();
        self.config.voting == Voting::Arbiter && self.register(r).is_some() && (asks || unleased)
    }

    /// Nobody can wait for it: it has been away for long, or is there and will not grant anything.
    pub(crate) fn arbiter_is_out(&self) -> bool {
        let arbiter = &self.arbiter;
        arbiter.gone || arbiter.amnesia || (!arbiter.silent && !arbiter.heard_both)
    }

    /// What an operator knew when a word was given has changed before it could be carried out.
    pub(crate) fn void_word(&mut self, r: ResourceId) {
        let seat = self.seat_mut(r);
        if !matches!(seat.phase, Phase::Stopping | Phase::Forcing) {
            seat.forced = None;
        }
    }

    /// Carries out a word that was given where only an arbiter could have led on.
    pub(crate) fn obey(&mut self, r: ResourceId) {
        if !self.asks_an_arbiter(r) || !self.arbiter_is_out() {
            return;
        }
        let (seat, holds) = (self.seat(r), self.holds(r));
        let (Some(second), Observed::Known(control)) = (seat.forced, seat.control) else { return };
        match seat.phase {
            // What the register says then leads on: to the end of the synchronous setting, or to serving.
            Phase::Degrading | Phase::Resuming if holds => self.keep_this_side(r, second),
            Phase::Unlearned if self.runs_lost(r) => {}
            Phase::Unlearned if !holds && seat.running.is_some() => {
                self.seat_mut(r).learned = true;
                self.go(r, Phase::Following);
                self.force(r, second);
            }
            Phase::Unlearned => {
                // No other data than what the price was told for: a disk may have been exchanged, a rewind cut short.
                let own = control.system != SystemId(0) && (!holds || self.data_is_as_won(r));
                if own {
                    self.keep_this_side(r, second);
                }
                self.go(r, if own { Phase::Starting } else { Phase::Refused });
            }
            // From there it comes to be unlearned, with this word.
            Phase::Starting if !self.busy(r) => self.go(r, Phase::Fenced),
            _ => {}
        }
    }

    pub(crate) fn stopped_following(&mut self, r: ResourceId, done: bool) {
        if self.seat(r).phase == Phase::Stopping && done {
            self.claim_or_return(r);
        }
    }

    fn claim_or_return(&mut self, r: ResourceId) {
        self.seat_mut(r).link = Observed::Known(Link::Down);
        if self.seat(r).forced.is_some() {
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
