//! What a node says to every link, again and again: a version byte, a postcard body, a signature over both.

use dyad_cluster::types::ClusterId;
use serde::{Deserialize, Serialize};

use crate::machine::Refusal;
use crate::{Key, Keys};

/// Version of beacons and messages: of another one only the number is looked at.
pub const VERSION: u8 = 1;
/// A beacon is one small datagram.
pub const BYTES_MAX: usize = 512;
const SIGNATURE_BYTES: usize = 64;

/// A beacon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Who sends it; the signature proves it.
    pub key: Key,
    /// Drawn at the sender's start: the same key with another one is another machine, or the same after a restart.
    pub nonce: u64,
    /// That the sender has a site key: over key and nonce.
    pub tag: [u8; 32],
    /// The cluster it belongs to, and with whom.
    pub held: Option<(ClusterId, Key)>,
    /// It holds data of a cluster that it does not belong to (system identifier).
    pub foreign: Option<u64>,
}

pub(crate) fn tag_text(key: &Key, nonce: u64) -> Vec<u8> {
    [&b"dyad beacon v1"[..], &key.0, &nonce.to_le_bytes()].concat()
}

impl Beacon {
    /// Whether its sender has the site key.
    pub fn has_site_key(&self, keys: &impl Keys) -> bool {
        keys.site_accepts(&tag_text(&self.key, self.nonce), &self.tag)
    }

    /// The datagram.
    pub fn seal(&self, keys: &impl Keys) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_allocvec(self).expect("a beacon has only numbers of known length"));
        let signature = keys.sign(&bytes);
        bytes.extend(signature);
        bytes
    }

    /// The beacon in a datagram, if its signature is its sender's. `None`: noise, which is not worth a word.
    pub fn open(bytes: &[u8], keys: &impl Keys) -> Option<Result<Beacon, Refusal>> {
        if bytes.len() > BYTES_MAX {
            return None;
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
        let (version, body) = signed.split_first()?;
        if *version != VERSION {
            return Some(Err(Refusal::Version { ours: VERSION, theirs: *version }));
        }
        let (beacon, rest): (Beacon, _) = postcard::take_from_bytes(body).ok()?;
        (rest.is_empty() && keys.verify(&beacon.key, signed, signature)).then_some(Ok(beacon))
    }
}
