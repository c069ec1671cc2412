//! O1: each acknowledged write is on whoever serves.

use dyad_cluster::types::Node;

use crate::sim::cluster::Cluster;
use crate::sim::database::Service;

/// Both lists rise, so one walk over both is enough.
pub(crate) fn o1_acknowledged_is_there(log: &[u64], acknowledged: &[(u64, Node, u64)]) -> Option<String> {
    let mut sorted: Vec<_> = acknowledged.iter().collect();
    sorted.sort_unstable_by_key(|(write, _, _)| *write);
    let (first, _, _) = sorted.first()?;
    let mut known = log[log.partition_point(|write| write < first)..].iter().peekable();
    let missing = sorted.into_iter().find(|(write, _, _)| {
        while known.peek().is_some_and(|at| *at < write) {
            known.next();
        }
        known.peek() != Some(&write)
    });
    missing.map(|(write, node, epoch)| {
        format!("O1: write {write}, acknowledged by {node:?} at epoch {epoch}, is lost")
    })
}

pub(crate) fn o1_at_the_end(cluster: &Cluster) -> Option<String> {
    let serving = cluster.machines.iter().flat_map(|m| m.databases.iter().enumerate());
    serving
        .filter(|(_, database)| database.service == Service::Serving)
        .find_map(|(index, database)| o1_acknowledged_is_there(&database.log, &cluster.acknowledged[index]))
}
