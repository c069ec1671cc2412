//! Messages between PID 1, the supervisor and dyadctl: types, encode and decode, no I/O except through `Read`/`Write`.
//!
//! [`control`] is PID 1's binary protocol on `/run/dyad/init.sock`.

pub mod control;
