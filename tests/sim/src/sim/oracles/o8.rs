//! O8: after peace every resource is protected as well as can be.

use dyad_cluster::report::Protection;
use dyad_cluster::types::ResourceId;

use crate::sim::cluster::{Cluster, RESOURCES};

pub(crate) fn o8_best_protection(cluster: &Cluster) -> Option<String> {
    (0..RESOURCES as u16).map(ResourceId).find_map(|r| {
        let states = cluster.machines.iter().filter_map(|m| m.state.as_ref());
        let seen: Vec<_> = states.map(|s| (s.phase(r), s.protection(r), s.why(r))).collect();
        let full = seen.iter().filter(|(_, p, _)| *p == Protection::Full).count();
        (full != 1).then(|| format!("O8: after peace resource {} is not fully protected: {seen:?}", r.0))
    })
}
