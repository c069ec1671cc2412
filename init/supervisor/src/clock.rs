//! The one module that reads clocks. Nothing that decides about data reads the wall clock.

use dyad_cluster::types::Tick;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in milliseconds: it goes on while the machine is suspended.
pub(crate) fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// The same, as the cluster's decisions count it.
pub(crate) fn tick() -> Tick {
    Tick(boottime_ms())
}
