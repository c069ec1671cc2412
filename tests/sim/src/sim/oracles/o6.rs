//! O6: the virtual address answers on one node, and never in front of a standby.

use dyad_cluster::types::Node;

use crate::sim::cluster::Cluster;
use crate::sim::database::Service;
use crate::sim::execute::gate_until;

pub(crate) fn o6_one_address(cluster: &Cluster) -> Option<String> {
    let open = |n: &Node| gate_until(cluster, *n) > cluster.now && cluster.stalled(*n).is_none();
    if Node::BOTH.iter().all(open) && cluster.forced_from[0].is_none() {
        return Some("O6: the address answers on both nodes".to_owned());
    }
    let read_only = Node::BOTH
        .iter()
        .filter(|n| open(n))
        .find(|n| cluster.machines[n.index()].databases[0].service == Service::Following);
    read_only.map(|node| format!("O6: the address answers on {node:?}, which is a standby"))
}
