//! O5: after peace the pair's data agrees.

use crate::sim::cluster::Cluster;

pub(crate) fn o5_pair_agrees(cluster: &Cluster) -> Option<String> {
    (0..cluster.resources()).find_map(|index| {
        let [a, b] = [0, 1].map(|m: usize| &cluster.machines[m].databases[index].log);
        let common = a.len().min(b.len());
        // The last writes may be under way between the two.
        let agree = a[..common] == b[..common] && a.len().abs_diff(b.len()) < 50;
        (!agree).then(|| format!("O5: the copies of resource {index} differ"))
    })
}
