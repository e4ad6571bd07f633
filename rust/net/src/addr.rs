//! The forms of an address: canonical, the engine's, and the socket's.
//!
//! Pure functions but for reading a socket's family. The crate documentation says where which form is used.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
};

/// The one form of an address in which it may be compared, stored, shown or sent to a peer.
///
/// IPv4-mapped IPv6 becomes IPv4. The flow label is cleared and the scope kept only where it has a
/// meaning (link-local and multicast), as RFC 3493 section 3.3 asks, so that equal addresses are
/// equal.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => {
                let scoped = v6.ip().is_unicast_link_local() || v6.ip().is_multicast();
                let scope_id = if scoped { v6.scope_id() } else { 0 };
                SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope_id))
            }
        },
    }
}

/// [`canonical`] for an address without a port.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// The form in which the engine holds remote addresses: always IPv6, IPv4 mapped into it.
pub fn engine_form(addr: SocketAddr) -> SocketAddr {
    match canonical(addr) {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        v6 => v6,
    }
}

/// What families a UDP socket can address, by the way it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketFamily {
    /// `AF_INET`.
    V4,
    /// `AF_INET6` with `IPV6_V6ONLY` set.
    V6Only,
    /// `AF_INET6` that takes IPv4 in mapped form.
    Dual,
}

impl SocketFamily {
    /// The family of a bound socket somebody else has made.
    pub(crate) fn of(socket: &UdpSocket) -> io::Result<Self> {
        Ok(match socket.local_addr()? {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) if socket2::SockRef::from(socket).only_v6()? => Self::V6Only,
            SocketAddr::V6(_) => Self::Dual,
        })
    }

    /// The socket form of a destination; `None` if this socket cannot address its family.
    pub(crate) fn destination(self, addr: SocketAddr) -> Option<SocketAddr> {
        match (self, canonical(addr)) {
            (Self::V4, v4 @ SocketAddr::V4(_)) => Some(v4),
            (Self::V6Only | Self::Dual, v6 @ SocketAddr::V6(_)) => Some(v6),
            (Self::Dual, v4 @ SocketAddr::V4(_)) => Some(engine_form(v4)),
            (Self::V4, SocketAddr::V6(_)) | (Self::V6Only, SocketAddr::V4(_)) => None,
        }
    }

    /// The socket form of a source address that has the family of the (canonical) destination.
    pub(crate) fn source(self, ip: IpAddr) -> IpAddr {
        match (self, ip.to_canonical()) {
            (Self::Dual, IpAddr::V4(v4)) => IpAddr::V6(v4.to_ipv6_mapped()),
            (_, ip) => ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn any_addr() -> impl Strategy<Value = SocketAddr> {
        let v4 = any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from);
        let mapped = any::<(Ipv4Addr, u16)>()
            .prop_map(|(ip, port)| SocketAddr::from((ip.to_ipv6_mapped(), port)));
        let v6 = any::<(Ipv6Addr, u16, u32, u32)>().prop_map(|(ip, port, flow, scope)| {
            SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope))
        });
        let link_local = any::<(u64, u16, u32)>().prop_map(|(host, port, scope)| {
            let ip = Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(host));
            SocketAddr::V6(SocketAddrV6::new(ip, port, 7, scope))
        });
        prop_oneof![v4, mapped, v6, link_local]
    }

    proptest! {
        #[test]
        fn canonical_is_idempotent_and_never_mapped(addr in any_addr()) {
            let once = canonical(addr);
            prop_assert_eq!(once, canonical(once));
            prop_assert_eq!(once.port(), addr.port());
            prop_assert_eq!(once.ip(), canonical_ip(addr.ip()));
            if let SocketAddr::V6(v6) = once {
                prop_assert!(v6.ip().to_ipv4_mapped().is_none());
                prop_assert_eq!(v6.flowinfo(), 0);
            }
        }

        #[test]
        fn engine_form_is_ipv6_and_reversible(addr in any_addr()) {
            let engine = engine_form(addr);
            prop_assert!(engine.is_ipv6());
            prop_assert_eq!(canonical(engine), canonical(addr));
            prop_assert_eq!(engine_form(engine), engine);
        }

        #[test]
        fn socket_form_keeps_the_address_or_refuses_it(addr in any_addr()) {
            for family in [SocketFamily::V4, SocketFamily::V6Only, SocketFamily::Dual] {
                match family.destination(addr) {
                    Some(wire) => {
                        prop_assert_eq!(canonical(wire), canonical(addr));
                        prop_assert_eq!(wire.is_ipv4(), family == SocketFamily::V4);
                    }
                    None => prop_assert_ne!(family, SocketFamily::Dual),
                }
            }
        }
    }

    #[test]
    fn scope_survives_only_where_it_means_something() {
        let link_local: SocketAddr = "[fe80::1%3]:9".parse().expect("literal");
        let SocketAddr::V6(v6) = canonical(link_local) else {
            panic!("stays IPv6")
        };
        assert_eq!(v6.scope_id(), 3);

        let global = SocketAddr::V6(SocketAddrV6::new(
            "2001:db8::1".parse().expect("literal"),
            9,
            5,
            3,
        ));
        assert_eq!(
            canonical(global),
            "[2001:db8::1]:9".parse().expect("literal")
        );
    }
}
