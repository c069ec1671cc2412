//! O10: what a rewind quarantines was acknowledged to nobody.

use dyad_cluster::types::Node;

pub(crate) fn o10_quarantined(tail: &[u64], acknowledged: &[(u64, Node, u64)]) -> Option<String> {
    let lost = tail.iter().find(|write| acknowledged.iter().any(|(known, _, _)| known == *write));
    lost.map(|write| format!("O10: acknowledged write {write} was quarantined"))
}
