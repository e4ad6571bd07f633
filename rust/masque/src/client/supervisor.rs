//! Keeps a tunnel on a carrier: gets one, notices its end, gets another, or a better one.

use std::{sync::Arc, time::Duration};

use anyreach_net::MuxHandle;
use anyreach_quic::tls::crypto_provider;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    backoff::{Backoff, STABLE_AFTER},
    bridge::Bridge,
    control::{Control, Route},
    directory::TunnelDirectory,
    race::{Won, race},
    request::TunnelRequest,
    session::{Opened, open},
    state::{Closed, Down, History, State},
    target::{Attempt, CarrierDialer, Dialed, Plan, RelayTarget},
};
use crate::carrier::{BoxFuture, CapsuleError, CarrierKind, ClientCarrier, Close};

/// How long the end of a request is given to reach the relay before its connection is closed: the
/// relay then frees what it has lent instead of keeping it for our return.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// How long a better carrier is waited for when the one there was ends: the relay ends it when it
/// gives our address to the other, and which of the two we hear of first is chance.
const HANDOVER: Duration = Duration::from_millis(250);

type Raced = Result<Won<Opened>, Vec<Attempt>>;

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

/// The carrier there is.
struct Current {
    carrier: Arc<dyn ClientCarrier>,
    opened: Opened,
}

impl Current {
    /// Waits for its end, and says why it came.
    async fn lost(&self) -> String {
        tokio::select! {
            biased;
            reason = self.opened.session.ended() => reason,
            reason = self.carrier.closed() => reason,
        }
    }
}

/// Notes what fails while others are still being tried.
struct Noting {
    dialer: Arc<dyn CarrierDialer>,
    control: Arc<Control>,
}

impl CarrierDialer for Noting {
    fn dial<'a>(
        &'a self,
        kind: CarrierKind,
        target: &'a RelayTarget,
    ) -> BoxFuture<'a, Result<Dialed, Vec<Attempt>>> {
        Box::pin(async move {
            let dialed = self.dialer.dial(kind, target).await;
            if let Err(attempts) = &dialed {
                self.control.failing().extend_from_slice(attempts);
            }
            dialed
        })
    }
}

impl Supervisor {
    /// Runs until the tunnel ends.
    pub(super) async fn run(self) {
        let closed = self.keep_up().await;
        let number = self.port.number();
        tracing::debug!(tunnel = number, reason = closed.error, "tunnel closed");
        self.bridge.close();
        self.control.set_carrier(None);
        self.directory.remove(number);
        drop(self.port);
        let closed = State::Closed(Arc::new(closed));
        self.control.states.send_replace(closed);
    }

    async fn keep_up(&self) -> Closed {
        let mut backoff = Backoff::not_found();
        let mut history = History::default();
        loop {
            let plan = self.control.route().plan.clone();
            let raced = tokio::select! {
                biased;
                () = self.control.closing() => return closed_here(),
                raced = self.race(plan) => raced,
                // The attempts under way began in another network.
                () = self.control.hurried() => {
                    backoff = Backoff::not_found();
                    continue;
                }
            };
            let attempts = match raced {
                Ok(won) => {
                    let begun = Instant::now();
                    let Some(error) = self.carry(won, &mut history).await else {
                        return closed_here();
                    };
                    if begun.elapsed() >= STABLE_AFTER || history.carriers == 1 {
                        backoff = Backoff::default();
                    }
                    history.lost = Some(error);
                    Vec::new()
                }
                Err(attempts) if history.carriers == 0 && !self.persist => {
                    let error = told(&attempts);
                    return Closed { error, attempts };
                }
                Err(attempts) => attempts,
            };
            let error = history.lost.clone().unwrap_or_else(|| told(&attempts));
            tracing::debug!(tunnel = self.port.number(), error, "tunnel down");
            let retry_at = Instant::now() + backoff.next(random());
            let down = State::Down(Arc::new(Down {
                error,
                attempts,
                retry_at: retry_at.into_std(),
            }));
            self.control.states.send_replace(down);
            tokio::select! {
                biased;
                () = self.control.closing() => return closed_here(),
                () = self.control.hurried() => backoff = Backoff::not_found(),
                () = sleep_until(retry_at) => {}
            }
            if self.socket.local_addr().is_err() {
                return closed_here();
            }
        }
    }

    async fn race(&self, plan: Plan) -> Raced {
        let Route { target, .. } = self.control.route().clone();
        self.control.failing().clear();
        let dialer = Noting {
            dialer: self.dialer.clone(),
            control: self.control.clone(),
        };
        race(&dialer, &target, &plan, |carrier| {
            let bridge = Arc::downgrade(&self.bridge);
            let (target, request) = (target.clone(), self.request.clone());
            Box::pin(async move { open(bridge, carrier, &target, &request).await })
        })
        .await
    }

    /// Uses a carrier, and better ones that are found meanwhile, until there is none, and says why;
    /// `None` if the tunnel is to end.
    async fn carry(&self, won: Won<Opened>, history: &mut History) -> Option<String> {
        let mut current = match self.take_up(won, history) {
            Ok(current) => current,
            Err(error) => return Some(error.to_string()),
        };
        let mut better: Option<BoxFuture<'_, Raced>> = None;
        loop {
            let raced = tokio::select! {
                biased;
                () = self.control.closing() => {
                    self.retire(&current);
                    let _ = timeout(CLOSE_PATIENCE, current.opened.session.ended()).await;
                    return None;
                }
                raced = pending_or(&mut better) => raced,
                plan = self.control.improving(), if better.is_none() => {
                    better = Some(Box::pin(self.race(plan)));
                    continue;
                }
                reason = current.lost() => {
                    let handover = match &mut better {
                        Some(better) => timeout(HANDOVER, better).await.ok(),
                        None => None,
                    };
                    match handover {
                        Some(Ok(won)) => Ok(won),
                        _ => {
                            self.retire(&current);
                            return Some(reason);
                        }
                    }
                }
            };
            better = None;
            let found = match raced {
                Ok(won) => self.take_up(won, history).ok(),
                Err(attempts) => {
                    let tunnel = self.port.number();
                    tracing::debug!(tunnel, error = told(&attempts), "no better carrier");
                    None
                }
            };
            if let Some(replacement) = found {
                let former = std::mem::replace(&mut current, replacement);
                self.retire(&former);
                self.control.set_carrier(Some(current.carrier.clone()));
            }
        }
    }

    /// Lets the tunnel run on this carrier from now on.
    fn take_up(&self, won: Won<Opened>, history: &mut History) -> Result<Current, CapsuleError> {
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
        self.bridge.attach(&opened)?;
        self.control.set_carrier(Some(carrier.clone()));
        let up = history.came_up(kind, address, relay, &opened, failed);
        self.control.states.send_replace(State::Up(Arc::new(up)));
        Ok(Current { carrier, opened })
    }

    /// Ends the request on a carrier that is not used any more.
    fn retire(&self, former: &Current) {
        self.bridge.detach(&former.opened);
        self.control.set_carrier(None);
        former.opened.out.close(Close::Done);
    }
}

/// What the future comes to, if there is one.
async fn pending_or<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
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

/// For spreading; without randomness everybody waits the longest time, which is harmless.
fn random() -> u32 {
    let mut bytes = [0xff; 4];
    let _ = crypto_provider().secure_random.fill(&mut bytes);
    u32::from_be_bytes(bytes)
}
