//! Capsules: the layouts of the bind draft, every rule of RFC 9297 about them, and input nobody
//! should send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyreach_wire::capsule::{
    Capsule, Decoder, Item, Kind, MAX_ENCODED, Malformed, encode_datagram_header,
};
use anyreach_wire::context::{ContextId, MAX_DATAGRAM, MAX_UDP_PAYLOAD};
use anyreach_wire::varint::VarInt;
use bytes::Bytes;
use proptest::prelude::*;

const LARGEST: u64 = VarInt::MAX.get();

fn id(id: u64) -> ContextId {
    ContextId::from_u64(id).expect("fits")
}

fn assign(context: u64, target: Option<&str>) -> Capsule {
    Capsule::CompressionAssign {
        context: id(context),
        target: target.map(|target| target.parse().expect("an address")),
    }
}

/// One capsule written by hand.
fn capsule(capsule_type: u64, value: &[u8]) -> Vec<u8> {
    let mut out = prefix(capsule_type, value.len() as u64);
    out.extend_from_slice(value);
    out
}

fn prefix(capsule_type: u64, length: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for integer in [capsule_type, length] {
        VarInt::try_from(integer).expect("fits").encode(&mut out);
    }
    out
}

/// All items of a stream that ends, in chunks of at most this many bytes.
fn decode_in(stream: &[u8], chunk: usize) -> Result<Vec<Item>, Malformed> {
    let mut decoder = Decoder::new();
    let mut items = Vec::new();
    for chunk in stream.chunks(chunk) {
        let mut chunk = Bytes::copy_from_slice(chunk);
        while let Some(item) = decoder.next(&mut chunk)? {
            items.push(item);
        }
        assert!(chunk.is_empty());
    }
    decoder.finish()?;
    Ok(items)
}

/// The same however the stream is cut.
fn decode(stream: &[u8]) -> Result<Vec<Item>, Malformed> {
    let whole = decode_in(stream, stream.len().max(1));
    for chunk in [1, 2, 3, 7] {
        assert_eq!(decode_in(stream, chunk), whole, "in chunks of {chunk}");
    }
    whole
}

mod layouts {
    use super::*;

    /// The bind draft, sections 3.1 to 3.3, with the values of its example.
    #[test]
    fn of_the_bind_draft() {
        let v6 = "20010db8000000000000000000001234";
        let cases = [
            (assign(2, None), "11 02 02 00".to_owned()),
            (
                assign(4, Some("203.0.113.11:60000")),
                "11 08 04 04 cb00710b ea60".to_owned(),
            ),
            (
                assign(0x41, Some("[2001:db8::1234]:54321")),
                format!("11 15 4041 06 {v6} d431"),
            ),
            (Capsule::CompressionAck(id(2)), "12 01 02".to_owned()),
            (Capsule::CompressionClose(id(2)), "13 01 02".to_owned()),
            (
                Capsule::CompressionClose(id(LARGEST)),
                "13 08 ffffffffffffffff".to_owned(),
            ),
        ];
        for (expected, hex) in cases {
            let hex = hex.replace(' ', "");
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                .collect();
            assert_eq!(expected.to_bytes(), bytes, "{expected:?}");
            assert_eq!(decode(&bytes), Ok(vec![Item::Capsule(expected)]));
        }
    }

    #[test]
    fn the_largest_capsule_is_as_large_as_said() {
        let largest = Capsule::CompressionAssign {
            context: id(LARGEST),
            target: Some(SocketAddr::from((Ipv6Addr::LOCALHOST, u16::MAX))),
        };
        assert_eq!(largest.to_bytes().len(), MAX_ENCODED);
        let mut exact = [0; MAX_ENCODED];
        largest.encode(&mut &mut exact[..]);
        assert_eq!(exact[..], largest.to_bytes());
    }

    #[test]
    fn datagram_headers() {
        for (length, header) in [
            (0, &[0, 0][..]),
            (63, &[0, 63]),
            (64, &[0, 0x40, 64]),
            (MAX_DATAGRAM, &[0, 0x80, 1, 0, 18]),
        ] {
            assert_eq!(encode_datagram_header(length)[..], *header);
            let mut stream = header.to_vec();
            stream.resize(header.len() + length, 7);
            let datagram = Bytes::from(vec![7; length]);
            assert_eq!(decode_in(&stream, 1000), Ok(vec![Item::Datagram(datagram)]));
        }
    }

