//! An IP address and port as extension frames carry them.
//!
//! Not a socket address: no scope, no flow label, and never an IPv4-mapped IPv6 address. Whether
//! an address may be contacted at all is not decided here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BufMut;

use crate::varint::UnexpectedEnd;

/// An IP address and port in canonical form: IPv4-mapped IPv6 (`::ffff:192.0.2.1`) is IPv4.
///
/// One endpoint has one value, whatever kind of socket saw it, so values can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    ip: IpAddr,
    port: u16,
}

/// The two shapes an address has on the wire; the frame type tells which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Four bytes of address.
    V4,
    /// Sixteen bytes of address.
    V6,
}

impl Address {
    /// The canonical form of an IP address and port.
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self {
            ip: ip.to_canonical(),
            port,
        }
    }

    /// The IP address, never IPv4-mapped.
    pub const fn ip(self) -> IpAddr {
        self.ip
    }

    /// The port.
    pub const fn port(self) -> u16 {
        self.port
    }

    /// The shape this address is written in.
    pub const fn family(self) -> Family {
        match self.ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Bytes of the encoding: 6 or 18.
    pub const fn encoded_len(self) -> usize {
        match self.ip {
            IpAddr::V4(_) => 4 + 2,
            IpAddr::V6(_) => 16 + 2,
        }
    }

    /// Reads address and port from the front of `input` and moves `input` behind them. On error
    /// `input` stays where it was.
    ///
    /// A mapped address in the IPv6 shape is taken for the IPv4 address it stands for.
    pub fn decode(input: &mut &[u8], family: Family) -> Result<Self, UnexpectedEnd> {
        let mut rest = *input;
        let ip = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(take::<4>(&mut rest)?)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(take::<16>(&mut rest)?)),
        };
        let port = u16::from_be_bytes(take(&mut rest)?);
        *input = rest;
        Ok(Self::new(ip, port))
    }

    /// Appends address and port in network byte order.
    ///
    /// # Panics
    /// If `out` has a fixed size and less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(self, out: &mut impl BufMut) {
        match self.ip {
            IpAddr::V4(ip) => out.put_slice(&ip.octets()),
            IpAddr::V6(ip) => out.put_slice(&ip.octets()),
        }
        out.put_u16(self.port);
    }
}

impl From<SocketAddr> for Address {
    /// Drops scope and flow label: they mean nothing to another host.
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> Self {
        Self::new(address.ip, address.port)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], UnexpectedEnd> {
    let (taken, rest) = input.split_first_chunk().ok_or(UnexpectedEnd)?;
    *input = rest;
    Ok(*taken)
}
