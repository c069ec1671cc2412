//! Messages between PID 1, the supervisor and dyadctl: types, encode and decode, no I/O except through `Read`/`Write`.
//!
//! [`control`] is PID 1's binary protocol on `/run/dyad/init.sock`. [`operator`] is the supervisor's protocol, one JSON
//! object a line ([`line`]), with a blocking [`client`] that dyadctl and the lab share. [`gate`] names the packet filter's
//! sets that both know.

pub mod client;
pub mod control;
pub mod gate;
pub mod line;
pub mod operator;