    /// RFC 9297, section 1.1: integers need not be encoded on the minimum number of bytes.
    #[test]
    fn integers_may_be_longer_than_necessary() {
        let close = [
            0xc0, 0, 0, 0, 0, 0, 0, 0x13, 0xc0, 0, 0, 0, 0, 0, 0, 2, 0x40, 6,
        ];
        let close_6 = Item::Capsule(Capsule::CompressionClose(id(6)));
        assert_eq!(decode(&close), Ok(vec![close_6]));
        let datagram = [0x40, 0, 0x80, 0, 0, 2, 0, 0xaa];
        let datagram_aa = Item::Datagram(Bytes::from_static(&[0, 0xaa]));
        assert_eq!(decode(&datagram), Ok(vec![datagram_aa]));
    }

    /// What the module `bound` says about them.
    #[test]
    fn mapped_targets_are_ipv4() {
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let mut value = vec![4, 6];
        value.extend(mapped.octets());
        value.extend([0, 53]);
        let expected = assign(4, Some("127.0.0.1:53"));
        assert_eq!(
            decode(&capsule(0x11, &value)),
            Ok(vec![Item::Capsule(expected)])
        );
        let written = Capsule::CompressionAssign {
            context: id(4),
            target: Some(SocketAddr::from((mapped, 53))),
        };
        assert_eq!(written.to_bytes(), expected.to_bytes());
    }

    #[test]
    fn a_datagram_within_one_chunk_is_not_copied() {
        let mut chunk = Bytes::from(capsule(0, &[9; 100]));
        let range = chunk.as_ptr_range();
        let Ok(Some(Item::Datagram(datagram))) = Decoder::new().next(&mut chunk) else {
            panic!("a datagram")
        };
        assert!(range.contains(&datagram.as_ptr()));
    }
}

mod rfc_9297 {
    use super::*;

    /// Section 3.2: endpoints MUST silently drop capsules of unknown types and skip over them.
    #[test]
    fn unknown_capsule_types_are_skipped() {
        // Those reserved for just this (0x29 * N + 0x17), one past ours, and the largest.
        for unknown in [0x17, 0x40, 0x14, 0x10, 0x01, 0x29 * 1000 + 0x17, LARGEST] {
            let mut stream = capsule(unknown, &[0x11; 300]);
            stream.extend(capsule(unknown, &[]));
            stream.extend(Capsule::CompressionAck(id(2)).to_bytes());
            let ack = Item::Capsule(Capsule::CompressionAck(id(2)));
            assert_eq!(decode(&stream), Ok(vec![ack]), "{unknown:#x}");
        }
    }

    /// Section 3.2: accumulating a value SHOULD be avoided; here, for any length there is.
    #[test]
    fn unknown_capsules_of_any_length_are_not_buffered() {
        let mut decoder = Decoder::new();
        assert_eq!(
            decoder.next(&mut prefix(0x17, LARGEST).into()),
            Ok(None),
            "2^62 - 1 bytes follow"
        );
        for _ in 0..1000 {
            let mut chunk = Bytes::from_static(&[0; 65_536]);
            assert_eq!(decoder.next(&mut chunk), Ok(None));
            assert!(chunk.is_empty());
            assert_eq!(decoder.buffered(), 0);
        }
        assert_eq!(decoder.finish(), Err(Malformed::Truncated));
    }

    /// Section 3.3: a payload MUST contain exactly the fields. What ends before them is malformed.
    #[test]
    fn a_payload_that_ends_early_is_malformed() {
        let full: [(u64, Kind, Bytes); 5] = [
            (0x11, Kind::Assign, assign(70, None).to_bytes()),
            (
                0x11,
                Kind::Assign,
                assign(70, Some("192.0.2.1:9")).to_bytes(),
            ),
            (0x11, Kind::Assign, assign(70, Some("[::1]:9")).to_bytes()),
            (0x12, Kind::Ack, Capsule::CompressionAck(id(70)).to_bytes()),
            (
                0x13,
                Kind::Close,
                Capsule::CompressionClose(id(70)).to_bytes(),
            ),
        ];
        for (capsule_type, kind, full) in full {
            let value = &full[2..];
            for cut in 0..value.len() {
                let stream = capsule(capsule_type, &value[..cut]);
                let length = cut as u64;
                let expected = Err(Malformed::WrongLength { kind, length });
                assert_eq!(decode(&stream), expected, "{kind} cut at {cut}");
            }
        }
    }

    /// Section 3.3: additional bytes after the fields are malformed.
    #[test]
    fn a_payload_with_more_than_its_fields_is_malformed() {
        for (capsule_type, kind, value) in [
            (0x11, Kind::Assign, &[2, 0, 0][..]),
            (0x11, Kind::Assign, &[2, 4, 1, 2, 3, 4, 0, 9, 0]),
            (0x11, Kind::Assign, &[2; 28]),
            (0x12, Kind::Ack, &[2, 0]),
            (0x13, Kind::Close, &[2, 0]),
            (0x13, Kind::Close, &[2; 9]),
        ] {
            let length = value.len() as u64;
            assert_eq!(
                decode(&capsule(capsule_type, value)),
                Err(Malformed::WrongLength { kind, length })
            );
        }
    }

