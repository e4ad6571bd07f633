//! What HTTP stands on when it is not QUIC between nodes: TCP and how to get through proxies, TLS
//! with X.509 certificates, and tokens that prove a PeerId where TLS cannot.
//!
//! TLS with raw public keys is in `anyreach_quic::https`; HTTP itself in [`crate::h2`].

pub mod authenticated;
pub mod proxy;
pub mod tcp;
pub mod token;
pub mod x509;

pub use authenticated::Authenticated;
pub use proxy::{Proxy, ProxyUrlError};
pub use x509::{ClientTrust, ServerCertificate, X509Error};
