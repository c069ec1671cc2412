//! What a node did and when, out of its event log.

use std::fs;

use dyad_cluster::eventlog;
use dyad_cluster::phase::Phase;

use crate::chaos::judge;
use crate::{Lab, secrets};

/// A step from one phase to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) at_us: u64,
    pub(crate) from: Phase,
    pub(crate) to: Phase,
}

/// Files that are read, the newest: one may have been begun just now.
const FILES: usize = 3;

/// What `node` did for the database since then, oldest first. The clock is the host's, to a millisecond.
pub(crate) fn edges(lab: &Lab, node: &str, since_us: u64) -> Vec<Edge> {
    let files = secrets::files(&judge::state_of(lab, node).join("supervisor/events"));
    let mut found = Vec::new();
    for file in &files[files.len().saturating_sub(FILES)..] {
        // The node may remove its oldest file at any time.
        let log = fs::read(file).unwrap_or_default();
        eventlog::walk(&eventlog::decode(&log).unwrap_or_default(), |state, at| {
            let edge = |(_, from, to): &(_, Phase, Phase)| Edge { at_us: at.0 * 1000, from: *from, to: *to };
            found.extend(state.edges().iter().map(edge));
        });
    }
    found.retain(|edge| edge.at_us >= since_us);
    found
}

/// When it first came to this phase.
pub(crate) fn came_to(edges: &[Edge], phase: Phase) -> Option<u64> {
    edges.iter().find(|edge| edge.to == phase).map(|edge| edge.at_us)
}

/// When it first left this phase.
pub(crate) fn left(edges: &[Edge], phase: Phase) -> Option<u64> {
    edges.iter().find(|edge| edge.from == phase).map(|edge| edge.at_us)
}
