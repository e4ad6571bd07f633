//! From the target of a request to the one address its tunnel sends to.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyreach_net::canonical;
use anyreach_wire::{proxy_fields::ProxyError, uri_template::Host};

use super::{
    policy::{Policy, Scope},
    prefix::Prefix,
    request::Refusal,
};

/// Names looked up at a time. Each takes a thread of the runtime for as long as the system's
/// resolver works on it, whoever still waits: nothing can call it back.
const MAX_LOOKUPS: usize = 16;

/// Of those, for clients of one network: PeerIds cost nothing, and names that are resolved slowly
/// must not keep others from having theirs resolved.
const MAX_LOOKUPS_OF_NETWORK: usize = 4;

/// The lookups under way.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    by_network: Mutex<HashMap<Prefix, usize>>,
}

/// One lookup under way.
#[derive(Debug)]
struct Place {
    lookups: Arc<Lookups>,
    network: Prefix,
}

impl Lookups {
    fn enter(self: &Arc<Self>, network: Prefix) -> Option<Place> {
        let mut by_network = self.lock();
        let all: usize = by_network.values().sum();
        let own = by_network.get(&network).copied().unwrap_or_default();
        if all >= MAX_LOOKUPS || own >= MAX_LOOKUPS_OF_NETWORK {
            return None;
        }
        by_network.insert(network, own + 1);
        drop(by_network);
        let lookups = self.clone();
        Some(Place { lookups, network })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Prefix, usize>> {
        // Counts, whole at every step.
        let by_network = self.by_network.lock();
        by_network.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_network = self.lookups.lock();
        if let Some(count) = by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&self.network);
            }
        }
    }
}

/// Resolves `host` once and picks an address the policy admits and the system has a route to. The
/// tunnel keeps it: a name that means something else later cannot move it (RFC 9298, section 7).
/// A lookup counts for the network of the client that comes with `lookups`.
pub(crate) async fn resolve(
    host: &Host,
    port: u16,
    policy: &Policy,
    scope: Scope,
    lookups: (&Arc<Lookups>, Prefix),
    timeout: Duration,
) -> Result<SocketAddr, Refusal> {
    let found = match host {
        Host::Ip(ip) => vec![SocketAddr::from((*ip, port))],
        Host::Name(name) => lookup(name, port, lookups, timeout).await?,
    };
    pick(found, policy, scope)
}

async fn lookup(
    name: &str,
    port: u16,
    (lookups, network): (&Arc<Lookups>, Prefix),
    timeout: Duration,
) -> Result<Vec<SocketAddr>, Refusal> {
    let Some(place) = lookups.enter(network) else {
        return Err(Refusal::new(
            "relay-limit",
            ProxyError::ConnectionLimitReached,
            "too many names are being looked up",
        ));
    };
    let name = name.to_owned();
    // The thread keeps the place. If the future did, requests for slow names that are given up at
    // once would take all threads of the runtime, and queue up for more.
    let looking = tokio::task::spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        drop(place);
        found
    });
    let found = tokio::time::timeout(timeout, looking).await;
    match found.map(|joined| joined.unwrap_or_else(|error| Err(error.into()))) {
        Ok(Ok(found)) => Ok(found.map(canonical).collect()),
        Ok(Err(error)) => Err(Refusal::new(
            "unreachable",
            ProxyError::DnsError,
            error.to_string(),
        )),
        Err(_) => Err(Refusal::new(
            "unreachable",
            ProxyError::DnsTimeout,
            "no answer in time",
        )),
    }
}

/// The first address that is admitted and has a route.
fn pick(found: Vec<SocketAddr>, policy: &Policy, scope: Scope) -> Result<SocketAddr, Refusal> {
    let mut prohibited = None;
    let mut unroutable = None;
    for address in found {
        match policy.check(address, scope) {
            Err(refusal) => prohibited = prohibited.or(Some(refusal)),
            Ok(()) if has_route(address) => return Ok(address),
            Ok(()) => unroutable = unroutable.or(Some(address)),
        }
    }
    Err(match (unroutable, prohibited) {
        (Some(address), _) => Refusal::new(
            "unreachable",
            ProxyError::DestinationIpUnroutable,
            format!("no route to {}", address.ip()),
        ),
        (None, Some(refusal)) => Refusal::prohibited(refusal),
        (None, None) => Refusal::new(
            "unreachable",
            ProxyError::DnsError,
            "the name has no address",
        ),
    })
}

