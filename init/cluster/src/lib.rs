//! The failover protocol's decision core: `step` takes one event and answers with actions, and that is all it can do.
//!
//! No I/O, no clock, no randomness, no threads: time and random ids are arguments. The appliance and the simulator run
//! exactly this code. `docs/protocol.md` holds the rules and why they are as they are; the numbers in comments
//! (`rule 7`) are its numbers.

#![forbid(unsafe_code)]

pub mod arbiter;
pub mod message;
pub mod register;
pub mod types;
