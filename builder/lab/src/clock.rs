//! The one place in this crate that reads a clock or sleeps.

use std::time::{Duration, Instant};

/// Now, on the monotonic clock.
#[allow(clippy::disallowed_methods, reason = "the lab's one clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sleeps between two looks at something that has no event to wait for (a guest's answer, a lock's release).
#[allow(clippy::disallowed_methods, reason = "the lab's one sleep")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A point in time after which waiting is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// The deadline that lies `time` ahead.
    pub(crate) fn after(time: Duration) -> Self {
        Deadline(now() + time)
    }

    /// What is left, or `None` when it has passed.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.0.checked_duration_since(now()).filter(|d| !d.is_zero())
    }
}
