//! Keeps a tunnel on a carrier: gets one, notices its end, gets another.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyreach_net::MuxHandle;
use anyreach_quic::{PeerId, tls::crypto_provider};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    backoff::{Backoff, STABLE_AFTER},
    bridge::Bridge,
    directory::TunnelDirectory,
    race::{Won, race},
    request::TunnelRequest,
    session::{Opened, open},
    target::{Attempt, CarrierDialer, Plan, RelayTarget},
};
use crate::carrier::{CarrierKind, ClientCarrier, Close};

/// How long the end of a request is given to reach the relay before its connection is closed: the
/// relay then frees the bound socket instead of keeping it for our return.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// Where a tunnel stands.
#[derive(Debug, Clone)]
pub enum State {
    /// It has not had a carrier yet.
    Connecting,
    /// It carries datagrams.
    Up(Arc<Up>),
    /// It had a carrier, or was told to persist without one, and looks for the next.
    Down(Arc<Down>),
    /// It has ended.
    Closed(Arc<Closed>),
}

/// A tunnel that carries datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// Which carrier won.
    pub carrier: CarrierKind,
    /// Where it goes: the relay, or the HTTP proxy on the way to it.
    pub address: Option<SocketAddr>,
    /// Who the relay proved to be.
    pub relay: Option<PeerId>,
    /// Addresses bound for us at the relay.
    pub public: Vec<SocketAddr>,
    /// Addresses of the relay's own node, as they can be reached from the bound ones.
    pub node: Vec<SocketAddr>,
    /// Since when.
    pub since: std::time::Instant,
    /// How many carriers it has had, this one included. A reader who finds it grown by more than a
    /// state between has missed a short outage.
    pub carriers: u32,
    /// Why the carrier before this one was lost.
    pub lost: Option<String>,
    /// How often the bound addresses have changed so far.
    pub moves: u32,
    /// What they were before the last change.
    pub moved_from: Option<Vec<SocketAddr>>,
    /// Carriers tried this time that failed.
    pub failed: Vec<Attempt>,
}

/// A tunnel without a carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// Why, for people: how the last carrier was lost, or why the first was not found.
    pub error: String,
    /// The last tries to get another; none if it has only just been lost.
    pub attempts: Vec<Attempt>,
    /// When the next try begins. In the past while it is being made.
    pub retry_at: std::time::Instant,
}

/// The end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Why, for people.
    pub error: String,
    /// Why it never came up, if it did not.
    pub attempts: Vec<Attempt>,
}

/// What the tunnel's handles share with its supervisor.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) states: watch::Sender<State>,
    closing: watch::Sender<bool>,
    retry: Notify,
    route: Mutex<Route>,
    carrier: Mutex<Option<Arc<dyn ClientCarrier>>>,
}

/// Where to, and how.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) target: RelayTarget,
    pub(super) plan: Plan,
}

impl Control {
    pub(super) fn new(route: Route) -> Self {
        Self {
            states: watch::Sender::new(State::Connecting),
            closing: watch::Sender::new(false),
            retry: Notify::new(),
            route: Mutex::new(route),
            carrier: Mutex::new(None),
        }
    }

    /// Ends the tunnel.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Looks at once whether the carrier is alive, or for a new one.
    pub(super) fn probe(&self) {
        match self.carrier() {
            Some(carrier) => carrier.probe(),
            None => self.retry.notify_one(),
        }
    }

