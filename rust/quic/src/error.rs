//! Why a dial failed and why a connection ended, in words a program and a person can use.

use anyreach_net::canonical;
use noq::{ConnectError, ConnectionError, TransportErrorCode};
use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use crate::{PeerId, crypto::tls::WrongPeer};

/// Application error codes this crate closes connections with. They lie in a range of their own
/// ("any" in ASCII, then a number), so that they do not meet those of applications.
pub mod code {
    /// The node was closed in good order.
    pub const NODE_CLOSED: u32 = 0x616e_7900;
    /// Both ends dialed, or several dials won: another connection to the same peer stays.
    pub const DUPLICATE: u32 = 0x616e_7901;
    /// The peer made a newer connection.
    pub const REPLACED: u32 = 0x616e_7902;
    /// The peer said no hello in time, or not as the protocol has it.
    pub const BAD_HELLO: u32 = 0x616e_7903;
    /// A dialed address turned out to be the dialing node itself.
    pub const SELF_DIAL: u32 = 0x616e_7904;
    /// The dial was given up before it was answered.
    pub const CANCELLED: u32 = 0x616e_7905;
    /// The negotiated key exchange lacks ML-KEM-768. TLS never lets it come to this.
    pub const KEY_EXCHANGE: u32 = 0x616e_7906;
}

/// TLS alerts as QUIC error codes: CRYPTO_ERROR 0x0100 plus the alert (RFC 9001, section 4.8).
const HANDSHAKE_FAILURE: u8 = 40;
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Why one attempt to reach an address failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct DialError {
    /// For programs: `handshake-timeout`, `refused`, `unreachable`, `peer-id-mismatch`,
    /// `key-exchange`, `tls`, `protocol`, `self`, `closed`, `cancelled` or `internal`; for further
    /// paths of a connection also `limit` and `not-dialed`.
    pub reason: &'static str,
    /// For people, one sentence.
    pub detail: String,
    /// Who answered, if it was not who was dialed.
    pub actual: Option<PeerId>,
}

