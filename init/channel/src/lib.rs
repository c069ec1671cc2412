//! The channel between nodes, and between a node and the witness: who is at the other end, and nothing else.
//!
//! TLS 1.3 with Ed25519 keys that are pinned on both sides; certificates only carry the key, and their dates are not
//! looked at, because nothing here trusts a wall clock. On top of it one postcard message a frame, asked and answered in
//! turn, with a limit on everything. Whatever goes wrong on the asking side means one thing: the outcome is [`Unknown`].

pub mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod frame;
pub mod identity;
pub mod link;
pub mod operator;
pub mod secret;
pub mod server;
pub mod tls;
pub mod witness;

pub use client::{Cause, Client, Unknown};
pub use identity::{Identity, KeyId, PublicKey};
pub use link::ArbiterLink;
