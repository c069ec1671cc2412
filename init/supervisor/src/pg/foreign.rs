//! A certificate that somebody else signed, for PostgreSQL of both nodes: what is accepted. A server with a key that does not fit its
//! certificate does not start, so nothing of it may reach the server unseen.

use rustls::SignatureAlgorithm;
use rustls::client::verify_server_name;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

/// The object identifier of Ed25519 in DER, of keys and of signatures.
const ED25519: [u8; 5] = [6, 3, 0x2b, 0x65, 0x70];

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
        "Ed25519 cannot be used here: PostgreSQL 15 cannot bind a password's proof to a channel with such a certificate; RSA and ECDSA can"
    )]
    Unbound,
}

/// Whether a server can show it; of `names` those that it is not for.
pub(crate) fn check(certificate: &str, key: &str, names: &[String]) -> Result<Vec<String>, ForeignError> {
    let wrong = |error: &dyn std::fmt::Display| ForeignError::Certificate(error.to_string());
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&error))?;
    let Some(first) = chain.first().cloned() else { return Err(wrong(&"there is none")) };
    if first.windows(ED25519.len()).any(|window| window == ED25519) {
        return Err(ForeignError::Unbound);
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| ForeignError::Key("it cannot be read".to_owned()))?;
    let key = any_supported_type(&key).map_err(|_| ForeignError::Key("it is of no known kind".to_owned()))?;
    if key.algorithm() == SignatureAlgorithm::ED25519 {
        return Err(ForeignError::Unbound);
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
        assert_eq!(check(&modern, &pair.serialize_pem(), &names), Err(ForeignError::Unbound));
        for (certificate, key, part) in [
            ("", &*key, "the certificate: there is none"),
            (&*certificate, "", "the private key: it cannot be read"),
        ] {
            let error = check(certificate, key, &names).unwrap_err().to_string();
            assert!(error.starts_with(part) && error.contains("PEM"), "{error}");
        }
    }

    proptest! {
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
