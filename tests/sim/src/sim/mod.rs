//! The seeded simulator: whole clusters with clocks, links, disks and clients; faults first, then peace, and in peace
//! the pair must find its best protection again.

mod cluster;
mod database;
mod execute;
mod faults;
mod machine;
mod oracles;
mod plan;
mod random;
mod stream;

use std::collections::{BTreeMap, BTreeSet};

use dyad_cluster::eventlog::Entry;
use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::Reason;

use cluster::Cluster;
pub use database::{Database, Kind, Rewound, Service, Written};
pub use faults::{Fault, NAMES, Wire};
pub(crate) use plan::{CALM_MS, least_ms};
pub use plan::{Class, HARMLESS, Plan, Planned};
pub(crate) use random::Random;

/// Within this much peace, protection must be at its best.
const PEACE_MS: u64 = 150_000;
/// And stay there this long; then the history ends.
const STEADY_MS: u64 = 5_000;

/// What one history was.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Changes of registers.
    pub changes: u64,
    /// Faults begun.
    pub faults: usize,
    /// Take-overs granted.
    pub take_overs: u64,
    /// Acknowledged writes that a forced take-over gave up.
    pub given_up: usize,
    /// Edges of the phase table, and when each was first taken, in milliseconds.
    pub edges: BTreeMap<(Phase, Phase), u64>,
    /// Edges with a fault that was there when they were taken.
    pub matrix: BTreeSet<((Phase, Phase), &'static str)>,
    /// The database's register: why it changed and when, in milliseconds.
    pub database_changes: Vec<(Reason, u64)>,
    /// Address closures, promotions, and starts of services after the first.
    pub moved: u64,
    /// What happened, in short lines.
    pub log: Vec<String>,
    /// Node A's event log.
    pub recorded: Vec<Entry>,
    /// The oracle that complained.
    pub violation: Option<String>,
}

/// Plays one seed's history.
pub fn run(seed: u64, broken: &[Mutation]) -> Run {
    play(&Plan::drawn(seed), broken, false)
}

/// Plays a history; told: with its lines and node A's event log.
pub fn play(plan: &Plan, broken: &[Mutation], tell: bool) -> Run {
    let mut cluster = Cluster::new(plan, broken, tell);
    let end = plan.peace_ms + PEACE_MS;
    while cluster.violation.is_none() && cluster.now < end {
        cluster.advance();
        if cluster.best_since.is_some_and(|at| cluster.now >= at + STEADY_MS) {
            break;
        }
    }
    if cluster.violation.is_none() {
        cluster.violation = oracles::at_the_end(&cluster);
    }
    Run {
        acknowledged: cluster.acknowledged.iter().map(Vec::len).sum(),
        changes: cluster.changes,
        faults: cluster.faults,
        take_overs: cluster.take_overs,
        given_up: cluster.given_up,
        edges: cluster.edges,
        matrix: cluster.matrix,
        database_changes: cluster.moments.changes,
        moved: cluster.moments.moved,
        log: cluster.log.unwrap_or_default(),
        recorded: cluster.recorded.unwrap_or_default(),
        violation: cluster.violation,
    }
}
