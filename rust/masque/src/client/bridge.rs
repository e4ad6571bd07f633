//! What the engine, the carrier and the supervisor of one tunnel share: its remotes, and the
//! contexts of the session it has now.
//!
//! Everything a packet needs is done under one short lock, under which nothing is called but
//! [`TunnelOut::send_capsule`], so that capsules leave in the order in which they were decided.
//! Datagrams are handed on after it: outwards to a carrier that locks its own connection, inwards
//! to the engine's inbox.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use anyreach_net::{
    Injector, TunnelSend, TunnelSendError, canonical, is_possible_peer, is_synthetic,
};
use anyreach_wire::{
    capsule::Capsule,
    context::{ContextId, Head},
};
use bytes::Bytes;

use super::{
    counters::{Counters, TunnelCounters},
    directory::View,
    remotes::{Found, REMOTE_IDLE, Remotes, RemotesFull},
    session::{Opened, Session},
};
use crate::{
    carrier::{CapsuleError, Close, DatagramError, ProtocolViolation, TunnelOut},
    contexts::{ClientContexts, EarlyDatagrams, Families, Incoming, Mode},
};

/// Why there is no way to a remote through this tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Every remote that could make room for another is in use.
    #[error(transparent)]
    Full(#[from] RemotesFull),
    /// The relay has no address of that family.
    #[error("the relay does not send to that address family")]
    Family,
    /// It is the address of no host.
    #[error("it is not the address of a host")]
    NoRemote,
    /// The tunnel was made for one target, and this is another.
    #[error("the tunnel leads to another target")]
    OtherTarget,
    /// The tunnel has ended.
    #[error("the tunnel is closed")]
    Closed,
}

#[derive(Debug)]
pub(super) struct Bridge {
    pub(super) view: Arc<View>,
    pub(super) counters: Counters,
    /// The one remote of a tunnel without bind.
    target: Option<SocketAddr>,
    injector: OnceLock<Injector>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    remotes: Remotes,
    live: Option<Live>,
    closed: bool,
}

/// The session there is now.
#[derive(Debug)]
struct Live {
    session: Arc<Session>,
    out: Arc<dyn TunnelOut>,
    contexts: ClientContexts,
    families: Families,
    early: EarlyDatagrams,
}

/// What to do with a datagram that came in.
enum Delivery {
    To(u32, Bytes),
    Nowhere,
}

impl Bridge {
    /// `target`: the one remote of a tunnel without bind.
    pub(super) fn new(target: Option<SocketAddr>) -> Self {
        Self {
            view: Arc::default(),
            counters: Counters::default(),
            target,
            injector: OnceLock::new(),
            state: Mutex::new(State {
                remotes: Remotes::default(),
                live: None,
                closed: false,
            }),
        }
    }

