//! The protocol's own kinds of number, each a type so that an epoch can never be compared with a pact.

use serde::{Deserialize, Serialize};

/// One of the two members of a cluster. Which machine it is was settled at pairing, by its key; names are labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Node {
    /// The member with the lower key.
    A,
    /// The member with the higher key.
    B,
}

impl Node {
    /// Both members, in order.
    pub const BOTH: [Node; 2] = [Node::A, Node::B];

    /// The other one.
    pub fn peer(self) -> Node {
        match self {
            Node::A => Node::B,
            Node::B => Node::A,
        }
    }

    /// 0 or 1, for tables.
    pub fn index(self) -> usize {
        match self {
            Node::A => 0,
            Node::B => 1,
        }
    }
}

/// A point on the monotonic clock that runs through suspend (CLOCK_BOOTTIME) of whoever is asked, in milliseconds.
/// Ticks of different machines are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Tick(pub u64);

impl Tick {
    /// This point plus a span in milliseconds; stays at the end of time instead of wrapping.
    #[must_use]
    pub fn plus(self, span_ms: u64) -> Tick {
        Tick(self.0.saturating_add(span_ms))
    }

    /// Milliseconds from `earlier` to here, zero when it lies ahead.
    pub fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Which replicated thing: an index into the cluster's resource list, fixed when the resource was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceId(pub u16);

/// Counts changes of authority over one resource. Zero: nobody ever held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// Names one promise, "the standby has all that the holder acknowledges"; minted by each attempt to protect.
///
/// Ordered, so that a standby can tell an older promise from a newer one: attempts are counted within an epoch. The
/// nonce keeps two histories apart that count the same epoch, as after an arbiter that went back in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pact {
    /// The holder's epoch when it was minted.
    pub epoch: Epoch,
    /// Attempt within that epoch, from 1.
    pub attempt: u32,
    /// From the boot's nonce.
    pub nonce: u64,
}

/// One boot of one node: a counter that PID 1 keeps on disk, with a nonce in case that disk was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId {
    /// Rises with every boot.
    pub count: u64,
    /// Random.
    pub nonce: u64,
}

/// One run of the arbiter's process; drawn at random at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// How often this boot of a node has greeted an arbiter as one that it did not know; belongs to each question, and comes back
/// with its answer from whatever carries the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Greeting(pub u32);

/// Id of a request to the arbiter; rises within a node, also across its boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// Which copy of the data a disk holds: drawn anew whenever data is replaced (initdb, clone, rewind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// Which cluster; minted once at pairing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

/// PostgreSQL's system identifier, or a volume's; data of another system is never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SystemId(pub u64);

/// PostgreSQL's timeline; zero for volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

/// What was seen of the world. A missed deadline makes it `Unknown`, never the old value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Observed<T> {
    /// Seen, and nothing since could have changed it without telling.
    Known(T),
    /// Not seen, or no longer trusted.
    Unknown,
}
