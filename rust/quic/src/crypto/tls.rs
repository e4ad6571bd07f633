//! TLS 1.3 as every node speaks it: raw ML-DSA-65 public keys in both directions (RFC 7250),
//! key exchange only with groups that contain ML-KEM-768, no resumption.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, OtherError,
    SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    quic::Suite,
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{SessionConfig, TapFactory};
use crate::{Identity, PeerId, directory::DirectorySlot, traversal::Near};

/// The application protocol of connections between nodes.
pub const ALPN: &[u8] = b"anyreach/1";

/// The application protocol of MASQUE on the same port: HTTP/3 (RFC 9114, section 3.1).
pub const ALPN_H3: &[u8] = b"h3";

/// The name dialed when any peer is welcome. Otherwise it is the PeerId's text, so that the
/// verifier knows whom to expect; it never leaves the machine, as SNI is off.
pub(crate) const ANY_PEER: &str = "any";

/// The key-exchange groups spoken, in order of preference: the hybrid first, since it stands as
/// long as either part does.
pub const KEY_EXCHANGE_GROUPS: [&str; 2] = ["X25519MLKEM768", "MLKEM768"];

/// The cryptography of every node: aws-lc-rs, with the groups cut down to those with ML-KEM-768.
pub fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            provider::kx_group::X25519MLKEM768,
            provider::kx_group::MLKEM768,
        ],
        ..provider::default_provider()
    }
}

/// A configuration error of the TLS library; it cannot happen with our constants.
#[derive(Debug, thiserror::Error)]
#[error("TLS could not be configured: {0}")]
pub struct TlsError(String);

/// Builds both roles of TLS for `identity`. The name to dial is the text of the PeerId expected.
/// With `serve_h3` the accepting side takes HTTP/3 as well; the dialing side always means
/// anyreach, see [`SessionConfig::dialing_h3`].
///
/// # Errors
/// [`TlsError`], which would be a fault of ours.
pub fn session_config(
    identity: &Identity,
    key_log: bool,
    serve_h3: bool,
    tap: Option<TapFactory>,
) -> Result<SessionConfig, TlsError> {
    let mut accepted = vec![ALPN.to_vec()];
    if serve_h3 {
        accepted.push(ALPN_H3.to_vec());
    }
    let (client, server) = raw_key_configs(identity, ALPN, accepted, key_log)?;
    let server = Arc::new(server);
    let stock_server = noq_proto::crypto::rustls::QuicServerConfig::try_from(server.clone())
        .map_err(|error| TlsError(error.to_string()))?;
    Ok(SessionConfig {
        client: Arc::new(client),
        server,
        stock_server: Arc::new(stock_server),
        initial_suite: initial_suite(&crypto_provider())
            .ok_or_else(|| TlsError("no TLS_AES_128_GCM_SHA256".into()))?,
        tap,
        traversal: true,
        near: Near::default(),
        directory: DirectorySlot::default(),
    })
}

/// TLS 1.3 with raw public keys in both roles, for QUIC or TCP, with the application protocol to
/// dial and those to accept.
pub(super) fn raw_key_configs(
    identity: &Identity,
    dialed: &[u8],
    accepted: Vec<Vec<u8>>,
    key_log: bool,
) -> Result<(rustls::ClientConfig, rustls::ServerConfig), TlsError> {
    let failed = |error: rustls::Error| TlsError(error.to_string());
    let provider = Arc::new(crypto_provider());
    let certified = Arc::new(CertifiedKey::new(
        vec![CertificateDer::from(identity.public_key().to_vec())],
        identity.signing_key(),
    ));
    let verifier = Arc::new(PeerVerifier {
        algorithms: provider.signature_verification_algorithms,
    });

    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            certified.clone(),
        )));
    client.alpn_protocols = vec![dialed.to_vec()];
    client.enable_sni = false;
    client.resumption = Resumption::disabled();

    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    server.alpn_protocols = accepted;
    server.send_tls13_tickets = 0;

    if key_log {
        client.key_log = Arc::new(rustls::KeyLogFile::new());
        server.key_log = Arc::new(rustls::KeyLogFile::new());
    }
    Ok((client, server))
}

fn initial_suite(provider: &CryptoProvider) -> Option<Suite> {
    provider
        .cipher_suites
        .iter()
        .find(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)
        .and_then(|suite| suite.tls13()?.quic_suite())
}

/// Somebody answered, but is not who was dialed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrongPeer {
    pub(crate) actual: PeerId,
}

impl fmt::Display for WrongPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the peer proved to be {}", self.actual)
    }
}

impl std::error::Error for WrongPeer {}

/// Accepts exactly the peers that prove an ML-DSA-65 raw public key, and when dialing by
/// PeerId only that peer. Who may connect at all is not decided here.
#[derive(Debug)]
struct PeerVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn peer_id(spki: &CertificateDer<'_>) -> Result<PeerId, rustls::Error> {
        PeerId::from_spki(spki).ok_or_else(|| CertificateError::BadEncoding.into())
    }

    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(spki.as_ref()),
            signed,
            &self.algorithms,
        )
    }
}

/// TLS 1.2 is not enabled, so its signatures are never asked for.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let actual = Self::peer_id(end_entity)?;
        let expected = server_name.to_str();
        if expected != ANY_PEER && *expected != actual.to_string() {
            let wrong = OtherError(Arc::new(WrongPeer { actual }));
            return Err(CertificateError::Other(wrong).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ML_DSA_65]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::peer_id(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ML_DSA_65]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
