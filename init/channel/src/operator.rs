//! What operators with a key, and the other node, ask a node: lines of the operator protocol, and pieces of the event log.

use serde::{Deserialize, Serialize};

/// Where a node listens for them.
pub const PORT: u16 = 7403;
/// Largest message: a thousand lines of a journal.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A request of the operator protocol, without its line end.
    Line(Vec<u8>),
    /// From the other node: the asker's own event log goes on like this.
    Log {
        /// Which of its files; they are counted.
        file: u64,
        /// Where in it.
        offset: u64,
        /// What is there; empty to hear how much of it is known.
        bytes: Vec<u8>,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The reply, with its line end.
    Line(Vec<u8>),
    /// So much of that file is known.
    Has(u64),
    /// Not to be had with this key.
    Refused,
}
