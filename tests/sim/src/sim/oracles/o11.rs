//! O11: no reset is withheld while something that was killed lives.

use dyad_cluster::types::Node;

use crate::sim::cluster::{Cluster, LOOK_MS};
use crate::sim::stream::UNKILLABLE_MS;

pub(crate) fn o11_reset_is_not_withheld(cluster: &Cluster) -> Option<String> {
    let late = Node::BOTH.iter().find(|n| {
        let machine = &cluster.machines[n.index()];
        let since = machine.killing_since().filter(|_| machine.powered);
        // A machine that stood still goes on counting where it was.
        let awake = cluster.now >= machine.stalled_until + UNKILLABLE_MS + LOOK_MS;
        since.is_some_and(|at| awake && cluster.now > at + UNKILLABLE_MS + LOOK_MS)
    });
    late.map(|node| format!("O11: {node:?} lives on with a killed writer"))
}
