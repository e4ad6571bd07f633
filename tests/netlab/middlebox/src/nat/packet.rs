//! IPv4 packets with ports (or an ICMP identifier), rewritten in place with their checksums.

use std::net::{Ipv4Addr, SocketAddrV4};

const MIN_HEADER: usize = 20;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const IP_CHECKSUM: usize = 10;

const ICMP_CHECKSUM: usize = 2;
const ICMP_IDENTIFIER: usize = 4;
const ICMP_QUOTE: usize = 8;

/// Protocols that are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// RFC 768.
    Udp,
    /// RFC 9293.
    Tcp,
    /// Echo of RFC 792; the identifier takes the place of the inner port, the outer one is 0.
    Icmp,
}

impl Protocol {
    fn parse(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// Where its checksum is, counted from its header, if it covers the IP addresses.
    fn checksum(self) -> Option<usize> {
        match self {
            Self::Udp => Some(6),
            Self::Tcp => Some(16),
            Self::Icmp => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Icmp {
    Request,
    Reply,
    Error,
}

/// A whole packet that can be translated.
#[derive(Debug)]
pub(crate) struct Packet<'a> {
    bytes: &'a mut [u8],
    header: usize,
    protocol: Protocol,
    icmp: Option<Icmp>,
}

impl<'a> Packet<'a> {
    /// `None`: not IPv4, cut short, a fragment, or of a protocol that is not translated.
    pub(crate) fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        let header = header_length(bytes)?;
        let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let fragment = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff;
        if total > bytes.len() || fragment != 0 {
            return None;
        }
        let protocol = Protocol::parse(bytes[9])?;
        let needed = match protocol {
            Protocol::Tcp => 20,
            Protocol::Udp | Protocol::Icmp => 8,
        };
        if total < header + needed {
            return None;
        }
        let icmp = match (protocol, bytes[header]) {
            (Protocol::Icmp, 8) => Some(Icmp::Request),
            (Protocol::Icmp, 0) => Some(Icmp::Reply),
            (Protocol::Icmp, 3 | 11 | 12) => Some(Icmp::Error),
            (Protocol::Icmp, _) => return None,
            _ => None,
        };
        Some(Self {
            bytes: &mut bytes[..total],
            header,
            protocol,
            icmp,
        })
    }

    /// Its protocol.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether it is an ICMP error, which has no ports but quotes a packet.
    pub(crate) fn is_error(&self) -> bool {
        self.icmp == Some(Icmp::Error)
    }

    /// Where it comes from.
    pub(crate) fn source(&self) -> SocketAddrV4 {
        let port = match self.icmp {
            None => self.word(self.header),
            Some(Icmp::Request) => self.word(self.header + ICMP_IDENTIFIER),
            Some(Icmp::Reply | Icmp::Error) => 0,
        };
        SocketAddrV4::new(address(self.bytes, SOURCE), port)
    }

    /// Where it goes to.
    pub(crate) fn destination(&self) -> SocketAddrV4 {
        let port = match self.icmp {
            None => self.word(self.header + 2),
            Some(Icmp::Reply) => self.word(self.header + ICMP_IDENTIFIER),
            Some(Icmp::Request | Icmp::Error) => 0,
        };
        SocketAddrV4::new(address(self.bytes, DESTINATION), port)
    }

    /// Changes where it comes from.
    pub(crate) fn set_source(&mut self, to: SocketAddrV4) {
        self.set_source_address(*to.ip());
        self.set_port(0, to.port());
    }

    /// Changes where it goes to.
    pub(crate) fn set_destination(&mut self, to: SocketAddrV4) {
        self.set_destination_address(*to.ip());
        self.set_port(2, to.port());
    }

    /// Changes the IP source only.
    pub(crate) fn set_source_address(&mut self, to: Ipv4Addr) {
        self.set_address(SOURCE, to);
    }

    /// Changes the IP destination only.
    pub(crate) fn set_destination_address(&mut self, to: Ipv4Addr) {
        self.set_address(DESTINATION, to);
    }

    /// Protocol, source and destination of the packet that an error is about.
    pub(crate) fn quoted(&self) -> Option<(Protocol, SocketAddrV4, SocketAddrV4)> {
        let quote = self.bytes.get(self.header + ICMP_QUOTE..)?;
        let header = header_length(quote)?;
        let protocol = Protocol::parse(quote[9])?;
        // An error need not quote more than 8 bytes of the transport (RFC 792).
        let transport = quote.get(header..header + 8)?;
        let word = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let (from, to) = match (protocol, transport[0]) {
            (Protocol::Icmp, 8) => (word(ICMP_IDENTIFIER), 0),
            (Protocol::Icmp, 0) => (0, word(ICMP_IDENTIFIER)),
            (Protocol::Icmp, _) => return None,
            _ => (word(0), word(2)),
        };
        Some((
            protocol,
            SocketAddrV4::new(address(quote, SOURCE), from),
            SocketAddrV4::new(address(quote, DESTINATION), to),
        ))
    }

    /// Changes the source of the quoted packet.
    pub(crate) fn set_quoted_source(&mut self, to: SocketAddrV4) {
        self.set_quoted(SOURCE, 0, to);
    }

    /// Changes the destination of the quoted packet.
    pub(crate) fn set_quoted_destination(&mut self, to: SocketAddrV4) {
        self.set_quoted(DESTINATION, 2, to);
    }

    /// The quoted transport checksum may be cut off and nobody verifies it, so it stays.
    fn set_quoted(&mut self, at: usize, port_at: usize, to: SocketAddrV4) {
        let start = self.header + ICMP_QUOTE;
        let quote = &mut self.bytes[start..];
        let Some(header) = header_length(quote) else {
            return;
        };
        quote[at..at + 4].copy_from_slice(&to.ip().octets());
        put(quote, IP_CHECKSUM, 0);
        let sum = checksum(&quote[..header]);
        put(quote, IP_CHECKSUM, sum);
        let is_icmp = Protocol::parse(quote[9]) == Some(Protocol::Icmp);
        put(
            quote,
            header + if is_icmp { ICMP_IDENTIFIER } else { port_at },
            to.port(),
        );
        let icmp = &mut self.bytes[self.header..];
        put(icmp, ICMP_CHECKSUM, 0);
        let sum = checksum(icmp);
        put(icmp, ICMP_CHECKSUM, sum);
    }

    fn set_address(&mut self, at: usize, to: Ipv4Addr) {
        let new = to.octets();
        for word in [0, 2] {
            let old = self.word(at + word);
            let new = u16::from_be_bytes([new[word], new[word + 1]]);
            put(self.bytes, at + word, new);
            self.adjust(IP_CHECKSUM, old, new);
            if let Some(offset) = self.protocol.checksum() {
                self.adjust_transport(offset, old, new);
            }
        }
    }

    fn set_port(&mut self, at: usize, to: u16) {
        let (at, offset) = match (self.icmp, self.protocol.checksum()) {
            (None, Some(offset)) => (self.header + at, offset),
            _ => (self.header + ICMP_IDENTIFIER, ICMP_CHECKSUM),
        };
        let old = self.word(at);
        put(self.bytes, at, to);
        self.adjust_transport(offset, old, to);
    }

    fn adjust_transport(&mut self, offset: usize, old: u16, new: u16) {
        let at = self.header + offset;
        let udp = self.protocol == Protocol::Udp;
        // Zero means that the sender of a UDP datagram made no checksum.
        if udp && self.word(at) == 0 {
            return;
        }
        self.adjust(at, old, new);
        if udp && self.word(at) == 0 {
            put(self.bytes, at, 0xffff);
        }
    }

    /// RFC 1624, equation 3.
    fn adjust(&mut self, at: usize, old: u16, new: u16) {
        let sum = u32::from(!self.word(at)) + u32::from(!old) + u32::from(new);
        put(self.bytes, at, !fold(sum));
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    !fold(words.sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn header_length(bytes: &[u8]) -> Option<usize> {
    let first = *bytes.first()?;
    let length = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && length >= MIN_HEADER && bytes.len() >= length).then_some(length)
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
