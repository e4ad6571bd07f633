//! The endpoint: one socket, both roles, and the tasks that keep its connections.

mod admission;
mod dial;
mod supervise;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::{BindError, BindOptions, IpMode, MuxHandle, NodeSocket};
use aws_lc_rs::{hmac, rand};
use noq::{EndpointConfig as EngineConfig, TokioRuntime, VarInt};
use noq_proto::HashedConnectionIdGenerator;
use tokio::sync::Notify;

use self::admission::Admission;
use crate::{
    Connection, EndpointConfig, Event, Identity, PeerId, code,
    connection::Handshake,
    crypto::{HandshakeInfo, tls},
    error::DialError,
    events::Queue,
    registry::{ConnectionKey, Registry},
};

/// Events kept for whoever drives the endpoint. A few per connection and second are made; this is
/// minutes of neglect for one connection, and one burst of all of them.
const EVENT_QUEUE: usize = 4096;

/// How long `closed()` waits for peers to answer the close, at most.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Round trips of the slowest connection `closed()` waits for: the close, its answer, and once
/// more for a packet of the peer that was under way and gets the close repeated.
const CLOSE_ROUND_TRIPS: u32 = 4;

/// What `closed()` waits beyond that: for the first packet to go out, and for the 25 ms by which
/// a peer may delay its answers (RFC 9000, section 18.2).
const CLOSE_GRACE: Duration = Duration::from_millis(50);

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The socket could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket was bound but could not be used.
    #[error("the socket cannot be used: {0}")]
    Socket(#[from] std::io::Error),
    /// The TLS library refused our configuration.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The operating system gave no randomness.
    #[error("the operating system gives no randomness")]
    Randomness,
}

/// One socket with the QUIC endpoint on it. Clones are handles to the same endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    engine: noq::Endpoint,
    client: noq::ClientConfig,
    identity: Arc<Identity>,
    config: EndpointConfig,
    mode: IpMode,
    bound: SocketAddr,
    socket: MuxHandle,
    socket_counters: Arc<anyreach_net::Counters>,
    registry: Mutex<Registry<Connection>>,
    /// Told whenever a connection is established or gone.
    registry_changed: Notify,
    admission: Arc<Admission>,
    incoming: Queue<Connection>,
    events: Queue<Event>,
    next_key: AtomicU64,
    /// Milliseconds `closed()` may take, set by `close()`.
    close_patience: AtomicU64,
    rejected: Rejected,
}

/// Handshakes that were refused, by reason.
#[derive(Debug, Default)]
struct Rejected {
    limit: AtomicU64,
    handshake: AtomicU64,
    hello: AtomicU64,
    duplicate: AtomicU64,
}

impl Endpoint {
    /// Binds the socket and starts to accept. To be called inside a tokio runtime, on which the
    /// endpoint's tasks then run.
    ///
    /// # Errors
    /// [`EndpointError`], mostly because the address cannot be bound.
    pub fn bind(identity: Arc<Identity>, config: EndpointConfig) -> Result<Self, EndpointError> {
        let bound = anyreach_net::bind(&BindOptions {
            addr: config.bind_addr,
            ip_mode: config.ip_mode,
            allow_ipv4_mapped: config.allow_ipv4_mapped,
            buffer_bytes: config.socket_buffer,
        })?;
        let (mode, address) = (bound.mode(), bound.local_addr());
        let socket = NodeSocket::new(bound)?;
        let (handle, socket_counters) = (socket.handle(), socket.counters());

        let session = tls::session_config(&identity, config.key_log, config.tap.clone())?;
        let mut server = noq::ServerConfig::with_crypto(Arc::new(session.clone()));
        server
            .transport_config(config.transport(false))
            .max_incoming(admission::MAX_WAITING);
        let mut client = noq::ClientConfig::new(Arc::new(session));
        client.transport_config(config.transport(true));

        let engine = noq::Endpoint::new_with_abstract_socket(
            engine_config(&identity),
            Some(server),
            Box::new(socket),
            Arc::new(TokioRuntime),
        )?;
        let mut instance = [0; 8];
        rand::fill(&mut instance).map_err(|_| EndpointError::Randomness)?;
        let registry = Registry::new(identity.peer_id(), u64::from_be_bytes(instance));
        let endpoint = Self(Arc::new(Inner {
            engine,
            client,
            registry: Mutex::new(registry),
            registry_changed: Notify::new(),
            admission: Arc::new(Admission::new(config.max_connections)),
            incoming: Queue::new(config.max_connections),
            events: Queue::new(EVENT_QUEUE),
            identity,
            config,
            mode,
            bound: address,
            socket: handle,
            socket_counters,
            next_key: AtomicU64::new(1),
            close_patience: AtomicU64::new(0),
            rejected: Rejected::default(),
        }));
        tokio::spawn(endpoint.clone().accept_all());
        Ok(endpoint)
    }

    /// Families the socket serves.
    pub fn mode(&self) -> IpMode {
        self.0.mode
    }

