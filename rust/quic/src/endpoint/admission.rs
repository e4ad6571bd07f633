//! Who may start a handshake: limits on connections in all and per source prefix.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Handshakes the engine holds before they are looked at here, which happens at once; the bound
/// only matters in a flood.
pub(super) const MAX_WAITING: usize = 1024;

/// Connections from one prefix before further ones must prove their address by Retry (RFC 9000,
/// section 8.1.2): what a home, an office or a small carrier NAT makes stays below.
pub(super) const PREFIX_LIMIT: usize = 32;

/// What to do with a handshake that begins.
#[derive(Debug)]
pub(super) enum Verdict {
    Accept(Permit),
    /// Many connections from this prefix: let it prove that it can receive there.
    Retry,
    /// As many connections as allowed.
    Refuse,
}

/// Counts connections, from the first packet to the end.
#[derive(Debug)]
pub(super) struct Admission {
    max_connections: usize,
    total: AtomicUsize,
    by_prefix: Mutex<HashMap<Prefix, usize>>,
}

/// A /24 of IPv4 or a /56 of IPv6: what one site or subscriber is usually given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Prefix {
    V4([u8; 3]),
    V6([u8; 7]),
}

impl Prefix {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g])
            }
        }
    }
}

impl Admission {
    pub(super) fn new(max_connections: usize) -> Self {
        Self {
            max_connections,
            total: AtomicUsize::new(0),
            by_prefix: Mutex::new(HashMap::new()),
        }
    }

    /// `validated`: the source has proved that it receives at its address.
    pub(super) fn admit(self: &Arc<Self>, source: SocketAddr, validated: bool) -> Verdict {
        let prefix = Prefix::of(source.ip());
        // The map is never left half changed.
        let mut by_prefix = self
            .by_prefix
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.total.load(Ordering::Relaxed) >= self.max_connections {
            return Verdict::Refuse;
        }
        let count = by_prefix.get(&prefix).copied().unwrap_or(0);
        if count >= PREFIX_LIMIT && !validated {
            return Verdict::Retry;
        }
        by_prefix.insert(prefix, count + 1);
        self.total.fetch_add(1, Ordering::Relaxed);
        Verdict::Accept(Permit {
            admission: self.clone(),
            prefix,
        })
    }
}

/// The place of one connection; free again when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    prefix: Prefix,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_prefix = self
            .admission
            .by_prefix
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.admission.total.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = by_prefix.get_mut(&self.prefix) {
            *count -= 1;
            if *count == 0 {
                by_prefix.remove(&self.prefix);
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

    #[test]
    fn a_crowded_prefix_must_prove_its_address() {
        let admission = Arc::new(Admission::new(1024));
        let held: Vec<Verdict> = (0..PREFIX_LIMIT)
            .map(|host| admission.admit(source(&format!("192.0.2.{host}")), false))
            .collect();
        assert!(held.iter().all(|v| matches!(v, Verdict::Accept(_))));
        let crowded = source("192.0.2.200");
        assert!(matches!(admission.admit(crowded, false), Verdict::Retry));
        assert!(matches!(admission.admit(crowded, true), Verdict::Accept(_)));
        let mapped = source("::ffff:192.0.2.201");
        assert!(matches!(admission.admit(mapped, false), Verdict::Retry));
        let elsewhere = source("192.0.3.1");
        assert!(matches!(
            admission.admit(elsewhere, false),
            Verdict::Accept(_)
        ));
        drop(held);
        assert!(matches!(
            admission.admit(crowded, false),
            Verdict::Accept(_)
        ));
    }

    #[test]
    fn the_total_is_a_hard_limit() {
        let admission = Arc::new(Admission::new(2));
        let first = admission.admit(source("2001:db8::1"), true);
        let _second = admission.admit(source("2001:db8:1::1"), true);
        let third = source("2001:db8:2::1");
        assert!(matches!(admission.admit(third, true), Verdict::Refuse));
        drop(first);
        assert!(matches!(admission.admit(third, true), Verdict::Accept(_)));
        assert!(admission.by_prefix.lock().unwrap().len() <= 2);
    }
}
