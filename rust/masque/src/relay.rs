//! The relay: a proxy for UDP in HTTP (RFC 9298) that also lends bound addresses
//! (draft-ietf-masque-connect-udp-listen).
//!
//! [`Relay`] decides about requests and moves packets between tunnels and UDP sockets. What carries
//! the tunnels is behind [`carrier`](crate::carrier). A bound address is lent to a PeerId and kept
//! for a while when its tunnel ends, since a node that hands out a new address at each reconnect
//! leaves a trail of dead ones.
//!
//! # What a relay protects
//!
//! Its network, by a policy of targets ([`TargetRefusal`]), per packet and per registered context. Its
//! resources, by [limits](RelayConfig) that hold for a client, for a network of clients, and for
//! all together. Not here: who is trusted with what; whoever proves a PeerId may ask.
//!
//! # The path of a packet
//!
//! One task per socket, and the carrier's task for the other direction. They share the contexts of
//! their own tunnel, behind a lock that is held for one lookup, and nothing with other sessions.
//! Packets are dropped where they cannot pass at once, with a counter per reason ([`DropReason`]).

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_net::{canonical, canonical_ip, interface_addresses, prefix};
use http::Request;
use tokio::{runtime::Handle, sync::watch, task::AbortHandle};

use crate::carrier::{Accepted, BoxFuture, Client, Refused, Service, TunnelIn, TunnelOut};

mod addresses;
mod batch;
mod config;
mod desk;
mod grant;
mod policy;
mod quota;
mod receive;
mod request;
mod resolve;
mod rules;
mod session;
mod sockets;
mod stats;
mod table;

use addresses::Surroundings;
use desk::{Desk, Lent};
use policy::Policy;
use quota::{Quotas, Rate};
use resolve::Lookups;
use rules::Rules;
use session::Session;
use stats::Ledger;
use table::EntryId;

pub use anyreach_net::prefix::{ParsePrefixError, Prefix};
pub use config::RelayConfig;
pub use policy::{DENIED_PORTS, Refusal as TargetRefusal, is_global};
pub use request::ANYREACH_LEASE;
pub use stats::{DropReason, Flow, RelayStats, SessionInfo};

/// How long the list of interface addresses is taken to be right. Listing them is several system
/// calls, and an address that is a second old is new enough.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bounds of how often leases and idle tunnels are looked at.
const SWEEP_EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(5);

/// A relay. Cheap to clone; all clones are the same relay.
#[derive(Debug, Clone)]
pub struct Relay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: RelayConfig,
    epoch: Instant,
    rules: Arc<Rules>,
    quotas: Arc<Quotas>,
    ledger: Arc<Ledger>,
    desk: Mutex<Desk>,
    view: Mutex<View>,
    lookups: Arc<Lookups>,
    accepted: AtomicU64,
    refused: [AtomicU64; RelayStats::REFUSALS.len()],
    taken_over: AtomicU64,
    changes: watch::Sender<u64>,
    sweeper: AbortHandle,
}

/// What the relay knows about itself, and since when.
#[derive(Debug, Default)]
struct View {
    known: Surroundings,
    looked: Option<Instant>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

impl Relay {
    /// A relay that lends what `config` allows.
    ///
    /// # Panics
    /// Outside a tokio runtime; it needs one with I/O and time enabled.
    pub fn new(config: RelayConfig) -> Self {
        let ledger: Arc<Ledger> = Arc::default();
        let runtime = Handle::current();
        let rules = Rules::new(Policy {
            allow: config.allow_targets.clone(),
            deny: config.deny_targets.clone(),
            ..Policy::default()
        });
        let quotas = Quotas::new(
            Rate::new(config.client_bytes_per_second, config.client_burst_bytes),
            Rate::new(config.total_bytes_per_second, config.total_burst_bytes),
        );
        let every = config.lease_time.min(config.idle_limit) / 4;
        let every = every.clamp(*SWEEP_EVERY.start(), *SWEEP_EVERY.end());
        let relay = Self(Arc::new_cyclic(|inner| Inner {
            epoch: Instant::now(),
            rules: Arc::new(rules),
            quotas: Arc::new(quotas),
            desk: Mutex::new(Desk::new(runtime.clone(), ledger.clone())),
            ledger,
            view: Mutex::default(),
            lookups: Arc::default(),
            accepted: AtomicU64::new(0),
            refused: Default::default(),
            taken_over: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            sweeper: runtime.spawn(sweep(inner.clone(), every)).abort_handle(),
            config,
        }));
        relay.0.look_around(Instant::now());
        relay
    }

    /// The limits and rules in force.
    pub fn config(&self) -> &RelayConfig {
        &self.0.config
    }

