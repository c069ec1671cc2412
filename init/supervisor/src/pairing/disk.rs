//! What of a pairing is on disk, and what was there before it.

use std::path::PathBuf;

use dyad_channel::secret::{Code, CodeError, Secret};
use dyad_cluster::types::ClusterId;
use dyad_pairing::{Durable, Key};
use dyad_spec::site::Pairing;
use serde::{Deserialize, Serialize};

use crate::files::{self, Access, FileError};
use crate::hex;
use crate::paths::Paths;

const VERSION: u32 = 1;
/// A site key: 256 bits of chance, in hexadecimal digits.
const SITE_KEY_DIGITS: usize = 64;

/// Why pairing cannot begin, or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {why}; it is written by pairing alone, and is a JSON object of version {VERSION}")]
    Content { path: String, why: String },
    #[error(
        "there is no site key at {0}: the flasher, the installer or the lab lays the same one ({SITE_KEY_DIGITS} \
         hexadecimal digits) on both nodes"
    )]
    NoKey(String),
    #[error(
        "{path}: expected {SITE_KEY_DIGITS} hexadecimal digits, found {found} other or too few characters"
    )]
    Key { path: String, found: usize },
    #[error(
        "a code is to be typed: `dyadctl pair` on one node makes one, `dyadctl pair CODE` on the other takes it"
    )]
    NoCode,
    #[error("{path}: {error}")]
    Code { path: String, error: CodeError },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// `minted` or `paired`.
    state: Step,
    #[serde(with = "hex")]
    cluster: [u8; 16],
    #[serde(with = "hex")]
    peer: [u8; 32],
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Minted,
    Paired,
}

fn path(paths: &Paths) -> PathBuf {
    paths.at("/state/supervisor/pairing.json")
}

/// How far a pairing came.
pub(crate) fn load(paths: &Paths) -> Result<Durable, DiskError> {
    let path = path(paths);
    let Some(bytes) = files::read(&path)? else { return Ok(Durable::Blank) };
    let wrong = |why: String| DiskError::Content { path: path.display().to_string(), why };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if stored.version != VERSION {
        return Err(wrong(format!("it is of version {}", stored.version)));
    }
    let (cluster, peer) = (ClusterId(u128::from_be_bytes(stored.cluster)), Key(stored.peer));
    Ok(match stored.state {
        Step::Minted => Durable::Minted { cluster, peer },
        Step::Paired => Durable::Paired { cluster, peer },
    })
}

/// Makes it durable.
pub(crate) fn store(paths: &Paths, durable: &Durable) -> Result<(), DiskError> {
    let (state, cluster, peer) = match durable {
        Durable::Blank => return Ok(files::remove(&path(paths))?),
        Durable::Minted { cluster, peer } => (Step::Minted, cluster, peer),
        Durable::Paired { cluster, peer } => (Step::Paired, cluster, peer),
    };
    let stored = Stored { version: VERSION, state, cluster: cluster.0.to_be_bytes(), peer: peer.0 };
    let text = serde_json::to_vec_pretty(&stored).expect("numbers and digits can be written as JSON");
    let path = path(paths);
    files::ensure_dir(path.parent().expect("the file is in a directory"), Access::own(0o700))?;
    Ok(files::write(&path, &text, Access::own(0o600))?)
}

/// Where a typed code lies.
fn code_path(paths: &Paths) -> PathBuf {
    paths.at("/state/supervisor/pairing.code")
}

/// A code that lies on this node.
pub(crate) struct Taken {
    pub(crate) code: String,
    /// Another one lay there before.
    pub(crate) replaced: bool,
}

/// Keeps a code that was typed; without one the code that is there, or a new one.
pub(crate) fn take_code(paths: &Paths, typed: Option<&str>) -> Result<Taken, DiskError> {
    let path = code_path(paths);
    let shown = || "the code that was typed".to_owned();
    let known = files::read(&path)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let code = match (typed, &known) {
        (Some(typed), _) => {
            Code::parse(typed).map_err(|error| DiskError::Code { path: shown(), error })?.to_string()
        }
        (None, Some(known)) => known.clone(),
        (None, None) => Code::draw().to_string(),
    };
    let replaced = known.as_ref().is_some_and(|known| *known != code);
    if known.as_ref() != Some(&code) {
        files::ensure_dir(path.parent().expect("the file is in a directory"), Access::own(0o700))?;
        files::write(&path, code.as_bytes(), Access::own(0o600))?;
    }
    Ok(Taken { code, replaced })
}

