//! O6: the virtual address answers on one node.

use crate::sim::cluster::Cluster;

pub(crate) fn o6_one_address(cluster: &Cluster) -> Option<String> {
    let open =
        |m: &crate::sim::cluster::Machine| m.gate_until > cluster.now && m.stalled_until <= cluster.now;
    cluster.machines.iter().all(open).then(|| "O6: the address answers on both nodes".to_owned())
}
