//! A disk that forgets: a network block device whose write cache is volatile. It records every write and every flush, so
//! that the states which a power cut could have left are made one after the other, not only met by chance.

pub mod crash;
pub mod log;
pub mod server;
