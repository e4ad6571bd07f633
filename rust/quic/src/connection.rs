//! An established connection to a peer, as the rest of the program sees it.

mod farewell;
mod keep_alive;
mod notices;
mod openers;
mod opening;
mod paths;
mod traversal;

use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::MuxHandle;
use noq::{ConnectionError, ConnectionStats, RecvStream, SendStream, VarInt};

pub(crate) use self::paths::path_number;
use self::paths::{FirstPath, PathTable};
pub use self::{
    opening::PathOptions,
    paths::{PathSnapshot, RelayHint},
};
use crate::{
    CloseReason, PeerId, code,
    control::Notices,
    crypto::{Activity, HandshakeInfo, ProvedKey},
    directory::DirectorySlot,
    openers::Line,
    registry::ConnectionKey,
    traversal::Layer,
};

/// A connection to one peer. Clones are handles to the same connection; it lives until either
/// side closes it, not until the last handle is dropped.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    key: ConnectionKey,
    engine: noq::Connection,
    peer_id: PeerId,
    public_key: ProvedKey,
    outbound: bool,
    group: &'static str,
    handshake_time: Duration,
    paths: PathTable,
    directory: DirectorySlot,
    notices: Notices,
    activity: Arc<Activity>,
    layer: Option<Arc<Layer>>,
    line: Option<Arc<Line>>,
    /// Why this side closed, where the engine only knows that it did.
    closed_locally: OnceLock<CloseReason>,
    /// Somebody outside this crate was given it; see [`Connection::claim`].
    claimed: AtomicBool,
    /// What the peer says it offers.
    capabilities: OnceLock<Vec<String>>,
    first_path: OnceLock<FirstPath>,
}

/// A connection that may be dropped, with its buffers, when nobody else holds it.
#[derive(Clone)]
pub(crate) struct WeakConnection(Weak<Inner>);

impl WeakConnection {
    pub(crate) fn upgrade(&self) -> Option<Connection> {
        self.0.upgrade().map(Connection)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl fmt::Debug for WeakConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakConnection")
    }
}

/// How long to wait for an answer from a connection that is asked whether it lives: three round
/// trips and what the peer may delay an acknowledgement, within bounds for lines not measured yet.
const ANSWER_RTTS: u32 = 3;
const ANSWER_EXTRA: Duration = Duration::from_millis(100);
const ANSWER_MIN: Duration = Duration::from_millis(200);
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What the handshake brought to light.
pub(crate) struct Handshake {
    pub(crate) engine: noq::Connection,
    pub(crate) peer_id: PeerId,
    pub(crate) public_key: ProvedKey,
    pub(crate) group: &'static str,
    pub(crate) outbound: bool,
    pub(crate) time: Duration,
    pub(crate) directory: DirectorySlot,
    pub(crate) socket: MuxHandle,
}

impl Connection {
    pub(crate) fn new(key: ConnectionKey, handshake: Handshake) -> Self {
        let paths = PathTable::new();
        let info = handshake.engine.handshake_data();
        let info = info.and_then(|data| data.downcast::<HandshakeInfo>().ok());
        let (activity, layer, opener) = info.map_or_else(Default::default, |info| {
            (info.activity, info.layer, info.opener)
        });
        let punching = layer.as_ref().filter(|layer| layer.is_negotiated());
        let line = punching.zip(opener).map(|(layer, opener)| {
            let guard = layer.clone();
            let line = Line::new(opener, handshake.outbound, handshake.socket, guard);
            let line = Arc::new(line);
            layer.set_line(&line);
            line
        });
        let connection = Self(Arc::new(Inner {
            key,
            engine: handshake.engine,
            peer_id: handshake.peer_id,
            public_key: handshake.public_key,
            outbound: handshake.outbound,
            group: handshake.group,
            handshake_time: handshake.time,
            paths,
            directory: handshake.directory,
            notices: Notices::new(Instant::now()),
            activity,
            layer,
            line,
            closed_locally: OnceLock::new(),
            capabilities: OnceLock::new(),
            claimed: AtomicBool::new(false),
            first_path: OnceLock::new(),
        }));
        if let Some(path) = connection.look_at_first_path() {
            // Nobody else has it yet.
            let _ = connection.0.first_path.set(path);
        }
        connection
    }

    /// A number no other connection of this endpoint has.
    pub fn id(&self) -> u64 {
        self.0.key
    }

    /// Who is at the other end, proved by the handshake.
    pub fn peer_id(&self) -> PeerId {
        self.0.peer_id
    }

