//! Who may start a handshake: limits on connections in all, per source prefix, and on handshakes
//! whose source has not proved its address.
//!
//! The last one is what a flood of forged first packets meets: beyond it everybody new is asked
//! for a Retry (RFC 9000, section 8.1.2), which costs an honest peer a round trip and forged ones
//! everything. Places are refused only to sources that are real.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyreach_net::SyntheticAddr;

/// Handshakes the engine holds before they are looked at here, which happens at once; the bound
/// only matters in a flood.
pub(super) const MAX_WAITING: usize = 1024;

/// Handshakes in progress from unproved addresses. A handshake takes a round trip or two, so this
/// is a few hundred new peers a second on slow lines before anyone pays a Retry.
const UNPROVED_LIMIT: usize = 64;

/// Connections from one prefix before further ones must prove their address: what a home, an
/// office or a small carrier NAT makes stays below.
const PREFIX_FREE: usize = 32;

/// No prefix gets more than one in this many of all places, once it has [`PREFIX_FREE`].
const PREFIX_SHARE: usize = 2;

/// What to do with a handshake that begins.
#[derive(Debug)]
pub(super) enum Verdict {
    Accept(Permit),
    /// Let it prove that it can receive where it sends from.
    Retry,
    /// As many connections as allowed.
    Refuse,
}

/// Counts connections, from the first packet to the end.
#[derive(Debug)]
pub(super) struct Admission {
    max_connections: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    unproved: usize,
    by_prefix: HashMap<Prefix, usize>,
}

/// A /24 of IPv4 or a /48 of IPv6: the most one site is given for the asking (RFC 6177), so that
/// nobody counts as many. Or a tunnel, or this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Prefix {
    V4([u8; 3]),
    V6([u8; 6]),
    Tunnel(u32),
    Loopback,
}

