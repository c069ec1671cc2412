//! The formats that decide an image's bits: writers that are deterministic by construction, and readers for all of them.
//!
//! Nothing here opens a file, reads a clock or asks the host anything: bytes in, bytes out.

pub mod tree;
