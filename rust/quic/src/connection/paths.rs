//! The paths of a connection: what is remembered of each, and what is shown.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyreach_net::{canonical, is_synthetic};
use noq::{PathId, PathStatus};
use tokio::sync::Notify;

use super::Connection;
use crate::{
    PeerId,
    config::MAX_PATHS,
    paths::choice::{Candidate, Ranking},
};

/// What whoever names an address knows about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayHint {
    /// The address is one that a relay has bound for the peer.
    pub relayed: bool,
    /// The relay, where it is known.
    pub via: Option<PeerId>,
}

/// A path of a connection at one moment.
#[derive(Debug, Clone)]
pub struct PathSnapshot {
    /// Number of the path inside its connection.
    pub id: u32,
    /// How the path was made: `direct` means a dial that was answered, `punched` a path to where
    /// both ends sent at the same time by agreement, `relayed` one through a relay, at either end
    /// or both.
    pub method: &'static str,
    /// The relay, where it is known.
    pub via: Option<PeerId>,
    /// Whether it is to be used only if there is no other.
    pub standby: bool,
    /// Whether our end of it is a tunnel: packets leave inside a connection to a relay.
    pub tunnelled: bool,
    /// Address of the peer: behind a tunnel the one its relay reports; unspecified, with port 0,
    /// if that is not known.
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

/// Paths remembered, open or about to be, before those only the peer has spoken of are left out.
const MAX_RECORDS: usize = 4 * MAX_PATHS as usize;

/// What is known of each path beyond what the engine knows, and what is wanted of them.
#[derive(Debug)]
pub(super) struct PathTable {
    records: Mutex<BTreeMap<PathId, PathRecord>>,
    ranking: Mutex<Ranking>,
    /// Told when something has changed by which paths are chosen.
    reconsider: Notify,
}

#[derive(Debug, Clone, Copy)]
struct PathRecord {
    /// `None` while it is being opened.
    established: Option<Instant>,
    /// What was known of the address when the path was made.
    hint: Option<(SocketAddr, RelayHint)>,
    /// Opened by this program, and not by the engine or the peer.
    ours: bool,
    /// Made by NAT traversal.
    punched: bool,
    /// Wanted as a standby by us.
    standby: bool,
    /// Wanted as a standby by the peer, if it has said so.
    peer_standby: bool,
    observed: Option<(SocketAddr, Instant)>,
    /// How long the last report took, until it is told.
    untold: Option<Duration>,
}

impl PathRecord {
    fn new() -> Self {
        Self {
            established: Some(Instant::now()),
            hint: None,
            ours: false,
            punched: false,
            standby: false,
            peer_standby: false,
            observed: None,
            untold: None,
        }
    }

