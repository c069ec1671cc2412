//! TLS 1.3 with pinned keys: a certificate is the wrapping of a public key, and the key is all that is compared.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};

use crate::identity::{Identity, PublicKey};

/// What is spoken inside; settled in the handshake, so that a peer's port never answers a witness's client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Node to witness.
    Witness,
    /// Node to node.
    Peer,
    /// Operator to node.
    Operator,
    /// Two nodes that are about to become a pair.
    Pairing,
}

impl Speaks {
    fn alpn(self) -> Vec<Vec<u8>> {
        let name: &[u8] = match self {
            Speaks::Witness => b"dyad-witness",
            Speaks::Peer => b"dyad-peer",
            Speaks::Operator => b"dyad-operator",
            Speaks::Pairing => b"dyad-pairing",
        };
        vec![name.to_vec()]
    }
}

/// Whom to speak to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// These keys and no other.
    Pinned(Vec<PublicKey>),
    /// Any Ed25519 key: the caller looks at it, or has the other end prove a common secret.
    AnyKey,
}

/// A TLS configuration that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("setting up TLS 1.3: {0}")]
pub struct TlsError(#[from] rustls::Error);

/// The asking side.
pub fn client(identity: &Identity, trust: Trust, speaks: Speaks) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(provider::default_provider());
    let verifier = Arc::new(KeyVerifier { trust, schemes: provider.signature_verification_algorithms });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // certificates are not trusted at all here: the pinned keys are
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate()], PrivateKeyDer::Pkcs8(identity.private()))?;
    config.alpn_protocols = speaks.alpn();
    config.enable_sni = false;
    // Every connection proves both keys afresh, and a pinned key that was removed is gone at once.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The answering side.
pub fn server(identity: &Identity, trust: Trust, speaks: Speaks) -> Result<Arc<ServerConfig>, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(provider::default_provider());
    let verifier = Arc::new(KeyVerifier { trust, schemes: provider.signature_verification_algorithms });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], PrivateKeyDer::Pkcs8(identity.private()))?;
    config.alpn_protocols = speaks.alpn();
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The key in a certificate, if it is an Ed25519 one.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    PublicKey::from_spki(parsed.subject_public_key_info().as_ref())
}

/// Looks at the key and at nothing else: no dates, no names, no chain. The signature in the handshake proves that the
/// other end has the private half.
struct KeyVerifier {
    trust: Trust,
    schemes: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for KeyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyVerifier({:?})", self.trust)
    }
}

impl KeyVerifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let key = key_of(certificate).ok_or(CertificateError::BadEncoding)?;
        match &self.trust {
            Trust::AnyKey => Ok(()),
            Trust::Pinned(keys) if keys.contains(&key) => Ok(()),
            Trust::Pinned(_) => Err(rustls::Error::General(format!(
                "the other end has key {}, which is not pinned",
                key.id()
            ))),
        }
    }

    fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.schemes)
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken".into())
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
