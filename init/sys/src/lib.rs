//! The only unsafe code: thin, safe calls to the kernel, one module a subject.
#![allow(unsafe_code, reason = "this crate is where the system calls without a safe wrapper live")]

pub mod block;
pub mod dm;
pub mod fault;
pub mod heap;
pub mod loopdev;
pub mod packet;
pub mod program;
pub mod resident;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod watchdog;