    /// Address the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.bound
    }

    /// Who this endpoint is.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    /// The layer under the engine, to add tunnels and further sockets.
    pub fn socket(&self) -> &MuxHandle {
        &self.0.socket
    }

    /// The established connection to `peer`, if there is one.
    pub fn connection(&self, peer: &PeerId) -> Option<Connection> {
        let mut registry = self.registry();
        let connection = registry.established(peer)?.clone();
        if connection.close_reason().is_none() {
            return Some(connection);
        }
        // It ended and its supervisor has not noticed yet: whoever asks now wants another one.
        registry.removed(*peer, connection.id());
        None
    }

    /// All established connections.
    pub fn connections(&self) -> Vec<Connection> {
        self.registry().connections().cloned().collect()
    }

    /// The next connection a peer made to this endpoint; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Connection> {
        loop {
            let connection = self.0.incoming.pop().await?;
            if connection.close_reason().is_none() {
                return Some(connection);
            }
        }
    }

    /// What happened since the last call, at least one event; `None` once the endpoint is closed
    /// and everything was told.
    pub async fn events(&self) -> Option<Vec<Event>> {
        self.0.events.pop_all().await
    }

    /// Counters by name: junk at the socket, refused handshakes, dropped events.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let rejected = &self.0.rejected;
        let engine = self.0.engine.stats();
        let mut counters = vec![
            ("handshakes_accepted", engine.accepted_handshakes),
            ("handshakes_dialed", engine.outgoing_handshakes),
            ("rejected_limit", get(&rejected.limit)),
            ("rejected_handshake", get(&rejected.handshake)),
            ("rejected_hello", get(&rejected.hello)),
            ("rejected_duplicate", get(&rejected.duplicate)),
            ("events_dropped", self.0.events.dropped()),
            ("incoming_dropped", self.0.incoming.dropped()),
        ];
        counters.extend(self.0.socket_counters.snapshot().iter());
        counters
    }

    /// Closes all connections and takes no more. Peers are told `code` and `reason`.
    pub fn close(&self, code: u32, reason: &[u8]) {
        let slowest = self
            .connections()
            .iter()
            .flat_map(Connection::paths)
            .map(|path| path.rtt)
            .max()
            .unwrap_or_default();
        let patience = (slowest * CLOSE_ROUND_TRIPS + CLOSE_GRACE).min(CLOSE_TIMEOUT);
        self.0
            .close_patience
            .fetch_max(patience.as_millis() as u64, Ordering::Relaxed);
        self.0.engine.close(VarInt::from_u32(code), reason);
        self.0.incoming.close();
    }

    /// Waits, after [`close`](Self::close), until the peers know, for a few round trips and at
    /// most two seconds; then frees the port.
    pub async fn closed(&self) {
        let drained = self.0.engine.wait_all_draining();
        let patience = Duration::from_millis(self.0.close_patience.load(Ordering::Relaxed));
        // Who has not answered by now will not: the peer's idle timeout does the rest. Without
        // the limit, a dial given up half-way would count as well, for three seconds.
        let _ = tokio::time::timeout(patience, drained).await;
        self.0.socket.close().await;
        self.0.events.close();
    }

    fn registry(&self) -> MutexGuard<'_, Registry<Connection>> {
        // Every method of the registry leaves it whole.
        self.0
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn next_key(&self) -> ConnectionKey {
        self.0.next_key.fetch_add(1, Ordering::Relaxed)
    }

    fn emit(&self, event: Event) {
        self.0.events.push(event);
    }

    /// Reads off a finished handshake who the peer is and how the keys were made.
    fn authenticate(
        &self,
        engine: noq::Connection,
        outbound: bool,
        started: Instant,
    ) -> Result<Connection, DialError> {
        let public_key = engine
            .peer_identity()
            .and_then(|identity| {
                identity
                    .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                    .ok()
            })
            .and_then(|chain| chain.first().map(|spki| spki.to_vec()))
            .unwrap_or_default();
        let group = engine
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeInfo>().ok())
            .and_then(|info| info.group)
            .filter(|group| tls::KEY_EXCHANGE_GROUPS.contains(group));
        // Both were checked during the handshake already; nothing passes here by default.
        let Some(peer_id) = PeerId::from_spki(&public_key) else {
            engine.close(VarInt::from_u32(code::BAD_HELLO), b"no public key");
            return Err(DialError::new("tls", "the peer proved no public key"));
        };
        let Some(group) = group else {
            engine.close(
                VarInt::from_u32(code::KEY_EXCHANGE),
                b"ML-KEM-768 is required",
            );
            return Err(DialError::new(
                "key-exchange",
                "the keys were made without ML-KEM-768",
            ));
        };
        let handshake = Handshake {
            engine,
            peer_id,
            public_key,
            group,
            outbound,
            time: started.elapsed(),
        };
        Ok(Connection::new(self.next_key(), handshake))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("peer_id", &self.0.identity.peer_id())
            .field("bound", &self.0.bound)
            .finish_non_exhaustive()
    }
}

/// Secrets derived from the identity let a restarted node answer packets of its former life with
/// a stateless reset, so that peers under way learn at once (RFC 9000, section 10.3).
fn engine_config(identity: &Identity) -> EngineConfig {
    let reset_key = identity.derive_secret(b"stateless reset");
    let cid_key = identity.derive_secret(b"connection ids");
    let mut cid_word = [0; 8];
    cid_word.copy_from_slice(&cid_key[..8]);
    let cid_word = u64::from_be_bytes(cid_word);
    let mut config = EngineConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset_key)));
    config
        .cid_generator(Arc::new(move || {
            Box::new(HashedConnectionIdGenerator::from_key(cid_word))
        }))
        // The socket tells QUIC from other protocols by the fixed bit.
        .grease_quic_bit(false);
    config
}
