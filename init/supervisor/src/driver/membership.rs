//! Which cluster this node is a member of, and with whom: what pairing leaves on the state partition.

use std::net::{IpAddr, SocketAddr};

use dyad_channel::PublicKey;
use dyad_cluster::types::{ClusterId, Node};
use serde::{Deserialize, Serialize};

use super::record::{self, RecordError};
use crate::files::{self, Access, At, FileError};
use crate::hex;
use crate::paths::Paths;

/// Version of the file.
const VERSION: u32 = 3;

/// Why there is no membership to go by.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// The record beside it.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The content.
    #[error("{path}: {why}; it is written by pairing alone, and is a JSON object of version {VERSION}")]
    Content {
        /// Of the file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// A member's place in its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's name in the site file.
    pub name: String,
    /// Where it listens for its peer.
    pub listen: SocketAddr,
    /// The other member.
    pub peer: Member,
    /// The witness, once it has let this cluster in.
    pub witness: Option<PublicKey>,
}

/// The other member as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name in the site file.
    pub name: String,
    /// Its key, in hexadecimal in the file.
    #[serde(with = "hex")]
    pub key: [u8; 32],
    /// Its addresses in the networks that the two share, the preferred one first; one at least.
    pub addresses: Vec<IpAddr>,
    /// Port on which it listens for this node.
    pub port: u16,
    /// Port of its PostgreSQL.
    pub postgresql: u16,
}

impl Member {
    /// The key to be pinned.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.key)
    }

    /// A port there, by each way.
    pub(crate) fn at_port(&self, port: u16) -> Vec<SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    #[serde(with = "hex")]
    cluster: [u8; 16],
    name: String,
    listen: SocketAddr,
    peer: Member,
    witness: Option<Pinned>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pinned {
    #[serde(with = "hex")]
    key: [u8; 32],
}

fn path(paths: &Paths) -> std::path::PathBuf {
    paths.at("/state/supervisor/membership.json")
}

impl Membership {
    /// `None`: this node is not paired.
    pub fn load(paths: &Paths) -> Result<Option<Self>, MembershipError> {
        let path = path(paths);
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        let wrong = |why: String| MembershipError::Content { path: path.display().to_string(), why };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if stored.version != VERSION {
            return Err(wrong(format!("it is of version {}", stored.version)));
        }
        if stored.peer.addresses.is_empty() {
            return Err(wrong("peer.addresses is empty, one at least is needed".to_owned()));
        }
        Ok(Some(Membership {
            cluster: ClusterId(u128::from_be_bytes(stored.cluster)),
            name: stored.name,
            listen: stored.listen,
            peer: stored.peer,
            witness: stored.witness.map(|witness| PublicKey(witness.key)),
        }))
    }

    /// The last step of pairing: a record that holds nothing yet, and then, in one step, the membership itself. Again
    /// whenever something of it changes.
    pub fn store(&self, paths: &Paths) -> Result<(), MembershipError> {
        let path = path(paths);
        files::ensure_dir(path.parent().expect("the file is in a directory"), Access::own(0o700))?;
        record::found(paths)?;
        let stored = Stored {
            version: VERSION,
            cluster: self.cluster.0.to_be_bytes(),
            name: self.name.clone(),
            listen: self.listen,
            peer: self.peer.clone(),
            witness: self.witness.map(|key| Pinned { key: key.0 }),
        };
        let text =
            serde_json::to_vec_pretty(&stored).expect("names, numbers and addresses can be written as JSON");
        Ok(files::write(&path, &text, Access::own(0o600))?)
    }

    /// Which member a node with this key is.
    pub fn role(&self, own: &PublicKey) -> Node {
        if *own < self.peer.public() { Node::A } else { Node::B }
    }

    /// Both members' keys in order.
    pub(crate) fn keys(&self, own: PublicKey) -> [PublicKey; 2] {
        let mut keys = [own, self.peer.public()];
        keys.sort();
        keys
    }
}

/// Where the key of this node is.
pub(crate) fn identity_path(paths: &Paths) -> Result<std::path::PathBuf, FileError> {
    let dir = paths.at("/state/identity");
    match std::fs::create_dir(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).at("create directory", &dir)?
        }
        Ok(()) | Err(_) => {}
    }
    Ok(dir.join("node.key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_anything_else_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let paths = Paths::new(dir.path());
        assert_eq!(Membership::load(&paths).unwrap(), None);
        let member = Membership {
            cluster: ClusterId(77),
            name: "node-a".into(),
            listen: "[::]:7401".parse().unwrap(),
            peer: Member {
                name: "node-b".into(),
                key: [7; 32],
                addresses: vec!["192.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()],
                port: 7401,
                postgresql: 5432,
            },
            witness: Some(PublicKey([9; 32])),
        };
        member.store(&paths).unwrap();
        assert_eq!(Membership::load(&paths).unwrap(), Some(member.clone()));
        assert_eq!(member.role(&PublicKey([1; 32])), Node::A);
        assert_eq!(member.role(&PublicKey([8; 32])), Node::B);
        let text = std::fs::read_to_string(path(&paths)).unwrap();
        for (from, to, named) in [
            ("\"version\": 3", "\"version\": 2", "version 2"),
            ("\"192.0.2.2\",\n      \"fd00::2\"", "", "peer.addresses is empty"),
            ("192.0.2.2", "192.0.2", "invalid IP address"),
            ("0707", "07", "64 hexadecimal digits"),
            ("\"name\": \"node-a\"", "\"nam\": 1", "nam"),
        ] {
            std::fs::write(path(&paths), text.replacen(from, to, 1)).unwrap();
            let error = Membership::load(&paths).unwrap_err().to_string();
            assert!(error.contains("membership.json") && error.contains(named), "{error}");
        }
    }
}
