//! This node's key and certificate for PostgreSQL's TLS: self-signed, made once, pinned by the peer.

use std::path::Path;

use crate::files::{self, Access, FileError};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It could not be made.
    #[error("make a key for PostgreSQL: {0}")]
    Make(String),
    /// The file is not what was written.
    #[error(
        "{0} holds no private key and certificate in PEM; remove it to have new ones made, and pair again"
    )]
    Damaged(String),
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A key and its certificate, each in PEM.
pub(crate) struct Identity {
    /// Never leaves this node.
    pub(crate) key: String,
    /// For the peer.
    pub(crate) certificate: String,
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// Reads them; makes them at the first time.
pub(crate) fn ensure(path: &Path) -> Result<Identity, IdentityError> {
    if let Some(text) = files::read_plain(path)? {
        let damaged = || IdentityError::Damaged(path.display().to_string());
        let at = text.find(CERTIFICATE).filter(|_| text.contains("PRIVATE KEY-----")).ok_or_else(damaged)?;
        return Ok(Identity { key: text[..at].to_owned(), certificate: text[at..].to_owned() });
    }
    // Ed25519 is not known to every client's TLS library; P-256 is.
    let make = || -> Result<Identity, rcgen::Error> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate =
            rcgen::CertificateParams::new(vec!["dyad-postgresql".to_owned()])?.self_signed(&key)?;
        Ok(Identity { key: key.serialize_pem(), certificate: certificate.pem() })
    };
    let made = make().map_err(|error| IdentityError::Make(error.to_string()))?;
    let dir = path.parent().expect("the identity file is in a directory");
    files::ensure_dir(dir, Access::own(0o700))?;
    files::write(path, format!("{}{}", made.key, made.certificate).as_bytes(), Access::own(0o600))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_a_damaged_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor/postgresql.pem");
        let first = ensure(&path).unwrap();
        let second = ensure(&path).unwrap();
        assert_eq!((first.key, &first.certificate), (second.key, &second.certificate));
        assert!(first.certificate.starts_with(CERTIFICATE));
        std::fs::write(&path, "nothing").unwrap();
        assert!(ensure(&path).err().unwrap().to_string().contains("holds no private key"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nothing");
    }
}