/// The secret that both nodes have: the site key, or what was typed.
pub(crate) fn secret(paths: &Paths, how: Pairing) -> Result<Secret, DiskError> {
    let path = match how {
        Pairing::Key => paths.at("/efi/dyad/site.key"),
        Pairing::Code => code_path(paths),
    };
    let shown = path.display().to_string();
    let text = files::read(&path)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    match (how, text) {
        (Pairing::Key, None) => Err(DiskError::NoKey(shown)),
        (Pairing::Code, None) => Err(DiskError::NoCode),
        (Pairing::Key, Some(text)) => {
            let odd = text.chars().filter(|c| !c.is_ascii_hexdigit()).count();
            let missing = SITE_KEY_DIGITS.saturating_sub(text.len());
            match odd + missing {
                0 => Ok(Secret::from_bytes(text.to_ascii_lowercase().as_bytes())),
                found => Err(DiskError::Key { path: shown, found }),
            }
        }
        (Pairing::Code, Some(text)) => match Code::parse(&text) {
            Ok(code) => Ok(code.secret()),
            Err(error) => Err(DiskError::Code { path: shown, error }),
        },
    }
}

/// The system identifier of data that lies here already; 0 when its control file is not there.
pub(crate) fn found_data(paths: &Paths) -> Result<Option<u64>, FileError> {
    let main = paths.pg_main();
    if files::read_plain(&main.join("PG_VERSION"))?.is_none() {
        return Ok(None);
    }
    // The first field of PostgreSQL's control file, in the machine's byte order.
    let control = files::read(&main.join("global/pg_control"))?.unwrap_or_default();
    Ok(Some(control.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        for made in ["state", "efi/dyad", "data/pg/main/global"] {
            std::fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        let paths = Paths::new(dir.path());
        (dir, paths)
    }

    #[test]
    fn each_step_is_read_back_and_anything_else_is_refused_by_name() {
        let (_dir, paths) = paths();
        let (cluster, peer) = (ClusterId(7), Key([9; 32]));
        for step in [
            Durable::Blank,
            Durable::Minted { cluster, peer },
            Durable::Paired { cluster, peer },
            Durable::Blank,
        ] {
            store(&paths, &step).unwrap();
            assert_eq!(load(&paths).unwrap(), step);
        }
        std::fs::write(path(&paths), "{\"version\": 1, \"state\": \"wed\"}").unwrap();
        let error = load(&paths).unwrap_err().to_string();
        assert!(error.contains("pairing.json") && error.contains("wed"), "{error}");
    }

    #[test]
    fn a_secret_that_is_none_is_refused_and_never_shown() {
        let (_dir, paths) = paths();
        let key = paths.at("/efi/dyad/site.key");
        let text = |how| secret(&paths, how).err().unwrap().to_string();
        assert!(text(Pairing::Key).contains("no site key at"), "{}", text(Pairing::Key));
        std::fs::write(&key, "5ecret").unwrap();
        let error = text(Pairing::Key);
        assert!(error.contains("64 hexadecimal digits") && !error.contains("5ecret"), "{error}");
        std::fs::write(&key, format!("{}\n", "aB".repeat(32))).unwrap();
        assert!(secret(&paths, Pairing::Key).unwrap() == Secret::from_bytes("ab".repeat(32).as_bytes()));
        assert!(text(Pairing::Code).contains("dyadctl pair"));
        std::fs::write(code_path(&paths), "short").unwrap_err();
        std::fs::create_dir(paths.at("/state/supervisor")).unwrap();
        std::fs::write(code_path(&paths), "short").unwrap();
        assert!(text(Pairing::Code).contains("20 letters"), "{}", text(Pairing::Code));
    }

    #[test]
    fn a_code_is_made_once_typed_on_the_other_node_and_may_be_corrected() {
        let ((_here, here), (_there, there)) = (paths(), paths());
        let made = take_code(&here, None).unwrap();
        assert_eq!(take_code(&here, None).unwrap().code, made.code);
        assert!(!take_code(&there, Some(&"0".repeat(20))).unwrap().replaced);
        let typed = take_code(&there, Some(&made.code.to_lowercase())).unwrap();
        assert_eq!((typed.code, typed.replaced), (made.code, true));
        assert!(secret(&here, Pairing::Code).unwrap() == secret(&there, Pairing::Code).unwrap());
        let error = take_code(&there, Some("7K3MQ")).err().unwrap().to_string();
        assert!(error.contains("the code that was typed: a code has 20 letters"), "{error}");
    }

    #[test]
    fn data_is_known_by_its_system_identifier() {
        let (dir, paths) = paths();
        assert_eq!(found_data(&paths).unwrap(), None);
        std::fs::write(dir.path().join("data/pg/main/PG_VERSION"), "15\n").unwrap();
        assert_eq!(found_data(&paths).unwrap(), Some(0));
        let control = [&77_u64.to_ne_bytes()[..], &[1; 40]].concat();
        std::fs::write(dir.path().join("data/pg/main/global/pg_control"), control).unwrap();
        assert_eq!(found_data(&paths).unwrap(), Some(77));
    }
}
