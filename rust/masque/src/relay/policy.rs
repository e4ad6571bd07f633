//! Where clients may send through this relay.
//!
//! Pure: a table of rules and a function. A relay lends its place in the network, and must not lend
//! its trust with it (RFC 9298, section 7): what only this host or its neighbours can reach stays
//! out of reach, in whatever form an address is written, and so do services that answer a small
//! question with a large answer.
//!
//! NAT64 prefixes of an operator's own (RFC 6052) cannot be recognized; whoever has one in his
//! network and private IPv4 behind it puts it into `deny_targets`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

pub use anyreach_net::ports::DENIED_PORTS;
use anyreach_net::{canonical, is_synthetic};

use super::prefix::Prefix;

/// Why a target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Port 0 does not exist.
    PortZero,
    /// One of [`DENIED_PORTS`].
    DeniedPort,
    /// `0.0.0.0/8` or `::`.
    Unspecified,
    /// This host by its internal address.
    Loopback,
    /// RFC 1918, or site-local IPv6.
    Private,
    /// Behind a provider's NAT: 100.64.0.0/10.
    Shared,
    /// `169.254.0.0/16` or `fe80::/10`; metadata services of clouds among them.
    LinkLocal,
    /// `fc00::/7`.
    UniqueLocal,
    /// A group of hosts.
    Multicast,
    /// All hosts.
    Broadcast,
    /// Set aside by IANA and not routed on the Internet.
    Reserved,
    /// An IPv6 form of an IPv4 address that is refused itself, or that cannot be judged.
    Disguised,
    /// An address of this relay, but neither its node nor an address it has lent.
    Own,
    /// In the operator's `deny_targets`.
    Operator,
}

impl Refusal {
    /// The name used in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PortZero => "port-zero",
            Self::DeniedPort => "denied-port",
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Shared => "shared",
            Self::LinkLocal => "link-local",
            Self::UniqueLocal => "unique-local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Reserved => "reserved",
            Self::Disguised => "disguised",
            Self::Own => "own",
            Self::Operator => "operator",
        }
    }

    /// Whether no rule of an operator makes such a target permissible: nothing there could be the
    /// one other end of a tunnel.
    const fn is_final(self) -> bool {
        matches!(
            self,
            Self::PortZero | Self::Unspecified | Self::Multicast | Self::Broadcast
        )
    }
}

/// How far the addresses a client uses towards this relay reach. A client that came over loopback
/// or a private network may be given the relay's own ports there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Scope {
    loopback: bool,
    private: bool,
}

impl Scope {
    /// From the two addresses of the client's connection.
    pub(crate) fn of(remote: IpAddr, local: Option<IpAddr>) -> Self {
        let ends = || [Some(remote), local].into_iter().flatten();
        Self {
            loopback: ends().any(|ip| ip.to_canonical().is_loopback()),
            private: ends().any(is_local),
        }
    }

    /// Whether own addresses with this refusal are within reach of the client anyway.
    fn covers(self, refusal: Refusal) -> bool {
        match refusal {
            Refusal::Loopback => self.loopback,
            Refusal::Private | Refusal::UniqueLocal | Refusal::Shared | Refusal::LinkLocal => {
                self.private || self.loopback
            }
            _ => false,
        }
    }
}

/// Whether an address means something only in its own network, loopback aside.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    matches!(
        refusal_of(ip.to_canonical()),
        Some(Refusal::Private | Refusal::UniqueLocal | Refusal::Shared | Refusal::LinkLocal)
    )
}

/// Whether an address can be reached from anywhere on the Internet, as far as its range says.
/// Documentation ranges count as public: laboratories use them.
pub fn is_global(ip: IpAddr) -> bool {
    refusal_of(ip.to_canonical()).is_none()
}

/// What is this relay itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// Addresses of this host's interfaces, and those it is known by outside.
    pub(crate) addresses: HashSet<IpAddr>,
    /// The node's UDP addresses. One with an unspecified IP stands for all own addresses.
    pub(crate) node: Vec<SocketAddr>,
    /// Ports lent to clients.
    pub(crate) lent: HashSet<u16>,
}

impl Own {
    /// Whether the relay has this address.
    fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// What is known of the host changes; what is lent stays.
    pub(crate) fn renewed(&self, now: Self) -> Self {
        Self {
            lent: self.lent.clone(),
            ..now
        }
    }

    /// Whether clients may send to this own address.
    fn offers(&self, target: SocketAddr) -> bool {
        self.lent.contains(&target.port())
            || self.node.iter().any(|node| {
                node.port() == target.port()
                    && (node.ip() == target.ip() || node.ip().is_unspecified())
            })
    }
}

