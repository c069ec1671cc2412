//! An arbiter that keeps its registers in an existing etcd: for fleets that have one.
//!
//! The rules are `dyad_cluster::arbiter`'s, as in the witness. Each node reads the cluster's state, lets the rules answer,
//! and writes the result in one transaction that fails if anybody changed the state in between. A node's session is a
//! key under a lease of T: etcd, not a clock of ours, says who is silent.

mod api;
mod arbiter;
mod http;

pub use arbiter::{EtcdArbiter, Settings};
