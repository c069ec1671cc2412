//! O7: a machine finds every write that it once knew to be on its disk, and runs once.

use dyad_cluster::types::Node;

use super::o1_acknowledged_is_there;
use crate::sim::cluster::{Cluster, LOOK_MS};

pub(crate) fn o7_counter_is_monotone(log: &[u64], acknowledged: &[(u64, Node, u64)]) -> Option<String> {
    let lost = o1_acknowledged_is_there(log, &acknowledged[acknowledged.len().saturating_sub(20)..])?;
    Some(format!("O7: a machine starts with an older disk than it had: {lost}"))
}

pub(crate) fn o7_one_machine(cluster: &Cluster) -> Option<String> {
    // A machine that stood still, or whose PID 1 is at it, has a moment to kill (O11 says how long).
    let at_it = |n: &Node| {
        let machine = &cluster.machines[n.index()];
        machine.killing_since().is_some() || cluster.now <= machine.stalled_until + 2 * LOOK_MS
    };
    if Node::BOTH.iter().any(at_it) {
        return None;
    }
    let [a, b] = [0, 1].map(|n: usize| &cluster.machines[n].vms);
    let both = a.intersection(b).find(|vm| cluster.forced_from[usize::from(vm.0)].is_none())?;
    Some(format!("O7: machine {} runs on both nodes at {}", both.0, cluster.now))
}
