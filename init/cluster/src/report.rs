//! What an operator sees first: how well a resource is protected, and why not better.

use crate::action::Relation;
use crate::crash::CRASHES_MAX;
use crate::event::{Link, Timer};
use crate::phase::Phase;
use crate::state::{State, Voting};
use crate::types::{Observed, ResourceId, SystemId};

/// The first line of the status screen, for one resource. Best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protection {
    /// Every acknowledged write is on both disks, and the other node takes over by itself.
    Full,
    /// Every acknowledged write is on both disks; a take-over needs an operator or a peer that comes back.
    NoTakeOver,
    /// Served, and acknowledged writes are on one disk only.
    OneCopy,
    /// Standby: what it has is for the holder to say.
    Standby,
    /// Not served here, and not a standby either.
    Down,
}

/// One link of the chain of causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Nobody has told this node yet who holds the resource.
    NotLearned,
    /// Nothing exists yet; an operator or the pairing founds it.
    NotFounded,
    /// The arbiter does not answer.
    ArbiterSilent,
    /// The arbiter has not heard both nodes since it started and grants nothing: losing a node now would cost service.
    ArbiterHeardOne,
    /// The arbiter is older than the mirrors: enrol it again.
    ArbiterAmnesia,
    /// The peer does not answer.
    PeerSilent,
    /// The standby is not connected or behind.
    StandbyBehind,
    /// The link was lost lately; protecting waits until it is quiet.
    Flapping,
    /// Protecting is under way.
    Protecting,
    /// A change was asked for and is not answered: the stricter state is obeyed until it is.
    Unanswered,
    /// There is no lease: serving would risk a second writer.
    NoLease,
    /// This node's record of its state cannot be read.
    MirrorUnreadable,
    /// The data is not what this node won with, or another system's; an operator must look.
    DataUnexpected,
    /// The data is being rewound or copied.
    Repairing,
    /// The mode has no third vote: nobody takes over by itself.
    NoThirdVote,
    /// Automatic moves are frozen.
    Frozen,
    /// The service crashed so often that it is not started again without an operator.
    CrashLoop,
    /// Two histories of one epoch: an operator names the side that goes on.
    Split,
    /// Every client port is down here.
    ClientNetwork,
    /// The volume is nearly full: new writers are refused.
    NearlyFull,
    /// This node is drained: it takes nothing over.
    Drained,
    /// The standby has not said (or not said lately) that this promise stands on its disk.
    Unmarked,
    /// The peer is drained or frozen, or cannot read its own record: it takes nothing over.
    PeerPassive,
    /// Neither the other node nor the arbiter has answered for so long that an operator has to say who goes on.
    NeedsOperator,
    /// The other node has promoted and not checkpointed yet: a rewind must wait.
    AwaitsCheckpoint,
}

/// What a forced take-over may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Price {
    /// The marker shows that everything acknowledged is here.
    Nothing,
    /// Everything that the holder acknowledged alone since this node was last protected.
    UnprotectedWrites,
    /// This node has everything that it acknowledged itself; the peer may have gone on since it was last heard.
    PeersOwnWrites,
    /// It cannot even be told what this node has.
    Unknown,
}

/// What [`crate::event::Command::Force`] would do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// This node would go on.
    Counts,
    /// Nothing: it serves.
    Holds,
    /// Nothing yet: an arbiter is asked, which grants, or was heard less than a minute ago.
    Asked,
    /// Nothing: what this node does must end first.
    NotNow,
}

impl State {
    /// How well this node protects what it holds.
    pub fn protection(&self, r: ResourceId) -> Protection {
        let Some(seat) = self.seats.get(&r) else { return Protection::Down };
        if seat.phase == Phase::Following {
            return Protection::Standby;
        }
        if !self.admits(r) {
            return Protection::Down;
        }
        if seat.phase != Phase::Sync || seat.link != Observed::Known(Link::AtHead) {
            return Protection::OneCopy;
        }
        let vote = match self.config.voting {
            Voting::Arbiter => self.arbiter_grants(),
            Voting::FenceDevice => true,
            Voting::Strict | Voting::PrimaryBiased => false,
        };
        if vote && !self.peer_silent && self.peer_takes_over && self.peer_has_mark(r) {
            Protection::Full
        } else {
            Protection::NoTakeOver
        }
    }

    fn arbiter_grants(&self) -> bool {
        !self.arbiter.silent && self.arbiter.heard_both && !self.arbiter.amnesia
    }

