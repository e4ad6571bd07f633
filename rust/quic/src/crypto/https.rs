//! TLS of HTTP/2 over TCP between nodes: the same handshake as over QUIC, in records.
//!
//! Raw ML-DSA-65 public keys in both directions and ML-KEM-768 key exchange only; what differs is
//! the application protocol. HTTP itself is not here, nor TLS with X.509 certificates.

use std::sync::Arc;

use rustls::{CertificateError, CommonState, pki_types::ServerName};

use super::tls::{ANY_PEER, KEY_EXCHANGE_GROUPS, TlsError, WrongPeer, raw_key_configs};
use crate::{Identity, PeerId};

/// The application protocol: HTTP/2 over TLS (RFC 9113, section 3.2).
pub const ALPN: &[u8] = b"h2";

/// Both roles of TLS over TCP for one identity.
#[derive(Debug, Clone)]
pub struct TcpTls {
    /// For dialing; name whom to expect with [`server_name`].
    pub client: Arc<rustls::ClientConfig>,
    /// For listening; who came is told by [`peer_id`].
    pub server: Arc<rustls::ServerConfig>,
}

impl TcpTls {
    /// Builds both roles for `identity`. With `key_log`, secrets go to the file `SSLKEYLOGFILE`
    /// names.
    ///
    /// # Errors
    /// [`TlsError`], which would be a fault of ours.
    pub fn new(identity: &Identity, key_log: bool) -> Result<Self, TlsError> {
        let (client, server) = raw_key_configs(identity, ALPN, vec![ALPN.to_vec()], key_log)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// The name to dial, by which the verifier knows whom to expect. It never leaves the machine, as
/// SNI is off. With `None` anybody with an ML-DSA-65 key is welcome.
pub fn server_name(expected: Option<PeerId>) -> ServerName<'static> {
    let name = expected.map_or_else(|| ANY_PEER.to_owned(), |peer| peer.to_string());
    ServerName::try_from(name).expect("52 base32 letters are a DNS label")
}

/// Who the other side of a finished handshake proved to be, if it did so with a raw public key.
pub fn peer_id(connection: &CommonState) -> Option<PeerId> {
    PeerId::from_spki(connection.peer_certificates()?.first()?)
}

/// Who answered instead of the peer expected, if that is what `error` says.
pub fn wrong_peer(error: &rustls::Error) -> Option<PeerId> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return None;
    };
    other
        .0
        .downcast_ref::<WrongPeer>()
        .map(|wrong| wrong.actual)
}

/// Whether a key-exchange group, by its name, contains ML-KEM-768.
pub fn is_post_quantum(group: &str) -> bool {
    KEY_EXCHANGE_GROUPS.contains(&group)
}
