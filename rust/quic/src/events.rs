//! What an endpoint tells whoever drives it, kept in bounded memory whatever peers do and however
//! slow the driver is.
//!
//! Connections are held weakly here, but for the latest few: one that ended must not be kept, with
//! all its buffers, because nobody has read the news yet. News of a connection nobody holds any
//! more is left out.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    CloseReason, Connection, PeerId,
    connection::WeakConnection,
    registry::ConnectionKey,
    steps::{Step, StepResult},
};

/// Something that happened at an endpoint.
#[derive(Debug, Clone)]
pub enum Event {
    /// A connection is established, dialed or accepted.
    Connected(Connection),
    /// An established connection ended.
    Disconnected {
        /// Which.
        connection: Connection,
        /// Why.
        reason: CloseReason,
    },
    /// The peer reported the address it sees us under (OBSERVED_ADDRESS). When it does so faster
    /// than it is read, only the last report counts.
    Observed {
        /// From whom.
        connection: Connection,
        /// On which path.
        path_id: u32,
        /// How that path was made. On a relayed one the peer sees a relay, or us through its relay.
        method: &'static str,
        /// Our address as seen by the peer.
        address: SocketAddr,
        /// From the start of the path, or from the report before, to this report.
        after: Duration,
    },
    /// Paths came or went. Several changes may be told as one.
    PathsChanged {
        /// Of which connection.
        connection: Connection,
        /// The change that matters most: `failover` (the path in use is gone, another is in its
        /// place), `better` (another path is used), `roamed` (the address of the path in use has
        /// changed), or the last one of `established` and `abandoned`.
        reason: &'static str,
        /// After a failover: how long the path that is gone had been silent.
        silent: Option<Duration>,
    },
    /// Nothing that was sent is answered, on any path: another way to the peer is wanted. Told again
    /// every second while it is so.
    Silent {
        /// Which connection.
        connection: Connection,
    },
    /// The peer said how it can be reached; see [`Connection::reach`]. Several announcements may be
    /// told as one.
    Reach {
        /// Which peer.
        connection: Connection,
    },
    /// The peer has added or removed addresses at which it may be reached; see
    /// [`Connection::peer_candidates`]. Several changes may be told as one.
    Candidates {
        /// Which peer.
        connection: Connection,
    },
    /// The peer has begun a round of NAT traversal, in which the engine now probes its addresses.
    /// Of several only the last is told.
    Round {
        /// Which peer.
        connection: Connection,
        /// Number of the round.
        round: u64,
    },
    /// An authentic opener of the peer came from there, so there is a way between that address and
    /// this node. It may be told again, not more often than once a second.
    Opened {
        /// Which peer.
        connection: Connection,
        /// Where from, canonical.
        address: SocketAddr,
    },
    /// A peer told us that somebody looks for this node, who may be about to call.
    Sought {
        /// Who told us.
        connection: Connection,
        /// Who looks for us.
        peer: PeerId,
        /// Under which addresses the one who told us sees it.
        addresses: Vec<SocketAddr>,
    },
    /// The addresses of this host have changed.
    Network {
        /// `interfaces`: by what the system says of them, or the host has slept; `source-gone`: by
        /// what could not be sent.
        reason: &'static str,
    },
    /// The peer said what its NAT does; see [`Connection::peer_nat`]. Several reports may be told as
    /// one.
    Nat {
        /// Which peer.
        connection: Connection,
    },
    /// The peer asks for a step of a punch; to be answered by [`Connection::prepared`].
    Prepare {
        /// Which peer.
        connection: Connection,
        /// Number of the question.
        request: u64,
        /// What it asks for.
        step: Step,
    },
    /// The peer's answer to [`Connection::prepare`].
    Prepared {
        /// Which peer.
        connection: Connection,
        /// Number of the question.
        request: u64,
        /// What it says.
        result: StepResult,
    },
}

/// Of two changes of paths told as one, the reason that gives its name: the later, unless the earlier
/// matters more.
pub(crate) fn weightier(earlier: &'static str, later: &'static str) -> &'static str {
    let weight = |reason| match reason {
        "failover" => 3,
        "better" => 2,
        "roamed" => 1,
        _ => 0,
    };
    if weight(earlier) > weight(later) {
        earlier
    } else {
        later
    }
}

/// Connects and disconnects kept unread. Those of live connections are as many as there are
/// connections; beyond this number those of dead ones are dropped.
const LIFECYCLE_LIMIT: usize = 4096;

/// Connects kept with their connection, so that a visit shorter than the reader's next look is
/// told. What they pin when they have ended is at most this many receive windows.
const HELD_LIMIT: usize = 16;

/// Notices of peers that look for this node, kept unread. They are of no use when they are old.
const SOUGHT_LIMIT: usize = 256;

/// Steps of punches and their answers, each kept unread. Of more the oldest are dropped: whoever
/// asked has given up by the time so many are read.
const STEPS_LIMIT: usize = 256;