    /// The peer's public key as DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.0.public_key
    }

    /// What the peer says it offers, as short tokens. Hints: nothing is proved.
    pub fn capabilities(&self) -> &[String] {
        self.0.capabilities.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn set_capabilities(&self, capabilities: Vec<String>) {
        // Said once.
        let _ = self.0.capabilities.set(capabilities);
    }

    /// Whether this side dialed.
    pub fn outbound(&self) -> bool {
        self.0.outbound
    }

    /// The negotiated key-exchange group, `X25519MLKEM768` or `MLKEM768`.
    pub fn group(&self) -> &'static str {
        self.0.group
    }

    /// From the first packet to the end of the TLS handshake.
    pub fn handshake_time(&self) -> Duration {
        self.0.handshake_time
    }

    /// The engine's connection. Streams are to be opened and accepted through this type.
    pub fn engine(&self) -> &noq::Connection {
        &self.0.engine
    }

    /// Opens a stream, waiting while the peer allows no more. The receiving half is there if
    /// `bidirectional`.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn open_stream(
        &self,
        bidirectional: bool,
    ) -> Result<(SendStream, Option<RecvStream>), CloseReason> {
        let opened = if bidirectional {
            let opened = self.0.engine.open_bi().await;
            opened.map(|(send, recv)| (send, Some(recv)))
        } else {
            self.0.engine.open_uni().await.map(|send| (send, None))
        };
        opened.map_err(|error| self.reason(&error))
    }

    /// The next stream the peer opened. The sending half is there if `bidirectional`.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn accept_stream(
        &self,
        bidirectional: bool,
    ) -> Result<(Option<SendStream>, RecvStream), CloseReason> {
        let accepted = if bidirectional {
            let accepted = self.0.engine.accept_bi().await;
            accepted.map(|(send, recv)| (Some(send), recv))
        } else {
            self.0.engine.accept_uni().await.map(|recv| (None, recv))
        };
        accepted.map_err(|error| self.reason(&error))
    }

    /// Counters of the whole connection.
    pub fn stats(&self) -> ConnectionStats {
        self.0.engine.stats()
    }

    /// Ends the connection at once. The peer is told `code` and `reason`; data not yet
    /// acknowledged may be lost.
    pub fn close(&self, code: u32, reason: &[u8]) {
        self.close_as("local", code, reason);
    }

    pub(crate) fn close_as(&self, kind: &'static str, code: u32, reason: &[u8]) {
        // The first reason stands.
        let _ = self.0.closed_locally.set(CloseReason {
            kind,
            code: code.into(),
            message: String::from_utf8_lossy(reason).into_owned(),
        });
        self.closing();
        self.0.engine.close(VarInt::from_u32(code), reason);
    }

    /// Why the connection ended, or `None` while it lives.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0
            .engine
            .close_reason()
            .map(|error| self.reason(&error))
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> CloseReason {
        let error = self.0.engine.closed().await;
        self.reason(&error)
    }

    /// Puts an error of the engine into our words.
    pub fn reason(&self, error: &ConnectionError) -> CloseReason {
        match (error, self.0.closed_locally.get()) {
            (ConnectionError::LocallyClosed, Some(reason)) => reason.clone(),
            (ConnectionError::LocallyClosed, None) => CloseReason {
                code: code::NODE_CLOSED.into(),
                ..CloseReason::from_engine(error)
            },
            _ => CloseReason::from_engine(error),
        }
    }

    /// Whether the peer answers: sends a PING on every path and waits for any packet, for about
    /// three round trips. A connection over which something arrives meanwhile answers at once.
    pub async fn answers(&self) -> bool {
        let received = || self.0.engine.stats().udp_rx.datagrams;
        let before = received();
        let mut rtt = Duration::ZERO;
        for path in self
            .path_ids()
            .into_iter()
            .filter_map(|id| self.0.engine.path(id))
        {
            rtt = rtt.max(path.stats().rtt);
            // Fails for a path that was closed just now.
            let _ = path.ping();
        }
        let patience = (rtt * ANSWER_RTTS + ANSWER_EXTRA).clamp(ANSWER_MIN, ANSWER_MAX);
        let deadline = Instant::now() + patience;
        // The engine tells nobody of acknowledgements, so they are looked for.
        let step = (rtt / 4).clamp(Duration::from_millis(1), Duration::from_millis(20));
        while self.0.engine.close_reason().is_none() && Instant::now() < deadline {
            tokio::time::sleep(step).await;
            if received() > before {
                return self.0.engine.close_reason().is_none();
            }
        }
        false
    }

    /// Marks the connection as given out. A dial that is dropped before its result was taken
    /// closes the connection it made, unless somebody has got it another way.
    pub fn claim(&self) {
        self.0.claimed.store(true, Ordering::Relaxed);
    }

    /// Closes a connection a dial has made and nobody took.
    pub fn close_unclaimed(&self) {
        if !self.0.claimed.load(Ordering::Relaxed) {
            self.close(code::CANCELLED, b"the dial was given up");
        }
    }

    pub(crate) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.0))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.0.key)
            .field("peer_id", &self.0.peer_id)
            .finish_non_exhaustive()
    }
}
