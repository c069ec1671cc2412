//! The seeded simulator: whole clusters with clocks, links, disks and clients; faults first, then peace, and in peace
//! the pair must find its best protection again.

mod cluster;
mod database;
mod execute;
mod faults;
mod oracles;
mod random;
mod stream;

use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase;

use cluster::{Cluster, Happening};
use faults::{Class, Fault};

/// Faults begin within this time.
const STORM_MS: u64 = 90_000;
/// And all is well again by this.
const HEAL_MS: u64 = 110_000;
/// Within this much peace, protection must be at its best.
const PEACE_MS: u64 = 150_000;
/// Faults of one history.
const FAULTS: u64 = 12;

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
    /// Edges of the phase table.
    pub edges: std::collections::BTreeSet<(Phase, Phase)>,
    /// What happened, in short lines.
    pub log: Vec<String>,
    /// The oracle that complained.
    pub violation: Option<String>,
}

/// Plays one seed's history. A third of them holds only faults that must move nothing.
pub fn run(seed: u64, broken: &[Mutation]) -> Run {
    let class = if seed % 3 == 2 { Class::Harmless } else { Class::Any };
    let mut cluster = Cluster::new(seed, class, broken);
    for _ in 0..FAULTS {
        let at = cluster.random.between(20_000, STORM_MS);
        let fault = Fault::draw(class, &mut cluster.random);
        let span = cluster.random.between(100, 18_000);
        let end = (at + span).min(HEAL_MS);
        cluster.put(at, Happening::Begin(fault, end));
        cluster.put(end, Happening::End(fault));
    }
    cluster.put(HEAL_MS, Happening::Peace);
    while cluster.violation.is_none() && cluster.now < HEAL_MS + PEACE_MS {
        cluster.advance();
    }
    if cluster.violation.is_none() {
        cluster.violation = oracles::at_the_end(&cluster);
    }
    Run {
        acknowledged: cluster.acknowledged.iter().map(Vec::len).sum(),
        changes: cluster.changes,
        faults: cluster.faults,
        take_overs: cluster.take_overs,
        edges: cluster.edges,
        log: cluster.log,
        violation: cluster.violation,
    }
}
