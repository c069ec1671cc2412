//! The one place that reads a clock: CLOCK_BOOTTIME, which goes on while the machine sleeps and never jumps.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the kernel started.
pub(crate) fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Milliseconds since the kernel started.
pub(crate) fn boot_ms() -> u64 {
    boot_ns() / 1_000_000
}

/// Blocks for so long. For the initrd stage and helper processes; PID 1's loop waits in epoll instead.
pub(crate) fn pause_ms(ms: u64) {
    let wait = rustix::time::Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000) as i64 * 1_000_000 };
    let _ = rustix::thread::nanosleep(&wait);
}
