//! Where the host stands: its router, and its own address towards that.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// A host behind a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The default gateway.
    pub(super) gateway: Ipv4Addr,
    /// Our address and port as the router sees them.
    pub(super) internal: (Ipv4Addr, u16),
}

impl Place {
    /// Where a socket bound to `bound` stands now; why no router is to be asked, else.
    pub(super) fn of(bound: SocketAddr) -> Result<Self, String> {
        let wanted = match bound.ip().to_canonical() {
            ip if ip.is_unspecified() => None,
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => return Err("IPv6 has no ports to map".to_owned()),
        };
        let gateway = default_gateway().ok_or("no default route")?;
        let own = own_address(gateway).ok_or("no route to the gateway")?;
        if wanted.is_some_and(|wanted| wanted != own) {
            return Err("the socket is bound to another network".to_owned());
        }
        if !is_behind_nat(own) {
            return Err(format!("{own} needs no mapping"));
        }
        Ok(Self {
            gateway,
            internal: (own, bound.port()),
        })
    }

    pub(super) fn internal_addr(&self) -> SocketAddr {
        self.internal.into()
    }
}

/// Whether an address can only be one behind a NAT: private, of a carrier (RFC 6598), or made up.
fn is_behind_nat(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || ip.is_link_local() || (a == 100 && (64..128).contains(&b))
}

/// The address packets to `gateway` leave from; connecting a UDP socket sends nothing.
fn own_address(gateway: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((gateway, crab_nat::GATEWAY_PORT)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_loopback() => Some(ip),
        _ => None,
    }
}

/// The default gateway, from the routing table of this thread's network.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn default_gateway() -> Option<Ipv4Addr> {
    // The second name is for kernels, and sandboxes, without the first.
    let table = std::fs::read_to_string("/proc/thread-self/net/route")
        .or_else(|_| std::fs::read_to_string("/proc/net/route"))
        .ok()?;
    parse_routes(&table)
}

/// The gateway of the best default route in the format of `/proc/net/route`.
#[cfg(any(target_os = "linux", target_os = "android", test))]
fn parse_routes(table: &str) -> Option<Ipv4Addr> {
    const UP_AND_GATEWAY: u32 = 0x3;
    let routes = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        // Destination, gateway, flags, two counters, metric, mask. Numbers of addresses are written
        // as the machine has them in memory.
        let hex = |text: Option<&str>| u32::from_str_radix(text?, 16).ok();
        let destination = hex(fields.next())?;
        let gateway = hex(fields.next())?;
        let flags = hex(fields.next())?;
        let metric: u32 = fields.nth(2)?.parse().ok()?;
        let mask = hex(fields.next())?;
        let default = destination == 0 && mask == 0 && flags & UP_AND_GATEWAY == UP_AND_GATEWAY;
        default.then(|| (metric, Ipv4Addr::from(gateway.to_ne_bytes())))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, ip)| ip)
}

/// A guess where the system keeps its routes elsewhere: home routers have the first address of their
/// network. A wrong guess costs a few packets.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn default_gateway() -> Option<Ipv4Addr> {
    let state = crate::watch::NetworkState::now().ok()?;
    let source = state.source_v4?;
    let here = |entry: &&crate::InterfaceAddress| entry.addr == IpAddr::V4(source);
    let prefix_len = state.addresses.iter().find(here)?.prefix_len;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32)))?;
    Some(Ipv4Addr::from((u32::from(source) & mask) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_default_route_counts() {
        let line = |gateway: [u8; 4], flags: u32, metric: u32, mask: u32| {
            let gateway = u32::from_ne_bytes(gateway);
            format!(
                "eth0\t00000000\t{gateway:08X}\t{flags:04X}\t0\t0\t{metric}\t{mask:08X}\t0\t0\t0\n"
            )
        };
        let mut table = "Iface\tDestination\tGateway ...\n".to_owned();
        assert_eq!(parse_routes(&table), None);
        // A half of everything, as VPNs have it, is none; neither is one without a gateway.
        table += &line([10, 0, 0, 9], 3, 0, 0x80);
        table += &line([0, 0, 0, 0], 1, 0, 0);
        assert_eq!(parse_routes(&table), None);
        table += &line([192, 168, 1, 1], 3, 600, 0);
        table += &line([192, 168, 2, 1], 3, 100, 0);
        table += "short\t00000000\n\n";
        assert_eq!(parse_routes(&table), Some([192, 168, 2, 1].into()));
    }

    #[test]
    fn only_hosts_behind_a_nat_need_a_mapping() {
        for (ip, behind) in [
            ([192, 168, 1, 2], true),
            ([10, 1, 1, 1], true),
            ([100, 64, 0, 1], true),
            ([100, 128, 0, 1], false),
            ([203, 0, 113, 1], false),
        ] {
            assert_eq!(is_behind_nat(ip.into()), behind, "{ip:?}");
        }
        for addr in ["[2001:db8::1]:9", "127.0.0.1:9"] {
            assert!(Place::of(addr.parse().expect("literal")).is_err());
        }
    }
}
