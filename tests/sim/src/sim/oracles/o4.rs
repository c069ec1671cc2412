//! O4: no timeline is written by two nodes.

use std::collections::BTreeMap;

use dyad_cluster::types::Node;

pub(crate) fn o4_own_timeline(
    timelines: &mut BTreeMap<(usize, u32), Node>,
    index: usize,
    timeline: u32,
    node: Node,
) -> Option<String> {
    let owner = *timelines.entry((index, timeline)).or_insert(node);
    (owner != node).then(|| {
        format!("O4: {node:?} acknowledges on timeline {timeline} of resource {index}, which is {owner:?}'s")
    })
}
