//! Generated secrets: a password for each role of the site file and the authority that signs PostgreSQL's certificates, made
//! once, kept on the state partition for root alone, and handed to the other node when the two are paired.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::files::{self, Access, FileError};
use crate::pg::certificate::{self, CertificateError, Signed};

/// Version of the file.
const VERSION: u32 = 3;

/// Why there are no passwords.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file is not what was written. A new one would lock applications out, so that is left to a human.
    #[error(
        "{path} is damaged ({why}); it is left alone, restore it or remove it to have new passwords made",
        path = .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Position or version.
        why: String,
    },
    /// The authority.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The kernel gave no random bytes.
    #[error("random bytes: {0}")]
    Random(rustix::io::Errno),
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A password and what the server keeps of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credential {
    /// 128 random bits in hexadecimal.
    pub(crate) password: String,
    /// SCRAM-SHA-256 verifier of it.
    pub(crate) verifier: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    roles: BTreeMap<String, Credential>,
    authority: Signed,
    own: Option<Signed>,
}

/// All that was made.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secrets {
    /// By role.
    pub(crate) roles: BTreeMap<String, Credential>,
    /// Of the cluster.
    pub(crate) authority: Signed,
    /// What PostgreSQL shows instead of what the authority signs.
    pub(crate) own: Option<Signed>,
}

/// The secrets, with passwords of these roles; what is missing is made and is durable before this returns. Passwords of roles
/// that are no longer declared are kept.
pub(crate) fn ensure<'a>(
    path: &Path,
    roles: impl Iterator<Item = &'a str>,
) -> Result<Secrets, CredentialsError> {
    let known = load(path)?;
    let mut made = known.is_none();
    let mut secrets = match known {
        Some(known) => known,
        None => Secrets { roles: BTreeMap::new(), authority: certificate::authority()?, own: None },
    };
    for role in roles {
        if !secrets.roles.contains_key(role) {
            secrets.roles.insert(role.to_owned(), generate()?);
            made = true;
        }
    }
    if made {
        store(path, secrets.clone())?;
    }
    Ok(secrets)
}

/// From now on PostgreSQL shows this certificate, or again the one that the authority signs.
pub(crate) fn set_own(path: &Path, own: Option<Signed>) -> Result<(), CredentialsError> {
    let secrets = ensure(path, std::iter::empty())?;
    if secrets.own == own { Ok(()) } else { store(path, Secrets { own, ..secrets }) }
}

fn store(path: &Path, Secrets { roles, authority, own }: Secrets) -> Result<(), CredentialsError> {
    let stored = Stored { version: VERSION, roles, authority, own };
    let text = serde_json::to_vec_pretty(&stored).expect("strings can be written as JSON");
    let dir = path.parent().expect("the credentials file is in a directory");
    files::ensure_dir(dir, Access::own(0o700))?;
    Ok(files::write(path, &text, Access::own(0o600))?)
}

/// What was made so far.
pub(crate) fn load(path: &Path) -> Result<Option<Secrets>, CredentialsError> {
    let Some(bytes) = files::read(path)? else { return Ok(None) };
    let damaged = |why: String| CredentialsError::Damaged { path: path.to_path_buf(), why };
    // The parser's own message could quote a password: only the position is told.
    let stored: Stored = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("line {} column {}", error.line(), error.column())))?;
    if stored.version != VERSION {
        return Err(damaged(format!("version {}, this program reads {VERSION}", stored.version)));
    }
    Ok(Some(Secrets { roles: stored.roles, authority: stored.authority, own: stored.own }))
}

/// Takes over the secrets that the other node of a pair made: its data holds the passwords' verifiers.
pub(crate) fn adopt(path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
    let new = path.with_extension("adopted");
    let dir = path.parent().expect("the credentials file is in a directory");
    files::ensure_dir(dir, Access::own(0o700))?;
    files::write(&new, bytes, Access::own(0o600))?;
    load(&new)?;
    files::write(path, bytes, Access::own(0o600))?;
    Ok(files::remove(&new)?)
}

fn generate() -> Result<Credential, CredentialsError> {
    let mut random = [0_u8; 16];
    let mut filled = 0;
    while filled < random.len() {
        filled +=
            getrandom(&mut random[filled..], GetRandomFlags::empty()).map_err(CredentialsError::Random)?;
    }
    let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    Ok(Credential { password, verifier })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn passwords_are_made_once_and_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor/credentials");
        let first = ensure(&path, ["app"].into_iter()).unwrap();
        let second = ensure(&path, ["app", "report"].into_iter()).unwrap();
        assert!(first.authority == second.authority);
        let (first, roles) = (first.roles, &second.roles);
        assert!(first["app"] == roles["app"] && roles["app"].password != roles["report"].password);
        assert_eq!(first["app"].password.len(), 32);
        assert!(first["app"].verifier.starts_with("SCRAM-SHA-256$4096:"));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert!(load(&path).unwrap() == Some(second.clone()));
        let own = Signed { key: "k".into(), certificate: "c".into() };
        set_own(&path, Some(own.clone())).unwrap();
        let third = ensure(&path, std::iter::empty()).unwrap();
        assert!(third == Secrets { own: Some(own), ..second.clone() });
        set_own(&path, None).unwrap();
        assert!(load(&path).unwrap() == Some(second));
    }

    #[test]
    fn a_damaged_file_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, "{\"version\":3,\"roles\":{\"app\":{\"password\":\"sesame\",\"verifier\":7}}}")
            .unwrap();
        let error = ensure(&path, ["app"].into_iter()).err().unwrap().to_string();
        assert!(error.contains("damaged (line 1 column") && !error.contains("sesame"), "{error}");
        assert!(std::fs::read_to_string(&path).unwrap().contains("sesame"), "left alone");
    }
}
