//! How two blank nodes become one cluster: who may pair with whom, and in which order things are written and said.
//!
//! No I/O, no clock, no randomness, no cryptography of its own: beacons, channels, disk and keys are the caller's. A node
//! hears beacons, settles on the one other node with its site key, proves that key over a channel whose ends are
//! pinned, and the member with the lower key mints the cluster's id, once. Every step can be cut off and begun again.

#![forbid(unsafe_code)]

pub mod beacon;
mod machine;

pub use machine::{
    Action, BEACON_MS, Durable, Event, FRESH_MS, Machine, Message, Own, RETRY_MS, Refusal, SETTLE_MS,
};

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Key(pub [u8; 32]);

/// The first bytes are enough to tell keys apart; the caller shows ids to people.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a node's keys can do.
pub trait Keys {
    /// The public half of its identity.
    fn public(&self) -> Key;
    /// An Ed25519 signature with its identity.
    fn sign(&self, message: &[u8]) -> [u8; 64];
    /// Whether that key made the signature.
    fn verify(&self, key: &Key, message: &[u8], signature: &[u8; 64]) -> bool;
    /// HMAC-SHA256 with the site key.
    fn site_mac(&self, message: &[u8]) -> [u8; 32];
    /// Whether somebody with the site key made this; takes the same time whatever differs.
    fn site_accepts(&self, message: &[u8], mac: &[u8; 32]) -> bool;
}
