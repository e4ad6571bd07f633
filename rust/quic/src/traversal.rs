//! NAT traversal: the engine probes, this module decides whom, and says it in the words of
//! draft-seemann-quic-nat-traversal-02.
//!
//! The engine has NAT traversal of its own, in a dialect: other frame types, another transport
//! parameter, no paired addresses, and no doubts about what a peer asks for. A [`Layer`] per
//! connection stands between the engine and the protection of packets. On their way out, the
//! engine's frames become those of the draft; on their way in, the draft's become the engine's,
//! unless the [filter], the [rounds] or the [budget] say no: then the engine never hears of them.
//!
//! It is not a policy: which addresses to offer and when to start a round is decided in Python. It
//! says nothing by itself but what the engine wanted to say, and repeats what was lost.
//!
//! There is no 0-RTT: sessions have no early keys, so nothing of this is ever said in early data.

mod budget;
mod dialect;
mod filter;
mod guard;
mod offers;
mod outbox;
mod parameters;
mod rounds;
mod stats;
mod tap;
mod withdrawn;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::Prefix;
use anyreach_wire::{address::Address, frames::MAX_FRAME_BYTES, varint::VarInt};
use bytes::Bytes;
use noq_proto::Side;
use tokio::sync::Notify;

pub(crate) use self::{budget::Budget, filter::Near, stats::Counts};
use self::{budget::Reserve, offers::Offers, outbox::Outbox, rounds::Rounds, withdrawn::Withdrawn};
use crate::{openers::Line, throttle::Throttle};

/// Addresses one side may offer or name in a round: a host with a dozen interfaces and a few
/// predicted ports has fewer, and probing more than that at once floods the NATs in between.
pub(crate) const MAX_CANDIDATES: usize = 32;

/// Probes the engine sends to an address in a round at most (its `MAX_NAT_PROBE_ATTEMPTS`).
const PROBES: u64 = 9;

/// Addresses remembered to which a path is made by coordination other than a round.
const MAX_COORDINATED: usize = 2 * MAX_CANDIDATES;

const MARKER_BYTES: usize = 12;

/// Bytes of a carrier: room for each frame, with that of the DATAGRAM's type and length to spare.
const CARRIER_BYTES: usize = MAX_FRAME_BYTES;

/// What stands between the engine and the wire, for one connection.
pub(crate) struct Layer {
    side: Side,
    /// Random, so that nobody's datagram is taken for a carrier.
    marker: [u8; MARKER_BYTES],
    /// Whether either side has offered the extension.
    offered: [AtomicBool; 2],
    /// Whether the peer does multipath.
    multipath: AtomicBool,
    /// The engine may have something to say about NAT traversal. Never taken back: it may repeat it
    /// at any time.
    armed: AtomicBool,
    /// Acknowledgements matter.
    awaiting: AtomicBool,
    /// The engine is to be told something with the next packet.
    correcting: AtomicBool,
    near: Near,
    /// What sends openers, once there is a connection.
    line: OnceLock<Weak<Line>>,
    pub(crate) budget: Budget,
    pub(crate) counts: Counts,
    state: Mutex<State>,
    stirred: Notify,
}

struct State {
    role: Role,
    /// Networks that are near for this peer only.
    near: Box<[Prefix]>,
    news: News,
    /// When the peer was last asked for a packet, so that the engine can be told something.
    nudged: Option<Instant>,
    /// Where the peer was met by coordination other than a round.
    coordinated: Vec<Address>,
}

enum Role {
    Client(Box<Client>),
    Server(Box<Server>),
}

struct Client {
    offers: Offers,
    outbox: Outbox,
    throttle: Throttle,
    reserve: Reserve,
}

struct Server {
    rounds: Rounds,
    /// Of its own advertisements.
    withdrawn: Withdrawn,
}

/// What is to be told upwards.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct News {
    /// The peer has added or removed addresses.
    pub(crate) candidates: bool,
    /// The peer has begun this round.
    pub(crate) round: Option<u64>,
}

/// Why no round begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRound {
    /// This side is the server.
    NotClient,
    /// Too soon after the one before.
    TooSoon,
    /// It would cost more than the peer has paid for.
    Budget,
}