/// Whether the system knows a way there. Connecting a UDP socket asks it, and sends nothing.
fn has_route(address: SocketAddr) -> bool {
    let any = match address.ip() {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    };
    UdpSocket::bind(any).is_ok_and(|socket| socket.connect(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(host: &str, policy: &Policy) -> Result<SocketAddr, Refusal> {
        let lookups = (&Arc::default(), network(1));
        let host = Host::parse(host).expect("literal");
        let timeout = Duration::from_secs(30);
        resolve(&host, 40000, policy, Scope::default(), lookups, timeout).await
    }

    fn network(number: u8) -> Prefix {
        Prefix::source([192, 0, number, 1].into())
    }

    fn loopback_allowed() -> Policy {
        Policy {
            allow: ["127.0.0.0/8", "::1/128"]
                .map(|text| text.parse().expect("literal"))
                .into(),
            ..Policy::default()
        }
    }

    #[tokio::test]
    async fn a_name_becomes_an_address_that_is_admitted() {
        let found = run("localhost", &loopback_allowed()).await;
        assert!(found.expect("in every hosts file").ip().is_loopback());
        let refused = run("localhost", &Policy::default()).await;
        assert_eq!(refused.expect_err("loopback").reason, "target");
    }

    #[tokio::test]
    async fn of_several_addresses_the_refused_ones_are_passed_over() {
        let found = ["10.0.0.1:40000", "127.0.0.1:40000", "10.0.0.2:40000"]
            .map(|text| text.parse().expect("literal"));
        let picked = pick(found.into(), &loopback_allowed(), Scope::default());
        assert_eq!(picked, Ok(found[1]));
    }

    #[test]
    fn one_network_cannot_take_all_lookups() {
        let lookups = Arc::<Lookups>::default();
        let enter = |of| lookups.enter(network(of));
        let mut places: Vec<_> = (0..MAX_LOOKUPS_OF_NETWORK)
            .map(|_| enter(1).expect("room"))
            .collect();
        assert!(enter(1).is_none());
        for other in 2.. {
            let Some(place) = enter(other) else { break };
            places.push(place);
        }
        assert_eq!(places.len(), MAX_LOOKUPS);
        places.remove(0);
        assert!(enter(1).is_some(), "it has one less");
        places.clear();
        assert!(lookups.lock().is_empty());
    }

    #[tokio::test]
    async fn lookups_are_limited() {
        let lookups = Arc::<Lookups>::default();
        let full: Vec<_> = (0..MAX_LOOKUPS as u8)
            .map(|of| lookups.enter(network(of)))
            .collect();
        let policy = loopback_allowed();
        let timeout = Duration::from_secs(30);
        let ask = async |host| {
            let host = Host::parse(host).expect("literal");
            let lookups = (&lookups, network(99));
            resolve(&host, 1, &policy, Scope::default(), lookups, timeout).await
        };
        let refused = ask("localhost").await;
        assert_eq!(refused.expect_err("none allowed").reason, "relay-limit");
        assert!(ask("127.0.0.1").await.is_ok(), "no lookup needed");
        drop(full);
        assert!(ask("localhost").await.is_ok());
    }

    /// A request that is reset must not give back what its lookup still uses.
    #[test]
    fn a_lookup_nobody_waits_for_keeps_its_place() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let lookups = Arc::<Lookups>::default();
        let (release, released) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            // The only thread is busy, as with a resolver that does not answer.
            let busy = tokio::task::spawn_blocking(move || released.recv());
            let slow = (&lookups, network(1));
            for _ in 0..MAX_LOOKUPS_OF_NETWORK {
                let refused = lookup("localhost", 1, slow, Duration::from_millis(1)).await;
                assert_eq!(refused.expect_err("too slow").reason, "unreachable");
            }
            let refused = lookup("localhost", 1, slow, Duration::from_millis(1)).await;
            assert_eq!(refused.expect_err("no place").reason, "relay-limit");
            drop(release);
            let _ = busy.await;
            while !lookups.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
}