    fn opening() -> Self {
        Self {
            established: None,
            ..Self::new()
        }
    }
}

impl PathTable {
    /// The table of a fresh connection, which has one path.
    pub(super) fn new() -> Self {
        Self {
            records: Mutex::new(BTreeMap::from([(PathId::ZERO, PathRecord::new())])),
            ranking: Mutex::default(),
            reconsider: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathId, PathRecord>> {
        // The map is never left half changed.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first path as it was, with the address the engine has for the peer.
#[derive(Debug)]
pub(super) struct FirstPath {
    snapshot: PathSnapshot,
    remote: SocketAddr,
    /// The path may be gone by the time it is asked for.
    hint: OnceLock<(SocketAddr, RelayHint)>,
}

/// What an address of the engine means to people.
struct Way {
    method: &'static str,
    via: Option<PeerId>,
    remote: SocketAddr,
}

impl Way {
    /// How a path that goes this way was made.
    fn method_of(&self, record: PathRecord) -> &'static str {
        match self.method {
            "direct" if record.punched => "punched",
            method => method,
        }
    }
}

impl Connection {
    /// The open paths, the one in use first.
    pub fn paths(&self) -> Vec<PathSnapshot> {
        let records = self.0.paths.lock().clone();
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

    /// Whether no path leads to the peer but through relays.
    pub(crate) fn is_relayed(&self) -> bool {
        self.paths().iter().all(|path| path.method == "relayed")
    }

    /// The path the handshake was made on, as it was then; only whether it is relayed is judged by
    /// what the peer has said since. `None` if the connection ended at once.
    pub fn first_path(&self) -> Option<PathSnapshot> {
        let first = self.0.first_path.get()?;
        let Way { method, via, .. } = self.way(first.remote, first.hint.get().copied());
        Some(PathSnapshot {
            method,
            via,
            ..first.snapshot.clone()
        })
    }

    pub(super) fn look_at_first_path(&self) -> Option<FirstPath> {
        let snapshot = self.paths().into_iter().next()?;
        let remote = self.0.engine.path(PathId::ZERO)?.remote_address().ok()?;
        Some(FirstPath {
            snapshot,
            remote: canonical(remote),
            hint: OnceLock::new(),
        })
    }

    /// Where a path leads whose remote is `remote` for the engine.
    fn way(&self, remote: SocketAddr, hint: Option<(SocketAddr, RelayHint)>) -> Way {
        if is_synthetic(remote.ip()) {
            let resolved = self.0.directory.resolve(remote);
            return Way {
                method: "relayed",
                via: resolved.and_then(|resolved| resolved.relay),
                remote: resolved.map_or_else(
                    || SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                    |resolved| resolved.remote,
                ),
            };
        }
        let declared = self.notices().relay_of(remote);
        // The hint is about the address, which the peer may have left since.
        let hint = hint
            .filter(|(hinted, hint)| *hinted == remote && hint.relayed)
            .map(|(_, hint)| hint);
        let relayed = declared.is_some() || hint.is_some();
        Way {
            method: if relayed { "relayed" } else { "direct" },
            via: declared.or_else(|| hint?.via),
            remote,
        }
    }

    fn path_snapshot(&self, id: PathId, record: PathRecord, now: Instant) -> Option<PathSnapshot> {
        let path = self.0.engine.path(id)?;
        let network = path.network_path().ok()?;
        let stats = path.stats();
        let remote = canonical(network.remote());
        let way = self.way(remote, record.hint);
        Some(PathSnapshot {
            id: path_number(id),
            method: way.method_of(record),
            via: way.via,
            standby: record.standby,
            tunnelled: is_synthetic(remote.ip()),
            remote: way.remote,
            local_ip: network.local_ip().map(|ip| ip.to_canonical()),
            rtt: stats.rtt,
            mtu: stats.current_mtu,
            congestion_window: stats.cwnd,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.lost_packets,
            age: now.saturating_duration_since(record.established?),
            current: path.status().ok()? == PathStatus::Available,
            observed: record.observed.map(|(address, _)| address),
        })
    }

    /// Notes what was known of the address a path was opened to.
    pub(crate) fn path_hint(&self, id: PathId, address: SocketAddr, hint: RelayHint) {
        if let Some(record) = self.0.paths.lock().get_mut(&id) {
            record.hint = Some((address, hint));
        }
        if let Some(first) = self.0.first_path.get().filter(|_| id == PathId::ZERO) {
            // Named once, by the dial.
            let _ = first.hint.set((address, hint));
        }
    }

    /// The open paths, in the order of their numbers.
    pub(crate) fn path_ids(&self) -> Vec<PathId> {
        let records = self.0.paths.lock();
        let established = records
            .iter()
            .filter(|(_, record)| record.established.is_some());
        established.map(|(id, _)| *id).collect()
    }

    /// What the choice of a path depends on, of each that is open.
    pub(crate) fn candidates(&self) -> Vec<(PathId, Candidate, SocketAddr)> {
        let records = self.0.paths.lock().clone();
        let candidate = |(id, record): (PathId, PathRecord)| {
            record.established?;
            let path = self.0.engine.path(id)?;
            let remote = canonical(path.remote_address().ok()?);
            let way = self.way(remote, record.hint);
            let candidate = Candidate {
                id: path_number(id),
                // The dialing side leads: both ends use the same path.
                standby: record.standby || (record.peer_standby && !self.outbound()),
                relayed: way.method == "relayed",
                ipv6: way.remote.is_ipv6(),
                doubtful: false,
                rtt: path.stats().rtt,
            };
            Some((id, candidate, remote))
        };
        records.into_iter().filter_map(candidate).collect()
    }

    /// Ranks paths by their numbers: data goes by the one with the lowest rank, and by paths without
    /// a rank only if there is no other. Ranks of paths that are gone, or not there yet, do no harm.
    /// An empty ranking leaves the choice to the rule: standbys last, direct before relayed, then
    /// the shortest round trip.
    ///
    /// Which path the peer sends on, it decides itself.
    pub fn rank_paths(&self, ranks: impl IntoIterator<Item = (u32, u32)>) {
        *self.lock_ranking() = ranks.into_iter().collect();
        self.0.paths.reconsider.notify_one();
    }

    pub(crate) fn ranking(&self) -> Ranking {
        self.lock_ranking().clone()
    }

    fn lock_ranking(&self) -> MutexGuard<'_, Ranking> {
        // Replaced as a whole.
        let ranking = self.0.paths.ranking.lock();
        ranking.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next packet in either direction; for one watcher.
    pub(crate) async fn stirred(&self) {
        self.0.activity.stirred().await;
    }

    /// Waits until paths must be chosen anew.
    pub(crate) async fn paths_reconsidered(&self) {
        self.0.paths.reconsider.notified().await;
    }

    /// The peer wants the path as a standby, or not any more.
    pub(crate) fn path_wanted_by_peer(&self, id: PathId, status: PathStatus) {
        let mut records = self.0.paths.lock();
        // It often says so before the first packet by the path is here. The numbers are its choice.
        if records.len() < MAX_RECORDS || records.contains_key(&id) {
            let record = records.entry(id).or_insert_with(PathRecord::opening);
            record.peer_standby = status == PathStatus::Backup;
        }
    }

    /// Wants a path as a standby, or not any more.
    pub(super) fn path_wanted(&self, id: PathId, standby: bool) {
        if let Some(record) = self.0.paths.lock().get_mut(&id) {
            record.standby = standby;
        }
        self.0.paths.reconsider.notify_one();
    }

    /// A path is being opened.
    pub(super) fn path_opening(
        &self,
        id: PathId,
        address: SocketAddr,
        hint: RelayHint,
        standby: bool,
    ) {
        let mut records = self.0.paths.lock();
        let record = records.entry(id).or_insert_with(PathRecord::opening);
        record.hint = Some((address, hint));
        record.ours = true;
        record.standby = standby;
    }

    /// How a path was made; `direct` if it is gone.
    pub(crate) fn path_method(&self, id: u32) -> &'static str {
        let id = PathId::from(id);
        let record = self.0.paths.lock().get(&id).copied();
        let record = record.unwrap_or_else(PathRecord::new);
        let path = self.0.engine.path(id);
        path.and_then(|path| path.remote_address().ok())
            .map_or("direct", |remote| {
                self.way(canonical(remote), record.hint).method_of(record)
            })
    }

    pub(crate) fn path_established(&self, id: PathId) {
        let ours = self
            .0
            .paths
            .lock()
            .get(&id)
            .is_some_and(|record| record.ours);
        let punched = self.is_punched(id, ours);
        let mut records = self.0.paths.lock();
        let record = records.entry(id).or_insert_with(PathRecord::new);
        record.established.get_or_insert_with(Instant::now);
        record.punched |= punched;
    }

    pub(crate) fn path_abandoned(&self, id: PathId) {
        self.0.paths.lock().remove(&id);
    }

    /// Events of the engine were missed: looks at the paths themselves. The engine holds back at
    /// most [`MISSED_PATHS`] events, so no path can have come that is further away in number.
    pub(crate) fn paths_missed(&self) {
        let mut paths = self.0.paths.lock();
        let highest = paths.keys().next_back().map_or(0, |id| path_number(*id));
        paths.retain(|id, _| self.0.engine.path(*id).is_some());
        let (from, to) = (
            highest.saturating_sub(MISSED_PATHS),
            highest.saturating_add(MISSED_PATHS),
        );
        let mut come = Vec::new();
        for id in (from..=to).map(PathId::from) {
            if !paths.contains_key(&id) && self.0.engine.path(id).is_some() {
                come.push(id);
            }
        }
        drop(paths);
        for id in come {
            self.path_established(id);
        }
        let statuses = &self.0.activity.statuses;
        for (id, record) in self.0.paths.lock().iter_mut() {
            if let Some(standby) = statuses.standby(path_number(*id)) {
                record.peer_standby = standby;
            }
        }
    }

    /// Notes a report of the peer. True if it tells something new.
    pub(crate) fn path_observed(&self, id: PathId, address: SocketAddr) -> bool {
        let now = Instant::now();
        let mut paths = self.0.paths.lock();
        let Some(record) = paths.get_mut(&id) else {
            return false;
        };
        let since = match record.observed {
            Some((known, _)) if known == address => return false,
            Some((_, reported)) => reported,
            None => record.established.unwrap_or(now),
        };
        record.observed = Some((address, now));
        record.untold = Some(now.saturating_duration_since(since));
        true
    }

    /// The reports not told yet: path, our address as the peer sees it, and how long it took.
    pub(crate) fn take_observed(&self) -> Vec<(u32, SocketAddr, Duration)> {
        self.0
            .paths
            .lock()
            .iter_mut()
            .filter_map(|(id, record)| {
                let after = record.untold.take()?;
                let (address, _) = record.observed?;
                Some((path_number(*id), address, after))
            })
            .collect()
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
