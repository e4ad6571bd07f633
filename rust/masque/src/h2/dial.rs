//! From a relay's addresses to an HTTP/2 connection: TCP by Happy Eyeballs or through a proxy, TLS,
//! HTTP/2.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Instant};

use anyreach_quic::{DialError, PeerId, https};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::lookup_host,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{HANDSHAKE_TIMEOUT, connect};
use crate::{
    carrier::{CarrierError, CarrierKind},
    client::{
        Attempt, Dialed,
        stagger::{ATTEMPT_DELAY, first_success, interleaved},
    },
    https::{Proxy, tcp},
};

/// How the relay proves who it is.
#[derive(Clone)]
pub enum Security {
    /// As nodes do: with its raw public key.
    Node {
        /// [`anyreach_quic::https::TcpTls::client`].
        tls: Arc<rustls::ClientConfig>,
        /// Who it must be; `None` takes anybody.
        expected: Option<PeerId>,
    },
    /// With an X.509 certificate for the target's host.
    X509 {
        /// [`crate::https::ClientTrust::h2_config`].
        tls: Arc<rustls::ClientConfig>,
    },
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { expected, .. } => f.debug_tuple("Node").field(expected).finish(),
            Self::X509 { .. } => f.write_str("X509"),
        }
    }
}

/// A relay to connect to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name or IP address (IPv6 without brackets), as the user knows it: what a proxy is asked
    /// for and a certificate must be for.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// How it proves who it is.
    pub security: Security,
}

/// The way to a relay.
#[derive(Clone)]
pub enum Route {
    /// TCP to these addresses of it, the best first.
    Direct(Vec<SocketAddr>),
    /// Through a proxy, which resolves the name of the relay itself.
    Proxy {
        /// The proxy.
        proxy: Proxy,
        /// For an `https://` proxy: [`crate::https::ClientTrust::proxy_config`].
        tls: Option<Arc<rustls::ClientConfig>>,
    },
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(addresses) => f.debug_tuple("Direct").field(addresses).finish(),
            Self::Proxy { proxy, .. } => proxy.fmt(f),
        }
    }
}

/// A byte stream, whatever is below it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects to a relay over HTTP/2. Dropping the future ends the attempt; TCP, TLS and HTTP each
/// have a time limit, and so has the proxy. Must be called within a tokio runtime.
///
/// # Errors
/// What was tried, at least one.
pub async fn dial(target: &Target, route: &Route) -> Result<Dialed, Vec<Attempt>> {
    let begun = Instant::now();
    let (kind, addresses) = match route {
        Route::Direct(addresses) => (CarrierKind::H2, addresses.clone()),
        Route::Proxy { proxy, .. } => {
            let resolved = lookup_host((proxy.host.as_str(), proxy.port)).await;
            let addresses = resolved.map_err(|error| {
                let detail = format!("the proxy {proxy} has no address: {error}");
                let error = CarrierError::new("unreachable", detail);
                vec![attempt(CarrierKind::H2Proxy, None, error, begun)]
            })?;
            (CarrierKind::H2Proxy, addresses.collect())
        }
    };
    let order = interleaved(&addresses);
    if order.is_empty() {
        let error = CarrierError::new("unreachable", "no address of the relay is known");
        return Err(vec![attempt(kind, None, error, begun)]);
    }
    // TLS is part of the race: a box in between may accept every connection.
    let lanes = order
        .iter()
        .zip(0..)
        .map(|(addr, place)| {
            let lane = async move {
                let begun = Instant::now();
                reach(target, route, *addr)
                    .await
                    .map_err(|error| attempt(kind, Some(*addr), error, begun))
            };
            (ATTEMPT_DELAY * place, lane)
        })
        .collect();
    let outcome = first_success(lanes).await;
    let mut attempts: Vec<Attempt> = outcome.failed.into_iter().map(|(_, error)| error).collect();
    let Some((place, stream)) = outcome.won else {
        return Err(attempts);
    };
    let address = order.get(place).copied();
    let peer_id = https::peer_id(stream.get_ref().1);
    match connect(stream, kind, peer_id).await {
        Ok(carrier) => Ok(Dialed {
            carrier: Arc::new(carrier),
            address,
        }),
        Err(error) => {
            attempts.push(attempt(kind, address, error, begun));
            Err(attempts)
        }
    }
}

fn attempt(
    carrier: CarrierKind,
    address: Option<SocketAddr>,
    error: CarrierError,
    begun: Instant,
) -> Attempt {
    Attempt {
        carrier,
        address,
        reason: error.reason,
        detail: error.detail,
        actual: error.actual,
        elapsed: begun.elapsed(),
    }
}

