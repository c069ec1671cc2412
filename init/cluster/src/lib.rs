//! The failover protocol's decision core: `step` takes one event and answers with actions, and that is all it can do.
//!
//! No I/O, no clock, no randomness, no threads: time and random ids are arguments. The appliance and the simulator run
//! exactly this code. `docs/protocol.md` holds the rules and why they are as they are; the numbers in comments
//! (`rule 7`) are its numbers.

#![forbid(unsafe_code)]

mod absorb;
pub mod action;
pub mod arbiter;
mod condition;
mod crash;
mod degrade;
pub mod disk;
pub mod event;
pub mod eventlog;
pub mod gate;
mod intents;
mod lease;
mod listed;
pub mod message;
#[cfg(feature = "mutations")]
pub mod mutation;
#[cfg(not(feature = "mutations"))]
mod mutation;
pub mod phase;
pub mod placement;
mod policy;
mod protect;
pub mod register;
mod rejoin;
pub mod report;
mod resume;
mod state;
mod switchover;
mod takeover;
pub mod types;

pub use crash::{CRASHES_MAX, CRASHES_WITHIN_MS};
pub use lease::DRIFT_PPM;
pub use mutation::Mutations;
pub use policy::{Rule, policy};
pub use state::{ARBITER_GONE_MS, Config, Found, PEER_OFF_MS, Running, State, Voting, step};