    fn peer_has_mark(&self, r: ResourceId) -> bool {
        self.pact(r).is_some_and(|pact| self.peer_marked.contains(&(r, pact)))
    }

    /// Why it is not better, the nearest cause first; empty when it is as good as it can be.
    pub fn why(&self, r: ResourceId) -> Vec<Cause> {
        let Some(seat) = self.seats.get(&r) else { return vec![Cause::NotFounded] };
        let phase = seat.phase;
        let arbiter = self.config.voting == Voting::Arbiter;
        let below_sync = phase.serves() && phase != Phase::Sync;
        let table = [
            (self.register(r).is_none(), Cause::NotFounded),
            (self.needs_a_word(r), Cause::NeedsOperator),
            (seat.split, Cause::Split),
            (phase == Phase::Refused && seat.crashes >= CRASHES_MAX, Cause::CrashLoop),
            (phase == Phase::Refused && !seat.split && seat.crashes < CRASHES_MAX, Cause::DataUnexpected),
            (
                phase == Phase::Inspecting && seat.relation == Some(Relation::TooEarly),
                Cause::AwaitsCheckpoint,
            ),
            (phase == Phase::Unlearned && !seat.learned, Cause::NotLearned),
            (matches!(phase, Phase::Clearing | Phase::Rewinding | Phase::Cloning), Cause::Repairing),
            (self.mirror.intent.is_some(), Cause::Unanswered),
            (phase == Phase::Starting && self.pact(r).is_some() && !self.leased(), Cause::NoLease),
            (phase.serves() && seat.link != Observed::Known(Link::AtHead), Cause::StandbyBehind),
            (below_sync && self.armed(Timer::Backoff(r)), Cause::Flapping),
            (
                matches!(
                    phase,
                    Phase::Arming | Phase::Barrier | Phase::Canary | Phase::Marking | Phase::Protecting
                ),
                Cause::Protecting,
            ),
            (self.peer_silent, Cause::PeerSilent),
            (phase.serves() && !self.peer_silent && !self.peer_takes_over, Cause::PeerPassive),
            (phase == Phase::Sync && !self.renounced_by_peer(r) && !self.peer_has_mark(r), Cause::Unmarked),
            (self.condition.clients_up == Some(false), Cause::ClientNetwork),
            (phase.serves() && self.nearly_full(r), Cause::NearlyFull),
            (self.drained, Cause::Drained),
            (arbiter && self.arbiter.silent, Cause::ArbiterSilent),
            (arbiter && !self.arbiter.silent && !self.arbiter.heard_both, Cause::ArbiterHeardOne),
            (self.arbiter.amnesia, Cause::ArbiterAmnesia),
            (!self.mirror_readable, Cause::MirrorUnreadable),
            (matches!(self.config.voting, Voting::Strict | Voting::PrimaryBiased), Cause::NoThirdVote),
            (self.frozen(), Cause::Frozen),
        ];
        table.into_iter().filter_map(|(holds, cause)| holds.then_some(cause)).collect()
    }

    /// Neither the peer nor an arbiter answers, and nobody but an operator can get this node on.
    fn needs_a_word(&self, r: ResourceId) -> bool {
        let gone = self.config.voting == Voting::Arbiter && self.arbiter.gone;
        gone && self.peer_silent && self.word(r) == Word::Counts
    }

    /// What going on with this resource here by force may lose.
    pub fn price(&self, r: ResourceId) -> Price {
        let Some(seat) = self.seats.get(&r) else { return Price::Unknown };
        if self.holds(r) && self.config.voting == Voting::Arbiter {
            return if self.data_is_as_won(r) { Price::PeersOwnWrites } else { Price::Unknown };
        }
        let (Observed::Known(file), Observed::Known(control)) = (seat.marker, seat.control) else {
            return Price::Unknown;
        };
        if control.system == SystemId(0) {
            return Price::Unknown;
        }
        // Else the holder may have gone on alone without this node knowing. An arbiter that grants refuses a change that
        // was asked for under an older register.
        let known = match self.config.voting {
            Voting::Arbiter => self.arbiter_grants(),
            Voting::Strict => true,
            Voting::PrimaryBiased | Voting::FenceDevice => false,
        };
        match file.marker {
            Some(m) if m.generation != control.generation => Price::Unknown,
            Some(m) if known && Some(m.pact) == self.pact(r) => Price::Nothing,
            Some(_) | None => Price::UnprotectedWrites,
        }
    }
}