impl Layer {
    pub(crate) fn new(side: Side, near: Near) -> Self {
        let mut marker = [0; MARKER_BYTES];
        // Without randomness there was no handshake; and a carrier that is known does no harm to
        // anybody but its sender.
        let _ = aws_lc_rs::rand::fill(&mut marker);
        let now = Instant::now();
        let role = match side {
            Side::Client => Role::Client(Box::new(Client {
                offers: Offers::default(),
                outbox: Outbox::default(),
                throttle: Throttle::new(rounds::OWN_PACE, now),
                reserve: Reserve::default(),
            })),
            Side::Server => Role::Server(Box::new(Server {
                rounds: Rounds::new(now),
                withdrawn: Withdrawn::default(),
            })),
        };
        Self {
            side,
            marker,
            offered: Default::default(),
            multipath: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            awaiting: AtomicBool::new(false),
            correcting: AtomicBool::new(false),
            near,
            line: OnceLock::new(),
            budget: Budget::default(),
            counts: Counts::default(),
            state: Mutex::new(State {
                role,
                near: Box::default(),
                news: News::default(),
                nudged: None,
                coordinated: Vec::new(),
            }),
            stirred: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each step leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A challenge was left unanswered, because the response would have been too much.
    pub(crate) fn response_refused(&self) {
        Counts::bump(&self.counts.budget);
    }

    /// Waits until there is something to see to; for one watcher.
    pub(crate) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// What there is to tell since the last call.
    pub(crate) fn take_news(&self) -> Option<News> {
        let news = std::mem::take(&mut self.state().news);
        (news != News::default()).then_some(news)
    }

    /// The engine is about to have something to say.
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Release);
    }

    /// Begins a round with these pairs of an address of ours and one of the peer's. Its number;
    /// PUNCH_ME_NOW frames are then waiting for carriers, and the engine is to begin a round, too.
    ///
    /// # Errors
    /// [`NoRound`].
    pub(crate) fn begin_round(
        &self,
        now: Instant,
        pairs: &[(Address, Address)],
    ) -> Result<u64, NoRound> {
        let mut state = self.state();
        let Role::Client(client) = &mut state.role else {
            return Err(NoRound::NotClient);
        };
        if client.throttle.take(now).is_err() {
            return Err(NoRound::TooSoon);
        }
        // The engine probes all it knows of.
        let known: Vec<(VarInt, Address)> = client.offers.known().collect();
        client.reserve.settle(&self.budget);
        let probes = known.len() as u64 * PROBES;
        if !client.reserve.take(&self.budget, probes) {
            Counts::bump(&self.counts.budget);
            return Err(NoRound::Budget);
        }
        let mut paired: Vec<(Address, VarInt)> = Vec::new();
        for (ours, theirs) in pairs {
            let pair = known.iter().find(|(_, address)| address == theirs);
            let pair = pair.map(|(sequence, _)| *sequence);
            let pair = pair.or_else(|| any_pair(known.iter().copied(), *ours));
            // The first is the best.
            if paired.iter().all(|(other, _)| other != ours) {
                paired.push((*ours, pair.unwrap_or_default()));
            }
        }
        self.arm();
        let round = client.outbox.begin(now, &paired);
        Counts::bump(&self.counts.rounds);
        Ok(round.get())
    }

    /// Datagrams the engine is asked to send now, each to be overwritten by a frame.
    pub(crate) fn carriers(&self, now: Instant) -> impl Iterator<Item = Bytes> {
        let count = match &mut self.state().role {
            Role::Client(client) => client.outbox.take_wanted(now),
            Role::Server(_) => 0,
        };
        let carrier = (count > 0).then(|| {
            let mut carrier = self.marker.to_vec();
            carrier.resize(CARRIER_BYTES, 0);
            Bytes::from(carrier)
        });
        carrier
            .into_iter()
            .flat_map(move |carrier| std::iter::repeat_n(carrier, count))
    }

    /// When frames are overdue, given the probe timeout of a path.
    pub(crate) fn due(&self, timeout: impl Fn(u32) -> Duration) -> Option<Instant> {
        match &self.state().role {
            Role::Client(client) => client.outbox.due(timeout),
            Role::Server(_) => None,
        }
    }