/// TCP, the proxy if there is one, and TLS.
async fn reach(
    target: &Target,
    route: &Route,
    addr: SocketAddr,
) -> Result<TlsStream<Box<dyn Stream>>, CarrierError> {
    let stream = tcp_connect(addr).await?;
    let stream: Box<dyn Stream> = match route {
        Route::Direct(_) => Box::new(stream),
        Route::Proxy { proxy, .. } if !proxy.tls => {
            Box::new(proxy.connect(stream, &target.host, target.port).await?)
        }
        Route::Proxy { proxy, tls } => {
            let tls = tls.as_ref().ok_or_else(|| {
                CarrierError::new(
                    "internal",
                    "an https proxy, and no TLS configuration for it",
                )
            })?;
            let stream = handshake(tls, x509_name(&proxy.host)?, stream, tls_error).await?;
            Box::new(proxy.connect(stream, &target.host, target.port).await?)
        }
    };
    secure(target, stream).await
}

async fn tcp_connect(addr: SocketAddr) -> Result<tokio::net::TcpStream, CarrierError> {
    timeout(HANDSHAKE_TIMEOUT, tcp::connect(addr))
        .await
        .unwrap_or_else(|_| {
            Err(CarrierError::new(
                "handshake-timeout",
                format!("{addr} does not answer TCP"),
            ))
        })
}

/// TLS with the relay itself.
async fn secure<S>(target: &Target, stream: S) -> Result<TlsStream<S>, CarrierError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match &target.security {
        Security::Node { tls, expected } => {
            let name = https::server_name(*expected);
            let stream = handshake(tls, name, stream, node_error).await?;
            require_h2(stream)
        }
        Security::X509 { tls } => {
            let name = x509_name(&target.host)?;
            let stream = handshake(tls, name, stream, tls_error).await?;
            warn_if_classical(target, &stream);
            require_h2(stream)
        }
    }
}

async fn handshake<S>(
    tls: &Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
    stream: S,
    explain: fn(&rustls::Error) -> CarrierError,
) -> Result<TlsStream<S>, CarrierError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connecting = TlsConnector::from(tls.clone()).connect(name, stream);
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(tls) => explain(tls),
            None => closed_in_handshake(&error),
        }),
        Err(_) => Err(CarrierError::new(
            "handshake-timeout",
            "TCP is connected, but TLS is not answered: it is no TLS server, or something in \
             between swallows what it does not know",
        )),
    }
}

fn closed_in_handshake(error: &io::Error) -> CarrierError {
    CarrierError::new(
        "closed",
        format!("the connection was closed during the TLS handshake: {error}"),
    )
}

fn node_error(error: &rustls::Error) -> CarrierError {
    let DialError {
        reason,
        detail,
        actual,
    } = DialError::from_tls(error);
    CarrierError {
        reason,
        detail,
        actual,
    }
}

fn tls_error(error: &rustls::Error) -> CarrierError {
    use rustls::{CertificateError, Error, PeerIncompatible};
    let advice = match error {
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            ": nobody trusted has signed its certificate; if this network inspects TLS, give its \
             CA file (--ca-file) and allow that by name (--allow-tls-inspection)"
        }
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon)
        | Error::AlertReceived(rustls::AlertDescription::HandshakeFailure) => {
            ": it does not do ML-KEM-768 key exchange; if this network inspects TLS, classical key \
             exchange on this outer hop has to be allowed by name (--allow-tls-inspection)"
        }
        _ => "",
    };
    CarrierError::new("tls", format!("the TLS handshake failed: {error}{advice}"))
}

fn require_h2<S>(stream: TlsStream<S>) -> Result<TlsStream<S>, CarrierError> {
    if stream.get_ref().1.alpn_protocol() == Some(https::ALPN) {
        return Ok(stream);
    }
    Err(CarrierError::new(
        "http",
        "the server does not speak HTTP/2 over TLS (ALPN h2)",
    ))
}

fn x509_name(host: &str) -> Result<ServerName<'static>, CarrierError> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| CarrierError::new("tls", format!("{host:?} is no name for a certificate")))
}

fn warn_if_classical<S>(target: &Target, stream: &TlsStream<S>) {
    let group = stream
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .and_then(|group| group.name().as_str());
    if !group.is_some_and(https::is_post_quantum) {
        tracing::warn!(
            host = target.host,
            group,
            "outer hop without ML-KEM-768; what runs inside is not affected"
        );
    }
}
