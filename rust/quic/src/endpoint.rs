//! The endpoint: one socket, both roles, and the tasks that keep its connections.

mod admission;
mod conversation;
mod dial;
mod early;
mod http;
mod more_paths;
mod network;
mod news;
mod notices;
mod reflection;
mod steward;
mod supervise;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::{BindError, BindOptions, IpMode, MuxHandle, NodeSocket};
use anyreach_wire::control::Nat;
use aws_lc_rs::{hmac, rand};
use noq::{EndpointConfig as EngineConfig, NoneTokenStore, TokioRuntime, VarInt};
use noq_proto::HashedConnectionIdGenerator;
use tokio::sync::Notify;

use self::admission::Admission;
use self::http::HttpArrivals;
pub use self::{dial::DialOutcome, http::HttpConnection};
use crate::{
    Connection, EndpointConfig, Event, Identity, PeerId,
    arrivals::Arrivals,
    code,
    connection::Handshake,
    crypto::{HandshakeInfo, ProvedKey, TokenKey, tls},
    directory::DirectorySlot,
    error::DialError,
    events::Journal,
    openers::Desk,
    reach::Reach,
    registry::{ConnectionKey, Registry},
    traversal::Near,
};

/// QUIC version 1 (RFC 9000); drafts are not spoken.
const QUIC_V1: u32 = 1;

/// Longest time a handshake may be given: a deadline must be a point in time.
const MAX_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3600);

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

/// One socket with the QUIC endpoint on it. Clones are handles to the same endpoint, which is
/// closed when the last one is dropped.
#[derive(Clone)]
pub struct Endpoint(
    Arc<Inner>,
    #[expect(dead_code, reason = "it is there to be dropped")] Option<Arc<CloseOnDrop>>,
);

/// What the endpoint's own tasks do not hold.
struct CloseOnDrop(noq::Endpoint);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(VarInt::from_u32(code::NODE_CLOSED), b"");
    }
}

struct Inner {
    engine: noq::Endpoint,
    client: noq::ClientConfig,
    /// For HTTP/3 to other nodes.
    http_client: noq::ClientConfig,
    http_arrivals: HttpArrivals,
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
    arrivals: Arrivals,
    journal: Arc<Journal>,
    /// Sorts openers.
    desk: Arc<Desk>,
    /// What stands behind the synthetic addresses of tunnels.
    directory: DirectorySlot,
    /// Networks in which addresses of peers are not refused.
    near: Near,
    /// What peers are told about how this node can be reached.
    reach: Mutex<Option<Reach>>,
    /// What peers are told about our NAT.
    nat: Mutex<Option<Nat>>,
    /// Tasks that watch over connections.
    supervisors: AtomicUsize,
    supervisors_gone: Notify,
    next_key: AtomicU64,
    /// Milliseconds `closed()` may take, set by `close()`.
    close_patience: AtomicU64,
    rejected: Rejected,
}

/// Handshakes that were refused, by reason.
#[derive(Debug, Default)]
struct Rejected {
    limit: AtomicU64,
    retry: AtomicU64,
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
    pub fn bind(
        identity: Arc<Identity>,
        mut config: EndpointConfig,
    ) -> Result<Self, EndpointError> {
        config.handshake_timeout = config.handshake_timeout.min(MAX_HANDSHAKE_TIMEOUT);
        let bound = anyreach_net::bind(&BindOptions {
            addr: config.bind_addr,
            ip_mode: config.ip_mode,
            allow_ipv4_mapped: config.allow_ipv4_mapped,
            buffer_bytes: config.socket_buffer,
        })?;
        let (mode, address) = (bound.mode(), bound.local_addr());
        let socket = NodeSocket::new(bound)?;
        let (mux, socket_counters) = (socket.handle(), socket.counters());

        let session = tls::session_config(
            &identity,
            config.key_log,
            config.serve_h3,
            config.tap.clone(),
        )?;
        let directory = session.directory.clone();
        let near = session.near.clone();
        let desk = Desk::new(directory.clone()).ok_or(EndpointError::Randomness)?;
        let desk = Arc::new(desk);
        // The socket is ours, and open.
        let _ = mux.set_opener_sink(desk.clone());
        // Not the engine's own choice of key: its generator is not reseeded in a forked child.
        let token_key = Arc::new(TokenKey::new(&random()?));
        let mut server = noq::ServerConfig::new(Arc::new(session.clone()), token_key);
        server
            .transport_config(config.transport(false))
            .max_incoming(admission::MAX_WAITING);
        let mut http_client = noq::ClientConfig::new(Arc::new(session.dialing_h3()));
        http_client.token_store(Arc::new(NoneTokenStore));
        let mut client = noq::ClientConfig::new(Arc::new(session));
        client
            .transport_config(config.transport(true))
            // A token for the next connection would show one peer what another one gave.
            .token_store(Arc::new(NoneTokenStore));

        let engine = noq::Endpoint::new_with_abstract_socket(
            engine_config(&identity, address, random()?),
            Some(server),
            Box::new(socket),
            Arc::new(TokioRuntime),
        )?;
        let registry = Registry::new(identity.peer_id(), u64::from_be_bytes(random()?));
        let handle = CloseOnDrop(engine.clone());
        let inner = Inner {
            engine,
            client,
            http_client,
            http_arrivals: HttpArrivals::default(),
            registry: Mutex::new(registry),
            registry_changed: Notify::new(),
            admission: Arc::new(Admission::new(config.max_connections)),
            arrivals: Arrivals::default(),
            journal: Arc::default(),
            desk,
            directory,
            near,
            reach: Mutex::default(),
            nat: Mutex::default(),
            supervisors: AtomicUsize::new(0),
            supervisors_gone: Notify::new(),
            identity,
            config,
            mode,
            bound: address,
            socket: mux,
            socket_counters,
            next_key: AtomicU64::new(1),
            close_patience: AtomicU64::new(0),
            rejected: Rejected::default(),
        };
        let endpoint = Self(Arc::new(inner), Some(Arc::new(handle)));
        let (accepting, following) = (endpoint.for_task(), endpoint.for_task());
        tokio::spawn(async move {
            tokio::select! {
                // Ends with the endpoint.
                () = accepting.accept_all() => {}
                () = following.follow_network() => {}
            }
        });
        Ok(endpoint)
    }

