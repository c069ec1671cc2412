//! The status screen tells the truth: "full" means that the standby has a marker for the register's pact and every
//! acknowledged write. Of a marker that went the holder hears within two beats.

use dyad_cluster::register::Mode;
use dyad_cluster::report::Protection;
use dyad_cluster::types::{Node, ResourceId};

use super::o1_acknowledged_is_there;
use crate::sim::cluster::Cluster;

pub(crate) fn status_is_true(cluster: &Cluster) -> Option<String> {
    for node in Node::BOTH {
        let Some(state) = &cluster.machines[node.index()].state else { continue };
        let peer = &cluster.machines[node.peer().index()];
        for index in 0..cluster.resources() {
            let r = ResourceId(index as u16);
            if state.protection(r) != Protection::Full || cluster.deaf(node).is_some() || !peer.powered {
                continue;
            }
            let (last, log) = (&cluster.acknowledged[index], &peer.databases[index].log);
            let recent = &last[last.len().saturating_sub(20)..];
            // Asked at every look, so it is answered by one walk from the ends; in full only if that finds no end.
            let mut known = log.iter().rev();
            if recent.iter().rev().all(|(write, _, _)| known.find(|at| *at <= write) == Some(write)) {
                continue;
            }
            if let Some(lost) = o1_acknowledged_is_there(log, recent) {
                return Some(format!("status: {node:?} says full for {index}, but on the standby {lost}"));
            }
        }
    }
    None
}

/// Who says "full" though no marker of its pact is on the standby's disk; only what the two could have told each other.
pub(crate) fn unmarked(cluster: &Cluster) -> Vec<(usize, usize)> {
    let settled = cluster.peaceful_since.is_some_and(|at| cluster.now > at + 10_000);
    if !settled || !cluster.connected() {
        return Vec::new();
    }
    let pairs = Node::BOTH.into_iter().flat_map(|n| (0..cluster.resources()).map(move |index| (n, index)));
    let untrue = pairs.filter(|(node, index)| {
        let r = ResourceId(*index as u16);
        let Some(state) = &cluster.machines[node.index()].state else { return false };
        let pact = match state.register(r).map(|reg| reg.mode) {
            Some(Mode::Sync(pact)) => Some(pact),
            Some(Mode::Solo) | None => None,
        };
        let peer = &cluster.machines[node.peer().index()];
        let marked = peer.markers.get(&r).and_then(|file| file.marker).map(|m| m.pact);
        let says = state.protection(r) == Protection::Full && cluster.deaf(*node).is_none();
        says && (pact.is_none() || marked != pact)
    });
    untrue.map(|(node, index)| (node.index(), index)).collect()
}

/// For how long such a screen may be behind: two beats and their way.
pub(crate) fn stays_untrue(cluster: &Cluster) -> Option<String> {
    let limit_ms = cluster.plan.lease_ms / 3 + 4 * cluster.plan.latency_ms;
    let late = cluster.untrue_since.iter().find(|(_, since)| cluster.now > **since + limit_ms);
    late.map(|((node, index), _)| {
        format!("status: {:?} says full for {index}, and the standby has no marker", Node::BOTH[*node])
    })
}
