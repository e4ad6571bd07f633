//! An established connection to a peer, as the rest of the program sees it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::canonical;
use noq::{ConnectionError, ConnectionStats, PathId, PathStatus, RecvStream, SendStream, VarInt};

use crate::{CloseReason, PeerId, code, registry::ConnectionKey};

/// A connection to one peer. Clones are handles to the same connection; it lives until either
/// side closes it, not until the last handle is dropped.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    key: ConnectionKey,
    engine: noq::Connection,
    peer_id: PeerId,
    public_key: Vec<u8>,
    outbound: bool,
    group: &'static str,
    handshake_time: Duration,
    /// When each path came up, and what the peer sees us as on it.
    paths: Mutex<BTreeMap<PathId, PathRecord>>,
    /// Why this side closed, where the engine only knows that it did.
    closed_locally: OnceLock<CloseReason>,
    /// Somebody outside this crate was given it; see [`Connection::claim`].
    claimed: AtomicBool,
    first_path: OnceLock<PathSnapshot>,
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

#[derive(Debug, Clone, Copy)]
struct PathRecord {
    established: Instant,
    observed: Option<(SocketAddr, Instant)>,
    /// How long the last report took, until it is told.
    untold: Option<Duration>,
}

impl PathRecord {
    fn new() -> Self {
        Self {
            established: Instant::now(),
            observed: None,
            untold: None,
        }
    }
}

/// A path of a connection at one moment.
#[derive(Debug, Clone)]
pub struct PathSnapshot {
    /// Number of the path inside its connection.
    pub id: u32,
    /// How the path was made; `direct` means a dial that was answered.
    pub method: &'static str,
    /// Address of the peer.
    pub remote: SocketAddr,
    /// Our address, where the system tells it.
    pub local_ip: Option<IpAddr>,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Largest UDP payload known to pass.
    pub mtu: u16,
    /// Congestion window in bytes.
    pub congestion_window: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Packets declared lost.
    pub lost_packets: u64,
    /// Since the path came up.
    pub age: Duration,
    /// Whether data goes this way.
    pub current: bool,
    /// Our address as the peer reports it on this path.
    pub observed: Option<SocketAddr>,
}

/// Path events the engine keeps for a slow listener, and then some.
const MISSED_PATHS: u32 = 64;

/// What the handshake brought to light.
pub(crate) struct Handshake {
    pub(crate) engine: noq::Connection,
    pub(crate) peer_id: PeerId,
    pub(crate) public_key: Vec<u8>,
    pub(crate) group: &'static str,
    pub(crate) outbound: bool,
    pub(crate) time: Duration,
}

impl Connection {
    pub(crate) fn new(key: ConnectionKey, handshake: Handshake) -> Self {
        let connection = Self(Arc::new(Inner {
            key,
            engine: handshake.engine,
            peer_id: handshake.peer_id,
            public_key: handshake.public_key,
            outbound: handshake.outbound,
            group: handshake.group,
            handshake_time: handshake.time,
            paths: Mutex::new(BTreeMap::from([(PathId::ZERO, PathRecord::new())])),
            closed_locally: OnceLock::new(),
            claimed: AtomicBool::new(false),
            first_path: OnceLock::new(),
        }));
        if let Some(path) = connection.paths().into_iter().next() {
            // Nobody else has it yet.
            let _ = connection.0.first_path.set(path);
        }
        connection
    }

