//! Which addresses a peer may have this node send probes to.
//!
//! Pure. A peer that offers addresses has this node send packets to them, from inside the network it
//! stands in. So addresses that mean something here and not to the peer are refused: those of this
//! host and this link always, those of private networks unless the peer is known to be in the same
//! one, and those at which no peer is anyway.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, PoisonError, RwLock},
};

use anyreach_net::{Prefix, is_synthetic, ports};
use anyreach_wire::address::Address;

/// Why an address of a peer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No single host of the Internet has it, or only this one, or it is another one in disguise.
    Scope,
    /// It is one of a private network, and not of one that is near.
    Far,
    /// Something else than a peer listens there.
    Port,
}

/// Networks in which addresses of peers are not refused. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Near(Arc<RwLock<Arc<[Prefix]>>>);

impl Near {
    /// Replaces them.
    pub(crate) fn set(&self, prefixes: impl IntoIterator<Item = Prefix>) {
        let prefixes = prefixes.into_iter().collect();
        // Replaced as a whole.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = prefixes;
    }

    /// Those of now.
    pub(crate) fn get(&self) -> Arc<[Prefix]> {
        let prefixes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        prefixes.clone()
    }
}

/// Judges an address a peer offers; `near` are the networks this node shares with it. Loopback is
/// near only if it is named itself (`127.0.0.0/8`, not `0.0.0.0/0`): that is for nodes on one host.
///
/// # Errors
/// [`Refusal`].
pub(crate) fn check(address: Address, near: &[&[Prefix]]) -> Result<(), Refusal> {
    if address.port() == 0 || ports::is_denied(address.port()) {
        return Err(Refusal::Port);
    }
    let ip = address.ip();
    let mut around = near
        .iter()
        .copied()
        .flatten()
        .filter(|prefix| prefix.contains(ip));
    match extent(ip) {
        Extent::Internet => Ok(()),
        Extent::Site if around.next().is_some() => Ok(()),
        Extent::Site => Err(Refusal::Far),
        Extent::Host if around.any(|prefix| prefix.first().is_loopback()) => Ok(()),
        Extent::Host | Extent::Unusable => Err(Refusal::Scope),
    }
}

/// How far an address means the same.
enum Extent {
    /// Everywhere, as far as its range says. Documentation ranges are among them: laboratories
    /// use them.
    Internet,
    /// In one private network, or behind one provider's NAT.
    Site,
    /// On this host.
    Host,
    /// On this link, to several hosts, to none; or it stands for an IPv4 address that has a form of
    /// its own.
    Unusable,
}

fn extent(ip: IpAddr) -> Extent {
    match ip {
        // Whatever it is near to: such an address chooses a tunnel of this node.
        _ if is_synthetic(ip) => Extent::Unusable,
        IpAddr::V4(v4) => extent_of_v4(v4),
        IpAddr::V6(v6) => extent_of_v6(v6),
    }
}

/// By the IANA IPv4 special-purpose address registry.
fn extent_of_v4(ip: Ipv4Addr) -> Extent {
    match ip.octets() {
        [127, ..] => Extent::Host,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Extent::Site,
        // This network, link-local, protocol assignments, 6to4 relays, benchmarks; multicast,
        // reserved and broadcast.
        [0, ..]
        | [169, 254, ..]
        | [192, 0, 0, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [224..=255, ..] => Extent::Unusable,
        _ => Extent::Internet,
    }
}

/// By the IANA IPv6 special-purpose address registry. Only 2000::/3 has been given out for global
/// unicast; within it Teredo, other protocol assignments and 6to4 stand for something else.
fn extent_of_v6(ip: Ipv6Addr) -> Extent {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Extent::Host,
        [0xfc00..=0xfdff, ..] => Extent::Site,
        [0x2001, 0..=0x1ff, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => Extent::Unusable,
        [0x2000..=0x3fff, ..] => Extent::Internet,
        _ => Extent::Unusable,
    }
}

#[cfg(test)]
mod tests {
    use anyreach_net::SyntheticAddr;
    use proptest::prelude::*;

    use super::*;

    fn judged(ip: &str, near: &[&str]) -> Result<(), Refusal> {
        let near: Vec<Prefix> = near.iter().map(|text| text.parse().unwrap()).collect();
        check(Address::new(ip.parse().unwrap(), 9000), &[&[], &near])
    }

    #[test]
    fn public_addresses_pass() {
        for ip in [
            "198.51.100.1",
            "203.0.113.9",
            "8.8.8.8",
            "::ffff:8.8.8.8",
            "2001:db8::1",
            "2a00::1",
        ] {
            assert_eq!(judged(ip, &[]), Ok(()), "{ip}");
        }
    }

    #[test]
    fn private_addresses_pass_if_they_are_near() {
        for (ip, near) in [
            ("10.1.2.3", "10.1.0.0/16"),
            ("::ffff:172.16.0.1", "172.16.0.0/24"),
            ("192.168.1.7", "192.168.1.0/24"),
            ("100.64.3.4", "100.64.0.0/10"),
            ("fd12::1", "fd12::/64"),
            ("127.0.0.1", "127.0.0.0/8"),
            ("::1", "::1/128"),
        ] {
            let refusal = match ip {
                "127.0.0.1" | "::1" => Refusal::Scope,
                _ => Refusal::Far,
            };
            assert_eq!(judged(ip, &[]), Err(refusal), "{ip}");
            assert_eq!(judged(ip, &["192.168.2.0/24"]), Err(refusal), "{ip}");
            assert_eq!(judged(ip, &["192.168.2.0/24", near]), Ok(()), "{ip}");
        }
    }

    #[test]
    fn no_network_makes_these_near() {
        let synthetic = SyntheticAddr::new(1, 2).socket_addr().ip().to_string();
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.169.254",
            "192.0.0.170",
            "224.0.0.251",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fec0::1",
            "::192.168.1.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::10.0.0.1",
            "2002:a00:1::1",
            "2001:0:a00:1::1",
            "4000::1",
            &synthetic,
        ] {
            let everywhere = ["0.0.0.0/0", "::/0"];
            assert_eq!(judged(ip, &everywhere), Err(Refusal::Scope), "{ip}");
        }
    }

    #[test]
    fn some_ports_are_refused_everywhere() {
        for port in [0, 53, 123, 1900, 5353, 11211] {
            let address = Address::new("203.0.113.9".parse().unwrap(), port);
            assert_eq!(check(address, &[]), Err(Refusal::Port), "{port}");
        }
    }

    proptest! {
        /// Whatever passes is an address a datagram can be sent to, outside this host and link.
        #[test]
        fn what_passes_is_sane(v4: [u8; 4], v6: [u8; 16], high: bool, port: u16) {
            let ip = if high { IpAddr::from(v4) } else { IpAddr::from(v6) };
            let address = Address::new(ip, port);
            if check(address, &[]).is_ok() {
                prop_assert!(anyreach_net::is_possible_peer(address.into()));
                prop_assert!(!address.ip().is_loopback() && !is_synthetic(address.ip()));
                prop_assert!(!matches!(address.ip(), IpAddr::V4(ip) if ip.is_private() || ip.is_link_local()));
                prop_assert!(!matches!(address.ip(), IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local()));
            }
        }
    }
}