    /// Says where incoming datagrams go. Once.
    pub(super) fn set_injector(&self, injector: Injector) {
        self.injector.get_or_init(|| injector);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Tables of addresses: half an update loses a packet, which any may be.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a remote somebody here wants to talk to. Its context is asked for at once,
    /// so that no inner packet meets two sizes of header.
    pub(super) fn dial(&self, remote: SocketAddr) -> Result<u32, RemoteError> {
        let (remote, now) = (canonical(remote), Instant::now());
        let mut state = self.state();
        if state.closed {
            return Err(RemoteError::Closed);
        }
        if !is_remote(remote) {
            return Err(RemoteError::NoRemote);
        }
        if self.target.is_some_and(|target| target != remote) {
            return Err(RemoteError::OtherTarget);
        }
        if let Some(Live { families, .. }) = &state.live {
            let served = if remote.is_ipv4() {
                families.v4
            } else {
                families.v6
            };
            if !served {
                return Err(RemoteError::Family);
            }
        }
        let found = state.remotes.dialed(remote, now)?;
        self.note(&found, remote);
        if let Some(live) = &mut state.live {
            live.register(remote, now);
        }
        Ok(found.index)
    }

    pub(super) fn remote_of(&self, index: u32) -> Option<SocketAddr> {
        self.view.remote(index)
    }

    pub(super) fn remotes(&self) -> usize {
        self.state().remotes.len()
    }

    pub(super) fn counters(&self) -> TunnelCounters {
        let out = self.state().live.as_ref().map(|live| live.out.clone());
        let mut counters = self.counters.snapshot();
        counters.carrier_dropped += out.map_or(0, |out| out.dropped());
        counters
    }

    /// Uses a session from now on, in place of the one there is: opens the uncompressed context, and one for each remote there
    /// is a connection to, so that these go on as if nothing had happened.
    pub(super) fn attach(&self, opened: &Opened) -> Result<(), CapsuleError> {
        let now = Instant::now();
        let mut state = self.state();
        let mut live = Live {
            session: opened.session.clone(),
            out: opened.out.clone(),
            contexts: ClientContexts::new(opened.mode, REMOTE_IDLE),
            families: Families::of(&opened.public),
            early: EarlyDatagrams::default(),
        };
        live.contexts.set_families(live.families);
        if let Some(capsule) = live.contexts.open_uncompressed() {
            live.out.send_capsule(capsule.to_bytes())?;
        }
        for remote in state.remotes.in_use(now) {
            live.register(remote, now);
        }
        self.retired(state.live.replace(live));
        Counters::bump(&self.counters.sessions);
        Ok(())
    }

    /// Stops using a session.
    pub(super) fn detach(&self, opened: &Opened) {
        let mut state = self.state();
        let gone = state
            .live
            .take_if(|live| live.session.id == opened.session.id);
        self.retired(gone);
    }

    /// Keeps what a session has counted.
    fn retired(&self, former: Option<Live>) {
        if let Some(live) = former {
            Counters::add(&self.counters.carrier_dropped, live.out.dropped());
        }
    }

    /// Nothing passes any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.live = None;
    }

    /// Keeps the directory up to date with what adding a remote did. The context of one that was
    /// forgotten stays, and closes when it is idle: a flood of sources must not become a flood of
    /// capsules.
    fn note(&self, found: &Found, remote: SocketAddr) {
        if let Some(index) = found.evicted {
            Counters::bump(&self.counters.remotes_evicted);
            self.view.remove(index);
        }
        if found.added {
            self.view.insert(found.index, remote);
        }
    }

    /// An HTTP Datagram of a session.
    pub(super) fn datagram(&self, session: u64, datagram: Bytes) -> Result<(), ProtocolViolation> {
        let now = Instant::now();
        let delivery = {
            let mut state = self.state();
            let Some(live) = state.live_in(session) else {
                return Ok(());
            };
            match live.contexts.on_datagram(datagram, now)? {
                Incoming::Remote {
                    remote, payload, ..
                } => self.source(&mut state, remote, payload, now),
                Incoming::Target(payload) => match self.target {
                    Some(target) => self.source(&mut state, target, payload, now),
                    None => Delivery::Nowhere,
                },
                Incoming::Early { context, payload } => {
                    let dropped = live.early.push(context, &payload, now);
                    Counters::bump(&self.counters.recv_early);
                    Counters::add(&self.counters.recv_early_dropped, dropped as u64);
                    Delivery::Nowhere
                }
                Incoming::Dropped(_) => {
                    Counters::bump(&self.counters.recv_unknown);
                    Delivery::Nowhere
                }
            }
        };
        self.deliver(delivery);
        Ok(())
    }

    /// A capsule of a session.
    pub(super) fn capsule(&self, session: u64, capsule: Capsule) -> Result<(), ProtocolViolation> {
        let now = Instant::now();
        let mut waited = Vec::new();
        {
            let mut state = self.state();
            let Some(live) = state.live_in(session) else {
                return Ok(());
            };
            let changed = live.contexts.on_capsule(capsule, now)?;
            live.send(&changed.capsules);
            if let Some(context) = changed.rejected {
                let dropped = live.early.take(context, now).len();
                Counters::add(&self.counters.recv_early_dropped, dropped as u64);
            }
            if let Some((context, remote)) = changed.opened {
                let payloads = live.early.take(context, now);
                for payload in payloads {
                    waited.push(self.source(&mut state, remote, payload, now));
                }
            }
        }
        waited
            .into_iter()
            .for_each(|delivery| self.deliver(delivery));
        Ok(())
    }

