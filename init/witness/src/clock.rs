//! The one module that reads a clock: the monotonic one that goes on during suspend. Nothing here knows what day it is.

use dyad_cluster::types::Tick;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME.
pub(crate) fn now() -> Tick {
    Tick(now_us() / 1000)
}

/// The same in microseconds, for measuring.
pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}
