//! Signatures: gpgv with pinned keys, its status lines read strictly.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_debian::{ReleaseError, check_clearsign};

use crate::process::{self, Command, ProcessError};

/// Larger signed texts are refused; Debian's largest is some 150 KB.
const TEXT_BYTES_MAX: u64 = 8 << 20;
const DEADLINE: Duration = Duration::from_secs(30);
/// OpenPGP numbers of SHA-256, SHA-384 and SHA-512: what a signature may be made over.
const GOOD_HASHES: [&str; 3] = ["8", "9", "10"];

/// Which keys an archive may be signed with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Keyring files, binary or ASCII-armoured.
    pub files: Vec<PathBuf>,
    /// An ASCII-armoured key block given in place.
    pub inline: Option<String>,
    /// When not empty, only keys with these fingerprints (of key or primary key) count.
    pub fingerprints: Vec<String>,
}

/// A file whose signature does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is not a clear-signed file.
    #[error(transparent)]
    Framing(#[from] ReleaseError),
    /// A keyring cannot be used.
    #[error("keyring {path}: {problem}")]
    Keyring {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// gpgv could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A temporary file could not be used.
    #[error("cannot hand files to gpgv: {0}")]
    Io(#[from] std::io::Error),
    /// The text was changed after it was signed.
    #[error("forged: the signature by key {key} does not fit the text (BADSIG)")]
    Bad {
        /// Key id.
        key: String,
    },
    /// Signed, but by nobody who counts.
    #[error("no valid signature by a key of {keyring}: {}", .problems.join(", "))]
    NoGoodSignature {
        /// The keyring.
        keyring: String,
        /// What gpgv said of each signature.
        problems: Vec<String>,
    },
    /// gpgv said something that a plain signed file does not make it say.
    #[error("gpgv's answer cannot be used: {0}")]
    Status(String),
}

impl Keyring {
    /// One keyring file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { files: vec![path.into()], ..Self::default() }
    }

    fn describe(&self) -> String {
        let mut parts: Vec<_> = self.files.iter().map(|path| path.display().to_string()).collect();
        if parts.len() > 3 {
            parts = vec![format!("{} and {} more", parts[0], parts.len() - 1)];
        }
        if self.inline.is_some() {
            parts.push("the key given in apt's configuration".to_owned());
        }
        if !self.fingerprints.is_empty() {
            parts.push(format!("fingerprint {}", self.fingerprints.join(" or ")));
        }
        parts.join(", ")
    }

    /// Binary keyrings in `directory`: gpgv reads no armour.
    fn lay_out(&self, directory: &Path) -> Result<Vec<PathBuf>, VerifyError> {
        let mut keyrings = Vec::new();
        let mut add = |name: String, bytes: Vec<u8>| {
            let bytes = match bytes.starts_with(b"-----BEGIN") {
                true => unarmour(&bytes).ok_or_else(|| VerifyError::Keyring {
                    path: name,
                    problem: "is not an armoured key block".to_owned(),
                })?,
                false => bytes,
            };
            let path = directory.join(format!("{}.gpg", keyrings.len()));
            fs::write(&path, bytes)?;
            keyrings.push(path);
            Ok::<_, VerifyError>(())
        };
        for file in &self.files {
            let name = file.display().to_string();
            let bytes = fs::read(file).map_err(|e| VerifyError::Keyring {
                path: name.clone(),
                problem: format!("cannot be read: {e}"),
            })?;
            add(name, bytes)?;
        }
        if let Some(block) = &self.inline {
            add("given in apt's configuration".to_owned(), block.trim_start().as_bytes().to_vec())?;
        }
        Ok(keyrings)
    }
}

/// Verifies a clear-signed file and hands back the text that the signature covers, as gpgv wrote it out.
///
/// # Errors
/// See `VerifyError`.
pub(crate) fn verify(signed: &[u8], keyring: &Keyring) -> Result<Vec<u8>, VerifyError> {
    check_clearsign(signed)?;
    let directory = tempfile::tempdir()?;
    let (input, output) = (directory.path().join("signed"), directory.path().join("text"));
    fs::write(&input, signed)?;
    let mut command =
        Command::new(process::find("gpgv")?).deadline(DEADLINE).arg("--homedir").arg(directory.path());
    for path in keyring.lay_out(directory.path())? {
        command = command.arg("--keyring").arg(path);
    }
    let command = command.args(["--status-fd", "1", "--output"]).arg(&output).arg(&input);
    let answer = command.run()?;
    // The exit status is not asked: it is 2 as soon as one of several signatures is by a key that is not known.
    judge(&String::from_utf8_lossy(&answer.stdout), keyring)?;
    let mut text = Vec::new();
    fs::File::open(&output)?.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text)?;
    match text.len() as u64 > TEXT_BYTES_MAX {
        true => Err(VerifyError::Status(format!("the signed text is larger than {TEXT_BYTES_MAX} bytes"))),
        false => Ok(text),
    }
}

