//! Keeps the endpoint going while the addresses of its host change: has the engine find new source
//! addresses, moves a socket whose own address is gone, and tells whoever drives the endpoint.
//!
//! What follows for candidates, tunnels and reservations is decided there.

use std::{
    future::pending,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyreach_net::{
    BindOptions, InterfaceAddress, NetworkState, NetworkWatch, interface_addresses,
};
use noq::{FourTuple, NetworkChangeHint, PathId};

use super::Endpoint;
use crate::throttle::{Pace, Throttle};

/// How long nothing must change before a change is told: the old address goes, a new one comes, then
/// a route. A little longer than the shortest time between two looks of the watch.
const QUIET: Duration = Duration::from_millis(120);

/// Longest time a change is kept back, whatever follows.
const PATIENCE: Duration = Duration::from_millis(200);

/// How often a send failure may have all connections look for new source addresses. One look mends
/// all paths, so more than a few in a row are of no use.
const SOURCE_GONE_PACE: Pace = Pace {
    burst: 4,
    period: Duration::from_millis(500),
};

/// Has every path go on where it is: its local address is found anew, it is pinged at once, and its
/// probe timeout starts from the beginning.
///
/// The engine's other way, to close paths and open new ones to the same addresses, declares what was
/// under way lost late, costs path numbers, and would end a connection whose only path it was if no
/// answer comes at once, which is the usual case while a cable is being moved. The accepting side
/// follows a path to its new address by itself (RFC 9000, section 9), and tunnelled paths, whose
/// addresses mean nothing to the network, are only pinged. Paths that do not survive are closed by the
/// vigil, by evidence.
#[derive(Debug)]
struct GoOn;

impl NetworkChangeHint for GoOn {
    fn is_path_recoverable(&self, _: PathId, _: FourTuple) -> bool {
        true
    }
}

impl Endpoint {
    /// Follows the network until dropped.
    pub(super) async fn follow_network(&self) {
        let mut home = Home::of(self.0.config.bind_addr.ip());
        let mut watch = match NetworkWatch::new() {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::debug!(%error, "changes of the network are noticed by failures only");
                None
            }
        };
        let mut known = watch.as_ref().map(|watch| watch.state().clone());
        let mut failures = Throttle::new(SOURCE_GONE_PACE, Instant::now());
        // When the change was first seen, and when it is to be told.
        let mut untold: Option<(Instant, Instant)> = None;
        loop {
            tokio::select! {
                gone = self.0.socket.source_gone() => {
                    if gone.is_err() {
                        return;
                    }
                    if failures.take(Instant::now()).is_ok() {
                        self.go_on();
                        self.0.journal.network("source-gone");
                    }
                }
                state = changed(&mut watch) => {
                    let now = Instant::now();
                    let moved = home.as_mut().is_some_and(|home| self.stay(home, &state));
                    if moved || known.as_ref().is_none_or(|known| concerns_paths(known, &state)) {
                        self.go_on();
                    }
                    known = Some(state);
                    let first = untold.map_or(now, |(first, _)| first);
                    untold = Some((first, (now + QUIET).min(first + PATIENCE)));
                }
                () = until(untold), if untold.is_some() => {
                    untold = None;
                    self.0.journal.network("interfaces");
                }
            }
        }
    }

    /// Has all connections find out where they send from.
    fn go_on(&self) {
        self.0.engine.handle_network_change(Some(Arc::new(GoOn)));
    }

    /// Moves the socket if the address it was bound to has left the host. True if it was moved.
    fn stay(&self, home: &mut Home, state: &NetworkState) -> bool {
        let Some(ip) = home.choose(&state.addresses) else {
            return false;
        };
        let Ok(before) = self.0.socket.local_addr() else {
            return false;
        };
        let addr = SocketAddr::new(ip, before.port());
        let config = &self.0.config;
        let bound = anyreach_net::bind(&BindOptions {
            addr,
            ip_mode: config.ip_mode,
            allow_ipv4_mapped: config.allow_ipv4_mapped,
            buffer_bytes: config.socket_buffer,
        });
        let moved = bound.map_err(|error| error.to_string()).and_then(|bound| {
            self.0
                .socket
                .rebind(bound)
                .map_err(|error| error.to_string())
        });
        match moved {
            Ok(()) => {
                tracing::info!(%before, %addr, "the bound address has left the host, moved");
                home.at = ip;
                true
            }
            Err(error) => {
                tracing::warn!(%addr, error, "the socket cannot move");
                false
            }
        }
    }
}

