//! The supervisor: brings PostgreSQL up and keeps it up, answers operators. PID 1 starts, stops and runs everything for
//! it, so it can be killed and replaced at any moment without touching what runs.

mod clock;
mod credentials;
pub mod driver;
mod files;
mod firewall;
mod hex;
mod http;
mod log;
mod network;
mod node;
mod notify;
mod operator;
pub mod pairing;
pub mod paths;
pub mod pg;
pub mod pid1;
mod site;
mod status;

use std::convert::Infallible;
use std::path::Path;

pub use node::StartError;

/// Runs until killed, with every path below `root`.
pub fn run(root: &Path) -> Result<Infallible, StartError> {
    node::run(paths::Paths::new(root))
}
