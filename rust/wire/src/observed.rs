//! OBSERVED_ADDRESS frames leave with addresses that mean something to the peer.
//!
//! The engine knows its peers by the addresses our socket layer shows it: IPv4 peers of a
//! dual-stack socket by their v4-mapped addresses, tunnelled ones by addresses made up for them. It
//! would report those. Which form a socket of ours uses is nobody's business, and
//! draft-ietf-quic-address-discovery-00 has a frame type for IPv4; so the frame is rewritten in
//! place just before its packet is sealed. What it gets shorter by becomes PADDING.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::LazyLock,
};

use memchr::memmem::Finder;

use crate::{
    address::{Address, Family},
    walk::{PING, frame_at},
};

/// Type OBSERVED_ADDRESS for IPv6, 0x9f81a7, as the engine encodes it.
const TYPE_V6: [u8; 4] = [0x80, 0x9f, 0x81, 0xa7];
/// Type OBSERVED_ADDRESS for IPv4, 0x9f81a6.
const TYPE_V4: [u8; 4] = [0x80, 0x9f, 0x81, 0xa6];
/// Prepared once: this runs for every packet sent.
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(&TYPE_V6));
const PORT_LEN: usize = 2;
const V6_LEN: usize = 16;

/// What the peer is told instead of an address the engine has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    /// The address itself, as IPv4 if it is v4-mapped.
    Keep,
    /// Another one.
    Tell(SocketAddr),
    /// Nothing: the frame is blanked.
    Withhold,
}

/// Corrects every report of an address in the payload of a 1-RTT packet. `correction` is asked for
/// addresses that are not v4-mapped.
#[inline]
pub fn correct(payload: &mut [u8], correction: impl Fn(SocketAddr) -> Correction) {
    // Nearly no packet has such a frame, and a search is cheaper than a walk.
    if FINDER.find(payload).is_some() {
        rewrite(payload, correction);
    }
}

#[cold]
fn rewrite(payload: &mut [u8], correction: impl Fn(SocketAddr) -> Correction) {
    let mut at = 0;
    // What the walk does not know is none of our business: the engine wrote it.
    while let Ok(Some(frame)) = frame_at(payload, at) {
        at = frame.range.end;
        let bytes = &payload[frame.range.clone()];
        if !bytes.starts_with(&TYPE_V6) || bytes.len() < TYPE_V6.len() + V6_LEN + PORT_LEN {
            continue;
        }
        let address_at = bytes.len() - PORT_LEN - V6_LEN;
        let mut address = [0; V6_LEN];
        address.copy_from_slice(&bytes[address_at..address_at + V6_LEN]);
        let ip = Ipv6Addr::from(address);
        let port = u16::from_be_bytes([bytes[bytes.len() - 2], bytes[bytes.len() - 1]]);
        let told = match ip.to_ipv4_mapped() {
            Some(v4) => Address::new(v4.into(), port),
            None => match correction(SocketAddr::new(ip.into(), port)) {
                Correction::Keep => continue,
                Correction::Tell(address) => address.into(),
                Correction::Withhold => {
                    payload[frame.range.clone()].fill(0);
                    // The engine expects an acknowledgement, for which the peer needs a reason.
                    // PING only if there is no other: it would make a probing packet another kind.
                    if !is_ack_eliciting(payload) {
                        payload[frame.range.start] = PING as u8;
                    }
                    continue;
                }
            },
        };
        let bytes = &mut payload[frame.range];
        if told.family() == Family::V4 {
            bytes[..TYPE_V4.len()].copy_from_slice(&TYPE_V4);
        }
        let mut rest = &mut bytes[address_at..];
        told.encode(&mut rest);
        rest.fill(0);
    }
}