    /// The path the handshake was made on, as it was then. `None` if the connection ended at once.
    pub fn first_path(&self) -> Option<&PathSnapshot> {
        self.0.first_path.get()
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

    /// The open paths, the one in use first.
    pub fn paths(&self) -> Vec<PathSnapshot> {
        let records = self.lock_paths().clone();
        let now = Instant::now();
        let mut paths: Vec<PathSnapshot> = records
            .into_iter()
            .filter_map(|(id, record)| self.path_snapshot(id, record, now))
            .collect();
        // The engine sends on the available path with the lowest number, else on a backup one.
        paths.sort_by_key(|path| (!path.current, path.id));
        for (rank, path) in paths.iter_mut().enumerate() {
            path.current = rank == 0;
        }
        paths
    }

    fn path_snapshot(&self, id: PathId, record: PathRecord, now: Instant) -> Option<PathSnapshot> {
        let path = self.0.engine.path(id)?;
        let network = path.network_path().ok()?;
        let stats = path.stats();
        Some(PathSnapshot {
            id: path_number(id),
            method: "direct",
            remote: canonical(network.remote()),
            local_ip: network.local_ip().map(|ip| ip.to_canonical()),
            rtt: stats.rtt,
            mtu: stats.current_mtu,
            congestion_window: stats.cwnd,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.lost_packets,
            age: now.saturating_duration_since(record.established),
            current: path.status().ok()? == PathStatus::Available,
            observed: record.observed.map(|(address, _)| address),
        })
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
        let ids: Vec<PathId> = self.lock_paths().keys().copied().collect();
        for path in ids.into_iter().filter_map(|id| self.0.engine.path(id)) {
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

    pub(crate) fn path_established(&self, id: PathId) {
        self.lock_paths().insert(id, PathRecord::new());
    }

    pub(crate) fn path_abandoned(&self, id: PathId) {
        self.lock_paths().remove(&id);
    }

    /// Events of the engine were missed: looks at the paths themselves. The engine holds back at
    /// most [`MISSED_PATHS`] events, so no path can have come that is further away in number.
    pub(crate) fn paths_missed(&self) {
        let mut paths = self.lock_paths();
        let highest = paths.keys().next_back().map_or(0, |id| path_number(*id));
        paths.retain(|id, _| self.0.engine.path(*id).is_some());
        let (from, to) = (
            highest.saturating_sub(MISSED_PATHS),
            highest.saturating_add(MISSED_PATHS),
        );
        for id in (from..=to).map(PathId::from) {
            if self.0.engine.path(id).is_some() {
                paths.entry(id).or_insert_with(PathRecord::new);
            }
        }
    }

    /// Notes a report of the peer. True if it tells something new.
    pub(crate) fn path_observed(&self, id: PathId, address: SocketAddr) -> bool {
        let now = Instant::now();
        let mut paths = self.lock_paths();
        let Some(record) = paths.get_mut(&id) else {
            return false;
        };
        let since = match record.observed {
            Some((known, _)) if known == address => return false,
            Some((_, reported)) => reported,
            None => record.established,
        };
        record.observed = Some((address, now));
        record.untold = Some(now.saturating_duration_since(since));
        true
    }

    /// The reports not told yet: path, our address as the peer sees it, and how long it took.
    pub(crate) fn take_observed(&self) -> Vec<(u32, SocketAddr, Duration)> {
        self.lock_paths()
            .iter_mut()
            .filter_map(|(id, record)| {
                let after = record.untold.take()?;
                let (address, _) = record.observed?;
                Some((path_number(*id), address, after))
            })
            .collect()
    }

    fn lock_paths(&self) -> MutexGuard<'_, BTreeMap<PathId, PathRecord>> {
        // The map is never left half changed.
        self.0.paths.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The number of a path. The engine shows it only to hashers: `PathId` hashes as one `u32`.
pub(crate) fn path_number(id: PathId) -> u32 {
    struct Reader(u32);
    impl std::hash::Hasher for Reader {
        fn finish(&self) -> u64 {
            self.0.into()
        }
        fn write(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                self.0 = (self.0 << 8) | u32::from(byte);
            }
        }
        fn write_u32(&mut self, number: u32) {
            self.0 = number;
        }
    }
    let mut reader = Reader(0);
    std::hash::Hash::hash(&id, &mut reader);
    reader.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the engine to how its path ids hash; to be looked at again at every update of it.
    #[test]
    fn path_ids_show_their_number() {
        assert_eq!(path_number(PathId::ZERO), 0);
        assert_eq!(path_number(PathId::MAX), u32::MAX);
        assert_eq!(path_number(PathId::from(7u32)), 7);
        assert_eq!(path_number(PathId::from(0x0102_0304u32)), 0x0102_0304);
    }
}
