//! The status screen tells the truth: "full" means that the standby has a marker for the register's pact and every
//! acknowledged write.

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
            let pact = match state.register(r).map(|reg| reg.mode) {
                Some(Mode::Sync(pact)) => Some(pact),
                Some(Mode::Solo) | None => None,
            };
            let marked = peer.markers.get(&r).and_then(|file| file.marker).map(|m| m.pact);
            // A standby that has just renounced or lost its disk has a moment to say so.
            let connected =
                cluster.connected() && cluster.peaceful_since.is_some_and(|at| cluster.now > at + 10_000);
            if connected && (pact.is_none() || marked != pact) {
                return Some(format!(
                    "status: {node:?} says full for {index}, the standby's marker is {marked:?}"
                ));
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