/// Reads the status lines: one signed text, no bad signature, at least one good one by a key that counts. Signatures
/// by unknown keys are allowed beside it, because archives sign with the keys of several releases.
fn judge(status: &str, keyring: &Keyring) -> Result<(), VerifyError> {
    let (mut texts, mut good, mut accepted) = (0, false, false);
    let mut problems = Vec::new();
    for line in status.lines() {
        let Some(line) = line.strip_prefix("[GNUPG:] ") else {
            return Err(VerifyError::Status(format!("unexpected line {line:?}")));
        };
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let argument = |n: usize| words.get(n).copied().unwrap_or_default();
        match argument(0) {
            "PLAINTEXT" => texts += 1,
            "NEWSIG" => good = false,
            "GOODSIG" => good = true,
            "BADSIG" => return Err(VerifyError::Bad { key: argument(1).to_owned() }),
            "VALIDSIG" if good => match is_accepted(&words, keyring) {
                Ok(()) => accepted = true,
                Err(problem) => problems.push(problem),
            },
            "ERRSIG" if argument(6) == "9" => problems.push(format!("key {} is not in it", argument(1))),
            "ERRSIG" => problems.push(format!("the signature by key {} cannot be checked", argument(1))),
            "EXPSIG" => problems.push(format!("the signature by key {} has expired", argument(1))),
            "EXPKEYSIG" => problems.push(format!("key {} has expired", argument(1))),
            "REVKEYSIG" => problems.push(format!("key {} was revoked", argument(1))),
            "NODATA" => problems.push("there is no signature in it".to_owned()),
            "KEYEXPIRED"
            | "KEY_CONSIDERED"
            | "SIG_ID"
            | "VALIDSIG"
            | "NO_PUBKEY"
            | "VERIFICATION_COMPLIANCE_MODE"
            | "PLAINTEXT_LENGTH"
            | "NOTATION_NAME"
            | "NOTATION_FLAGS"
            | "NOTATION_DATA"
            | "FAILURE" => {}
            other => return Err(VerifyError::Status(format!("unexpected status {other}"))),
        }
    }
    match (accepted, texts) {
        (true, 1) => Ok(()),
        (true, n) => Err(VerifyError::Status(format!("{n} signed texts in one file"))),
        (false, _) => Err(VerifyError::NoGoodSignature { keyring: keyring.describe(), problems }),
    }
}

/// `VALIDSIG fingerprint date timestamp expires version reserved key-algo hash-algo class primary-fingerprint`
fn is_accepted(words: &[&str], keyring: &Keyring) -> Result<(), String> {
    let (Some(fingerprint), Some(hash), primary) = (words.get(1), words.get(8), words.get(10)) else {
        return Err("gpgv's VALIDSIG line is incomplete".to_owned());
    };
    if !GOOD_HASHES.contains(hash) {
        return Err(format!("the signature by key {fingerprint} uses a weak hash (OpenPGP number {hash})"));
    }
    let is_named = |wanted: &String| wanted == fingerprint || Some(&wanted.as_str()) == primary;
    match keyring.fingerprints.is_empty() || keyring.fingerprints.iter().any(is_named) {
        true => Ok(()),
        false => Err(format!("key {fingerprint} is not the one named")),
    }
}

