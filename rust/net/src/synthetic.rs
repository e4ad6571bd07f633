//! Addresses that exist only between this socket and the engine: one per remote of a tunnel.
//!
//! The same remote `ip:port` can be reachable directly and through a relay. For the engine a path
//! *is* its addresses, so what comes out of a tunnel gets an address of its own, and the two are
//! two paths of one connection. Such an address names a slot of this process and nothing else: it
//! is never sent to anybody, and datagrams from the network that claim one are forgeries.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// The prefix of all synthetic addresses, a unique local IPv6 /48 (RFC 4193).
///
/// IPv6, because the engine is always shown IPv6 and the bits suffice; unique local, because such
/// an address cannot be routed even if it did leak. The 40 bits of the global id are the first of
/// SHA-256("anyreach synthetic addresses"): random as RFC 4193 section 3.2 asks, and visibly not
/// taken from anybody's network. The chance that a given site uses the same is 2^-40.
pub const SYNTHETIC_PREFIX: [u8; 6] = [0xfd, 0x5a, 0xb0, 0xb4, 0xe5, 0x61];

/// The port of all synthetic addresses: any but 0, which the engine does not dial.
const SYNTHETIC_PORT: u16 = 1;

/// Whether `ip` lies in [`SYNTHETIC_PREFIX`], well-formed or not. Such an address must not be
/// gathered, offered, adopted, logged or shown.
#[inline]
pub fn is_synthetic(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.octets()[..6] == SYNTHETIC_PREFIX,
    }
}

/// The address under which the engine knows remote number `index` of tunnel number `tunnel`.
///
/// Layout: 48 bits prefix, 16 bits zero, 32 bits tunnel, 32 bits index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SyntheticAddr {
    tunnel: u32,
    index: u32,
}

impl SyntheticAddr {
    /// Names remote `index` of tunnel `tunnel`.
    pub const fn new(tunnel: u32, index: u32) -> Self {
        Self { tunnel, index }
    }

    /// Reads a synthetic address; `None` for any other address, and for one in the prefix that
    /// [`SyntheticAddr::socket_addr`] does not make.
    pub fn from_socket_addr(addr: SocketAddr) -> Option<Self> {
        let SocketAddr::V6(v6) = addr else {
            return None;
        };
        if !is_synthetic(addr.ip()) {
            return None;
        }
        let host = u128::from(*v6.ip());
        let found = Self {
            // Truncation selects the field.
            tunnel: (host >> 32) as u32,
            index: host as u32,
        };
        (found.socket_addr() == addr).then_some(found)
    }

    /// The number of the tunnel, as [`Tunnel::number`](crate::mux::Tunnel::number) gives it.
    pub const fn tunnel(self) -> u32 {
        self.tunnel
    }

    /// The number of the remote within its tunnel.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// The form the engine dials and reports.
    pub fn socket_addr(self) -> SocketAddr {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&SYNTHETIC_PREFIX);
        octets[8..12].copy_from_slice(&self.tunnel.to_be_bytes());
        octets[12..].copy_from_slice(&self.index.to_be_bytes());
        SocketAddr::from((Ipv6Addr::from(octets), SYNTHETIC_PORT))
    }
}

impl From<SyntheticAddr> for SocketAddr {
    fn from(addr: SyntheticAddr) -> Self {
        addr.socket_addr()
    }
}

impl fmt::Display for SyntheticAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tunnel {} remote {}", self.tunnel, self.index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::{canonical, engine_form};

    proptest! {
        #[test]
        fn every_slot_has_an_address_that_leads_back(tunnel: u32, index: u32) {
            let slot = SyntheticAddr::new(tunnel, index);
            let addr = slot.socket_addr();
            prop_assert!(is_synthetic(addr.ip()));
            prop_assert_eq!(SyntheticAddr::from_socket_addr(addr), Some(slot));
            prop_assert_eq!((slot.tunnel(), slot.index()), (tunnel, index));
            // Neither form of an address changes it, so it is one address everywhere.
            prop_assert_eq!(canonical(addr), addr);
            prop_assert_eq!(engine_form(addr), addr);
        }

        #[test]
        fn reading_is_exact(host: [u8; 10], port: u16) {
            let mut octets = [0; 16];
            octets[..6].copy_from_slice(&SYNTHETIC_PREFIX);
            octets[6..].copy_from_slice(&host);
            let addr = SocketAddr::from((octets, port));
            prop_assert!(is_synthetic(addr.ip()));
            if let Some(slot) = SyntheticAddr::from_socket_addr(addr) {
                prop_assert_eq!(slot.socket_addr(), addr);
            } else {
                prop_assert!(port != SYNTHETIC_PORT || octets[6..8] != [0, 0]);
            }
        }

        #[test]
        fn other_addresses_are_not_synthetic(octets: [u8; 16], v4: [u8; 4], port: u16) {
            prop_assume!(octets[..6] != SYNTHETIC_PREFIX);
            for addr in [SocketAddr::from((octets, port)), SocketAddr::from((v4, port))] {
                prop_assert!(!is_synthetic(addr.ip()));
                prop_assert_eq!(SyntheticAddr::from_socket_addr(addr), None);
            }
        }
    }

    #[test]
    fn the_prefix_is_a_unique_local_one() {
        let SocketAddr::V6(addr) = SyntheticAddr::new(1, 2).socket_addr() else {
            panic!("synthetic addresses are IPv6")
        };
        assert!(addr.ip().is_unique_local());
        assert_eq!(addr.to_string(), "[fd5a:b0b4:e561::1:0:2]:1");
    }
}
