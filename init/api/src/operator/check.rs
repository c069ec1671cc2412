//! The answers to `check` and `policy`.

use serde::{Deserialize, Serialize};

/// One thing that must be true of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRow {
    /// The node.
    pub node: String,
    /// What was looked at.
    pub name: String,
    /// What it came to.
    pub verdict: Verdict,
    /// What was seen.
    pub note: String,
}

/// One rule of the pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// What happens.
    pub when: String,
    /// What the nodes do then.
    pub then: String,
}

/// Part of a round trip.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundTrip {
    /// What the standby shall read; only the other node says so. `None`: the whole round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A row that was written on one node and read on the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTripRow {
    /// Where it was written.
    pub writer: String,
    /// Where it was read.
    pub reader: String,
    /// Until its commit was acknowledged, in microseconds.
    pub written_us: u64,
    /// From there until the standby showed it, in microseconds.
    pub read_us: u64,
}

/// What a check came to, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it shall be.
    Ok,
    /// Nothing is lost by it now; something else that goes wrong could make it matter.
    Warning,
    /// Losing a node now loses data or service, or it is lost already.
    Critical,
}