/// The bytes of all ASCII-armoured blocks of a file (RFC 4880, 6.2). The checksum is not looked at: what matters
/// is whether a signature verifies.
fn unarmour(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut bytes = Vec::new();
    let (mut in_block, mut in_headers, mut bits, mut held) = (false, false, 0_u32, 0_u32);
    for line in text.lines().map(str::trim) {
        if line.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK") {
            (in_block, in_headers, bits, held) = (true, true, 0, 0);
        } else if line.starts_with("-----END") {
            in_block = false;
        } else if in_block && in_headers {
            // deb822 writes the empty line as a lone dot.
            in_headers = !(line.is_empty() || line == ".");
        } else if in_block && !line.starts_with('=') {
            for c in line.bytes().filter(|&c| c != b'=') {
                bits = bits << 6 | u32::from(sextet(c)?);
                held += 6;
                if held >= 8 {
                    held -= 8;
                    bytes.push((bits >> held) as u8);
                }
            }
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

fn sextet(c: u8) -> Option<u8> {
    match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4CB50190207B4758A3F73A796ED0E7B82643E131";

    fn judged(lines: &str, keyring: &Keyring) -> Result<(), String> {
        let status: String = lines.lines().map(|line| format!("[GNUPG:] {}\n", line.trim())).collect();
        judge(&status, keyring).map_err(|e| e.to_string())
    }

    fn signed(before: &str, hash: &str) -> String {
        format!(
            "PLAINTEXT 74 0\nNEWSIG\n{before} {KEY} name\nVALIDSIG {KEY} 2026-07-11 1783765031 0 4 0 1 {hash} 01 {KEY}\n"
        )
    }

    #[test]
    fn one_good_signature_is_enough() {
        let any = Keyring::default();
        assert_eq!(judged(&signed("GOODSIG", "8"), &any), Ok(()));
        let with_unknown = signed("GOODSIG", "10") + "NEWSIG\nERRSIG AB 1 8 01 1783765031 9 CD\nNO_PUBKEY AB";
        assert_eq!(judged(&with_unknown, &any), Ok(()));
        let named = Keyring { fingerprints: vec![KEY.to_owned()], ..Keyring::default() };
        assert_eq!(judged(&signed("GOODSIG", "8"), &named), Ok(()));
    }

    #[test]
    fn everything_else_is_refused() {
        let any = Keyring::default();
        let cases = [
            (String::new(), "no valid signature"),
            (signed("GOODSIG", "2"), "weak hash (OpenPGP number 2)"),
            (signed("EXPKEYSIG", "8"), "has expired"),
            (signed("REVKEYSIG", "8"), "was revoked"),
            (signed("EXPSIG", "8"), "the signature by key"),
            (signed("GOODSIG", "8") + "NEWSIG\nBADSIG AB name", "forged"),
            (signed("GOODSIG", "8") + &signed("GOODSIG", "8"), "2 signed texts"),
            (signed("GOODSIG", "8").replace("PLAINTEXT", "KEY_CONSIDERED"), "0 signed texts"),
            (signed("GOODSIG", "8") + "SURPRISE", "unexpected status SURPRISE"),
            // A good signature does not vouch for the next one.
            (
                format!("NEWSIG\nGOODSIG {KEY}\nNEWSIG\nVALIDSIG {KEY} d 1 0 4 0 1 8 01 {KEY}"),
                "no valid signature",
            ),
            ("NODATA 1".to_owned(), "there is no signature"),
        ];
        for (lines, expected) in cases {
            let error = judged(&lines, &any).unwrap_err();
            assert!(error.contains(expected), "{lines}: {error}");
        }
        assert!(judge("something else\n", &any).unwrap_err().to_string().contains("unexpected line"));
    }

    #[test]
    fn armour_is_read() {
        let block = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\nAAECAwQF\nBgc=\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(unarmour(block.as_bytes()), Some((0..8).collect()));
        assert_eq!(unarmour(block.replace("AAEC", "AA*C").as_bytes()), None);
        assert_eq!(unarmour(b"nothing"), None);
        assert_eq!(unarmour(&[0xff, 0xfe]), None);
    }
}
