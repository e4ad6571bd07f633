//! The openers of one connection.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::{Arrival, Hops, MuxError, MuxHandle, canonical, is_synthetic};
use anyreach_wire::opener::{Mac, OPENER_LEN, Opener, OpenerKind, OpenerRole, TAG_LEN};
use tokio::{runtime::Handle, sync::Notify};

use super::{Guard, Secret, window::Window};
use crate::{
    connection::WeakConnection,
    events::Journal,
    registry::ConnectionKey,
    throttle::{Pace, Throttle},
};

/// Bytes of an opener, as the budget counts them.
const BYTES: u64 = OPENER_LEN as u64;

/// When an answer is given again: one that was lost would leave the other end without a sign that
/// the way is open, and the next opener may be seconds away.
const REPEATS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];

/// After an answer to one port of a host, openers from its other ports are left unanswered for so
/// long. Of a pool many sockets may get through at once, and the end that has it adopts the first
/// answer, so a second one would have the two ends mean different sockets. Long enough for the
/// answer and its repeats to be acted upon; a way that fails after all is then superseded.
const ONE_ANSWER: Duration = Duration::from_secs(2);

/// Hosts for which that is remembered: a peer has a few addresses.
const ANSWERED_HOSTS: usize = 8;

/// An address is told again after this time only.
const TOLD_AGAIN: Duration = Duration::from_secs(1);

/// Ways told at once, and then. A round of 32 candidates may open a few; a peer that makes up more
/// costs a few wake-ups a second.
const TOLD_PACE: Pace = Pace {
    burst: 16,
    period: Duration::from_millis(250),
};

/// Ways remembered for who waits for one. As many as can be told at once.
const REMEMBERED: usize = 16;

/// What openers of a connection have done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenerStats {
    /// Sent, answers included.
    pub(crate) sent: u64,
    /// Authentic ones received, answers included.
    pub(crate) received: u64,
    /// Received with a proof that does not hold, or of the wrong side.
    pub(crate) forged: u64,
    /// Received with a number that was seen or never given.
    pub(crate) replayed: u64,
}

impl OpenerStats {
    /// By name.
    pub(crate) fn by_name(&self) -> [(&'static str, u64); 4] {
        [
            ("openers_sent", self.sent),
            ("openers_received", self.received),
            ("openers_forged", self.forged),
            ("openers_replayed", self.replayed),
        ]
    }
}

/// The openers of one connection. Holds neither the connection nor the endpoint.
pub(crate) struct Line {
    secret: Secret,
    dialed: bool,
    socket: MuxHandle,
    guard: Arc<dyn Guard>,
    /// The number of the next opener.
    next: AtomicU32,
    heard: Mutex<Heard>,
    /// Told of every way that opens.
    opened: Notify,
    owner: OnceLock<Owner>,
    sent: AtomicU64,
    received: AtomicU64,
    forged: AtomicU64,
    replayed: AtomicU64,
}

/// To whom it is told.
struct Owner {
    key: ConnectionKey,
    connection: WeakConnection,
    /// Weak, since it holds the latest connections, and those hold their lines.
    journal: Weak<Journal>,
}

/// What came in.
struct Heard {
    opens: Window,
    answers: Window,
    /// Where answers went.
    answered: VecDeque<(SocketAddr, Instant)>,
    /// The latest ways that opened, each with how many there were before.
    ways: VecDeque<(u64, SocketAddr)>,
    count: u64,
    /// What was told lately.
    told: VecDeque<(SocketAddr, Instant)>,
    throttle: Throttle,
}

/// What became of an opener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Sent,
    /// Not to this address.
    Refused,
    /// The system could not send this one.
    Failed,
    /// The peer has not paid for more.
    Unpaid,
    /// The socket takes no more right now.
    Full,
}