/// Where a socket belongs that was bound to an address of its own: to one interface. Whoever chose
/// the address did not want to be reached on all.
struct Home {
    wanted: IpAddr,
    interface: String,
    at: IpAddr,
}

impl Home {
    /// `None` for the unspecified address, and where the interface cannot be told.
    fn of(bound: IpAddr) -> Option<Self> {
        let wanted = bound.to_canonical();
        if wanted.is_unspecified() {
            return None;
        }
        let all = interface_addresses().ok()?;
        let interface = all.into_iter().find(|entry| entry.addr == wanted)?.name;
        Some(Self {
            wanted,
            interface,
            at: wanted,
        })
    }

    /// Where to go, if to go at all: back to the wanted address when it is there again; from one that
    /// has gone to one of the same family and interface. While there is none, the socket stays, and
    /// works again when its address returns.
    fn choose(&self, addresses: &[InterfaceAddress]) -> Option<IpAddr> {
        let has = |ip| addresses.iter().any(|entry| entry.addr == ip);
        if self.at != self.wanted && has(self.wanted) {
            return Some(self.wanted);
        }
        if has(self.at) {
            return None;
        }
        let at_home = addresses.iter().filter(|entry| {
            entry.name == self.interface
                && entry.addr.is_ipv4() == self.wanted.is_ipv4()
                && entry.addr.is_loopback() == self.wanted.is_loopback()
                && !is_link_local(entry.addr)
        });
        at_home.map(|entry| entry.addr).next()
    }
}

/// Binding such an address needs its scope, and hardly any peer is reached by it.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether paths that worked before may not work any more. A new address alone, such as that of a
/// container's bridge, changes nothing for them.
fn concerns_paths(before: &NetworkState, after: &NetworkState) -> bool {
    let lost = |entry: &InterfaceAddress| !after.addresses.iter().any(|e| e.addr == entry.addr);
    before.addresses.iter().any(lost)
        || (before.source_v4, before.source_v6) != (after.source_v4, after.source_v6)
        || before.suspended != after.suspended
}

async fn changed(watch: &mut Option<NetworkWatch>) -> NetworkState {
    match watch {
        Some(watch) => watch.changed().await.clone(),
        None => pending().await,
    }
}

async fn until(untold: Option<(Instant, Instant)>) {
    if let Some((_, due)) = untold {
        tokio::time::sleep_until(due.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, addr: &str) -> InterfaceAddress {
        InterfaceAddress {
            name: name.to_owned(),
            addr: addr.parse().expect("literal"),
            prefix_len: 24,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn a_socket_stays_on_its_interface() {
        let mut home = Home {
            wanted: ip("192.0.2.1"),
            interface: "eth0".to_owned(),
            at: ip("192.0.2.1"),
        };
        let elsewhere = entry("eth1", "198.51.100.1");
        let six = entry("eth0", "2001:db8::1");
        let linked = entry("eth0", "169.254.0.1");
        let there = entry("eth0", "192.0.2.1");
        let new = entry("eth0", "192.0.2.9");
        assert_eq!(
            home.choose(&[elsewhere.clone(), there.clone(), new.clone()]),
            None
        );
        assert_eq!(home.choose(&[elsewhere.clone(), six, linked]), None);
        assert_eq!(home.choose(&[elsewhere, new.clone()]), Some(new.addr));
        home.at = new.addr;
        assert_eq!(home.choose(std::slice::from_ref(&new)), None);
        assert_eq!(home.choose(&[new, there.clone()]), Some(there.addr));
        assert!(Home::of(ip("::")).is_none());
        assert!(Home::of(ip("203.0.113.77")).is_none());
    }

    #[test]
    fn what_only_comes_concerns_no_path() {
        let state = |addresses: &[InterfaceAddress], source: Option<[u8; 4]>| NetworkState {
            addresses: addresses.to_vec(),
            source_v4: source.map(Into::into),
            source_v6: None,
            suspended: Duration::ZERO,
        };
        let (one, two) = (entry("eth0", "192.0.2.1"), entry("br0", "172.17.0.1"));
        let before = state(std::slice::from_ref(&one), Some([192, 0, 2, 1]));
        let more = state(&[one, two.clone()], Some([192, 0, 2, 1]));
        assert!(!concerns_paths(&before, &more));
        assert!(concerns_paths(&more, &before));
        let moved = state(&more.addresses, Some([172, 17, 0, 1]));
        assert!(concerns_paths(&more, &moved));
        let woken = NetworkState {
            suspended: Duration::from_secs(60),
            ..more.clone()
        };
        assert!(concerns_paths(&more, &woken));
    }
}
