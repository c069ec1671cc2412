//! What the core is told.

use serde::{Deserialize, Serialize};

use crate::action::{ActionId, Outcome};
use crate::message::{FromArbiter, ToPeer};
use crate::types::ResourceId;

/// Clocks that the core sets: the driver sends [`Event::Fired`] when one in [`crate::State::timers`] is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Timer {
    /// Say hello, renew, show the mirror.
    Beat,
    /// Send the open batch once more.
    Resend,
    /// The lease ends.
    LeaseEnd,
    /// The promise not to take over ends.
    Promise,
    /// The peer was silent for T.
    PeerSilent,
    /// The arbiter was silent for T.
    ArbiterSilent,
    /// The arbiter was silent for so long that the pair goes on without (rule 10).
    ArbiterGone,
    /// An action that failed may be tried again. `None`: the mirror.
    Retry(Option<ResourceId>),
    /// A marker that failed to be written may be tried again.
    RetryMarker(ResourceId),
    /// The link flapped: protecting again waits.
    Backoff(ResourceId),
    /// The other node did not take what was handed over.
    HandOver(ResourceId),
    /// Automatic moves are allowed again.
    Freeze,
}

/// The replication link of a resource as this side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Link {
    /// Connected, and the standby has what there is.
    AtHead,
    /// Not connected, or behind.
    Down,
}

/// Why a holder that is alive should hand over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Trouble {
    /// Every client port is down here while the standby reports its own up for 2 s.
    ClientNetwork,
    /// The data volume is 97 % full and the standby has more room.
    DiskFull,
    /// The service crashed with its host alive, or three health probes failed.
    Unhealthy,
}

/// What an operator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Make the resource's first register, with the data that is here.
    Found(ResourceId),
    /// Hand the resource to the other node.
    SwitchOver(ResourceId),
    /// Hand everything over and take nothing.
    Drain,
    /// End of a drain; nothing moves back.
    Undrain,
    /// No automatic moves for this many milliseconds; zero ends it.
    Freeze(u64),
    /// Take the other node's resource, at the price that [`crate::State::price`] names.
    Force(ResourceId),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Event {
    /// An action ended.
    Completed(ActionId, Outcome),
    /// A timer is due.
    Fired(Timer),
    /// From the arbiter.
    FromArbiter(FromArbiter),
    /// From the peer.
    FromPeer(ToPeer),
    /// The replication link changed.
    Link(ResourceId, Link),
    /// A resource held here is in trouble.
    Trouble(ResourceId, Trouble),
    /// The service of a resource ended by itself; nothing of it runs.
    Ended(ResourceId),
    /// From an operator.
    Command(Command),
}
