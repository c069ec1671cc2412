//! The archive crate against mirrors, good and bad, and against apt.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod apt;
mod common;
mod fetching;
mod hostile;
mod process;
mod sources;