impl Prefix {
    fn of(source: SocketAddr) -> Self {
        if let Some(synthetic) = SyntheticAddr::from_socket_addr(source) {
            return Self::Tunnel(synthetic.tunnel());
        }
        let ip = source.ip().to_canonical();
        if ip.is_loopback() {
            return Self::Loopback;
        }
        match ip {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

impl Admission {
    pub(super) fn new(max_connections: usize) -> Self {
        Self {
            max_connections,
            counts: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while holding the lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `proved`: the source has shown that it receives at its address.
    pub(super) fn admit(self: &Arc<Self>, source: SocketAddr, proved: bool) -> Verdict {
        let prefix = Prefix::of(source);
        let mut counts = self.lock();
        let of_prefix = counts.by_prefix.get(&prefix).copied().unwrap_or(0);
        let full = counts.total >= self.max_connections;
        let share = (self.max_connections / PREFIX_SHARE).max(PREFIX_FREE);
        let share_used = of_prefix >= share && prefix != Prefix::Loopback;
        if !proved && (full || of_prefix >= PREFIX_FREE || counts.unproved >= UNPROVED_LIMIT) {
            return Verdict::Retry;
        }
        if full || share_used {
            return Verdict::Refuse;
        }
        counts.total += 1;
        counts.unproved += usize::from(!proved);
        counts.by_prefix.insert(prefix, of_prefix + 1);
        Verdict::Accept(Permit {
            admission: self.clone(),
            prefix,
            proved,
        })
    }
}

/// The place of one connection; free again when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    prefix: Prefix,
    proved: bool,
}

impl Permit {
    /// The handshake is complete, so the source receives at its address.
    pub(super) fn proved(&mut self) {
        if !std::mem::replace(&mut self.proved, true) {
            self.admission.lock().unproved -= 1;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.total -= 1;
        counts.unproved -= usize::from(!self.proved);
        if let Some(count) = counts.by_prefix.get_mut(&self.prefix) {
            *count -= 1;
            if *count == 0 {
                counts.by_prefix.remove(&self.prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 4433)
    }

    fn accepted(verdict: Verdict) -> Permit {
        match verdict {
            Verdict::Accept(permit) => permit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_crowded_prefix_must_prove_its_address_and_has_its_share() {
        let admission = Arc::new(Admission::new(128));
        let crowded = source("192.0.2.200");
        let mut held: Vec<Permit> = (0..PREFIX_FREE)
            .map(|host| accepted(admission.admit(source(&format!("192.0.2.{host}")), false)))
            .collect();
        assert!(matches!(admission.admit(crowded, false), Verdict::Retry));
        let mapped = source("::ffff:192.0.2.201");
        assert!(matches!(admission.admit(mapped, false), Verdict::Retry));
        drop(accepted(admission.admit(source("192.0.3.1"), false)));
        for _ in PREFIX_FREE..64 {
            held.push(accepted(admission.admit(crowded, true)));
        }
        assert!(matches!(admission.admit(crowded, true), Verdict::Refuse));
        drop(held);
        drop(accepted(admission.admit(crowded, false)));
        assert!(admission.lock().by_prefix.is_empty());
    }

    #[test]
    fn a_site_with_many_networks_is_one_stranger() {
        let admission = Arc::new(Admission::new(128));
        // Four networks in each /56 of a /48.
        let of_site = |n: u16| source(&format!("2001:db8:7:{:x}::1", n.rotate_left(8)));
        let mut held: Vec<Permit> = Vec::new();
        for n in 0..1024 {
            if let Verdict::Accept(permit) = admission.admit(of_site(n), true) {
                held.push(permit);
            }
        }
        assert_eq!(held.len(), 64);
        drop(accepted(admission.admit(source("2001:db8:8::1"), true)));
        drop(accepted(admission.admit(source("192.0.2.1"), true)));
    }

    #[test]
    fn the_total_is_a_hard_limit_and_told_only_to_real_sources() {
        let admission = Arc::new(Admission::new(2));
        let first = accepted(admission.admit(source("2001:db8::1"), true));
        let _second = accepted(admission.admit(source("2001:db8:1::1"), true));
        let third = source("2001:db8:2::1");
        assert!(matches!(admission.admit(third, false), Verdict::Retry));
        assert!(matches!(admission.admit(third, true), Verdict::Refuse));
        drop(first);
        drop(accepted(admission.admit(third, true)));
    }

    #[test]
    fn a_flood_of_forged_sources_shuts_nobody_out() {
        let admission = Arc::new(Admission::new(1024));
        let flood: Vec<Verdict> = (0..2000u32)
            .map(|n| {
                let [_, b, c, _] = (n << 8).to_be_bytes();
                admission.admit(source(&format!("198.{b}.{c}.1")), false)
            })
            .collect();
        let held = flood
            .iter()
            .filter(|verdict| matches!(verdict, Verdict::Accept(_)))
            .count();
        assert_eq!(held, UNPROVED_LIMIT);
        // The honest one is asked to prove itself, does, and is let in.
        let honest = source("203.0.113.5");
        assert!(matches!(admission.admit(honest, false), Verdict::Retry));
        let mut permit = accepted(admission.admit(honest, true));
        permit.proved();
        // Handshakes that come through make room for others.
        drop(flood);
        let mut one = accepted(admission.admit(honest, false));
        assert_eq!(admission.lock().unproved, 1);
        one.proved();
        one.proved();
        assert_eq!(admission.lock().unproved, 0);
    }

    #[test]
    fn tunnels_and_this_machine_are_no_prefixes() {
        let admission = Arc::new(Admission::new(256));
        let tunnelled = |tunnel| SyntheticAddr::new(tunnel, 1).socket_addr();
        let _held: Vec<Permit> = (0..PREFIX_FREE)
            .map(|_| accepted(admission.admit(tunnelled(1), false)))
            .collect();
        drop(accepted(admission.admit(tunnelled(2), false)));
        let _local: Vec<Permit> = (0..200)
            .map(|_| accepted(admission.admit(source("127.0.0.1"), true)))
            .collect();
    }
}