    /// The same, before a byte of the value arrived: nothing is kept on the word of a length.
    #[test]
    fn impossible_lengths_of_known_types_are_refused_at_once() {
        for (capsule_type, kind) in [(0x11, Kind::Assign), (0x12, Kind::Ack), (0x13, Kind::Close)] {
            for length in [0, 28, 65_536, LARGEST] {
                let mut decoder = Decoder::new();
                let error = Malformed::WrongLength { kind, length };
                let mut chunk = prefix(capsule_type, length).into();
                assert_eq!(decoder.next(&mut chunk), Err(error));
                // And the decoder stays in that state.
                assert_eq!(decoder.next(&mut Bytes::from_static(&[0])), Err(error));
                assert_eq!(decoder.finish(), Err(error));
            }
        }
    }

    /// Section 3.3: a stream that ends inside a capsule MUST be treated as malformed.
    #[test]
    fn a_stream_that_ends_inside_a_capsule_is_malformed() {
        let streams: [Vec<u8>; 4] = [
            capsule(0, &[0; 70]),
            capsule(0x17, &[0; 70]),
            assign(2, Some("[2001:db8::1]:443")).to_bytes().into(),
            [&[0xc0][..], &[0; 6], &[0x17, 0xc0], &[0; 7]].concat(),
        ];
        for stream in streams {
            for cut in 1..stream.len() {
                assert_eq!(decode(&stream[..cut]), Err(Malformed::Truncated), "{cut}");
            }
            assert!(decode(&stream).is_ok());
        }
        assert_eq!(decode(&[]), Ok(vec![]));
    }

    /// Section 3.5: a DATAGRAM known to be too large to be usable SHOULD be discarded without
    /// buffering its contents.
    #[test]
    fn datagrams_too_large_to_be_of_use_are_discarded_as_they_arrive() {
        let mut value = vec![0x80, 0, 0, 2];
        value.resize(MAX_DATAGRAM + 1, 0x55);
        let mut stream = capsule(0, &value);
        stream.extend(capsule(0, &[2, 0xaa]));
        let mut decoder = Decoder::new();
        let mut items = Vec::new();
        for chunk in stream.chunks(1000) {
            let mut chunk = Bytes::copy_from_slice(chunk);
            while let Some(item) = decoder.next(&mut chunk).expect("legal") {
                items.push(item);
            }
            assert_eq!(decoder.buffered(), 0);
        }
        assert_eq!(items, [Item::Datagram(Bytes::from_static(&[2, 0xaa]))]);

        let mut decoder = Decoder::new();
        let mut chunk = Bytes::from([prefix(0, LARGEST), vec![2; 100]].concat());
        assert_eq!(decoder.next(&mut chunk), Ok(None));
        assert_eq!((chunk.len(), decoder.buffered()), (0, 0));
    }

    /// Section 3.5: the payload of a datagram can be empty; that it then lacks a context ID is
    /// for others to see.
    #[test]
    fn an_empty_datagram_is_delivered() {
        assert_eq!(
            decode(&capsule(0, &[])),
            Ok(vec![Item::Datagram(Bytes::new())])
        );
    }
}

mod rfc_9298 {
    use super::*;

    /// Section 5: an endpoint that receives more than 65,527 bytes in context 0 MUST abort the
    /// stream. The largest that can be delivered is checked by `split_datagram`.
    #[test]
    fn a_payload_in_context_0_longer_than_udp_allows_aborts() {
        let length = MAX_DATAGRAM as u64 + 1;
        for zero in [&[0][..], &[0xc0, 0, 0, 0, 0, 0, 0, 0]] {
            let mut stream = prefix(0, length);
            stream.extend(zero);
            for chunk in [1, 100] {
                assert_eq!(
                    decode_in(&stream, chunk),
                    Err(Malformed::PayloadTooLong(length))
                );
            }
        }
    }

    #[test]
    fn the_largest_udp_payload_passes() {
        let mut value = vec![0];
        value.resize(1 + MAX_UDP_PAYLOAD, 0x55);
        let expected = Item::Datagram(value.clone().into());
        assert_eq!(decode_in(&capsule(0, &value), 4096), Ok(vec![expected]));
    }
}

mod bind_draft {
    use super::*;

