//! From the target of a request to the one address its tunnel sends to.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyreach_net::canonical;
use anyreach_wire::{proxy_fields::ProxyError, uri_template::Host};
use tokio::sync::Semaphore;

use super::{
    policy::{Policy, Scope},
    request::Refusal,
};

/// Names looked up at a time. Each takes a thread of the runtime for as long as the system's
/// resolver works on it, whoever still waits: nothing can call it back.
pub(crate) const MAX_LOOKUPS: usize = 16;

/// Resolves `host` once and picks an address the policy admits and the system has a route to. The
/// tunnel keeps it: a name that means something else later cannot move it (RFC 9298, section 7).
pub(crate) async fn resolve(
    host: &Host,
    port: u16,
    policy: &Policy,
    scope: Scope,
    lookups: &Arc<Semaphore>,
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
    lookups: &Arc<Semaphore>,
    timeout: Duration,
) -> Result<Vec<SocketAddr>, Refusal> {
    let Ok(permit) = lookups.clone().try_acquire_owned() else {
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
        drop(permit);
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
        let lookups = Arc::new(Semaphore::new(1));
        let host = Host::parse(host).expect("literal");
        let timeout = Duration::from_secs(30);
        resolve(&host, 40000, policy, Scope::default(), &lookups, timeout).await
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

    #[tokio::test]
    async fn lookups_are_limited() {
        let lookups = Arc::new(Semaphore::new(0));
        let host = Host::parse("localhost").expect("literal");
        let policy = loopback_allowed();
        let timeout = Duration::from_secs(30);
        let refused = resolve(&host, 1, &policy, Scope::default(), &lookups, timeout).await;
        assert_eq!(refused.expect_err("none allowed").reason, "relay-limit");
        let address = Host::parse("127.0.0.1").expect("literal");
        let found = resolve(&address, 1, &policy, Scope::default(), &lookups, timeout).await;
        assert!(found.is_ok(), "no lookup needed");
    }

    /// A request that is reset must not give back what its lookup still uses.
    #[test]
    fn a_lookup_nobody_waits_for_keeps_its_place() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let lookups = Arc::new(Semaphore::new(1));
        let (release, released) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            // The only thread is busy, as with a resolver that does not answer.
            let busy = tokio::task::spawn_blocking(move || released.recv());
            let refused = lookup("localhost", 1, &lookups, Duration::from_millis(1)).await;
            assert_eq!(refused.expect_err("too slow").reason, "unreachable");
            let refused = lookup("localhost", 1, &lookups, Duration::from_millis(1)).await;
            assert_eq!(refused.expect_err("no place").reason, "relay-limit");
            drop(release);
            let _ = busy.await;
            let _free = lookups.acquire().await.expect("open");
        });
    }
}
