//! The phases of one resource on one node, and every legal edge between them.

use serde::{Deserialize, Serialize};

crate::listed::listed! {
    /// What this node is doing for a resource.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub enum Phase {
        /// Service stopped, role not learned yet (rule 5).
        Unlearned,
        /// Asks for the first register.
        Founding,
        /// Holder after a restart of itself: asks for a higher epoch.
        Resuming,
        /// Starts the service as holder.
        Starting,
        /// Synchronous after a restart: nobody is admitted until the standby flushed what recovery brought back.
        HeldBack,
        /// Lets clients in.
        Admitting,
        /// Holder, acknowledges alone.
        Alone,
        /// Holder without arbiter, which is back: writes the register before anything else (rule 10).
        Reporting,
        /// Rule 4a.
        Arming,
        /// Rule 4b.
        Barrier,
        /// Rule 4c.
        Canary,
        /// Rule 4d, and waits for a lease (4e).
        Marking,
        /// Rule 4f: asks for Sync.
        Protecting,
        /// Protecting was given up; acknowledges alone again.
        Disarming,
        /// Holder, acknowledges what the standby flushed.
        Sync,
        /// Asks for Solo; behaves as Sync.
        Degrading,
        /// Rule 10: records that it goes on without an arbiter.
        Recording,
        /// Solo is won and mirrored; the setting goes.
        Dropping,
        /// Stops cleanly for a switchover.
        HandingOver,
        /// Stopped, released; the other node may take it.
        Released,
        /// Lost the right to serve: kills the service.
        Fenced,
        /// Compares own data with the holder's.
        Inspecting,
        /// Clears the marker before data is replaced.
        Clearing,
        /// Quarantines and rewinds.
        Rewinding,
        /// Copies everything.
        Cloning,
        /// Starts to follow.
        Attaching,
        /// Standby.
        Following,
        /// Rule 10: gives its marker up.
        Renouncing,
        /// Rule 3: stops its receiver.
        Stopping,
        /// Rule 3: asks for take-over.
        Claiming,
        /// Rule 3: won; looks at marker and data again.
        Checking,
        /// Promotes.
        Promoting,
        /// An operator's take-over: stops its receiver and asks.
        Forcing,
        /// Waits for an operator: the data is not what it should be.
        Refused,
    }
}

impl Phase {
    /// The holder's service may run in this phase, serving or about to.
    pub fn serves(self) -> bool {
        match self {
            Phase::Starting
            | Phase::HeldBack
            | Phase::Admitting
            | Phase::Alone
            | Phase::Reporting
            | Phase::Arming
            | Phase::Barrier
            | Phase::Canary
            | Phase::Marking
            | Phase::Protecting
            | Phase::Disarming
            | Phase::Sync
            | Phase::Degrading
            | Phase::Recording
            | Phase::Dropping
            | Phase::HandingOver
            | Phase::Promoting => true,
            Phase::Unlearned
            | Phase::Founding
            | Phase::Resuming
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
            | Phase::Forcing
            | Phase::Refused => false,
        }
    }

    /// Clients are let in.
    pub fn admits(self) -> bool {
        self.serves()
            && !matches!(
                self,
                Phase::Starting | Phase::HeldBack | Phase::Admitting | Phase::Promoting | Phase::HandingOver
            )
    }
}

