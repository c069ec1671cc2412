//! The lab: a cluster of virtual machines on one host, without root and without anything installed by hand.
//!
//! `dyad lab up` starts a daemon in its own user and network namespaces. The daemon owns the machines (QEMU), the switch
//! that joins their NICs in user space (no taps, no bridges), and a control socket in the state directory through which
//! the other commands speak. `exec` and `psql` enter the daemon's namespaces.
//!
//! The program that links this crate must hand `lab daemon` and `lab launch` to [`run`] unchanged: the lab starts
//! itself again with these.

mod accel;
mod cli;
mod clock;
mod commands;
mod console;
mod control;
mod ctl;
mod daemon;
mod disk;
mod error;
mod esp;
mod firmware;
mod machine;
mod namespace;
mod netlink;
mod node;
mod process;
mod qmp;
mod site;
mod state;
mod status;
mod switch;
mod terminal;
mod tools;
mod topology;
mod up;

pub use cli::{Backend, LabArgs, LabCommand, UpArgs};
pub use commands::{BuildImage, BuiltImage, LabEnv, run};
pub use error::LabError;
pub use machine::Accel;
pub use tools::unpack as unpack_tools;