    /// Sections 3.1 and 3.3: the context ID can never be zero; with it the capsule is malformed.
    #[test]
    fn context_0_is_malformed() {
        for zero in [&[0][..], &[0x40, 0], &[0xc0, 0, 0, 0, 0, 0, 0, 0]] {
            let assign = [zero, &[0]].concat();
            for (capsule_type, kind, value) in [
                (0x11, Kind::Assign, &assign[..]),
                (0x12, Kind::Ack, zero),
                (0x13, Kind::Close, zero),
            ] {
                assert_eq!(
                    decode(&capsule(capsule_type, value)),
                    Err(Malformed::ContextZero(kind))
                );
            }
        }
    }

    /// Section 3.1: the IP version MUST be 0, 4 or 6.
    #[test]
    fn other_ip_versions_are_malformed() {
        for version in (0..=255).filter(|version| ![0, 4, 6].contains(version)) {
            for length in [0, 6, 18] {
                let mut value = vec![2, version];
                value.resize(2 + length, 0);
                assert_eq!(
                    decode(&capsule(0x11, &value)),
                    Err(Malformed::IpVersion(version))
                );
            }
        }
    }
}

fn any_id() -> impl Strategy<Value = ContextId> {
    (0_u32..=62, any::<u64>()).prop_map(|(bits, value)| id((value & ((1_u64 << bits) - 1)).max(1)))
}

fn any_capsule() -> impl Strategy<Value = Capsule> {
    let target = prop::option::of((any::<IpAddr>(), any::<u16>()));
    prop_oneof![
        (any_id(), target).prop_map(|(context, target)| Capsule::CompressionAssign {
            context,
            target: target.map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port)),
        }),
        any_id().prop_map(Capsule::CompressionAck),
        any_id().prop_map(Capsule::CompressionClose),
    ]
}

/// A capsule of any kind as bytes, and the item it is, if it is known.
fn any_encoded() -> impl Strategy<Value = (Vec<u8>, Option<Item>)> {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        any_capsule().prop_map(|c| (c.to_bytes().to_vec(), Some(Item::Capsule(c)))),
        bytes.clone().prop_map(|value| {
            let mut out = encode_datagram_header(value.len()).to_vec();
            out.extend_from_slice(&value);
            (out, Some(Item::Datagram(value.into())))
        }),
        (0x14..=LARGEST, bytes).prop_map(|(unknown, value)| (capsule(unknown, &value), None)),
    ]
}

proptest! {
    #[test]
    fn items_survive_any_chunking(
        capsules in prop::collection::vec(any_encoded(), 0..12),
        chunk in 1_usize..300,
    ) {
        let stream: Vec<u8> = capsules.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let items: Vec<Item> = capsules.into_iter().filter_map(|(_, item)| item).collect();
        prop_assert_eq!(decode_in(&stream, chunk)?, items);
    }

    #[test]
    fn every_truncation_is_malformed(capsule in any_capsule()) {
        let bytes = capsule.to_bytes();
        prop_assert!(bytes.len() <= MAX_ENCODED);
        for cut in 1..bytes.len() {
            prop_assert_eq!(decode_in(&bytes[..cut], 3), Err(Malformed::Truncated));
        }
    }

    /// Any bytes: items or an error, the same however they are cut, and no more memory than one
    /// datagram.
    #[test]
    fn arbitrary_streams_never_panic_or_pile_up(
        stream in prop::collection::vec(prop_oneof![0_u8..0x14, any::<u8>()], 0..400),
        chunk in 1_usize..80,
    ) {
        let mut decoder = Decoder::new();
        let mut items = Vec::new();
        let mut failed = None;
        for chunk in stream.chunks(chunk) {
            let mut chunk = Bytes::copy_from_slice(chunk);
            loop {
                match decoder.next(&mut chunk) {
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => break,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            prop_assert!(decoder.buffered() <= MAX_DATAGRAM);
        }
        let whole = decode_in(&stream, stream.len().max(1));
        match failed {
            Some(error) => prop_assert_eq!(whole, Err(error)),
            None => match decoder.finish() {
                Ok(()) => prop_assert_eq!(whole, Ok(items)),
                Err(error) => prop_assert_eq!(whole, Err(error)),
            },
        }
    }

    /// Control capsules with noise in them: read as something or refused, and what is read can be
    /// written and reads the same again.
    #[test]
    fn damaged_capsules_never_panic(
        capsule_type in 0x11_u64..0x14,
        value in prop::collection::vec(prop_oneof![Just(0_u8), Just(4), Just(6), any::<u8>()], 0..30),
    ) {
        for item in decode_in(&capsule(capsule_type, &value), 5).unwrap_or_default() {
            let Item::Capsule(capsule) = item else { panic!("not a datagram") };
            prop_assert_eq!(decode_in(&capsule.to_bytes(), 5)?, [Item::Capsule(capsule)]);
        }
    }
}