/// Every legal edge with its cause.
pub const EDGES: &[(Phase, Phase, &str)] = {
    use Phase::*;
    &[
        (Unlearned, Founding, "operator founds"),
        (Unlearned, Resuming, "register: held here"),
        (Unlearned, Starting, "no arbiter and the peer consulted, or an operator's word"),
        (Unlearned, Inspecting, "register: held by the peer"),
        (Unlearned, Fenced, "runs, and is held by the peer or the lease is lost"),
        (Unlearned, Refused, "data is not what was won with"),
        (Unlearned, Following, "held by the peer, and follows already"),
        (Founding, Starting, "won"),
        (Founding, Unlearned, "lost"),
        (Resuming, Starting, "won"),
        (Resuming, Unlearned, "lost"),
        (Resuming, Fenced, "runs on, and the lease is lost"),
        (Starting, Alone, "serving, Solo"),
        (Starting, HeldBack, "serving, Sync"),
        (Starting, Fenced, "authority or lease lost, or did not start"),
        (HeldBack, Admitting, "standby flushed all"),
        (HeldBack, Degrading, "standby lost"),
        (HeldBack, Recording, "standby renounced"),
        (HeldBack, Fenced, "authority or lease lost"),
        (Admitting, Sync, "clients in"),
        (Admitting, Fenced, "authority or lease lost"),
        (Alone, Arming, "standby at head"),
        (Alone, Reporting, "arbiter back"),
        (Alone, Fenced, "authority lost or service ended"),
        (Reporting, Alone, "won"),
        (Reporting, Fenced, "authority lost or service ended"),
        (Arming, Barrier, "set"),
        (Arming, Disarming, "given up"),
        (Arming, Fenced, "authority lost or service ended"),
        (Barrier, Canary, "checkpoints done"),
        (Barrier, Disarming, "given up"),
        (Barrier, Fenced, "authority lost or service ended"),
        (Canary, Marking, "flushed by the standby"),
        (Canary, Disarming, "given up"),
        (Canary, Fenced, "authority lost or service ended"),
        (Marking, Protecting, "marked and leased"),
        (Marking, Disarming, "given up"),
        (Marking, Fenced, "authority lost or service ended"),
        (Protecting, Sync, "won"),
        (Protecting, Disarming, "refused"),
        (Protecting, Fenced, "authority or lease lost"),
        (Disarming, Alone, "setting gone"),
        (Disarming, Fenced, "authority lost or service ended"),
        (Sync, Degrading, "standby lost"),
        (Sync, Recording, "standby renounced"),
        (Sync, HandingOver, "switchover"),
        (Sync, Fenced, "authority or lease lost"),
        (Degrading, Dropping, "won and mirrored"),
        (Degrading, Recording, "standby renounced"),
        (Degrading, Fenced, "authority or lease lost"),
        (Recording, Dropping, "on disk"),
        (Recording, Fenced, "authority lost or service ended"),
        (Dropping, Alone, "setting gone"),
        (Dropping, Fenced, "authority lost or service ended"),
        (HandingOver, Released, "stopped, standby has all"),
        (HandingOver, Fenced, "did not stop cleanly"),
        (Released, Unlearned, "taken by the peer, or not in time"),
        (Fenced, Unlearned, "nothing runs"),
        (Fenced, Released, "crashed in Sync, standby may take it"),
        (Fenced, Refused, "crashed too often"),
        (Refused, Unlearned, "operator: look again"),
        (Inspecting, Attaching, "can stream"),
        (Inspecting, Clearing, "cannot stream"),
        (Inspecting, Refused, "another system's data"),
        (Inspecting, Fenced, "held here after all"),
        (Clearing, Rewinding, "diverged"),
        (Clearing, Cloning, "unusable"),
        (Clearing, Fenced, "held here after all"),
        (Rewinding, Inspecting, "done"),
        (Rewinding, Cloning, "failed"),
        (Rewinding, Fenced, "held here after all"),
        (Cloning, Inspecting, "done"),
        (Cloning, Fenced, "held here after all"),
        (Attaching, Following, "streams"),
        (Attaching, Inspecting, "did not attach"),
        (Attaching, Fenced, "held here after all"),
        (Following, Stopping, "holder lost or handed over"),
        (Following, Renouncing, "arbiter gone"),
        (Following, Inspecting, "ended, or the holder's history changed"),
        (Following, Fenced, "held here after all"),
        (Renouncing, Following, "marker gone"),
        (Renouncing, Inspecting, "ended"),
        (Renouncing, Fenced, "held here after all"),
        (Inspecting, Stopping, "holder lost, or operator"),
        (Attaching, Stopping, "holder lost, or operator"),
        (Cloning, Stopping, "operator"),
        (Stopping, Claiming, "nothing received any more"),
        (Stopping, Forcing, "nothing received any more, operator"),
        (Stopping, Inspecting, "nothing left to claim"),
        (Stopping, Fenced, "held here after all"),
        (Claiming, Checking, "won"),
        (Claiming, Attaching, "refused"),
        (Claiming, Forcing, "operator"),
        (Checking, Promoting, "marker and data as claimed"),
        (Checking, Refused, "they are not"),
        (Checking, Fenced, "authority lost"),
        (Promoting, Alone, "writable"),
        (Promoting, Fenced, "authority lost or promotion failed"),
        (Forcing, Promoting, "won"),
        (Forcing, Attaching, "refused"),
    ]
};

/// Whether the table has this edge.
pub fn legal(from: Phase, to: Phase) -> bool {
    EDGES.iter().any(|(a, b, _)| (*a, *b) == (from, to))
}

/// The table as a Mermaid state diagram, as docs/protocol.md has it.
pub fn diagram() -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> Unlearned: boot\n");
    for (from, to, cause) in EDGES {
        text.push_str(&format!("    {from:?} --> {to:?}: {cause}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn table_names_each_edge_once_and_reaches_every_phase() {
        let edges: BTreeSet<_> = EDGES.iter().map(|(a, b, _)| (*a, *b)).collect();
        assert_eq!(edges.len(), EDGES.len());
        let mut reached = BTreeSet::from([Phase::Unlearned]);
        while let Some((_, to, _)) =
            EDGES.iter().find(|(a, b, _)| reached.contains(a) && !reached.contains(b))
        {
            reached.insert(*to);
        }
        assert_eq!(reached.len(), Phase::ALL.len());
        assert!(Phase::ALL.iter().all(|p| EDGES.iter().any(|(a, _, _)| a == p)));
    }

    /// No way leads into serving except through a change of the register that this node asked for.
    #[test]
    fn serving_starts_only_after_winning() {
        let entries: BTreeSet<_> =
            EDGES.iter().filter(|(a, b, _)| !a.serves() && b.serves()).map(|(a, b, _)| (*a, *b)).collect();
        use Phase::*;
        let expected = [
            (Founding, Starting),
            (Resuming, Starting),
            (Unlearned, Starting),
            (Checking, Promoting),
            (Forcing, Promoting),
        ];
        assert_eq!(entries, BTreeSet::from(expected));
    }

    #[test]
    fn the_document_shows_this_diagram() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (before, rest) = document.split_once("```mermaid\n").unwrap();
        let (shown, after) = rest.split_once("```").unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, format!("{before}```mermaid\n{}```{after}", diagram())).unwrap();
        } else {
            assert!(shown == diagram(), "docs/protocol.md shows an old diagram: `cargo xtask update-golden`");
        }
    }
}
