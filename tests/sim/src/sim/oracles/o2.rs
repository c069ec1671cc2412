//! O2: nobody acknowledges at an epoch below one at which the other node has acknowledged.

use dyad_cluster::types::Node;

pub(crate) fn o2_one_acknowledges(
    acknowledged: &[(u64, Node, u64)],
    node: Node,
    epoch: u64,
) -> Option<String> {
    let (_, other, newer) = acknowledged.last()?;
    (*other != node && *newer >= epoch)
        .then(|| format!("O2: {node:?} acknowledges at epoch {epoch} after {other:?} did at epoch {newer}"))
}