    /// Has frames sent again that are overdue.
    pub(crate) fn repeat(&self, now: Instant, timeout: impl Fn(u32) -> Duration) {
        if let Role::Client(client) = &mut self.state().role {
            client.outbox.look(now, timeout);
            self.awaiting
                .store(client.outbox.awaits(), Ordering::Relaxed);
        }
    }

    /// What the peer offers and may be probed, oldest first; nothing on the server's side.
    pub(crate) fn candidates(&self) -> Vec<SocketAddr> {
        match &self.state().role {
            Role::Client(client) => client
                .offers
                .known()
                .map(|(_, address)| address.into())
                .collect(),
            Role::Server(_) => Vec::new(),
        }
    }

    /// Networks that are near for this peer only, in place of those of before.
    pub(crate) fn set_near(&self, prefixes: impl IntoIterator<Item = Prefix>) {
        self.state().near = prefixes.into_iter().collect();
    }

    /// What is near has changed.
    pub(crate) fn judge_again(&self) {
        let State { role, near, .. } = &mut *self.state();
        if let Role::Client(client) = role {
            let everywhere = self.near.get();
            let judge = |address| filter::check(address, &[&everywhere, near]);
            client.offers.judge(judge);
            self.correct_offers(&client.offers);
        }
    }

    /// Has the engine told what it does not know, with the next packets of the peer.
    fn correct_offers(&self, offers: &Offers) {
        let correcting = !offers.is_correct();
        self.correcting.store(correcting, Ordering::Relaxed);
        if correcting {
            self.stirred.notify_one();
        }
    }

    /// Whether it matters what the engine knows.
    pub(crate) fn is_correcting(&self) -> bool {
        self.correcting.load(Ordering::Relaxed)
    }

    /// Whether to ask the peer for a packet now; if not, when. Not at all if none is needed.
    pub(crate) fn nudge(&self, now: Instant, timeout: Duration) -> Result<(), Option<Instant>> {
        if !self.is_correcting() {
            return Err(None);
        }
        let nudged = &mut self.state().nudged;
        let due = nudged.map_or(now, |nudged| nudged + timeout);
        if due > now {
            return Err(Some(due));
        }
        *nudged = Some(now);
        Ok(())
    }

    /// The addresses the engine knows of now.
    pub(crate) fn confirm(&self, engine: &[SocketAddr]) {
        let State { role, news, .. } = &mut *self.state();
        if let Role::Client(client) = role {
            news.candidates |= client.offers.confirm(engine);
            // Who was stirred asks again when it is time.
            let correcting = !client.offers.is_correct();
            self.correcting.store(correcting, Ordering::Relaxed);
        }
    }

    /// The peer was met at an address in a coordinated way: a path there is a punched one.
    pub(crate) fn met(&self, address: Address) {
        let coordinated = &mut self.state().coordinated;
        if !coordinated.contains(&address) {
            coordinated.truncate(MAX_COORDINATED - 1);
            coordinated.insert(0, address);
        }
    }

    /// Whether a path to this address is the fruit of punching. `ours`: this program has opened it.
    pub(crate) fn has_punched(&self, now: Instant, remote: Address, ours: bool) -> bool {
        let state = self.state();
        let probed = match &state.role {
            // Only clients open paths, and what the program did not the engine did.
            Role::Client(client) => !ours && client.outbox.has_begun(),
            Role::Server(server) => server.rounds.has_probed(now, remote),
        };
        probed || state.coordinated.contains(&remote)
    }

    /// PUNCH_ME_NOW frames that were sent again.
    pub(crate) fn resent(&self) -> u64 {
        match &self.state().role {
            Role::Client(client) => client.outbox.resent(),
            Role::Server(_) => 0,
        }
    }

    /// Frames the server is not known to have, and how many were sent again.
    #[cfg(test)]
    fn outgoing(&self) -> (usize, u64) {
        let pending = match &self.state().role {
            Role::Client(client) => client.outbox.pending(),
            Role::Server(_) => 0,
        };
        (pending, self.resent())
    }
}

/// Any address of the server an address of ours can be paired with.
fn any_pair(mut known: impl Iterator<Item = (VarInt, Address)>, ours: Address) -> Option<VarInt> {
    known
        .find(|(_, theirs)| theirs.family() == ours.family())
        .map(|(sequence, _)| sequence)
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
