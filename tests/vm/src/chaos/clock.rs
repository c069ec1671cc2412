//! The one clock of these tests.

use std::time::{Duration, Instant};

#[allow(clippy::disallowed_methods, reason = "clients measure from outside")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "faults last for a time")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
