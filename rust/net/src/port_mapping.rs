//! A port of the router that leads to the node's socket, asked for by PCP, NAT-PMP and UPnP IGD.
//!
//! Additive: it opens no socket of the node, and when no router answers nothing is lost but a few
//! packets. The mapping is renewed in time, made anew when the network changes, and taken back when
//! it is closed or dropped. The protocols themselves are in kept crates; here is which one to ask when.
//! IPv4 only: IPv6 has no ports to map, and few routers take pinholes.

mod lease;
mod place;
mod upnp;

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::{lease::Lease, place::Place};
use crate::watch::NetworkWatch;

/// First wait after all routers have refused, or kept silent. Doubled each time: somebody may switch
/// the protocol on, or the router may be starting.
const RETRY_MIN: Duration = Duration::from_secs(30);

/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(1800);

/// Shortest time between two renewals, whatever lifetime a router grants.
const RENEW_MIN: Duration = Duration::from_secs(1);

/// How long a request that was under way is waited for when the mapping is closed, so that what comes
/// of it can be taken back.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// A protocol by which a router was asked for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MappingProtocol {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl MappingProtocol {
    /// `pcp`, `nat-pmp` or `upnp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl fmt::Display for MappingProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a mapping stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MappingState {
    /// The router's side of the mapping, as the router says. Its address may be private itself, if
    /// there is another NAT outside.
    pub external: Option<SocketAddr>,
    /// Who made it.
    pub protocol: Option<MappingProtocol>,
    /// Why there is none, once that is known.
    pub error: Option<String>,
    /// It was closed; nothing will change any more.
    pub closed: bool,
}

/// A mapping that is kept up in the background until this is closed or dropped.
#[derive(Debug)]
pub struct PortMapping {
    state: watch::Receiver<MappingState>,
    stop: watch::Sender<bool>,
}

impl PortMapping {
    /// Begins to ask for a mapping to `bound`, the address of the socket. Returns at once. Must be
    /// called within a tokio runtime with I/O and time enabled.
    pub fn start(bound: SocketAddr) -> Self {
        let (told, state) = watch::channel(MappingState::default());
        let (stop, stopped) = watch::channel(false);
        let keeper = Keeper {
            bound,
            told,
            stop: stopped,
            network: NetworkWatch::new()
                .inspect_err(|error| tracing::debug!(%error, "network changes go unnoticed"))
                .ok(),
        };
        tokio::spawn(keeper.run());
        Self { state, stop }
    }

    /// How it stands.
    pub fn state(&self) -> MappingState {
        self.state.borrow().clone()
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<MappingState> {
        self.state.clone()
    }

    /// Has the mapping taken back, in the background; the state tells when that is done.
    pub fn close(&self) {
        // Nobody listens if it is done already.
        let _ = self.stop.send(true);
    }
}

/// Keeps up one mapping.
struct Keeper {
    bound: SocketAddr,
    told: watch::Sender<MappingState>,
    stop: watch::Receiver<bool>,
    network: Option<NetworkWatch>,
}

/// Why a mapping, or the wait for one, came to its end.
enum Ended {
    /// The router does not renew it.
    Lost(String),
    /// The host is somewhere else now.
    Moved,
    /// It is not wanted any more.
    Stopped,
}

impl Keeper {
    async fn run(mut self) {
        let mut wait = RETRY_MIN;
        loop {
            let place = Place::of(self.bound);
            let leased = match &place {
                Ok(place) => self.lease(*place).await,
                Err(reason) => Some(Err(reason.clone())),
            };
            let ended = match leased {
                None => Ended::Stopped,
                Some(Ok(lease)) => {
                    wait = RETRY_MIN;
                    self.keep(lease, &place).await
                }
                Some(Err(reason)) => {
                    tracing::debug!(reason, "no port mapping");
                    self.tell(None, Some(reason));
                    let ended = self.pause(wait, &place).await;
                    wait = match ended {
                        Ended::Moved => RETRY_MIN,
                        _ => (wait * 2).min(RETRY_MAX),
                    };
                    ended
                }
            };
            match ended {
                Ended::Lost(reason) => {
                    tracing::info!(reason, "port mapping lost");
                    self.tell(None, Some(reason));
                }
                Ended::Moved => self.tell(None, None),
                Ended::Stopped => {
                    self.told.send_replace(MappingState {
                        closed: true,
                        ..MappingState::default()
                    });
                    return;
                }
            }
        }
    }

    fn tell(&self, lease: Option<&Lease>, error: Option<String>) {
        let state = MappingState {
            external: lease.map(Lease::external),
            protocol: lease.map(Lease::protocol),
            error,
            closed: false,
        };
        self.told.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
    }

    /// Asks the routers; `None` if it is stopped meanwhile, with everything taken back.
    async fn lease(&mut self, place: Place) -> Option<Result<Lease, String>> {
        let mut leasing = std::pin::pin!(Lease::acquire(place));
        tokio::select! {
            leased = &mut leasing => return Some(leased),
            () = stopped(&mut self.stop) => {}
        }
        if let Ok(Ok(lease)) = tokio::time::timeout(CLOSE_PATIENCE, leasing).await {
            lease.release().await;
        }
        None
    }

    /// Keeps a mapping until it ends.
    async fn keep(&mut self, mut lease: Lease, place: &Result<Place, String>) -> Ended {
        tracing::info!(external = %lease.external(), by = %lease.protocol(), "port mapped");
        self.tell(Some(&lease), None);
        let mut expires = lease.expires();
        let mut renew = Instant::now() + renewal(expires);
        loop {
            let ended = tokio::select! {
                () = tokio::time::sleep_until(renew.into()) => match lease.renew().await {
                    Ok(()) => {
                        // Another address or port, if the router was restarted.
                        self.tell(Some(&lease), None);
                        expires = lease.expires();
                        renew = Instant::now() + renewal(expires);
                        continue;
                    }
                    Err(_) if Instant::now() < expires => {
                        renew = Instant::now() + renewal(expires);
                        continue;
                    }
                    Err(reason) => Ended::Lost(reason),
                },
                () = moved(&mut self.network, self.bound, place) => Ended::Moved,
                () = stopped(&mut self.stop) => Ended::Stopped,
            };
            match ended {
                Ended::Stopped => lease.release().await,
                // Most often the router cannot be reached any more: nobody waits for that.
                Ended::Moved => drop(tokio::spawn(lease.release())),
                Ended::Lost(_) => {}
            }
            return ended;
        }
    }

    /// Waits before asking again.
    async fn pause(&mut self, wait: Duration, place: &Result<Place, String>) -> Ended {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ended::Lost("no router maps ports".to_owned()),
            () = moved(&mut self.network, self.bound, place) => Ended::Moved,
            () = stopped(&mut self.stop) => Ended::Stopped,
        }
    }
}

/// When to renew what expires then: at half of the time that is left (RFC 6887, section 11.2.1).
fn renewal(expires: Instant) -> Duration {
    (expires.saturating_duration_since(Instant::now()) / 2).max(RENEW_MIN)
}

/// Waits until the host is somewhere else.
async fn moved(
    network: &mut Option<NetworkWatch>,
    bound: SocketAddr,
    place: &Result<Place, String>,
) {
    let Some(network) = network else {
        return std::future::pending().await;
    };
    loop {
        network.changed().await;
        if Place::of(bound) != *place {
            return;
        }
    }
}

/// Waits until nobody wants it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever wanted it was dropped.
    let _ = stop.wait_for(|stop| *stop).await;
}
