//! O8: after peace every resource is protected as well as can be.

use dyad_cluster::Voting;
use dyad_cluster::report::Protection;
use dyad_cluster::types::ResourceId;

use crate::sim::cluster::Cluster;

fn resources(cluster: &Cluster) -> impl Iterator<Item = ResourceId> + use<'_> {
    (0..cluster.resources() as u16).map(ResourceId)
}

fn best(cluster: &Cluster, r: ResourceId) -> bool {
    let best = match cluster.plan.voting {
        Voting::Arbiter | Voting::FenceDevice => Protection::Full,
        Voting::Strict | Voting::PrimaryBiased => Protection::NoTakeOver,
    };
    let states = cluster.machines.iter().filter_map(|m| m.state.as_ref());
    states.filter(|s| s.protection(r) == best).count() == 1
}

pub(crate) fn is_best(cluster: &Cluster) -> bool {
    resources(cluster).all(|r| best(cluster, r))
}

pub(crate) fn o8_best_protection(cluster: &Cluster) -> Option<String> {
    resources(cluster).find(|r| !best(cluster, *r)).map(|r| {
        let states = cluster.machines.iter().filter_map(|m| m.state.as_ref());
        let seen: Vec<_> = states.map(|s| (s.phase(r), s.protection(r), s.why(r))).collect();
        format!("O8: after peace resource {} is not as protected as it can be: {seen:?}", r.0)
    })
}
