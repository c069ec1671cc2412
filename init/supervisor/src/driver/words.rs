//! What the core knows, in words for operators.

use dyad_api::operator::Protection as Shows;
use dyad_cluster::phase::Phase;
use dyad_cluster::report::{Cause, Price};

use super::peer::Level;

/// One cause, in words.
pub(crate) fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::NotLearned => "nobody has told this node yet who holds the database",
        Cause::NeedsOperator => {
            "neither the other node nor the witness answers: an operator can let this node go on (`dyadctl takeover`)"
        }
        Cause::NotFounded => "the database has not been founded yet",
        Cause::ArbiterSilent => "the witness does not answer",
        Cause::ArbiterHeardOne => "the witness has not heard both nodes since it started, and grants nothing",
        Cause::ArbiterAmnesia => {
            "the witness knows less than the nodes: enrol it again (`dyad-witness enroll` there, `dyadctl enroll CODE` here)"
        }
        Cause::PeerSilent => "the other node does not answer",
        Cause::StandbyBehind => "the standby is not connected or behind",
        Cause::Flapping => "the standby was lost lately; protecting waits until the link is quiet",
        Cause::Protecting => "protecting is under way",
        Cause::Unanswered => "the witness was asked for a change and has not answered",
        Cause::NoLease => "this node has no lease: serving would risk a second writer",
        Cause::MirrorUnreadable => "this node's record of its state cannot be read",
        Cause::DataUnexpected => {
            "the data is not what this node won with, or another system's; an operator must look"
        }
        Cause::Repairing => "the data is being rewound or copied",
        Cause::NoThirdVote => "there is no third vote: nobody takes over by itself",
        Cause::Frozen => "automatic moves are frozen",
        Cause::CrashLoop => "PostgreSQL ended three times within five minutes and waits for an operator",
        Cause::Split => "the two nodes have two histories; an operator names the side that goes on",
        Cause::ClientNetwork => {
            "clients cannot be served here: their network, or a service that they need, is down"
        }
        Cause::NearlyFull => "the volume is nearly full: new writers are refused",
        Cause::Drained => "this node is drained: it takes nothing over",
        Cause::Unmarked => "the standby has not said lately that it may take over",
        Cause::PeerPassive => "the other node is drained or frozen, or cannot read its own record",
        Cause::AwaitsCheckpoint => "the other node has promoted and not checkpointed yet: a rewind waits",
    }
}

/// All of them, the nearest first.
pub(crate) fn causes(all: &[Cause]) -> String {
    all.iter().map(|one| cause(*one)).collect::<Vec<_>>().join("; ")
}

/// How well the database is protected, and why it is no better: what its holder says, or whoever comes next to one.
pub(crate) fn first_line(level: Level, holder: &str, phase: Phase, why: &str) -> (Shows, String) {
    // Between two steps there may be no cause, and what it does says more than nothing.
    let why = if why.is_empty() { format!("{holder} is {}", self::phase(phase)) } else { why.to_owned() };
    match level {
        Level::Full => (Shows::Protected, "losing either node loses nothing and needs nobody".into()),
        Level::NoTakeOver => (
            Shows::Synced,
            format!("every acknowledged write is on both nodes, and a take-over needs an operator: {why}"),
        ),
        Level::OneCopy => (Shows::Exposed, format!("losing {holder} loses data or service: {why}")),
        Level::Standby | Level::Down => (Shows::Down, format!("the database is not served: {why}")),
    }
}

/// What a node does for the database, in words.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unlearned => "waiting to learn its role",
        Phase::Founding => "founding the database",
        Phase::Resuming => "asking to go on as primary",
        Phase::Starting => "starting as primary",
        Phase::HeldBack => "primary, and lets nobody in until the standby has what was recovered",
        Phase::Admitting => "primary, letting clients in",
        Phase::Alone => "primary, alone",
        Phase::Reporting => "primary, telling the witness that it went on alone",
        Phase::Arming | Phase::Barrier | Phase::Canary | Phase::Marking | Phase::Protecting => {
            "primary, becoming synchronous"
        }
        Phase::Disarming => "primary, giving up becoming synchronous",
        Phase::Sync => "primary, synchronous",
        Phase::Degrading | Phase::Recording | Phase::Dropping => "primary, leaving synchronous replication",
        Phase::HandingOver => "handing over",
        Phase::Released => "waiting for the other node to take over",
        Phase::Fenced => "stopping",
        Phase::Inspecting => "comparing its data with the primary's",
        Phase::Clearing | Phase::Rewinding => "rewinding its data",
        Phase::Cloning => "copying the primary's data",
        Phase::Attaching => "starting as standby",
        Phase::Following => "standby",
        Phase::Renouncing => "standby, giving up its right to take over",
        Phase::Stopping | Phase::Claiming | Phase::Checking | Phase::Forcing => "taking over",
        Phase::Promoting => "becoming primary",
        Phase::Refused => "refusing the data that is here",
    }
}

/// What a take-over by force may cost, in words.
pub(crate) fn price(price: Price) -> &'static str {
    match price {
        Price::Nothing => "nothing: everything that was acknowledged is here",
        Price::UnprotectedWrites => {
            "everything that the other node acknowledged alone since this one was last protected"
        }
        Price::PeersOwnWrites => {
            "what the other node acknowledged if it went on since it was last heard; everything else is here"
        }
        Price::Unknown => "nobody can tell: it is not known what this node has",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_always_says_why() {
        let told = first_line(Level::Down, "node-a", Phase::Admitting, "");
        assert_eq!(
            told,
            (Shows::Down, "the database is not served: node-a is primary, letting clients in".into())
        );
        let told = first_line(Level::OneCopy, "node-a", Phase::Alone, "the other node does not answer");
        assert_eq!(told.1, "losing node-a loses data or service: the other node does not answer");
    }
}
