//! What the core is told.

use serde::{Deserialize, Serialize};

use crate::action::{ActionId, Outcome, VmId};
use crate::message::{FromArbiter, ToPeer};
use crate::types::{Greeting, ResourceId};

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
    /// What goes on beside the protocol (machines, checkpoint, write limit) may be tried again.
    RetryAside(ResourceId),
    /// The link flapped: protecting again waits.
    Backoff(ResourceId),
    /// The other node did not take what was handed over.
    HandOver(ResourceId),
    /// The standby did not mark: its data is perhaps not what flushed the canary any more.
    Mark(ResourceId),
    /// Automatic moves are allowed again.
    Freeze,
    /// The client ports are down here and up at the standby for long enough.
    ClientsLost,
    /// A service that crashed often has not crashed for long enough.
    Crashes(ResourceId),
    /// The peer that was switched off may be on again.
    PeerOff,
}

/// The replication link of a resource as this side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Link {
    /// Connected, and the standby has what there is.
    AtHead,
    /// Not connected, or behind.
    Down,
}

/// What a node sees of itself beside its services; told to the core when it changes, and to the peer with every beat.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Condition {
    /// A client port works: carrier, then echo. `None`: not looked yet.
    pub clients_up: Option<bool>,
    /// How full each resource's volume is, in percent, sorted by resource.
    pub full_percent: Vec<(ResourceId, u8)>,
}

impl Condition {
    /// Of one resource's volume.
    pub fn full(&self, resource: ResourceId) -> Option<u8> {
        self.full_percent.iter().find(|(r, _)| *r == resource).map(|(_, percent)| *percent)
    }
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
    /// This node goes on with the resource, at the price that [`crate::State::price`] names. In seconds since 1970 when that was
    /// said: of two such words the later one stands.
    Force(ResourceId, u64),
    /// Look again at what was refused; the reason for the refusal is judged afresh. Without a third vote, on a node that
    /// cannot read its mirror: what the peer knows, of every resource, is all there is to know.
    Retry(ResourceId),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Event {
    /// An action ended.
    Completed(ActionId, Outcome),
    /// A timer is due.
    Fired(Timer),
    /// From the arbiter, with the greeting that its question was asked under.
    FromArbiter(Greeting, FromArbiter),
    /// From the peer.
    FromPeer(ToPeer),
    /// The replication link changed.
    Link(ResourceId, Link),
    /// This node's own condition changed.
    Condition(Condition),
    /// Three health probes of a service held here failed: it hangs.
    Unhealthy(ResourceId),
    /// The service of a resource ended by itself.
    Ended(ResourceId),
    /// A virtual machine ended by itself.
    VmEnded(VmId),
    /// From an operator.
    Command(Command),
}