impl Line {
    /// `dialed`: this side is the client.
    pub(crate) fn new(
        secret: Secret,
        dialed: bool,
        socket: MuxHandle,
        guard: Arc<dyn Guard>,
    ) -> Self {
        Self {
            secret,
            dialed,
            socket,
            guard,
            next: AtomicU32::new(0),
            heard: Mutex::new(Heard {
                opens: Window::default(),
                answers: Window::default(),
                answered: VecDeque::new(),
                ways: VecDeque::new(),
                count: 0,
                told: VecDeque::new(),
                throttle: Throttle::new(TOLD_PACE, Instant::now()),
            }),
            opened: Notify::new(),
            owner: OnceLock::new(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            forged: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
        }
    }

    /// Says whose it is, and where ways that open are told.
    pub(crate) fn belongs_to(
        &self,
        key: ConnectionKey,
        connection: WeakConnection,
        journal: &Arc<Journal>,
    ) {
        let owner = Owner {
            key,
            connection,
            journal: Arc::downgrade(journal),
        };
        // Said once, when the connection is established.
        let _ = self.owner.set(owner);
    }

    pub(super) fn tag(&self) -> [u8; TAG_LEN] {
        self.secret.tag()
    }

    pub(crate) fn socket(&self) -> &MuxHandle {
        &self.socket
    }

    pub(crate) fn stats(&self) -> OpenerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OpenerStats {
            sent: get(&self.sent),
            received: get(&self.received),
            forged: get(&self.forged),
            replayed: get(&self.replayed),
        }
    }

