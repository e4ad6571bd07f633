//! Where a relay is reached: by nodes on the endpoint's own port over HTTP/3 and on a TCP port over
//! HTTP/2, and by ordinary HTTP clients on a listener with an X.509 certificate, if there is one.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyreach_net::{BindError, BindOptions, IpMode, NodeSocket, bind, canonical};
use anyreach_quic::{
    Endpoint,
    https::{self, TcpTls},
};
use noq::{IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    carrier::{CarrierKind, Client, Service},
    h2::serve_listener,
    h3,
    https::{
        Authenticated, ServerCertificate, X509Error, tcp,
        token::{Audience, Verifier},
    },
    places::{Limits, Place, Places},
    relay::Relay,
};

/// An ordinary client that says nothing for this long is gone. Longer than NAT timers: such
/// clients keep alive what they need.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of datagrams kept for a slow client, as between nodes: 10 ms of 100 Mbit/s.
const DATAGRAM_QUEUE: usize = 128 << 10;

/// Socket buffers asked for, each way.
const SOCKET_BUFFER: usize = 4 << 20;

/// What to listen on besides the endpoint's own port.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    /// TCP for nodes.
    pub tcp: Option<SocketAddr>,
    /// UDP and TCP for ordinary HTTP clients, and for nodes behind proxies that end TLS.
    pub https: Option<(SocketAddr, ServerCertificate)>,
    /// Write TLS secrets to the file named by `SSLKEYLOGFILE`.
    pub key_log: bool,
}

/// Why a relay could not be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A TCP port cannot be listened on.
    #[error("cannot listen on TCP {addr}: {error}")]
    Tcp {
        /// Where.
        addr: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The UDP port for ordinary clients cannot be bound.
    #[error(transparent)]
    Udp(#[from] BindError),
    /// It was bound but cannot be used.
    #[error("the socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] X509Error),
    /// TLS could not be configured.
    #[error(transparent)]
    Tls(#[from] anyreach_quic::tls::TlsError),
}

/// A relay that is open for clients, until this is dropped.
#[derive(Debug)]
pub struct RelayServer {
    tcp: Option<SocketAddr>,
    https: Option<SocketAddr>,
    #[expect(dead_code, reason = "its tasks end when it is dropped")]
    tasks: JoinSet<()>,
}

impl RelayServer {
    /// Opens `relay` for the clients of `endpoint` and of the listeners. To be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left open then.
    pub fn start(
        endpoint: &Endpoint,
        relay: &Relay,
        listeners: Listeners,
    ) -> Result<Self, ServeError> {
        relay.set_node_addresses(vec![endpoint.local_addr()]);
        let service: Arc<dyn Service> = Arc::new(relay.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_nodes(endpoint.clone(), service.clone()));
        let tcp = match listeners.tcp {
            Some(addr) => {
                let listener = listen(addr, endpoint.mode())?;
                let bound = listener.local_addr()?;
                let tls = TcpTls::new(endpoint.identity(), listeners.key_log)?;
                tasks.spawn(serve_listener(
                    listener,
                    tls.server,
                    https::peer_id,
                    service.clone(),
                    Limits::default(),
                ));
                Some(canonical(bound))
            }
            None => None,
        };
        let https = match listeners.https {
            Some((addr, certificate)) => {
                // Nodes that TLS cannot tell apart here show a token; see `https::token`.
                let relay_id = endpoint.identity().peer_id();
                let verifier = Arc::new(Verifier::new(relay_id, std::iter::empty::<Audience>()));
                let service: Arc<dyn Service> = Arc::new(Authenticated::new(service, verifier));
                let listener = listen(addr, endpoint.mode())?;
                let bound = listener.local_addr()?;
                let quic = quic_endpoint(bound, endpoint.mode(), &certificate, listeners.key_log)?;
                tasks.spawn(serve_listener(
                    listener,
                    certificate.tcp_config(listeners.key_log)?,
                    |_| None,
                    service.clone(),
                    Limits::default(),
                ));
                tasks.spawn(serve_quic(quic, service));
                Some(canonical(bound))
            }
            None => None,
        };
        Ok(Self { tcp, https, tasks })
    }

    /// Where TCP of nodes is listened for.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Where ordinary clients are, over UDP and TCP.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https
    }
}

fn listen(addr: SocketAddr, mode: IpMode) -> Result<TcpListener, ServeError> {
    tcp::listen(addr, mode == IpMode::Dual).map_err(|error| ServeError::Tcp { addr, error })
}

/// HTTP/3 of nodes, on the endpoint's own port.
async fn serve_nodes(endpoint: Endpoint, service: Arc<dyn Service>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrived = endpoint.accept_http() => {
                let Some(http) = arrived else { break };
                let client = Client {
                    peer_id: Some(http.peer_id),
                    remote: http.remote,
                    local: http
                        .local_ip
                        .map(|ip| SocketAddr::new(ip, endpoint.local_addr().port())),
                    carrier: CarrierKind::H3,
                };
                let service = service.clone();
                connections.spawn(async move {
                    // Its place among the endpoint's connections is held until the end.
                    let http = http;
                    h3::serve(http.engine.clone(), client, service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// HTTP/3 of ordinary clients.
async fn serve_quic(endpoint: noq::Endpoint, service: Arc<dyn Service>) {
    let local = endpoint.local_addr().ok().map(canonical);
    let places = Places::new(Limits::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                if !incoming.remote_address_validated() {
                    // Cheap for an honest client, and forged ones get no further.
                    let _ = incoming.retry();
                    continue;
                }
                let Some(place) = places.take(incoming.remote_address().ip()) else {
                    incoming.refuse();
                    continue;
                };
                let service = service.clone();
                connections.spawn(serve_quic_client(incoming, local, service, place));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_quic_client(
    incoming: noq::Incoming,
    local: Option<SocketAddr>,
    service: Arc<dyn Service>,
    mut place: Place,
) {
    let remote = canonical(incoming.remote_address());
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%remote, %error, "HTTP/3 handshake failed");
            return;
        }
    };
    place.handshake_done();
    let path = connection.path(noq::PathId::ZERO);
    let local_ip = path
        .and_then(|path| path.network_path().ok())
        .and_then(|network| network.local_ip());
    let client = Client {
        peer_id: None,
        remote,
        local: match (local_ip, local) {
            (Some(ip), Some(local)) => Some(SocketAddr::new(ip.to_canonical(), local.port())),
            _ => None,
        },
        carrier: CarrierKind::H3,
    };
    h3::serve(connection, client, service).await;
}

fn quic_endpoint(
    addr: SocketAddr,
    mode: IpMode,
    certificate: &ServerCertificate,
    key_log: bool,
) -> Result<noq::Endpoint, ServeError> {
    let socket = bind(&BindOptions {
        addr,
        ip_mode: mode,
        allow_ipv4_mapped: mode == IpMode::Dual,
        buffer_bytes: SOCKET_BUFFER,
    })?;
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).unwrap_or(IdleTimeout::from(VarInt::MAX));
    transport
        .max_idle_timeout(Some(idle))
        .datagram_send_buffer_size(DATAGRAM_QUEUE);
    let mut server = certificate.quic_config(key_log)?;
    server.transport_config(Arc::new(transport));
    let mut config = noq::EndpointConfig::default();
    // The socket tells QUIC from other protocols by the fixed bit.
    config.grease_quic_bit(false);
    Ok(noq::Endpoint::new_with_abstract_socket(
        config,
        Some(server),
        Box::new(NodeSocket::new(socket)?),
        Arc::new(TokioRuntime),
    )?)
}
