//! A disk that forgets: a network block device whose write cache is volatile. One kind records every write and every flush,
//! so that the states which a power cut could have left are made one after the other; the other loses what was not flushed
//! whenever the machine before it ends without a word.

pub mod crash;
pub mod forgetful;
pub mod log;
pub mod medium;
mod random;
pub mod server;
