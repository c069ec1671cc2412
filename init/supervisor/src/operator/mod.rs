//! The operator protocol: a unix socket for root, and the virtio-serial port for who holds the hypervisor.

mod calls;
mod check;
mod journal;
mod pair;
mod port;
mod remote;
mod socket;
mod trial;

pub(crate) use calls::{Context, Declared, Other};
pub(crate) use port::serve_port;
pub(crate) use remote::{Keys, serve_remote};
pub(crate) use socket::{listen, serve_socket};