/// Ways that opened, kept unread. A NAT closes them again within a minute.
const OPENED_LIMIT: usize = 256;

/// News of connections, until somebody takes it.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    state: Mutex<State>,
    changed: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lifecycle: VecDeque<(WeakConnection, Option<CloseReason>)>,
    /// The connections of the latest connects among them.
    held: VecDeque<Connection>,
    paths: HashMap<ConnectionKey, (WeakConnection, &'static str, Option<Duration>)>,
    observed: HashMap<(ConnectionKey, u32), (WeakConnection, SocketAddr, Duration)>,
    silent: HashMap<ConnectionKey, WeakConnection>,
    reach: HashMap<ConnectionKey, WeakConnection>,
    candidates: HashMap<ConnectionKey, WeakConnection>,
    rounds: HashMap<ConnectionKey, (WeakConnection, u64)>,
    /// In the order in which they opened.
    opened: VecDeque<(ConnectionKey, WeakConnection, SocketAddr)>,
    /// By who told us and who looks.
    sought: HashMap<(ConnectionKey, PeerId), (WeakConnection, Vec<SocketAddr>)>,
    nat: HashMap<ConnectionKey, WeakConnection>,
    /// Each reason once.
    network: Vec<&'static str>,
    prepare: VecDeque<(WeakConnection, u64, Step)>,
    prepared: VecDeque<(WeakConnection, u64, StepResult)>,
    closed: bool,
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock; if it did, the entries are still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            change(&mut state);
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn connected(&self, connection: &Connection) {
        self.lifecycle(connection.downgrade(), None);
        let mut evicted = None;
        self.change(|state| {
            if state.held.len() >= HELD_LIMIT {
                evicted = state.held.pop_front();
            }
            state.held.push_back(connection.clone());
        });
        // Outside the lock: it may be the last handle.
        drop(evicted);
    }

    pub(crate) fn disconnected(&self, connection: &Connection, reason: CloseReason) {
        let key = connection.id();
        self.change(|state| {
            state.paths.remove(&key);
            state.observed.retain(|(of, _), _| *of != key);
            state.silent.remove(&key);
            state.reach.remove(&key);
            state.candidates.remove(&key);
            state.rounds.remove(&key);
            state.opened.retain(|(of, ..)| *of != key);
            state.nat.remove(&key);
            state.sought.retain(|(by, _), _| *by != key);
        });
        self.lifecycle(connection.downgrade(), Some(reason));
    }

    fn lifecycle(&self, connection: WeakConnection, ended: Option<CloseReason>) {
        self.change(|state| {
            let entries = &mut state.lifecycle;
            if entries.len() >= LIFECYCLE_LIMIT {
                let before = entries.len();
                entries.retain(|(connection, _)| connection.is_held());
                if entries.len() >= LIFECYCLE_LIMIT {
                    entries.pop_front();
                }
                let gone = before - entries.len();
                self.dropped.fetch_add(gone as u64, Ordering::Relaxed);
            }
            entries.push_back((connection, ended));
        });
    }

    pub(crate) fn paths_changed(
        &self,
        connection: &Connection,
        reason: &'static str,
        silent: Option<Duration>,
    ) {
        let (key, weak) = (connection.id(), connection.downgrade());
        self.change(|state| {
            let entry = state.paths.entry(key).or_insert((weak, reason, None));
            entry.1 = weightier(entry.1, reason);
            entry.2 = entry.2.max(silent);
        });
    }

    pub(crate) fn observed(
        &self,
        connection: &Connection,
        path_id: u32,
        address: SocketAddr,
        after: Duration,
    ) {
        let (key, weak) = ((connection.id(), path_id), connection.downgrade());
        self.change(|state| {
            state.observed.insert(key, (weak, address, after));
        });
    }

    pub(crate) fn reach(&self, connection: &Connection) {
        let (key, weak) = (connection.id(), connection.downgrade());
        self.change(|state| {
            state.reach.insert(key, weak);
        });
    }

    pub(crate) fn candidates(&self, connection: &Connection) {
        let (key, weak) = (connection.id(), connection.downgrade());
        self.change(|state| {
            state.candidates.insert(key, weak);
        });
    }

    pub(crate) fn round(&self, connection: &Connection, round: u64) {
        let (key, weak) = (connection.id(), connection.downgrade());
        self.change(|state| {
            state.rounds.insert(key, (weak, round));
        });
    }

    /// Called with a lock of the engine held: takes what it needs of the connection, and nothing of
    /// it is dropped here.
    pub(crate) fn opened(&self, key: ConnectionKey, weak: WeakConnection, address: SocketAddr) {
        self.change(|state| {
            let known = |(of, _, at): &(ConnectionKey, _, SocketAddr)| *of == key && *at == address;
            if state.opened.iter().any(known) {
                return;
            }
            if state.opened.len() >= OPENED_LIMIT {
                state.opened.pop_front();
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            state.opened.push_back((key, weak, address));
        });
    }

    pub(crate) fn sought(&self, connection: &Connection, peer: PeerId, addresses: Vec<SocketAddr>) {
        let (key, weak) = ((connection.id(), peer), connection.downgrade());
        self.change(|state| {
            if state.sought.len() < SOUGHT_LIMIT || state.sought.contains_key(&key) {
                state.sought.insert(key, (weak, addresses));
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    pub(crate) fn network(&self, reason: &'static str) {
        self.change(|state| {
            if !state.network.contains(&reason) {
                state.network.push(reason);
            }
        });
    }

    pub(crate) fn silent(&self, connection: &Connection) {
        let (key, weak) = (connection.id(), connection.downgrade());
        self.change(|state| {
            state.silent.insert(key, weak);
        });
    }

    pub(crate) fn nat(&self, connection: &Connection) {
        let (key, weak) = (connection.id(), connection.downgrade());
        self.change(|state| {
            state.nat.insert(key, weak);
        });
    }

    pub(crate) fn prepare(&self, connection: &Connection, request: u64, step: Step) {
        let entry = (connection.downgrade(), request, step);
        self.change(|state| self.push_step(&mut state.prepare, entry));
    }

    pub(crate) fn prepared(&self, connection: &Connection, request: u64, result: StepResult) {
        let entry = (connection.downgrade(), request, result);
        self.change(|state| self.push_step(&mut state.prepared, entry));
    }

    fn push_step<T>(&self, steps: &mut VecDeque<T>, step: T) {
        if steps.len() >= STEPS_LIMIT {
            steps.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        steps.push_back(step);
    }

    /// Everything since the last call, at least one event; `None` once closed and empty.
    pub(crate) async fn take(&self) -> Option<Vec<Event>> {
        loop {
            // From here on no wake-up is missed, although it is awaited only below.
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                let events = state.take();
                if !events.is_empty() {
                    return Some(events);
                }
                if state.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// No more is taken in; what is inside can still be taken out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl State {
    fn take(&mut self) -> Vec<Event> {
        let lifecycle = self.lifecycle.drain(..).filter_map(|(weak, ended)| {
            let connection = weak.upgrade()?;
            Some(match ended {
                None => Event::Connected(connection),
                Some(reason) => Event::Disconnected { connection, reason },
            })
        });
        let paths = self
            .paths
            .drain()
            .filter_map(|(_, (weak, reason, silent))| {
                Some(Event::PathsChanged {
                    connection: weak.upgrade()?,
                    reason,
                    silent,
                })
            });
        let observed =
            self.observed
                .drain()
                .filter_map(|((_, path_id), (weak, address, after))| {
                    let connection = weak.upgrade()?;
                    Some(Event::Observed {
                        method: connection.path_method(path_id),
                        connection,
                        path_id,
                        address,
                        after,
                    })
                });
        let silent = self.silent.drain().filter_map(|(_, weak)| {
            let connection = weak.upgrade()?;
            Some(Event::Silent { connection })
        });
        let reach = self.reach.drain().filter_map(|(_, weak)| {
            let connection = weak.upgrade()?;
            Some(Event::Reach { connection })
        });
        let candidates = self.candidates.drain().filter_map(|(_, weak)| {
            let connection = weak.upgrade()?;
            Some(Event::Candidates { connection })
        });
        let rounds = self.rounds.drain().filter_map(|(_, (weak, round))| {
            let connection = weak.upgrade()?;
            Some(Event::Round { connection, round })
        });
        let opened = self.opened.drain(..).filter_map(|(_, weak, address)| {
            Some(Event::Opened {
                connection: weak.upgrade()?,
                address,
            })
        });
        let sought = self
            .sought
            .drain()
            .filter_map(|((_, peer), (weak, addresses))| {
                let connection = weak.upgrade()?;
                Some(Event::Sought {
                    connection,
                    peer,
                    addresses,
                })
            });
        let network = self.network.drain(..);
        let network = network.map(|reason| Event::Network { reason });
        let nat = self.nat.drain().filter_map(|(_, weak)| {
            let connection = weak.upgrade()?;
            Some(Event::Nat { connection })
        });
        let prepare = self.prepare.drain(..).filter_map(|(weak, request, step)| {
            Some(Event::Prepare {
                connection: weak.upgrade()?,
                request,
                step,
            })
        });
        let prepared = self
            .prepared
            .drain(..)
            .filter_map(|(weak, request, result)| {
                Some(Event::Prepared {
                    connection: weak.upgrade()?,
                    request,
                    result,
                })
            });
        let events = lifecycle
            .chain(network)
            .chain(reach)
            .chain(candidates)
            .chain(rounds)
            .chain(opened)
            .chain(nat)
            .chain(paths)
            .chain(silent)
            .chain(observed)
            .chain(sought)
            .chain(prepare)
            .chain(prepared)
            .collect();
        // From here on whoever takes the events holds them.
        self.held.clear();
        events
    }
}