impl DialError {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            actual: None,
        }
    }

    /// `handshake_done`: it got as far as TLS, but the peer said no hello.
    pub(crate) fn timeout(handshake_done: bool) -> Self {
        if handshake_done {
            return Self::new(
                "handshake-timeout",
                "the peer proved its key, and then said no hello",
            );
        }
        Self::new(
            "handshake-timeout",
            "no answer: nothing listens there, a firewall or NAT drops the packets, or the peer \
             does not support ML-KEM-768 key exchange",
        )
    }

    pub(crate) fn from_connect(error: ConnectError) -> Self {
        match error {
            ConnectError::EndpointStopping => Self::new("closed", "the node was closed"),
            ConnectError::InvalidRemoteAddress(address) => Self::new(
                "unreachable",
                format!("{} cannot be reached from this socket", canonical(address)),
            ),
            other => Self::new("internal", other.to_string()),
        }
    }

    pub(crate) fn from_handshake(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::timeout(false),
            ConnectionError::TransportError(error) => Self::from_our_tls(&error),
            ConnectionError::ConnectionClosed(close) => {
                Self::from_their_alert(close.error_code, &close.reason)
            }
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                if code == u64::from(code::SELF_DIAL) {
                    return Self::self_dial();
                }
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                Self::new(
                    "closed",
                    format!("the peer closed the connection (code {code:#x}) {reason}"),
                )
            }
            ConnectionError::VersionMismatch => {
                Self::new("protocol", "the peer does not speak QUIC version 1")
            }
            ConnectionError::LocallyClosed => Self::new("cancelled", "the attempt was given up"),
            ConnectionError::Reset => Self::new("closed", "the peer was restarted meanwhile"),
            ConnectionError::CidsExhausted => {
                Self::new("internal", "too many connections for this endpoint")
            }
        }
    }

    pub(crate) fn self_dial() -> Self {
        Self::new("self", "this address is the node's own")
    }

    /// We refused the peer.
    fn from_our_tls(error: &noq_proto::TransportError) -> Self {
        match error
            .crypto
            .as_ref()
            .and_then(|cause| cause.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Self::from_tls(tls),
            None => Self::new("protocol", format!("the peer broke the protocol: {error}")),
        }
    }

    /// Why a TLS handshake failed, over QUIC or TCP.
    pub fn from_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                if let Some(wrong) = other.0.downcast_ref::<WrongPeer>() {
                    return Self {
                        actual: Some(wrong.actual),
                        ..Self::new("peer-id-mismatch", wrong.to_string())
                    };
                }
                Self::new("tls", other.0.to_string())
            }
            rustls::Error::InvalidCertificate(CertificateError::BadEncoding) => Self::new(
                "tls",
                "the peer's key is not an ML-DSA-65 raw public key; it is no anyreach node",
            ),
            rustls::Error::PeerIncompatible(
                PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::KeyShareExtensionRequired
                | PeerIncompatible::NamedGroupsExtensionRequired,
            ) => Self::key_exchange(),
            rustls::Error::PeerIncompatible(
                PeerIncompatible::IncorrectCertificateTypeExtension
                | PeerIncompatible::UnsolicitedCertificateTypeExtension,
            ) => Self::no_raw_keys(),
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
                Self::key_exchange()
            }
            rustls::Error::AlertReceived(AlertDescription::UnsupportedCertificate) => {
                Self::no_raw_keys()
            }
            rustls::Error::AlertReceived(alert) => Self::new(
                "tls",
                format!("the peer ended the TLS handshake: {alert:?}"),
            ),
            other => Self::new("tls", format!("the TLS handshake failed: {other}")),
        }
    }

    /// The peer refused us.
    fn from_their_alert(code: TransportErrorCode, reason: &[u8]) -> Self {
        let reason = String::from_utf8_lossy(reason);
        if code == TransportErrorCode::crypto(HANDSHAKE_FAILURE) {
            // One alert for every disagreement; peers that use rustls say which in the phrase.
            if reason.contains("CertificateType") {
                Self::no_raw_keys()
            } else {
                Self::key_exchange()
            }
        } else if code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL) {
            Self::new("protocol", "the peer does not speak anyreach/1")
        } else if code == TransportErrorCode::crypto(UNSUPPORTED_CERTIFICATE) {
            Self::no_raw_keys()
        } else if code == TransportErrorCode::CONNECTION_REFUSED {
            Self::new("refused", "the peer takes no further connections")
        } else if (0x100..0x200).contains(&u64::from(code)) {
            Self::new(
                "tls",
                format!("the peer ended the TLS handshake: {code} {reason}"),
            )
        } else {
            Self::new(
                "protocol",
                format!("the peer closed the connection: {code} {reason}"),
            )
        }
    }

    fn key_exchange() -> Self {
        Self::new(
            "key-exchange",
            "no key-exchange group in common: the peer does not support ML-KEM-768 \
             (X25519MLKEM768 or MLKEM768), and nothing weaker is spoken",
        )
    }

    fn no_raw_keys() -> Self {
        Self::new(
            "tls",
            "the peer does not do raw public keys (RFC 7250); it is no anyreach node",
        )
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// `closed` by the peer's application, `local` by this side, `timeout`, `reset`, `replaced`
    /// by another connection to the same peer, or `transport`.
    pub kind: &'static str,
    /// Application or transport error code; 0 where there is none.
    pub code: u64,
    /// For people.
    pub message: String,
}

impl CloseReason {
    pub(crate) fn from_engine(error: &ConnectionError) -> Self {
        let (kind, code, message) = match error {
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                let kind = match u32::try_from(code) {
                    Ok(code::DUPLICATE | code::REPLACED) => "replaced",
                    _ => "closed",
                };
                let text = String::from_utf8_lossy(&close.reason).into_owned();
                (kind, code, text)
            }
            ConnectionError::LocallyClosed => ("local", 0, "closed by this side".into()),
            ConnectionError::TimedOut => (
                "timeout",
                0,
                "nothing was heard from the peer within the idle timeout".into(),
            ),
            ConnectionError::Reset => ("reset", 0, "the peer was restarted".into()),
            ConnectionError::ConnectionClosed(close) => (
                "transport",
                u64::from(close.error_code),
                format!("the peer's transport failed: {close}"),
            ),
            ConnectionError::TransportError(error) => {
                ("transport", u64::from(error.code), error.to_string())
            }
            other => ("transport", 0, other.to_string()),
        };
        Self {
            kind,
            code,
            message,
        }
    }
}
