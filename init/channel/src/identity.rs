//! Who a node is: an Ed25519 key made at its first start. Names and addresses are labels.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

/// Name in every certificate. It says nothing: the key does.
pub(crate) const SUBJECT: &str = "dyad";
/// PKCS #8 of an Ed25519 key takes 83 bytes; more than this is something else.
const KEY_FILE_BYTES_MAX: u64 = 512;
/// An Ed25519 SubjectPublicKeyInfo is this and the 32 bytes of the key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// An Ed25519 public key: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// From the DER of a SubjectPublicKeyInfo; `None` for any other kind of key.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        der.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(PublicKey)
    }

    /// What people compare.
    pub fn id(&self) -> KeyId {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let mut id = [0; 32];
        id.copy_from_slice(digest.as_ref());
        KeyId(id)
    }

    /// Whether this key made the signature over the message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// SHA-256 of the public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 32]);

/// The first 120 bits as four groups of six letters and digits (base32): enough that nobody makes a second one.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let (mut bits, mut held, mut written) = (0u32, 0u32, 0u32);
        for byte in &self.0[..15] {
            bits = bits << 8 | u32::from(*byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                if written > 0 && written % 6 == 0 {
                    f.write_str("-")?;
                }
                write!(f, "{}", char::from(ALPHABET[(bits >> held & 31) as usize]))?;
                written += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A step on the file failed.
    #[error("{step} {path}: {source}", path = .path.display())]
    File {
        /// Start of a sentence.
        step: &'static str,
        /// Of the key, or of the temporary file beside it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "{path}: mode is {mode:04o}, so others may read the private key; `chmod 600` it, or remove it to get a new identity",
        path = .path.display()
    )]
    Exposed {
        /// Of the key.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("{path}: not an Ed25519 private key in PKCS #8 form (DER)", path = .path.display())]
    NotAKey {
        /// Of the key.
        path: PathBuf,
    },
    /// The system's random generator or the certificate writer failed.
    #[error("making an Ed25519 key and its certificate: {0}")]
    Make(String),
}

/// A private key with the certificate that carries its public half.
pub struct Identity {
    key: Ed25519KeyPair,
    pkcs8: Vec<u8>,
    public: PublicKey,
    certificate: CertificateDer<'static>,
}

/// Never the private half.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public.id())
    }
}

impl Identity {
    /// A new one, in memory only.
    pub fn draw() -> Result<Self, IdentityError> {
        let make = |error: rcgen::Error| IdentityError::Make(error.to_string());
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(make)?;
        Self::from_pkcs8(pair.serialized_der().to_vec()).map_err(make)
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, rcgen::Error> {
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8.as_slice()),
            &PKCS_ED25519,
        )?;
        // Fixed dates: nobody looks at them, and reading a clock here would make the certificate differ at each start.
        let mut params = CertificateParams::new([SUBJECT.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(4000, 1, 1);
        let certificate = params.self_signed(&pair)?.der().clone();
        let raw = pair.public_key_raw().try_into().map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8)
            .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok(Identity { key, pkcs8, public: PublicKey(raw), certificate })
    }

    /// The key in this file, made at the first call: after a crash there is no file or a whole one, readable by its owner
    /// alone. A file that is there but no key is an error, never replaced.
    pub fn load_or_make(path: &Path) -> Result<Self, IdentityError> {
        if let Some(found) = Self::load(path)? {
            return Ok(found);
        }
        let new = Self::draw()?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".new");
        let temporary = path.with_file_name(name);
        let at = |step, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::File { step, path, source }
        };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &temporary)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(at("create", &temporary))?;
        file.write_all(&new.pkcs8).and_then(|()| file.sync_all()).map_err(at("write", &temporary))?;
        // A link never replaces: of two processes that start at once one makes the identity and the other loads it.
        match fs::hard_link(&temporary, path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(at("link into place", path)(source)),
        }
        fs::remove_file(&temporary).map_err(at("remove", &temporary))?;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            Some(_) | None => Path::new("."),
        };
        File::open(directory).and_then(|d| d.sync_all()).map_err(at("flush directory", directory))?;
        Self::load(path)?.ok_or_else(|| at("read", path)(io::ErrorKind::NotFound.into()))
    }

    /// The key in this file, if there is one.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        use rustix::fs::{Mode, OFlags};
        let at = |step| move |source| IdentityError::File { step, path: path.to_owned(), source };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(at("open")(error.into())),
        };
        let found = file.metadata().map_err(at("look at"))?;
        if found.mode() & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode: found.mode() & 0o7777 });
        }
        let mut bytes = Vec::new();
        file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(at("read"))?;
        Self::from_pkcs8(bytes).map(Some).map_err(|_| IdentityError::NotAKey { path: path.to_owned() })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// An Ed25519 signature over the message, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.key.sign(message).as_ref());
        signature
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        fs::write(dir.path().join("identity.key.new"), b"left by a crash").unwrap();
        let first = Identity::load_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the key");
        let second = Identity::load_or_make(&path).unwrap();
        assert_eq!(first.public(), second.public());
        assert_eq!(first.certificate(), second.certificate());
        assert!(first.public().verify(b"m", &second.sign(b"m")));
        assert!(!first.public().verify(b"n", &second.sign(b"m")));
    }

    #[test]
    fn what_is_no_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        fs::write(&path, b"not a key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::load_or_make(&path).unwrap_err().to_string();
        assert!(error.contains("mode is 0640"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Identity::load_or_make(&path).unwrap_err().to_string();
        assert!(error.ends_with("not an Ed25519 private key in PKCS #8 form (DER)"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(Identity::load_or_make(&path).is_err(), "a link is not followed");
    }

    #[test]
    fn an_id_is_read_aloud() {
        let id = PublicKey([7; 32]).id().to_string();
        assert_eq!(id.len(), 27);
        assert!(id.split('-').all(|group| group.len() == 6), "{id}");
        assert!(!format!("{:?}", Identity::draw().unwrap()).contains("pkcs8"));
    }

    #[test]
    fn only_ed25519_keys_count() {
        let mut spki = SPKI_PREFIX.to_vec();
        spki.extend([9; 32]);
        assert_eq!(PublicKey::from_spki(&spki), Some(PublicKey([9; 32])));
        assert_eq!(PublicKey::from_spki(&spki[..43]), None);
        spki[8] = 0x71;
        assert_eq!(PublicKey::from_spki(&spki), None);
    }
}
