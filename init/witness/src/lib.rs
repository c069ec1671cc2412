//! The witness: a third vote for many clusters in a process of a few megabytes.
//!
//! The rules are `dyad_cluster::arbiter`'s. This crate gives them a disk that is written before an answer is sent, a
//! channel on which every node is known by its key, and bounds.

pub mod cli;
mod clock;
mod cluster;
mod control;
pub mod disk;
pub mod record;
mod run;
pub mod status;
pub mod witness;
