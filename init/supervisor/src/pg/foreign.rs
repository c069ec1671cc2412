//! A certificate that somebody else signed, for PostgreSQL of both nodes: what is accepted. A server with a key that does not fit its
//! certificate does not start, so nothing of it may reach the server unseen.

use rustls::SignatureAlgorithm;
use rustls::client::verify_server_name;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

/// Signatures, by their object identifiers in DER: RSA (PKCS #1) and ECDSA, each with SHA-256, SHA-384 and SHA-512. What else there
/// is, the server's TLS library refuses by itself, or PostgreSQL 15 cannot bind SCRAM to it.
const SIGNATURES: [&[u8]; 6] = [
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b],
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0c],
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0d],
    &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2],
    &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3],
    &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4],
];
/// Before an RSA key in DER: its object identifier with empty parameters, and the tag of what follows.
const RSA_KEY: [u8; 14] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0, 3];
/// Bytes of an RSA key of 2,048 bits; the server's TLS library takes no smaller one.
const RSA_BYTES_MIN: usize = 256;

/// Why it is not taken. The key's text is in none of the messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForeignError {
    #[error(
        "the certificate: {0}; PEM is accepted, the server's own first, then those that lead to its issuer"
    )]
    Certificate(String),
    #[error(
        "the private key: {0}; PEM without a passphrase is accepted (PKCS #8, PKCS #1 or SEC 1), RSA or ECDSA"
    )]
    Key(String),
    #[error("the private key is not the one of the first certificate")]
    Apart,
    #[error(
        "certificate {0} of the file: PostgreSQL 15 would not start with it, or could not bind a password's proof to it; signatures by \
         RSA (PKCS #1) or ECDSA with SHA-256, SHA-384 or SHA-512 are accepted, and RSA keys of 2048 bits or more"
    )]
    Unfit(usize),
}

/// What a TLV of DER holds, and what is behind it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 3))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    if found == tag { rest.split_at_checked(length) } else { None }
}

/// Whether a server of ours can load it as a part of its chain.
fn fits(certificate: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const OBJECT: u8 = 6;
    let signature = || {
        let (whole, _) = der(certificate, SEQUENCE)?;
        let (_, rest) = der(whole, SEQUENCE)?;
        let (algorithm, _) = der(rest, SEQUENCE)?;
        Some(der(algorithm, OBJECT)?.0)
    };
    let large = |at: usize| {
        let bits = der(&certificate[at + RSA_KEY.len() - 1..], 3);
        bits.is_some_and(|(bits, _)| bits.len() > RSA_BYTES_MIN)
    };
    let rsa = certificate.windows(RSA_KEY.len()).position(|window| window == RSA_KEY);
    signature().is_some_and(|found| SIGNATURES.contains(&found)) && rsa.is_none_or(large)
}

/// Whether a server can show it; of `names` those that it is not for.
pub(crate) fn check(certificate: &str, key: &str, names: &[String]) -> Result<Vec<String>, ForeignError> {
    let wrong = |error: &dyn std::fmt::Display| ForeignError::Certificate(error.to_string());
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&error))?;
    let Some(first) = chain.first().cloned() else { return Err(wrong(&"there is none")) };
    for (number, certificate) in (1..).zip(&chain) {
        ParsedCertificate::try_from(certificate).map_err(|error| wrong(&error))?;
        if !fits(certificate) {
            return Err(ForeignError::Unfit(number));
        }
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| ForeignError::Key("it cannot be read".to_owned()))?;
    let key = any_supported_type(&key).map_err(|_| ForeignError::Key("it is of no known kind".to_owned()))?;
    if !matches!(key.algorithm(), SignatureAlgorithm::RSA | SignatureAlgorithm::ECDSA) {
        return Err(ForeignError::Unfit(1));
    }
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err(ForeignError::Apart),
        Err(error) => return Err(wrong(&error)),
    }
    let parsed = ParsedCertificate::try_from(&first).map_err(|error| wrong(&error))?;
    let is_for = |name: &String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    Ok(names.iter().filter(|name| !is_for(name)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};

    fn signed(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_a_server_cannot_show_is_refused_and_what_clients_will_miss_is_named() {
        let names = ["db.example", "192.0.2.9", "2001:db8::9"].map(str::to_owned);
        let (certificate, key) = signed(&["db.example", "192.0.2.9"]);
        assert_eq!(check(&certificate, &key, &names), Ok(vec![names[2].clone()]));
        let (chain, _) = signed(&["issuer.example"]);
        assert_eq!(check(&format!("{certificate}{chain}"), &key, &names[..1]), Ok(Vec::new()));
        assert_eq!(check(&format!("{chain}{certificate}"), &key, &names), Err(ForeignError::Apart));
        let (_, other) = signed(&["db.example"]);
        assert_eq!(check(&certificate, &other, &names), Err(ForeignError::Apart));
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let modern = CertificateParams::new(names.to_vec()).unwrap().self_signed(&pair).unwrap().pem();
        assert_eq!(check(&modern, &pair.serialize_pem(), &names), Err(ForeignError::Unfit(1)));
        assert_eq!(check(&format!("{certificate}{modern}"), &key, &names), Err(ForeignError::Unfit(2)));
        let broken = chain.replacen("MI", "AA", 1);
        let error = check(&format!("{certificate}{broken}"), &key, &names).unwrap_err().to_string();
        assert!(error.starts_with("the certificate: "), "{error}");
        for (certificate, key, part) in [
            ("", &*key, "the certificate: there is none"),
            (&*certificate, "", "the private key: it cannot be read"),
        ] {
            let error = check(certificate, key, &names).unwrap_err().to_string();
            assert!(error.starts_with(part) && error.contains("PEM"), "{error}");
        }
    }

    /// Whether it fits, by what OpenSSL makes of the same request.
    #[test]
    fn of_rsa_keys_and_digests_those_are_taken_that_a_server_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (bits, digest, fits) in [
            ("2048", "-sha256", true),
            ("3072", "-sha512", true),
            ("1024", "-sha256", false),
            ("2048", "-sha1", false),
        ] {
            let request = ["req", "-x509", "-nodes", "-subj", "/CN=db.example", "-newkey"];
            #[allow(clippy::disallowed_methods, reason = "the oracle is a program")]
            let made = std::process::Command::new("openssl")
                .args(request)
                .args([&format!("rsa:{bits}"), digest, "-addext", "subjectAltName=DNS:db.example", "-keyout"])
                .arg(path("key"))
                .arg("-out")
                .arg(path("certificate"))
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
            let found = check(&read("certificate"), &read("key"), &["db.example".to_owned()]);
            assert_eq!(found.is_ok(), fits, "{bits} bits, {digest}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes: Vec<u8>) {
            fits(&bytes);
        }

        #[test]
        fn damaged_text_is_an_error_that_does_not_show_the_key(at in 0_usize..4096, byte: u8, of_key: bool) {
            let (mut certificate, mut key) = signed(&["db.example"]);
            let text = if of_key { &mut key } else { &mut certificate };
            let at = at % text.len();
            let damaged: Vec<u8> =
                text.bytes().enumerate().map(|(n, old)| if n == at { byte } else { old }).collect();
            *text = String::from_utf8_lossy(&damaged).into_owned();
            if let Err(error) = check(&certificate, &key, &["db.example".to_owned()]) {
                let middle = key.lines().nth(1).unwrap_or("-");
                prop_assert!(!error.to_string().contains(middle));
            }
        }
    }
}