fn is_ack_eliciting(payload: &[u8]) -> bool {
    let mut at = 0;
    loop {
        match frame_at(payload, at) {
            Ok(Some(frame)) if frame.is_ack_eliciting() => return true,
            Ok(Some(frame)) => at = frame.range.end,
            Ok(None) => return false,
            // Whatever it is, it is more than padding.
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use crate::{
        address::Address,
        frames::{Frame, ObservedAddress},
        varint::VarInt,
    };

    use super::*;

    fn canonicalise(payload: &mut [u8]) {
        correct(payload, |_| Correction::Keep);
    }

    fn observed(ip: &str) -> Vec<u8> {
        let ip: Ipv6Addr = ip.parse().unwrap();
        let mut bytes = TYPE_V6.to_vec();
        bytes.extend([0x41, 0x23]);
        bytes.extend(ip.octets());
        bytes.extend([0x1f, 0x90]);
        bytes
    }

    #[test]
    fn a_mapped_address_becomes_the_frame_for_ipv4() {
        // A PING, the report, a STREAM frame up to the end with the same bytes as data.
        let report = observed("::ffff:192.0.2.7");
        let mut payload = vec![0x01];
        payload.extend(&report);
        payload.extend([0x08, 0x04]);
        payload.extend(&report);
        let before = payload.clone();
        canonicalise(&mut payload);
        assert_eq!(payload.len(), before.len());

        let mut expected = Vec::new();
        let address: SocketAddr = "192.0.2.7:8080".parse().unwrap();
        Frame::ObservedAddress(ObservedAddress {
            sequence: VarInt::from_u32(0x123),
            address: Address::from(address),
        })
        .encode(&mut expected);
        assert_eq!(payload[1..1 + expected.len()], expected);
        let rest = &payload[1 + expected.len()..];
        assert_eq!(rest[..12], [0; 12]);
        assert_eq!(
            rest[12..],
            before[1 + report.len()..],
            "stream data is data"
        );
    }

    #[test]
    fn everything_else_stays() {
        for payload in [
            observed("2001:db8::7"),
            observed("::ffff:192.0.2.7")[..20].to_vec(),
            TYPE_V6.to_vec(),
            vec![0x30, 0x80, 0x9f, 0x81, 0xa7],
        ] {
            let mut after = payload.clone();
            canonicalise(&mut after);
            assert_eq!(after, payload);
        }
    }

    #[test]
    fn an_address_is_told_in_the_place_of_another() {
        let made_up: SocketAddr = "[fd5a::7]:8080".parse().unwrap();
        for real in ["192.0.2.7:4433", "[2001:db8::1]:4433"] {
            let real: SocketAddr = real.parse().unwrap();
            let mut payload = observed("fd5a::7");
            payload.extend([0x01]);
            correct(&mut payload, |address| {
                assert_eq!(address, made_up);
                Correction::Tell(real)
            });
            let mut expected = Vec::new();
            Frame::ObservedAddress(ObservedAddress {
                sequence: VarInt::from_u32(0x123),
                address: Address::from(real),
            })
            .encode(&mut expected);
            expected.resize(observed("fd5a::7").len(), 0);
            expected.push(0x01);
            assert_eq!(payload, expected);
        }
    }

    #[test]
    fn what_must_not_be_told_leaves_the_packet_ack_eliciting() {
        let report = observed("fd5a::7");
        let blanked = |rest: &[u8]| {
            let mut payload = report.clone();
            payload.extend(rest);
            correct(&mut payload, |_| Correction::Withhold);
            assert_eq!(payload[1..report.len()], vec![0; report.len() - 1]);
            assert_eq!(payload[report.len()..], *rest);
            payload[0]
        };
        // PADDING, and an ACK: neither is a reason to acknowledge.
        assert_eq!(blanked(&[]), 0x01);
        assert_eq!(blanked(&[0x00, 0x00]), 0x01);
        assert_eq!(blanked(&[0x02, 0x05, 0x00, 0x00, 0x00]), 0x01);
        // A PATH_CHALLENGE is one.
        assert_eq!(blanked(&[0x1a, 1, 2, 3, 4, 5, 6, 7, 8]), 0x00);
    }
}