    /// Tells the relay which addresses it is known by outside, best first. Used for requests made
    /// from now on.
    pub fn set_public_addresses(&self, addresses: Vec<IpAddr>) {
        let addresses = addresses.into_iter().map(canonical_ip).collect();
        self.0.know(|known| known.public = addresses);
    }

    /// Tells the relay the UDP addresses of its own node, to which tunnels may lead. One with an
    /// unspecified IP stands for all addresses of this host.
    pub fn set_node_addresses(&self, addresses: Vec<SocketAddr>) {
        let addresses = addresses.into_iter().map(canonical).collect();
        self.0.know(|known| known.node = addresses);
    }

    /// What the relay has done so far, and what it has lent now.
    pub fn stats(&self) -> RelayStats {
        let inner = &self.0;
        let (sessions, tunnels, leases) = lock(&inner.desk).counts();
        let (from_clients, to_clients, drops) = inner.ledger.total();
        let refused = RelayStats::REFUSALS.into_iter().zip(&inner.refused);
        RelayStats {
            sessions,
            tunnels,
            leases,
            from_clients,
            to_clients,
            drops,
            accepted: inner.accepted.load(Ordering::Relaxed),
            refused: refused
                .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
                .collect(),
            taken_over: inner.taken_over.load(Ordering::Relaxed),
        }
    }

    /// Every session and tunnel there is now.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let now = Instant::now();
        let desk = lock(&self.0.desk);
        desk.sessions().map(|session| session.info(now)).collect()
    }

    /// A number that changes whenever a session, tunnel or lease begins or ends.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Ends all sessions and gives up all addresses. Requests are refused from now on.
    pub fn close(&self) {
        let ended = lock(&self.0.desk).close();
        self.0.give_up(ended);
        self.0.sweeper.abort();
    }
}

impl Service for Relay {
    fn open<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Result<(Accepted, Arc<dyn TunnelIn>), Refused>> {
        Box::pin(async move {
            let granted = self.0.grant(client, request, out).await;
            granted.map_err(|refusal| self.0.refuse(client, refusal))
        })
    }
}

impl Inner {
    /// Changes what the relay knows about itself, and the policy with it.
    fn know(&self, change: impl FnOnce(&mut Surroundings)) {
        let mut view = lock(&self.view);
        let before = view.known.clone();
        change(&mut view.known);
        if view.known != before {
            let own = view.known.own();
            // With the view still locked, so that the policy never goes back to older knowledge.
            self.rules
                .update(|policy| policy.own = policy.own.renewed(own));
        }
    }

    /// Lists the interfaces again, if the list is old.
    fn look_around(&self, now: Instant) {
        {
            let mut view = lock(&self.view);
            let age = |looked| now.saturating_duration_since(looked);
            if view.looked.is_some_and(|looked| age(looked) < LOOK_EVERY) {
                return;
            }
            view.looked = Some(now);
        }
        match interface_addresses() {
            Ok(found) => {
                let addresses = found.into_iter().map(|entry| entry.addr).collect();
                self.know(|known| known.interfaces = addresses);
            }
            Err(error) => tracing::warn!(%error, "interfaces cannot be listed"),
        }
    }

    /// The time, as the quotas have it.
    fn nanos(&self) -> u64 {
        // Enough for five hundred years.
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The tunnel of a session has ended.
    fn detach(&self, entry: EntryId, session: &Arc<Session>) {
        session.stop();
        let lent = lock(&self.desk).detach(entry, session, &self.config);
        if let Some(lent) = lent {
            drop(lent);
            self.changed();
        }
    }

    /// Ends what has been given up, and says so.
    fn give_up(&self, lent: Vec<Lent>) {
        if !lent.is_empty() {
            self.end(lent);
            self.changed();
        }
    }

    /// Ends the sessions of what has been given up.
    fn end(&self, lent: Vec<Lent>) {
        lent.into_iter().for_each(Lent::end);
    }

    /// Something was lent or given back.
    fn changed(&self) {
        {
            // With the desk locked, so that the policy never goes back to older ports.
            let desk = lock(&self.desk);
            let ports = desk.lent_ports().collect();
            self.rules.update(|policy| policy.own.lent = ports);
        }
        self.changes.send_modify(|number| *number += 1);
    }
}

/// Gives up leases and idle tunnels for as long as there is a relay.
async fn sweep(inner: Weak<Inner>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let now = Instant::now();
        let ended = lock(&inner.desk).sweep(now, &inner.config);
        inner.give_up(ended);
        // Without sessions nobody asks what this host is.
        if lock(&inner.desk).counts() != (0, 0, 0) {
            inner.look_around(now);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is changed in steps that each leave it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
