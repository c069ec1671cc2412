//! What clients believe: an authority of the cluster's own, and the certificate that it gives this node's PostgreSQL, unless an
//! operator has laid another.
//!
//! The authority is made and handed on with the passwords, so both nodes of a pair sign with one key, each for its own server and
//! for every name and address that either of them answers by: a client that believes the authority believes whoever holds the
//! address. Dates are fixed, because a node serves before anybody has set its clock.

use std::path::Path;

use dyad_spec::site::Site;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::credentials::Secrets;
use crate::files::{self, Access, FileError};
use crate::paths::Paths;
use crate::pg::{Owner, stance};
use crate::status::hex;

/// What a node without a site file answers by, and every other one too.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
/// First line of the file: what the certificate is for.
const FOR: &str = "# for ";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It could not be made.
    #[error("make a certificate for PostgreSQL ({0}): {1}")]
    Make(String, rcgen::Error),
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A key and its certificate, each in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Signed {
    pub(crate) key: String,
    pub(crate) certificate: String,
}

fn params(names: &[String], common: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(4000, 1, 1);
    Ok(params)
}

/// Its name; what tells it from another cluster's is the key.
fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(&[], "Dyad cluster")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A new authority.
pub(crate) fn authority() -> Result<Signed, CertificateError> {
    // Ed25519 is not known to every client's TLS library; P-256 is.
    let make = || -> Result<Signed, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = authority_params()?.self_signed(&key)?;
        Ok(Signed { key: key.serialize_pem(), certificate: certificate.pem() })
    };
    make().map_err(|error| CertificateError::Make("the authority".to_owned(), error))
}

/// Every name and address by which PostgreSQL of this site is reached, on whichever node.
pub fn names(site: Option<&Site>) -> Vec<String> {
    let mut names: Vec<String> = OWN_NAMES.map(str::to_owned).to_vec();
    for node in site.iter().flat_map(|site| &site.nodes) {
        names.push(node.name.clone());
        names.extend(node.addresses.iter().map(|address| address.address.address.to_string()));
    }
    for vip in site.iter().flat_map(|site| &site.vips) {
        names.push(vip.name.clone());
        names.push(vip.address.address.to_string());
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The addresses by which clients of this site reach whoever writes: virtual ones, where there are any.
pub(crate) fn reached(site: &Site) -> Vec<String> {
    let vips: Vec<_> = site.vips.iter().map(|vip| vip.address.address.to_string()).collect();
    if !vips.is_empty() {
        return vips;
    }
    let own = site.nodes.iter().flat_map(|node| &node.addresses);
    own.map(|address| address.address.address.to_string()).collect()
}

/// This node's certificate for these names; made anew when it was made for others, by another authority, or is damaged.
pub(crate) fn ensure(path: &Path, authority: &Signed, names: &[String]) -> Result<Signed, CertificateError> {
    let by = hex(&Sha256::digest(&authority.certificate)[..8]);
    let first = format!("{FOR}{}; by {by}\n", names.join(" "));
    if let Some(text) = files::read_plain(path)?
        && let Some(text) = text.strip_prefix(&first)
        && let Some(at) = text.find(CERTIFICATE).filter(|_| text.contains("PRIVATE KEY-----"))
    {
        return Ok(Signed { key: text[..at].to_owned(), certificate: text[at..].to_owned() });
    }
    let make = || -> Result<Signed, rcgen::Error> {
        let issuer = Issuer::new(authority_params()?, KeyPair::from_pem(&authority.key)?);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(names, "PostgreSQL")?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(Signed { key: key.serialize_pem(), certificate: params.signed_by(&key, &issuer)?.pem() })
    };
    let made = make().map_err(|error| CertificateError::Make(names.join(" "), error))?;
    let dir = path.parent().expect("the file is in a directory");
    files::ensure_dir(dir, Access::own(0o700))?;
    files::write(path, format!("{first}{}{}", made.key, made.certificate).as_bytes(), Access::own(0o600))?;
    Ok(made)
}

/// Lays key and certificate where the server reads them: one's own, or what the authority signs; what had to be written, in words.
pub(crate) fn lay(
    paths: &Paths,
    owner: Owner,
    secrets: &Secrets,
    names: &[String],
) -> Result<Option<String>, CertificateError> {
    let shown = match &secrets.own {
        Some(own) => own.clone(),
        None => ensure(&paths.pg_identity(), &secrets.authority, names)?,
    };
    // The server insists that nobody else can read its key.
    let access = Access { mode: 0o600, uid: owner.uid, gid: owner.gid };
    let mut written = false;
    for (name, text) in [(stance::CERTIFICATE, &shown.certificate), (stance::KEY, &shown.key)] {
        written |= files::ensure(&paths.pg_config().join(name), text.as_bytes(), access)?;
    }
    Ok(written.then(|| "the certificate was not as declared".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_anew_for_other_names_another_authority_and_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor/postgresql.pem");
        let ours = authority().unwrap();
        let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let first = ensure(&path, &ours, &names(&["a", "192.0.2.1"])).unwrap();
        assert!(ensure(&path, &ours, &names(&["a", "192.0.2.1"])).unwrap() == first);
        let second = ensure(&path, &ours, &names(&["a", "192.0.2.1", "2001:db8::1"])).unwrap();
        assert!(second != first);
        let third = ensure(&path, &authority().unwrap(), &names(&["a"])).unwrap();
        assert!(third != second);
        std::fs::write(&path, "nothing").unwrap();
        assert!(ensure(&path, &ours, &names(&["a"])).unwrap() != third);
        let odd = ensure(&path, &ours, &names(&["n\u{f6}"])).err().unwrap().to_string();
        assert!(odd.contains("make a certificate for PostgreSQL (n\u{f6})"), "{odd}");
    }
}
