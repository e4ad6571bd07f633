//! An IPv4 NAT whose behaviour is an explicit policy (RFC 4787, RFC 5382, RFC 5508). Without I/O or clock.
//!
//! Translates UDP, TCP, ICMP echo, and ICMP errors about these. Fragments are dropped. A mapping is
//! kept alive by outbound packets only (RFC 4787 REQ-6 demands that much and allows no less).

mod packet;
mod policy;
mod table;

pub(crate) use policy::Policy;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use packet::Packet;
use table::{Internal, Table};

/// A packet may go on; it was translated in place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Translated;

/// The NAT.
#[derive(Debug)]
pub(crate) struct Nat {
    policy: Policy,
    address: Ipv4Addr,
    table: Table,
}

impl Nat {
    /// A NAT without any mappings.
    pub(crate) fn new(policy: Policy, address: Ipv4Addr, seed: u64) -> Self {
        Self {
            policy,
            address,
            table: Table::new(policy, seed),
        }
    }

    /// Changes the external address. Mappings refer to the new one from now on.
    pub(crate) fn readdress(&mut self, address: Ipv4Addr) {
        self.address = address;
    }

    /// Forgets all mappings, as a reboot does.
    pub(crate) fn flush(&mut self) {
        self.table.flush();
    }

    /// Forgets what has expired.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.table.expire(now);
    }

    /// Translates a packet from either side in place; `None`: drop it.
    pub(crate) fn translate(&mut self, bytes: &mut [u8], now: Instant) -> Option<Translated> {
        let mut packet = Packet::parse(bytes)?;
        let to_us = *packet.destination().ip() == self.address;
        if packet.is_error() {
            if to_us {
                self.error_inward(&mut packet, now)
            } else {
                self.error_outward(&mut packet, now)
            }
        } else if !to_us {
            self.outward(&mut packet, now)
        } else if self.table.is_internal(*packet.source().ip()) {
            self.hairpin(&mut packet, now)
        } else {
            self.inward(&mut packet, now)
        }
    }

    fn outward(&mut self, packet: &mut Packet<'_>, now: Instant) -> Option<Translated> {
        let source = packet.source();
        let internal = Internal {
            protocol: packet.protocol(),
            endpoint: source,
        };
        let port = self.table.map(internal, packet.destination(), now)?;
        packet.set_source(SocketAddrV4::new(self.address, port));
        Some(Translated)
    }

    fn inward(&mut self, packet: &mut Packet<'_>, now: Instant) -> Option<Translated> {
        let port = packet.destination().port();
        let internal = self
            .table
            .admit(packet.protocol(), port, packet.source(), now)?;
        packet.set_destination(internal);
        Some(Translated)
    }

    /// From the inside to the external address: out and in again (RFC 4787 section 6), with the
    /// external address as source (REQ-9).
    fn hairpin(&mut self, packet: &mut Packet<'_>, now: Instant) -> Option<Translated> {
        if !self.policy.hairpin {
            return None;
        }
        self.outward(packet, now)?;
        self.inward(packet, now)
    }

    /// An ICMP error about a packet that we sent out (RFC 5508 section 4).
    fn error_inward(&mut self, packet: &mut Packet<'_>, now: Instant) -> Option<Translated> {
        let (protocol, from, _) = packet.quoted()?;
        let internal = self.table.find(protocol, from.port(), now)?;
        packet.set_quoted_source(internal);
        packet.set_destination_address(*internal.ip());
        Some(Translated)
    }

    /// An ICMP error from the inside about a packet that we let in.
    fn error_outward(&mut self, packet: &mut Packet<'_>, now: Instant) -> Option<Translated> {
        let (protocol, from, to) = packet.quoted()?;
        let port = self.table.find_internal(
            Internal {
                protocol,
                endpoint: to,
            },
            from,
            now,
        )?;
        packet.set_quoted_destination(SocketAddrV4::new(self.address, port));
        packet.set_source_address(self.address);
        Some(Translated)
    }
}

#[cfg(test)]
mod tests;