    /// Finds the number of the remote a payload came from.
    fn source(
        &self,
        state: &mut State,
        remote: SocketAddr,
        payload: Bytes,
        now: Instant,
    ) -> Delivery {
        if !is_remote(remote) {
            Counters::bump(&self.counters.recv_unknown);
            return Delivery::Nowhere;
        }
        match state.remotes.source(remote, now) {
            Ok(found) => {
                self.note(&found, remote);
                Delivery::To(found.index, payload)
            }
            Err(RemotesFull) => {
                Counters::bump(&self.counters.recv_no_room);
                Delivery::Nowhere
            }
        }
    }

    fn deliver(&self, delivery: Delivery) {
        let Delivery::To(index, payload) = delivery else {
            return;
        };
        let length = payload.len() as u64;
        // After the tunnel has left the socket, nobody is there to take it.
        if let Some(injector) = self.injector.get()
            && injector.inject(index, payload).is_ok()
        {
            Counters::bump(&self.counters.received);
            Counters::add(&self.counters.received_bytes, length);
        }
    }
}

/// Whether a peer can have this canonical address. One of our own making means nothing to a relay.
fn is_remote(addr: SocketAddr) -> bool {
    is_possible_peer(addr) && !is_synthetic(addr.ip())
}

impl State {
    fn live_in(&mut self, session: u64) -> Option<&mut Live> {
        self.live.as_mut().filter(|live| live.session.id == session)
    }
}

impl Live {
    /// What comes before a UDP payload for a remote; `None` if the relay does not send there.
    fn head(&mut self, remote: SocketAddr, now: Instant) -> Option<Head> {
        match self.contexts.mode() {
            Mode::Plain => Some(ContextId::PAYLOAD.head()),
            Mode::Bound | Mode::BoundWithTarget => self.contexts.route(remote, now),
        }
    }

    /// Asks for a context for a remote, if it has none.
    fn register(&mut self, remote: SocketAddr, now: Instant) {
        let capsules = self.contexts.open(remote, now);
        self.send(&capsules);
    }

    fn send(&self, capsules: &[Capsule]) {
        for capsule in capsules {
            if self.out.send_capsule(capsule.to_bytes()) == Err(CapsuleError::QueueFull) {
                // The relay does not read: the draft demands that the tunnel be given up.
                self.out.close(Close::DatagramError);
                self.session.end("the relay does not take capsules");
            }
        }
    }
}

/// Where the engine's datagrams go in.
pub(super) struct Entrance(pub(super) Arc<Bridge>);

impl TunnelSend for Entrance {
    fn try_send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        self.0.send(index, datagram)
    }
}

impl Bridge {
    fn send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        let now = Instant::now();
        let (out, head) = {
            let mut state = self.state();
            let State {
                remotes,
                live,
                closed,
            } = &mut *state;
            let remote = remotes.sending(index, datagram, now).filter(|_| !*closed);
            let Some(remote) = remote else {
                Counters::bump(&self.counters.send_no_remote);
                return Err(TunnelSendError::Closed);
            };
            let Some(live) = live else {
                // Connections inside are to outlive a change of carriers, so this is only loss.
                Counters::bump(&self.counters.send_outage);
                return Err(TunnelSendError::Full);
            };
            let addr = remote.addr;
            if remote.wants_context(now) {
                live.register(addr, now);
            }
            let Some(head) = live.head(addr, now) else {
                Counters::bump(&self.counters.send_no_remote);
                return Err(TunnelSendError::Closed);
            };
            (live.out.clone(), head)
        };
        match out.send_datagram(&head, datagram) {
            Ok(()) => {
                Counters::bump(&self.counters.sent);
                Counters::add(&self.counters.sent_bytes, datagram.len() as u64);
                Ok(())
            }
            Err(DatagramError::TooLarge) => {
                Counters::bump(&self.counters.send_too_large);
                Err(TunnelSendError::TooLarge)
            }
            Err(DatagramError::Full) => {
                Counters::bump(&self.counters.send_full);
                Err(TunnelSendError::Full)
            }
            // The supervisor is about to notice.
            Err(DatagramError::Closed) => {
                Counters::bump(&self.counters.send_outage);
                Err(TunnelSendError::Full)
            }
        }
    }
}