/// The rules in force. Replaced as a whole when something changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) allow: Vec<Prefix>,
    pub(crate) deny: Vec<Prefix>,
    pub(crate) own: Own,
}

impl Policy {
    /// Whether a client may send to `target`, whatever form it has.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check(&self, target: SocketAddr, scope: Scope) -> Result<(), Refusal> {
        let target = canonical(target);
        let (ip, port) = (target.ip(), target.port());
        if port == 0 {
            return Err(Refusal::PortZero);
        }
        let refused = refusal_of(ip).map_or(Ok(()), Err);
        if let Err(refusal) = refused
            && refusal.is_final()
        {
            return Err(refusal);
        }
        // Names of tunnels within a node, which nothing outside has.
        if is_synthetic(ip) {
            return Err(Refusal::UniqueLocal);
        }
        if in_any(&self.deny, ip) {
            return Err(Refusal::Operator);
        }
        if self.own.has(ip) && self.own.offers(target) {
            match refused {
                Ok(()) => return Ok(()),
                Err(refusal) if scope.covers(refusal) => return Ok(()),
                Err(_) => {}
            }
        }
        if DENIED_PORTS.iter().any(|(denied, _)| *denied == port) {
            return Err(Refusal::DeniedPort);
        }
        if in_any(&self.allow, ip) {
            return Ok(());
        }
        refused?;
        if self.own.has(ip) {
            return Err(Refusal::Own);
        }
        if let Some(inner) = embedded(ip)
            && (self.own.has(inner) || in_any(&self.deny, inner))
        {
            return Err(Refusal::Disguised);
        }
        Ok(())
    }
}

fn in_any(prefixes: &[Prefix], ip: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(ip))
}

/// Why the range of a canonical address is refused; `None` for what the Internet routes.
fn refusal_of(ip: IpAddr) -> Option<Refusal> {
    match ip {
        IpAddr::V4(v4) => refusal_of_v4(v4),
        IpAddr::V6(v6) => refusal_of_v6(v6),
    }
}

/// By the IANA IPv4 special-purpose address registry.
fn refusal_of_v4(ip: Ipv4Addr) -> Option<Refusal> {
    match ip.octets() {
        [0, ..] => Some(Refusal::Unspecified),
        [127, ..] => Some(Refusal::Loopback),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some(Refusal::Private),
        [100, 64..=127, ..] => Some(Refusal::Shared),
        [169, 254, ..] => Some(Refusal::LinkLocal),
        // Protocol assignments (DS-Lite, NAT64 discovery), 6to4 relays, benchmarks.
        [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] => Some(Refusal::Reserved),
        [224..=239, ..] => Some(Refusal::Multicast),
        [255, 255, 255, 255] => Some(Refusal::Broadcast),
        [240..=255, ..] => Some(Refusal::Reserved),
        _ => None,
    }
}

/// By the IANA IPv6 special-purpose address registry. Only 2000::/3 has been given out for global
/// unicast, so everything else is refused without being known, NAT64 aside.
fn refusal_of_v6(ip: Ipv6Addr) -> Option<Refusal> {
    if let Some(inner) = embedded(IpAddr::V6(ip)) {
        return refusal_of(inner).map(|_| Refusal::Disguised);
    }
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Refusal::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Refusal::Loopback),
        // IPv4-compatible and, for a caller that has not canonicalised, IPv4-mapped.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] => Some(Refusal::Disguised),
        // IPv4-translated (RFC 2765), and NAT64 with a prefix of the network's own (RFC 8215): how
        // the IPv4 address is laid out is known there only.
        [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(Refusal::Disguised),
        // Teredo: packets go to the embedded server and client.
        [0x2001, 0, ..] => Some(Refusal::Disguised),
        [0xff00..=0xffff, ..] => Some(Refusal::Multicast),
        [0xfe80..=0xfebf, ..] => Some(Refusal::LinkLocal),
        [0xfec0..=0xfeff, ..] => Some(Refusal::Private),
        [0xfc00..=0xfdff, ..] => Some(Refusal::UniqueLocal),
        // Protocol assignments, and the newer documentation range.
        [0x2001, 0..=0x1ff, ..] | [0x3fff, 0..=0xfff, ..] => Some(Refusal::Reserved),
        [0x2000..=0x3fff, ..] => None,
        _ => Some(Refusal::Reserved),
    }
}

/// The IPv4 address that a packet to this IPv6 address ends up at: NAT64 with the well-known prefix
/// (RFC 6052), and 6to4 (RFC 3056). Canonical addresses have no mapped form any more.
fn embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = ip else { return None };
    let from = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Some(IpAddr::from([a, b, c, d]))
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => from(high, low),
        [0x2002, high, low, ..] => from(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