    /// A handle that does not keep the endpoint open.
    fn for_task(&self) -> Self {
        Self(self.0.clone(), None)
    }

    /// Families the socket serves.
    pub fn mode(&self) -> IpMode {
        self.0.mode
    }

    /// Address the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        // It may have moved with the network.
        self.0.socket.local_addr().unwrap_or(self.0.bound)
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
        self.0.arrivals.pop().await
    }

    /// What happened since the last call, at least one event; `None` once the endpoint is closed
    /// and everything was told.
    pub async fn events(&self) -> Option<Vec<Event>> {
        self.0.journal.take().await
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
            ("retries_asked", get(&rejected.retry)),
            ("rejected_handshake", get(&rejected.handshake)),
            ("rejected_hello", get(&rejected.hello)),
            ("rejected_duplicate", get(&rejected.duplicate)),
            ("events_dropped", self.0.journal.dropped()),
            ("openers_unknown", self.0.desk.unknown()),
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
        for connection in self.connections() {
            connection.closing();
        }
        self.0.engine.close(VarInt::from_u32(code), reason);
        self.0.arrivals.close();
        self.0.http_arrivals.close();
    }

    /// Closes the endpoint, if [`close`](Self::close) has not, and waits until the peers know, for
    /// a few round trips and at most two seconds; then frees the port.
    pub async fn closed(&self) {
        self.close(code::NODE_CLOSED, b"");
        let drained = self.0.engine.wait_all_draining();
        let patience = Duration::from_millis(self.0.close_patience.load(Ordering::Relaxed));
        // Who has not answered by now will not: the peer's idle timeout does the rest. Without
        // the limit, a dial given up half-way would count as well, for three seconds.
        let _ = tokio::time::timeout(patience, drained).await;
        self.0.socket.close().await;
        // Every connection is closed, so what is left for them is to say so.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.supervisors_gone()).await;
        self.0.journal.close();
    }

    async fn supervisors_gone(&self) {
        loop {
            let gone = self.0.supervisors_gone.notified();
            if self.0.supervisors.load(Ordering::Acquire) == 0 {
                return;
            }
            gone.await;
        }
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

    /// Reads off a finished handshake who the peer is and how the keys were made. Closes the
    /// connection if that is not as it must be.
    fn identify(&self, engine: &noq::Connection) -> Result<Identified, DialError> {
        let public_key = engine
            .peer_identity()
            .and_then(|identity| identity.downcast::<ProvedKey>().ok())
            .map_or_else(|| ProvedKey::from([]), |key| *key);
        let info = engine
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeInfo>().ok());
        let group = info
            .as_ref()
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
        Ok(Identified {
            peer_id,
            public_key,
            group,
        })
    }

    /// A connection between nodes out of a finished handshake.
    fn authenticate(
        &self,
        engine: noq::Connection,
        outbound: bool,
        started: Instant,
    ) -> Result<Connection, DialError> {
        let Identified {
            peer_id,
            public_key,
            group,
        } = self.identify(&engine)?;
        let handshake = Handshake {
            engine,
            peer_id,
            public_key,
            group,
            outbound,
            time: started.elapsed(),
            directory: self.0.directory.clone(),
            socket: self.0.socket.clone(),
        };
        Ok(Connection::new(self.next_key(), handshake))
    }
}

/// What a handshake has proved.
struct Identified {
    peer_id: PeerId,
    public_key: ProvedKey,
    group: &'static str,
}

/// Whether HTTP/3 was negotiated.
fn is_http(engine: &noq::Connection) -> bool {
    engine
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeInfo>().ok())
        .is_some_and(|info| info.h3)
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("peer_id", &self.0.identity.peer_id())
            .field("bound", &self.0.bound)
            .finish_non_exhaustive()
    }
}

/// Random bytes from a generator that is safe across `fork`.
fn random<const N: usize>() -> Result<[u8; N], EndpointError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| EndpointError::Randomness)?;
    Ok(bytes)
}

/// Secrets derived from the identity and the address let a node restarted there answer packets of
/// its former life with a stateless reset, so that peers under way learn at once (RFC 9000, section
/// 10.3). The address is part of it, so that two running nodes with one key cannot be used to
/// reset each other's connections (section 10.3.2).
fn engine_config(identity: &Identity, bound: SocketAddr, seed: [u8; 32]) -> EngineConfig {
    let secret = |purpose: &str| identity.derive_secret(format!("{purpose} at {bound}").as_bytes());
    let reset_key = secret("stateless reset");
    let cid_key = secret("connection ids");
    let mut cid_word = [0; 8];
    cid_word.copy_from_slice(&cid_key[..8]);
    let cid_word = u64::from_be_bytes(cid_word);
    let mut config = EngineConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset_key)));
    config
        .cid_generator(Arc::new(move || {
            Box::new(HashedConnectionIdGenerator::from_key(cid_word))
        }))
        .supported_versions(vec![QUIC_V1])
        .rng_seed(Some(seed))
        // The socket tells QUIC from other protocols by the fixed bit.
        .grease_quic_bit(false);
    config
}
