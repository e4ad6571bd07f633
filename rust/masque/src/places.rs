//! How many connections of ordinary clients, and of nodes over TCP, there may be: in all, of one
//! source prefix, and during the handshake.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::relay::Prefix;

/// Connections of one prefix that count as few. With half of the places for handshakes taken the
/// others are for such prefixes, so that a site or two that begin and never finish do not keep
/// everybody out.
const FEW: usize = 8;

/// How many connections are taken. Beyond, they are closed at once, which costs the least and
/// tells clients to go elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of one source prefix (/24, /48); this machine is not one.
    pub per_prefix: usize,
    /// That have not finished TLS. Each costs a key exchange and two signatures.
    pub handshakes: usize,
}

impl Default for Limits {
    /// As for QUIC: 1,024 connections, 64 of one site; and as many handshakes as come in a
    /// handshake's time on slow lines before anybody notices.
    fn default() -> Self {
        Self {
            connections: 1024,
            per_prefix: 64,
            handshakes: 128,
        }
    }
}

/// Counts connections.
#[derive(Debug)]
pub(crate) struct Places {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    handshakes: usize,
    by_prefix: HashMap<Prefix, usize>,
}

/// The place of one connection, in handshake at first; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    /// `None` for this machine.
    prefix: Option<Prefix>,
    in_handshake: bool,
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            taken: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while holding the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `source`, if there is one.
    pub(crate) fn take(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let loopback = source.to_canonical().is_loopback();
        let prefix = (!loopback).then(|| Prefix::source(source));
        let mut taken = self.lock();
        if taken.connections >= self.limits.connections
            || taken.handshakes >= self.limits.handshakes
        {
            return None;
        }
        if let Some(prefix) = prefix {
            let of_prefix = taken.by_prefix.get(&prefix).copied().unwrap_or(0);
            let scarce = taken.handshakes >= self.limits.handshakes / 2;
            if of_prefix >= self.limits.per_prefix || (scarce && of_prefix >= FEW) {
                return None;
            }
            taken.by_prefix.insert(prefix, of_prefix + 1);
        }
        taken.connections += 1;
        taken.handshakes += 1;
        Some(Place {
            places: self.clone(),
            prefix,
            in_handshake: true,
        })
    }
}

impl Place {
    /// It is a handshake no more.
    pub(crate) fn handshake_done(&mut self) {
        if std::mem::take(&mut self.in_handshake) {
            self.places.lock().handshakes -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.connections -= 1;
        taken.handshakes -= usize::from(self.in_handshake);
        if let Some(prefix) = self.prefix
            && let Some(count) = taken.by_prefix.get_mut(&prefix)
        {
            *count -= 1;
            if *count == 0 {
                taken.by_prefix.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections: usize, per_prefix: usize, handshakes: usize) -> Arc<Places> {
        Places::new(Limits {
            connections,
            per_prefix,
            handshakes,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_site_has_its_share_and_this_machine_is_no_site() {
        let places = places(100, 2, 100);
        let held = [
            places.take(ip("192.0.2.1")).unwrap(),
            places.take(ip("::ffff:192.0.2.2")).unwrap(),
        ];
        assert!(places.take(ip("192.0.2.3")).is_none());
        let _other = places.take(ip("198.51.100.1")).unwrap();
        let _v6 = [
            places.take(ip("2001:db8:0:100::1")).unwrap(),
            places.take(ip("2001:db8:0:1ff::1")).unwrap(),
        ];
        assert!(places.take(ip("2001:db8:0:180::1")).is_none());
        let _local: Vec<Place> = (0..10)
            .map(|_| places.take(ip("127.0.0.1")).unwrap())
            .collect();
        drop(held);
        drop(places.take(ip("192.0.2.3")).unwrap());
        assert_eq!(places.lock().by_prefix.len(), 2);
    }

    #[test]
    fn handshakes_that_never_end_leave_room_for_others() {
        let places = places(1000, 64, 128);
        let stuck: Vec<Place> = (0..200)
            .filter_map(|number| places.take(IpAddr::from([192, 0, number % 2, number])))
            .collect();
        assert_eq!(stuck.len(), 64);
        let others: Vec<Place> = (0..8)
            .map(|number| places.take(IpAddr::from([198, 51, 100, number])).unwrap())
            .collect();
        assert!(places.take(ip("198.51.100.9")).is_none());
        assert!(places.take(ip("203.0.113.1")).is_some());
        drop((stuck, others));
        assert!(places.lock().by_prefix.is_empty());
    }

    #[test]
    fn handshakes_and_connections_are_hard_limits() {
        let places = places(3, 100, 2);
        let local = ip("::1");
        let mut first = places.take(local).unwrap();
        let second = places.take(local).unwrap();
        assert!(places.take(local).is_none(), "two handshakes");
        first.handshake_done();
        first.handshake_done();
        let third = places.take(local).unwrap();
        drop(second);
        let _fourth = places.take(local).unwrap();
        assert!(places.take(local).is_none(), "three connections");
        drop(third);
        drop(first);
        let taken = places.lock();
        assert_eq!((taken.connections, taken.handshakes), (1, 1));
    }
}
