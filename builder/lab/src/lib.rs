//! The lab: a cluster on one host, of virtual machines without root and without anything installed by hand, or of
//! containers.
//!
//! `dyad lab up` starts a daemon in its own user and network namespaces. The daemon owns the members, the network that
//! joins them (machines: a switch in user space, without taps and bridges; containers: the kernel's bridges), and a control
//! socket in the state directory through which the other commands speak. `exec` and `psql` enter the daemon's namespaces.
//!
//! The program that links this crate must hand the hidden commands of `lab` to [`run`] unchanged: the lab starts itself
//! again with these.

mod accel;
mod cgroup;
mod cli;
mod clock;
mod commands;
mod console;
mod container;
mod control;
mod ctl;
mod daemon;
mod disk;
mod error;
mod esp;
mod firmware;
mod idmap;
mod inside;
mod machine;
mod member;
mod namespace;
mod netlink;
mod network;
mod node;
mod partition;
mod process;
mod qmp;
mod root;
mod secrets;
mod site;
mod state;
mod status;
mod switch;
mod terminal;
mod tools;
mod topology;
mod up;
mod vm;
mod wait;
mod watch;
mod witness;

pub use cli::{Backend, LabArgs, LabCommand, UpArgs};
pub use commands::{BuildImage, BuiltImage, LabEnv, run};
pub use error::LabError;
pub use machine::Accel;
pub use tools::unpack as unpack_tools;