    fn roles(&self) -> (OpenerRole, OpenerRole) {
        match self.dialed {
            true => (OpenerRole::Client, OpenerRole::Server),
            false => (OpenerRole::Server, OpenerRole::Client),
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        // Each step leaves it whole.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an opener to each of these addresses in their order, as far as they are allowed and
    /// paid for; how many. `hops`: 0 for as usual. Never waits.
    pub(crate) fn open(&self, addresses: &[SocketAddr], hops: u8) -> usize {
        let sent = |address: &&SocketAddr| self.open_one(**address, hops) == Sending::Sent;
        addresses.iter().filter(sent).count()
    }

    /// What precedes the probes of a round: an opener to each of these addresses, in ascending
    /// order. NATs that count their ports up then give the *i*-th address of each end the *i*-th
    /// port, which is what the other end has guessed. Never waits and does not call into the engine,
    /// so it may be called while that holds its locks.
    pub(crate) fn open_round(&self, addresses: &[SocketAddr], hops: u8) -> usize {
        let mut ordered: Vec<SocketAddr> = addresses.iter().copied().map(canonical).collect();
        ordered.sort_unstable();
        ordered.dedup();
        self.open(&ordered, hops)
    }

    fn open_one(&self, address: SocketAddr, hops: u8) -> Sending {
        let hops = NonZeroU8::new(hops);
        self.send(address, |datagram| {
            self.socket.send_raw(datagram, address, hops)
        })
    }

    /// As [`open_one`](Self::open_one), by `send`.
    pub(super) fn send(
        &self,
        address: SocketAddr,
        send: impl FnOnce(&[u8]) -> Result<(), MuxError>,
    ) -> Sending {
        if !self.guard.allows(canonical(address)) {
            return Sending::Refused;
        }
        // 2^32 openers of one connection: months at any pace the budget allows.
        let counted = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(1)
            });
        let Ok(number) = counted else {
            return Sending::Refused;
        };
        if !self.guard.take(BYTES) {
            return Sending::Unpaid;
        }
        let (ours, _) = self.roles();
        let datagram = self.secret.datagram(OpenerKind::Open, number, ours);
        match send(&datagram) {
            Ok(()) => {
                self.sent.fetch_add(1, Ordering::Relaxed);
                Sending::Sent
            }
            Err(error) => {
                self.guard.give_back(BYTES);
                match error {
                    MuxError::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        Sending::Full
                    }
                    error => {
                        tracing::trace!(%error, "opener not sent");
                        Sending::Failed
                    }
                }
            }
        }
    }

    /// An opener under our secret, which proves nothing yet, has come in.
    pub(super) fn received(&self, opener: &Opener, mac: &Mac, arrival: &Arrival<'_>) {
        let (ours, theirs) = self.roles();
        if !self.secret.is_genuine(opener, mac, theirs) {
            self.forged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (from, now) = (arrival.from(), Instant::now());
        let answer = opener.kind == OpenerKind::Open;
        {
            let mut heard = self.heard();
            let new = if answer {
                heard.opens.take(opener.number)
            } else {
                // An answer to what was not asked is no answer.
                opener.number < self.next.load(Ordering::Relaxed)
                    && heard.answers.take(opener.number)
            };
            if !new {
                self.replayed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.received.fetch_add(1, Ordering::Relaxed);
            if answer && !heard.may_answer(from, now) {
                return;
            }
        }
        // Through a tunnel nothing is opened; and nobody's word has us answer a third party.
        if is_synthetic(from.ip()) || !self.guard.allows(from) || !arrival.adopt() {
            return;
        }
        let mut repeat = None;
        if answer {
            let datagram = self
                .secret
                .datagram(OpenerKind::Answer, opener.number, ours);
            // With its repeats three for one, and so within what the opener itself has paid for.
            arrival.reply(&datagram);
            self.sent.fetch_add(1, Ordering::Relaxed);
            repeat = Some(datagram);
        }
        self.guard.met(from);
        if self.heard().way(from, now) {
            if let Some(owner) = self.owner.get()
                && let Some(journal) = owner.journal.upgrade()
            {
                journal.opened(owner.key, owner.connection.clone(), from);
            }
            if let Some(datagram) = repeat {
                self.repeat(datagram, from);
            }
        }
        self.opened.notify_waiters();
    }

    /// Gives an answer again, a few times.
    fn repeat(&self, datagram: [u8; OPENER_LEN], to: SocketAddr) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        self.sent.fetch_add(REPEATS.len() as u64, Ordering::Relaxed);
        let socket = self.socket.clone();
        runtime.spawn(async move {
            let begin = Instant::now();
            for after in REPEATS {
                tokio::time::sleep_until((begin + after).into()).await;
                // Of one datagram, which may get lost like any.
                let _ = socket.send_raw(&datagram, to, Hops::None);
            }
        });
    }

    /// How many ways have opened.
    pub(super) fn ways(&self) -> u64 {
        self.heard().count
    }

    /// Whether a way to this host has opened since there were so many.
    pub(super) fn opened_since(&self, ways: u64, host: IpAddr) -> bool {
        let heard = self.heard();
        let mut since = heard.ways.iter().filter(|(number, _)| *number >= ways);
        since.any(|(_, address)| address.ip() == host)
    }

    /// An address the peer has been heard from; waits for it if there is none yet.
    pub(crate) async fn way(&self) -> SocketAddr {
        let mut opened = pin!(self.opened.notified());
        loop {
            // First, so that none is missed.
            opened.as_mut().enable();
            if let Some((_, address)) = self.heard().ways.back() {
                return *address;
            }
            opened.as_mut().await;
            opened.set(self.opened.notified());
        }
    }

    /// Waits for the next way to open. Ways that open between two calls may be missed.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }
}

impl Heard {
    /// Whether an opener from there is to be answered: if its host has not been answered just now
    /// at another port.
    fn may_answer(&mut self, from: SocketAddr, now: Instant) -> bool {
        let known = self
            .answered
            .iter()
            .position(|(address, _)| address.ip() == from.ip());
        if let Some(at) = known {
            let (address, since) = self.answered[at];
            if address != from && now.saturating_duration_since(since) < ONE_ANSWER {
                return false;
            }
            self.answered.remove(at);
        } else if self.answered.len() == ANSWERED_HOSTS {
            self.answered.pop_front();
        }
        self.answered.push_back((from, now));
        true
    }

    /// Notes a way that is open. Whether it is to be told.
    fn way(&mut self, address: SocketAddr, now: Instant) -> bool {
        if self.ways.len() == REMEMBERED {
            self.ways.pop_front();
        }
        self.ways.push_back((self.count, address));
        self.count += 1;
        self.told
            .retain(|(_, at)| now.saturating_duration_since(*at) < TOLD_AGAIN);
        let known = self.told.iter().any(|(known, _)| *known == address);
        if known || self.throttle.take(now).is_err() {
            return false;
        }
        // As many as the throttle lets through in that time.
        self.told.push_back((address, now));
        true
    }
}
