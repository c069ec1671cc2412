//! Keys that sign build records: `dyad key new`, and the two files that it makes.
//!
//! Both are one line of text: `dyad-private-ed25519:HEX` (readable by its owner alone) and `ed25519:HEX`, the form in
//! which site files name keys too.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dyad_formats::verity::hex;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

const PRIVATE: &str = "dyad-private-ed25519:";
const PUBLIC: &str = "ed25519:";
/// Longer files are no keys.
const FILE_BYTES_MAX: u64 = 4096;

/// Exactly `N` bytes from twice as many hexadecimal digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    // `from_str_radix` would take a sign.
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("creating {}: a key is never overwritten", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

/// The public half beside `NAME.key`.
fn public_path(private: &Path) -> PathBuf {
    private.with_extension("pub")
}

/// Makes `NAME.key` and `NAME.pub`.
pub(crate) fn new(name: &Path) -> Result<()> {
    let mut private = name.as_os_str().to_owned();
    private.push(".key");
    let private = PathBuf::from(private);
    let public = public_path(&private);
    if public.exists() {
        bail!("{} exists already: a key is never overwritten", public.display());
    }
    let mut seed = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .context("reading /dev/urandom")?;
    let key = SigningKey::from_bytes(&seed);
    write_new(&private, 0o600, &format!("{PRIVATE}{}\n", hex(&seed)))?;
    write_new(&public, 0o644, &format!("{PUBLIC}{}\n", hex(key.verifying_key().as_bytes())))?;
    println!("{} signs (`dyad build --key`): keep it to yourself", private.display());
    println!("{} checks (`dyad verify --key`): give it to everybody", public.display());
    Ok(())
}

fn line(path: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

fn signing(path: &Path) -> Result<SigningKey> {
    let text = line(path)?;
    let seed = text.strip_prefix(PRIVATE).and_then(unhex::<32>).with_context(|| {
        format!("{} is no private key: `dyad key new NAME` makes NAME.key for this", path.display())
    })?;
    Ok(SigningKey::from_bytes(&seed))
}

fn public(text: &str) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(&unhex::<32>(text.strip_prefix(PUBLIC)?)?).ok()
}

/// The text of a signature file: who signed, and the signature.
pub(crate) fn sign(key: &Path, message: &[u8]) -> Result<String> {
    let key = signing(key)?;
    let signature = key.sign(message);
    Ok(format!("{PUBLIC}{} {}\n", hex(key.verifying_key().as_bytes()), hex(&signature.to_bytes())))
}

/// Checks a signature file against a public key file.
pub(crate) fn check(key: &Path, message: &[u8], signature_file: &Path) -> Result<()> {
    let said = line(key)?;
    let wanted = public(&said).with_context(|| {
        format!("{} is no public key: `dyad key new NAME` makes NAME.pub for this", key.display())
    })?;
    let text = fs::read_to_string(signature_file).with_context(|| {
        format!("reading {}: `dyad build --key` writes it beside the outputs", signature_file.display())
    })?;
    let parts = text.strip_suffix('\n').and_then(|line| line.split_once(' '));
    let parts = parts.and_then(|(signer, signature)| Some((public(signer)?, unhex::<64>(signature)?)));
    let Some((signer, signature)) = parts else {
        bail!("{} is no signature: it is one line, ed25519:KEY SIGNATURE", signature_file.display());
    };
    if signer != wanted {
        bail!(
            "{} was made with another key: {PUBLIC}{}, not {said}",
            signature_file.display(),
            hex(signer.as_bytes())
        );
    }
    if wanted.verify_strict(message, &Signature::from_bytes(&signature)).is_err() {
        bail!(
            "{} does not fit the build record beside it: one of them was changed",
            signature_file.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_key_that_signed_and_only_the_message_that_was_signed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        new(&at("a.b")).unwrap();
        new(&at("other")).unwrap();
        assert_eq!(fs::metadata(at("a.b.key")).unwrap().permissions().mode() & 0o777, 0o600);
        let text = sign(&at("a.b.key"), b"message").unwrap();
        assert_eq!(text, sign(&at("a.b.key"), b"message").unwrap(), "the same every time");
        let file = at("record.sig");
        fs::write(&file, &text).unwrap();
        check(&at("a.b.pub"), b"message", &file).unwrap();
        let told = |key: &str, message: &[u8]| check(&at(key), message, &file).unwrap_err().to_string();
        assert!(told("a.b.pub", b"massage").contains("one of them was changed"));
        assert!(told("other.pub", b"message").contains("was made with another key"));
        assert!(told("a.b.key", b"message").contains("is no public key"));
        assert!(sign(&at("a.b.pub"), b"message").unwrap_err().to_string().contains("is no private key"));
        assert!(new(&at("other")).unwrap_err().to_string().contains("never overwritten"));
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1;
            fs::write(&file, bad).unwrap();
            assert!(check(&dir.path().join("a.b.pub"), b"message", &file).is_err(), "byte {at}");
        }
    }
}