    pub(super) fn carrier(&self) -> Option<Arc<dyn ClientCarrier>> {
        self.carrier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_carrier(&self, carrier: Option<Arc<dyn ClientCarrier>>) {
        *self.carrier.lock().unwrap_or_else(PoisonError::into_inner) = carrier;
    }

    pub(super) fn route(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn closing(&self) {
        // The sender is in `self`, so the wait cannot fail.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}

/// The task of one tunnel.
pub(super) struct Supervisor {
    pub(super) bridge: Arc<Bridge>,
    pub(super) control: Arc<Control>,
    pub(super) dialer: Arc<dyn CarrierDialer>,
    pub(super) directory: Arc<TunnelDirectory>,
    pub(super) request: TunnelRequest,
    pub(super) persist: bool,
    /// Its place under the engine's socket, given back at the end.
    pub(super) port: anyreach_net::Tunnel,
    /// That socket.
    pub(super) socket: MuxHandle,
}

/// What ends a wait for the next try.
enum Wake {
    Now,
    Closing,
}

impl Supervisor {
    /// Runs until the tunnel ends.
    pub(super) async fn run(self) {
        let closed = self.keep_up().await;
        tracing::debug!(
            tunnel = self.port.number(),
            reason = closed.error,
            "tunnel closed"
        );
        self.bridge.close();
        self.control.set_carrier(None);
        self.directory.remove(self.port.number());
        drop(self.port);
        self.control
            .states
            .send_replace(State::Closed(closed.into()));
    }

    async fn keep_up(&self) -> Closed {
        let mut backoff = Backoff::default();
        // At once is for a carrier that was lost, not for one that was not found.
        backoff.next(0);
        let mut history = History::default();
        loop {
            let won = tokio::select! {
                biased;
                () = self.control.closing() => return closed_here(),
                won = self.race() => won,
            };
            let attempts = match won {
                Ok(won) => {
                    let begun = Instant::now();
                    let Some(error) = self.carry(won, &mut history).await else {
                        return closed_here();
                    };
                    if begun.elapsed() >= STABLE_AFTER || history.up == 1 {
                        backoff.reset();
                    }
                    history.lost = Some(error);
                    Vec::new()
                }
                Err(attempts) if history.up == 0 && !self.persist => {
                    let error = told(&attempts);
                    return Closed { error, attempts };
                }
                Err(attempts) => attempts,
            };
            let error = history.lost.clone().unwrap_or_else(|| told(&attempts));
            tracing::debug!(tunnel = self.port.number(), error, "tunnel down");
            let retry_at = Instant::now() + backoff.next(random());
            self.control.states.send_replace(State::Down(Arc::new(Down {
                error,
                attempts,
                retry_at: retry_at.into_std(),
            })));
            match self.wait_until(retry_at).await {
                Wake::Now if self.socket.local_addr().is_ok() => {}
                Wake::Now | Wake::Closing => return closed_here(),
            }
        }
    }

    async fn race(&self) -> Result<Won<Opened>, Vec<Attempt>> {
        let Route { target, plan } = self.control.route().clone();
        race(&*self.dialer, &target, &plan, |carrier| {
            let bridge = Arc::downgrade(&self.bridge);
            let (target, request) = (target.clone(), self.request.clone());
            Box::pin(async move { open(bridge, carrier, &target, &request).await })
        })
        .await
    }

    /// Uses a carrier until it is lost, and says why; `None` if the tunnel is to end.
    async fn carry(&self, won: Won<Opened>, history: &mut History) -> Option<String> {
        let Won {
            kind,
            address,
            carrier,
            opened,
            failed,
        } = won;
        let relay = carrier.peer_id();
        if let Some(relay) = relay {
            self.bridge.view.prove_relay(relay);
            // Whoever it was, it stays the same: inner connections trust this relay's reports.
            self.control.route().target.peer.get_or_insert(relay);
        }
        if let Err(error) = self.bridge.attach(&opened) {
            return Some(error.to_string());
        }
        self.control.set_carrier(Some(carrier.clone()));
        history.came_up(&opened.public);
        self.control.states.send_replace(State::Up(Arc::new(Up {
            carrier: kind,
            address,
            relay,
            public: opened.public.clone(),
            node: opened.node.clone(),
            since: std::time::Instant::now(),
            carriers: history.up,
            lost: history.lost.take(),
            moves: history.moves,
            moved_from: history.moved_from.clone(),
            failed,
        })));
        let lost = tokio::select! {
            biased;
            () = self.control.closing() => None,
            reason = opened.session.ended() => Some(reason),
            reason = carrier.closed() => Some(reason),
        };
        self.bridge.detach(&opened);
        self.control.set_carrier(None);
        opened.out.close(Close::Done);
        if lost.is_none() {
            let _ = timeout(CLOSE_PATIENCE, opened.session.ended()).await;
        }
        lost
    }

    async fn wait_until(&self, at: Instant) -> Wake {
        tokio::select! {
            biased;
            () = self.control.closing() => Wake::Closing,
            () = self.control.retry.notified() => Wake::Now,
            () = sleep_until(at) => Wake::Now,
        }
    }
}

/// The last of some tries, which is the one that was given most time.
fn told(attempts: &[Attempt]) -> String {
    let last = attempts.last().map(ToString::to_string);
    last.unwrap_or_else(|| "there is no carrier to try".into())
}

fn closed_here() -> Closed {
    Closed {
        error: "closed by this node".into(),
        attempts: Vec::new(),
    }
}

/// What there was before.
#[derive(Debug, Default)]
struct History {
    up: u32,
    /// How the last carrier was lost, while there is no other.
    lost: Option<String>,
    public: Vec<SocketAddr>,
    moves: u32,
    moved_from: Option<Vec<SocketAddr>>,
}

impl History {
    fn came_up(&mut self, public: &[SocketAddr]) {
        let mut public = public.to_vec();
        public.sort_unstable();
        if self.up > 0 && public != self.public {
            self.moves += 1;
            self.moved_from = Some(std::mem::take(&mut self.public));
        }
        self.public = public;
        self.up += 1;
    }
}

/// For spreading; without randomness everybody waits the longest time, which is harmless.
fn random() -> u32 {
    let mut bytes = [0xff; 4];
    let _ = crypto_provider().secure_random.fill(&mut bytes);
    u32::from_be_bytes(bytes)
}
