//! O9: nothing moves, closes or restarts when nothing should.

pub(crate) fn o9_nothing_moves(harmless: bool, what: &str) -> Option<String> {
    harmless.then(|| format!("O9: {what}, and nothing had happened that calls for it"))
}
