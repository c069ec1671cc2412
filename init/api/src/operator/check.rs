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
