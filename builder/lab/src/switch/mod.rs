//! The lab's network without taps, bridges or root: a switch and wires in user space.

pub(crate) mod checksum;
pub(crate) mod fabric;
pub(crate) mod relay;
