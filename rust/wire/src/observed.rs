//! OBSERVED_ADDRESS frames leave with canonical addresses.
//!
//! The engine knows IPv4 peers of a dual-stack socket by their v4-mapped addresses and would report
//! those, in the frame type for IPv6. Which form a socket of ours uses is nobody's business, and
//! draft-ietf-quic-address-discovery-00 has a frame type for IPv4; so the frame is rewritten in
//! place just before its packet is sealed. It gets shorter by twelve bytes, which become PADDING.

use std::{net::Ipv6Addr, sync::LazyLock};

use memchr::memmem::Finder;

use crate::walk::frame_at;

/// Type OBSERVED_ADDRESS for IPv6, 0x9f81a7, as the engine encodes it.
const TYPE_V6: [u8; 4] = [0x80, 0x9f, 0x81, 0xa7];
/// Type OBSERVED_ADDRESS for IPv4, 0x9f81a6.
const TYPE_V4: [u8; 4] = [0x80, 0x9f, 0x81, 0xa6];
/// Prepared once: this runs for every packet sent.
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(&TYPE_V6));
const PORT_LEN: usize = 2;
const V6_LEN: usize = 16;
const V4_LEN: usize = 4;

/// Rewrites every report of a v4-mapped address in the payload of a 1-RTT packet.
pub fn canonicalise(payload: &mut [u8]) {
    // Nearly no packet has such a frame, and a search is cheaper than a walk.
    if FINDER.find(payload).is_some() {
        rewrite(payload);
    }
}

#[cold]
fn rewrite(payload: &mut [u8]) {
    let mut at = 0;
    // What the walk does not know is none of our business: the engine wrote it.
    while let Ok(Some(frame)) = frame_at(payload, at) {
        at = frame.range.end;
        let bytes = &mut payload[frame.range];
        if !bytes.starts_with(&TYPE_V6) || bytes.len() < TYPE_V6.len() + V6_LEN + PORT_LEN {
            continue;
        }
        let address_at = bytes.len() - PORT_LEN - V6_LEN;
        let mut address = [0; V6_LEN];
        address.copy_from_slice(&bytes[address_at..address_at + V6_LEN]);
        let Some(v4) = Ipv6Addr::from(address).to_ipv4_mapped() else {
            continue;
        };
        let port = [bytes[bytes.len() - 2], bytes[bytes.len() - 1]];
        bytes[..TYPE_V4.len()].copy_from_slice(&TYPE_V4);
        let (port_at, end) = (address_at + V4_LEN, address_at + V4_LEN + PORT_LEN);
        bytes[address_at..port_at].copy_from_slice(&v4.octets());
        bytes[port_at..end].copy_from_slice(&port);
        bytes[end..].fill(0);
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
}
