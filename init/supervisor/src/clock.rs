//! The one module that reads clocks. What decides about data does not read the wall clock, but for which of two operators' words,
//! given on nodes that cannot hear each other, was the later one.

use dyad_cluster::types::Tick;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in milliseconds: it goes on while the machine is suspended.
pub(crate) fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Seconds since 1970, as the wall clock has them.
pub(crate) fn wall_s() -> u64 {
    clock_gettime(ClockId::Realtime).tv_sec.try_into().unwrap_or(0)
}

/// The first, as the cluster's decisions count it.
pub(crate) fn tick() -> Tick {
    Tick(boottime_ms())
}
