//! Context IDs, HTTP Datagrams and the payloads of the uncompressed context.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use anyreach_wire::bound::{BoundError, bound_head, split_bound};
use anyreach_wire::context::{
    ContextId, DatagramError, MAX_DATAGRAM, MAX_HEAD, MAX_UDP_PAYLOAD, Side, split_datagram,
};
use anyreach_wire::varint::VarInt;
use bytes::Bytes;
use proptest::prelude::*;

fn id(id: u64) -> ContextId {
    ContextId::from_u64(id).expect("fits")
}

fn any_id() -> impl Strategy<Value = ContextId> {
    (0_u32..=62, any::<u64>()).prop_map(|(bits, value)| id(value & ((1_u64 << bits) - 1)))
}

mod rfc_9298 {
    use super::*;

    /// Section 4: 0 is reserved, other even IDs are the client's, odd ones the proxy's.
    #[test]
    fn even_ids_are_the_clients_and_odd_ones_the_proxys() {
        assert_eq!(ContextId::PAYLOAD.allocator(), None);
        assert_eq!(id(2).allocator(), Some(Side::Client));
        assert_eq!(id(1).allocator(), Some(Side::Proxy));
        assert_eq!(id(VarInt::MAX.get()).allocator(), Some(Side::Proxy));
        assert_eq!(id(VarInt::MAX.get() - 1).allocator(), Some(Side::Client));
        assert_eq!(Side::Client.peer(), Side::Proxy);
        assert_eq!(Side::Proxy.peer(), Side::Client);
    }

    /// Section 4: context IDs are 62-bit integers.
    #[test]
    fn ids_have_62_bits() {
        assert_eq!(ContextId::from_u64(1 << 62), None);
        assert_eq!(id(VarInt::MAX.get()).head()[..], [0xff; 8]);
    }

    /// Section 5: an endpoint that receives more than 65,527 bytes in context 0 MUST abort.
    #[test]
    fn a_payload_in_context_0_longer_than_udp_allows_aborts() {
        let mut datagram = vec![0; 1 + MAX_UDP_PAYLOAD];
        assert!(split_datagram(datagram.clone().into()).is_ok());
        datagram.push(0);
        assert_eq!(
            split_datagram(datagram.into()),
            Err(DatagramError::PayloadTooLong(MAX_UDP_PAYLOAD + 1))
        );
        // It is the payload that counts, not the encoding of the ID.
        let mut datagram = vec![0xc0, 0, 0, 0, 0, 0, 0, 0];
        datagram.resize(8 + MAX_UDP_PAYLOAD, 0);
        assert!(split_datagram(datagram.into()).is_ok());
        // In other contexts the rule is another one.
        assert!(split_datagram(vec![2; 1 + MAX_DATAGRAM].into()).is_ok());
    }

    /// Section 5: the payload can be empty; a datagram without a context ID is none.
    #[test]
    fn empty_payloads_and_missing_ids() {
        assert_eq!(
            split_datagram(Bytes::from_static(&[2])),
            Ok((id(2), Bytes::new()))
        );
        for datagram in [&[][..], &[0x40], &[0x80, 0, 0], &[0xc0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(
                split_datagram(Bytes::copy_from_slice(datagram)),
                Err(DatagramError::NoContextId)
            );
        }
    }
}

mod uncompressed {
    use super::*;

    /// The bind draft, section 4, with the values of its example.
    #[test]
    fn the_layout_of_the_bind_draft() {
        let v4: SocketAddr = "192.0.2.42:50000".parse().expect("an address");
        assert_eq!(bound_head(id(2), v4)[..], [2, 4, 192, 0, 2, 42, 0xc3, 0x50]);
        let v6: SocketAddr = "[2001:db8::1]:50000".parse().expect("an address");
        let mut expected = vec![2, 6, 0x20, 1, 0x0d, 0xb8];
        expected.resize(17, 0);
        expected.extend([1, 0xc3, 0x50]);
        assert_eq!(bound_head(id(2), v6)[..], expected);
    }

    #[test]
    fn the_longest_head_is_as_long_as_said() {
        let remote = SocketAddr::from((Ipv6Addr::LOCALHOST, 1));
        assert_eq!(bound_head(id(VarInt::MAX.get()), remote).len(), MAX_HEAD);
    }

    /// Section 4: the IP version MUST be 4 or 6.
    #[test]
    fn other_ip_versions_are_refused() {
        for version in (0..=255).filter(|version| ![4, 6].contains(version)) {
            let mut payload = vec![version];
            payload.resize(40, 0);
            assert_eq!(
                split_bound(payload.into()),
                Err(BoundError::IpVersion(version))
            );
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for remote in ["192.0.2.42:50000", "[2001:db8::1]:50000"] {
            let remote: SocketAddr = remote.parse().expect("an address");
            let head = bound_head(id(2), remote);
            for cut in 1..head.len() {
                let payload = Bytes::copy_from_slice(&head[1..cut]);
                assert_eq!(split_bound(payload), Err(BoundError::Truncated));
            }
            let payload = Bytes::copy_from_slice(&head[1..]);
            assert_eq!(split_bound(payload), Ok((remote, Bytes::new())));
        }
    }

    /// One remote has one form, whatever was written: a rule about 127.0.0.1 sees it.
    #[test]
    fn mapped_remotes_are_ipv4() {
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let mut payload = vec![6];
        payload.extend(mapped.octets());
        payload.extend([0, 53, 0xaa]);
        let expected = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
        assert_eq!(
            split_bound(payload.into()),
            Ok((expected, Bytes::from_static(&[0xaa])))
        );
        let with_scope = SocketAddr::V6(SocketAddrV6::new(mapped, 53, 7, 3));
        assert_eq!(bound_head(id(2), with_scope), bound_head(id(2), expected));
    }
}

proptest! {
    #[test]
    fn datagrams_round_trip(context in any_id(), payload: Vec<u8>) {
        let mut datagram = context.head().to_vec();
        prop_assert_eq!(datagram.len(), context.encoded_len());
        datagram.extend_from_slice(&payload);
        let datagram = Bytes::from(datagram);
        let range = datagram.as_ptr_range();
        let (id, rest) = split_datagram(datagram)?;
        prop_assert_eq!(id, context);
        prop_assert_eq!(&rest[..], &payload[..]);
        // Not copied.
        prop_assert!(rest.is_empty() || range.contains(&rest.as_ptr()));
    }

    #[test]
    fn bound_payloads_round_trip(context in any_id(), ip: IpAddr, port: u16, payload: Vec<u8>) {
        let remote = SocketAddr::new(ip.to_canonical(), port);
        let mut datagram = bound_head(context, remote).to_vec();
        datagram.extend_from_slice(&payload);
        let (id, rest) = split_datagram(datagram.into())?;
        prop_assert_eq!(id, context);
        prop_assert_eq!(split_bound(rest)?, (remote, Bytes::from(payload)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, version in prop_oneof![Just(4_u8), Just(6), any::<u8>()]) {
        let _ = split_datagram(bytes.clone().into());
        let _ = split_bound(bytes.clone().into());
        let versioned = [&[version][..], &bytes].concat();
        if let Ok((remote, payload)) = split_bound(versioned.clone().into()) {
            prop_assert_eq!(remote.ip(), remote.ip().to_canonical());
            prop_assert!(versioned.ends_with(&payload));
        }
    }
}
