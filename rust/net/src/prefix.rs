//! Ranges of IP addresses: what an operator allows or denies, where clients come from, and which
//! networks are near.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// IPv4 prefix that counts as one source: what a household, an office or a small provider's NAT
/// has at most.
const SOURCE_V4: u8 = 24;

/// IPv6 prefix that counts as one source: the largest size a site is given for the asking
/// (RFC 6177), so that nobody counts as many.
const SOURCE_V6: u8 = 48;

/// A range of addresses of one family, `address/length`. The bits behind the prefix are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address range: write it as 192.168.0.0/16, fd00::/8 or a single address")]
pub struct ParsePrefixError(String);

impl Prefix {
    /// The range around `addr`, whose other bits are cleared; IPv4-mapped IPv6 counts as IPv4, with
    /// the length of the IPv6 form. `None` if `len` is more than the family has.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        match (addr, addr.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(v4)) => Self::v4(v4, len.checked_sub(96)?),
            (_, IpAddr::V4(v4)) => Self::v4(v4, len),
            (_, IpAddr::V6(v6)) => {
                let mask = mask(len, 128)?;
                let addr = IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask));
                Some(Self { addr, len })
            }
        }
    }

    fn v4(addr: Ipv4Addr, len: u8) -> Option<Self> {
        let mask = mask(len, 32)? as u32;
        let addr = IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & mask));
        Some(Self { addr, len })
    }

    /// The range that counts as one source of clients: /24 of IPv4, /48 of IPv6.
    pub fn source(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        let len = match ip {
            IpAddr::V4(_) => SOURCE_V4,
            IpAddr::V6(_) => SOURCE_V6,
        };
        // Both lengths are within their families.
        Self::new(ip, len).unwrap_or(Self { addr: ip, len })
    }

    /// The first address of the range.
    pub fn first(self) -> IpAddr {
        self.addr
    }

    /// Whether the range has this address.
    pub fn contains(self, ip: IpAddr) -> bool {
        match (self.addr, ip.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                mask(self.len, 32).is_some_and(|mask| base.to_bits() == ip.to_bits() & mask as u32)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                mask(self.len, 128).is_some_and(|mask| base.to_bits() == ip.to_bits() & mask)
            }
            _ => false,
        }
    }
}

/// The mask of the first `len` of `width` bits, at the low end of the integer.
fn mask(len: u8, width: u8) -> Option<u128> {
    let all = u128::MAX >> (128 - width);
    let behind = width.checked_sub(len)?;
    Some(all & u128::MAX.checked_shl(behind.into()).unwrap_or(0))
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParsePrefixError(text.to_owned());
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| error())?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        Self::new(addr, len.unwrap_or(whole)).ok_or_else(error)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("literal")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn text_and_range() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00::1/8", "fd00::/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(prefix(text).to_string(), shown);
        }
        for text in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "x/8",
            "1.2.3.4/-1",
            "::ffff:1.2.3.4/95",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text:?}");
        }
        assert!(prefix("10.0.0.0/8").contains(ip("::ffff:10.9.9.9")));
        assert!(!prefix("10.0.0.0/8").contains(ip("11.0.0.0")));
        assert!(!prefix("0.0.0.0/0").contains(ip("::1")));
    }

    #[test]
    fn sources() {
        assert_eq!(Prefix::source(ip("203.0.113.9")), prefix("203.0.113.0/24"));
        assert_eq!(
            Prefix::source(ip("::ffff:203.0.113.9")),
            prefix("203.0.113.0/24")
        );
        assert_eq!(
            Prefix::source(ip("2001:db8:1:2ff::9")),
            prefix("2001:db8:1::/48")
        );
    }

    proptest! {
        #[test]
        fn a_prefix_has_the_address_it_was_made_from(bits in any::<u128>(), len in 0_u8..=128) {
            let v6 = IpAddr::V6(Ipv6Addr::from_bits(bits));
            if let Some(range) = Prefix::new(v6, len) {
                prop_assert!(range.contains(v6));
                prop_assert_eq!(range.to_string().parse::<Prefix>(), Ok(range));
            }
            let v4 = IpAddr::V4(Ipv4Addr::from_bits(bits as u32));
            let range = Prefix::new(v4, len % 33).expect("at most 32");
            prop_assert!(range.contains(v4));
            prop_assert_eq!(range.to_string().parse::<Prefix>(), Ok(range));
        }
    }
}
