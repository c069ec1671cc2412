//! Reproducible choices.

/// Xorshift: the number after this one, which must not be zero.
pub(crate) fn next(mut random: u64) -> u64 {
    random ^= random << 13;
    random ^= random >> 7;
    random ^ random << 17
}
