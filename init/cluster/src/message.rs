//! What nodes and arbiter say to each other. Every answer carries the registers, refusals included (rule 6).

use serde::{Deserialize, Serialize};

use crate::event::Condition;
use crate::register::{Change, Conflict, Register};
use crate::types::{BootId, Epoch, Generation, Incarnation, Node, Pact, RequestId, ResourceId};

/// Most resources of one cluster: bounds every message.
pub const RESOURCES_MAX: usize = 64;

/// The registers of a cluster as one side knows them, sorted by resource.
pub type Registers = Vec<(ResourceId, Register)>;

/// One wanted change, with the epoch it is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cas {
    /// Which resource.
    pub resource: ResourceId,
    /// The change happens only at this epoch.
    pub expect: Epoch,
    /// What.
    pub change: Change,
}

/// Node to arbiter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ToArbiter {
    /// Opens a session: new boot, or the arbiter is in a new incarnation.
    Hello {
        /// This boot of the node.
        boot: BootId,
        /// The arbiter's run that this is meant for; a node that knows none is told by the refusal. A delayed hello
        /// of an earlier run would otherwise count as heard with a mirror of long ago.
        incarnation: Option<Incarnation>,
        /// What its mirror holds; `None`: the mirror cannot be read, so this node was not heard (rule 9, rule 10).
        mirror: Option<Registers>,
    },
    /// Keeps the session.
    Renew {
        /// This boot of the node.
        boot: BootId,
        /// The arbiter's run that this is meant for.
        incarnation: Incarnation,
        /// The node's tick when this was sent; repeated in the answer, so that the lease counts from then.
        sequence: u64,
    },
    /// Changes for any number of resources: one durable write, a verdict each (rule 8).
    Batch {
        /// This boot of the node.
        boot: BootId,
        /// The arbiter's run that this is meant for.
        incarnation: Incarnation,
        /// Rises; a repeated id gets the first answer again.
        request: RequestId,
        /// The changes.
        items: Vec<Cas>,
    },
    /// The holder gives a resource up at this epoch: the standby may take it at once (rule 7).
    Release {
        /// This boot of the node.
        boot: BootId,
        /// The arbiter's run that this is meant for.
        incarnation: Incarnation,
        /// Which resource.
        resource: ResourceId,
        /// Only at this epoch.
        epoch: Epoch,
    },
}

/// Arbiter to node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FromArbiter {
    /// The arbiter's run.
    pub incarnation: Incarnation,
    /// The boot that asked: an answer to an earlier boot of this node renews nothing.
    pub boot: BootId,
    /// Newest request of this node that was answered; a node that lost its mirror goes on counting from here.
    pub answered: RequestId,
    /// The registers after whatever was asked.
    pub registers: Registers,
    /// True once both mirrors were heard in this incarnation: only then can anything be granted (rule 9).
    pub heard_both: bool,
    /// The answer proper.
    pub answer: Answer,
}

/// Answers of the arbiter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// To `Hello`.
    Welcome,
    /// To `Renew`: the session was alive when this sequence number arrived.
    Renewed {
        /// From the request.
        sequence: u64,
    },
    /// To `Batch`.
    Verdicts {
        /// From the request.
        request: RequestId,
        /// One for each item, in order.
        verdicts: Vec<Verdict>,
    },
    /// To `Release`.
    Released,
    /// Says nothing about any change: the sender must learn the registers and go on from there.
    Refused(Refusal),
}

/// What became of one wanted change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It is durable.
    Won,
    /// The register does not allow it.
    Lost(Conflict),
    /// Take-over: the holder is not known to be silent yet (rule 7).
    HolderAlive,
    /// Not both mirrors were heard since the arbiter's start (rule 9).
    NotHeard,
}

/// Why a message was not even looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// Meant for another run of the arbiter: say hello.
    Incarnation,
    /// From an older boot of the node than the newest known.
    Boot,
    /// No session: say hello.
    Session,
    /// A request id below the last one answered.
    Request,
    /// The arbiter has an older truth than a mirror: it must be enrolled again with both nodes.
    Amnesia,
    /// More items than a cluster has resources.
    TooLarge,
}

/// Node to node, over the paired channel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ToPeer {
    /// What the sender's mirror holds; also the sign of life. `None`: it cannot be read, and says nothing (rule 10).
    Mirror(Option<Registers>),
    /// What the sender sees of itself.
    Condition {
        /// Its ports and disks.
        condition: Condition,
        /// It would take over what it may: neither drained nor frozen, and its record of its state is whole.
        takes_over: bool,
        /// Pacts that stand on the sender's disk.
        marked: Vec<(ResourceId, Pact)>,
    },
    /// Asks the standby to promise not to take over for T (section 3).
    RenewLease {
        /// The holder's boot.
        boot: BootId,
        /// The holder's tick when this was sent; repeated in the answer.
        sequence: u64,
    },
    /// The promise; it counts from when the request was sent.
    LeasePromised {
        /// From the request.
        boot: BootId,
        /// From the request.
        sequence: u64,
        /// What is on the promising node's disk: who asked may have lost long ago what it asks for.
        registers: Registers,
    },
    /// Rule 4d: everything under this pact is on your disk if it still has this generation; mark it.
    Mark {
        /// Which resource.
        resource: ResourceId,
        /// The new pact.
        pact: Pact,
        /// The standby's data generation seen at the canary.
        generation: Generation,
    },
    /// The marker is durable.
    Marked {
        /// Which resource.
        resource: ResourceId,
        /// The pact marked.
        pact: Pact,
    },
    /// The holder stopped cleanly, the standby holds its last record, and the arbiter was told (switchover).
    HandOver {
        /// Which resource.
        resource: ResourceId,
        /// Only at this epoch.
        epoch: Epoch,
    },
    /// Rule 10: the standby gave up its marker for this pact, durably.
    Renounced {
        /// Which resource.
        resource: ResourceId,
        /// The pact given up.
        pact: Pact,
    },
}

/// A message with its sender, as the arbiter sees it after authentication.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Authenticated {
    /// Proven by the channel's key.
    pub from: Node,
    /// The message.
    pub message: ToArbiter,
}
