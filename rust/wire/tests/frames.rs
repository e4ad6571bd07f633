//! Integers, addresses and extension frames: known bytes, round trips, and input nobody should
//! send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use anyreach_wire::address::{Address, Family};
use anyreach_wire::frames::{
    AddAddress, Frame, FrameError, MAX_FRAME_BYTES, ObservedAddress, PunchMeNow, RemoveAddress,
};
use anyreach_wire::varint::{UnexpectedEnd, VarInt, VarIntTooLarge};
use proptest::prelude::*;

const fn varint(value: u32) -> VarInt {
    VarInt::from_u32(value)
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

mod varints {
    use super::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a() {
        let examples: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x40, 0x25], 37),
            (&[0x25], 37),
        ];
        for (mut bytes, value) in examples {
            assert_eq!(VarInt::decode(&mut bytes).map(VarInt::get), Ok(value));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn each_length_ends_where_it_should() {
        for (value, length) in [
            (0, 1),
            (0x3f, 1),
            (0x40, 2),
            (0x3fff, 2),
            (0x4000, 4),
            (0x3fff_ffff, 4),
            (0x4000_0000, 8),
            (VarInt::MAX.get(), 8),
        ] {
            let value = VarInt::from_u64(value).expect("fits");
            let mut out = Vec::new();
            value.encode(&mut out);
            assert_eq!(out.len(), length, "{value}");
            assert_eq!(value.encoded_len(), length, "{value}");
        }
    }

    #[test]
    fn sixty_three_bits_do_not_fit() {
        for value in [1 << 62, 1 << 63, u64::MAX] {
            assert_eq!(VarInt::try_from(value), Err(VarIntTooLarge(value)));
            assert_eq!(VarInt::from_u64(value), None);
        }
    }

    proptest! {
        #[test]
        fn round_trip_and_truncation(bits in 0_u32..=62, value: u64, tail: Vec<u8>) {
            let value = value & ((1_u64 << bits) - 1);
            let value = VarInt::try_from(value)?;
            let mut out = Vec::new();
            value.encode(&mut out);
            for cut in 0..out.len() {
                let mut cut = &out[..cut];
                let before = cut;
                prop_assert_eq!(VarInt::decode(&mut cut), Err(UnexpectedEnd));
                prop_assert_eq!(cut, before);
            }
            out.extend(&tail);
            let mut rest = &out[..];
            prop_assert_eq!(VarInt::decode(&mut rest)?, value);
            prop_assert_eq!(rest, &tail[..]);
        }
    }
}

mod addresses {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let v4 = Address::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9000);
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        assert_eq!(Address::new(mapped.into(), 9000), v4);
        let with_scope = SocketAddr::V6(SocketAddrV6::new(mapped, 9000, 3, 7));
        assert_eq!(Address::from(with_scope), v4);

        let mut wire = mapped.octets().to_vec();
        wire.extend([0x23, 0x28]);
        assert_eq!(Address::decode(&mut &wire[..], Family::V6), Ok(v4));
        let mut out = Vec::new();
        v4.encode(&mut out);
        assert_eq!(out, [192, 0, 2, 1, 0x23, 0x28]);
    }

    #[test]
    fn what_only_resembles_a_mapped_address_stays_ipv6() {
        for ip in [
            "::192.0.2.1",
            "64:ff9b::c000:201",
            "2002:c000:201::",
            "::ffff:0:c000:201",
        ] {
            let ip: IpAddr = ip.parse().expect("an address");
            assert_eq!(Address::new(ip, 1).family(), Family::V6, "{ip}");
        }
    }
}

mod frames {
    use super::*;

    #[test]
    fn the_layouts_of_the_drafts() {
        let v4 = Address::new(Ipv4Addr::new(192, 0, 2, 1).into(), 0x1234);
        let v6 = Address::new(Ipv6Addr::from(0x2001_0db8 << 96 | 1).into(), 0x1234);
        let ip6 = "20010db8000000000000000000000001";
        let sequence = varint(0x40);
        let cases = [
            (
                Frame::AddAddress(AddAddress {
                    sequence,
                    address: v4,
                }),
                "803d7e90 4040 c0000201 1234".into(),
            ),
            (
                Frame::AddAddress(AddAddress {
                    sequence,
                    address: v6,
                }),
                format!("803d7e91 4040 {ip6} 1234"),
            ),
            (
                Frame::PunchMeNow(PunchMeNow {
                    round: varint(7),
                    paired_with: sequence,
                    address: v4,
                }),
                "803d7e92 07 4040 c0000201 1234".into(),
            ),
            (
                Frame::PunchMeNow(PunchMeNow {
                    round: varint(7),
                    paired_with: sequence,
                    address: v6,
                }),
                format!("803d7e93 07 4040 {ip6} 1234"),
            ),
            (
                Frame::RemoveAddress(RemoveAddress { sequence }),
                "803d7e94 4040".into(),
            ),
            (
                Frame::ObservedAddress(ObservedAddress {
                    sequence,
                    address: v4,
                }),
                "809f81a6 4040 c0000201 1234".into(),
            ),
            (
                Frame::ObservedAddress(ObservedAddress {
                    sequence,
                    address: v6,
                }),
                format!("809f81a7 4040 {ip6} 1234"),
            ),
        ];
        for (frame, hex) in cases {
            let hex = hex.replace(' ', "");
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                .collect();
            assert_eq!(encoded(&frame), bytes, "{frame:?}");
            assert_eq!(Frame::decode(&mut &bytes[..]), Ok(frame));
            assert!(Frame::is_extension_type(frame.frame_type().get()));
        }
    }

    #[test]
    fn the_largest_frame_is_as_large_as_said() {
        let frame = Frame::PunchMeNow(PunchMeNow {
            round: VarInt::MAX,
            paired_with: VarInt::MAX,
            address: Address::new(Ipv6Addr::LOCALHOST.into(), u16::MAX),
        });
        assert_eq!(frame.encoded_len(), MAX_FRAME_BYTES);
        assert_eq!(encoded(&frame).len(), MAX_FRAME_BYTES);
    }

    #[test]
    fn other_types_are_left_alone() {
        // PADDING, PING, the neighbours of our types, and the engine's own dialect.
        for other in [
            0, 1, 0x3d_7e8f, 0x3d_7e95, 0x9f_81a5, 0x9f_81a8, 0x3d_7f90, 0x3d_7f94,
        ] {
            let mut bytes = Vec::new();
            varint(other).encode(&mut bytes);
            bytes.resize(64, 0);
            let mut rest = &bytes[..];
            assert_eq!(
                Frame::decode(&mut rest),
                Err(FrameError::OtherType(other.into()))
            );
            assert_eq!(rest.len(), 64);
            assert!(!Frame::is_extension_type(other.into()));
        }
    }

    #[test]
    fn types_are_in_their_shortest_encoding() {
        let mut bytes = vec![0xc0, 0, 0, 0, 0, 0x3d, 0x7e, 0x94, 1];
        assert_eq!(
            Frame::decode(&mut &bytes[..]),
            Err(FrameError::TypeNotShortest(0x3d_7e94))
        );
        // A sequence number may be as long as it likes.
        bytes.splice(..8, [0x80, 0x3d, 0x7e, 0x94, 0xc0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            Frame::decode(&mut &bytes[..]),
            Ok(Frame::RemoveAddress(RemoveAddress {
                sequence: varint(1)
            }))
        );
    }

    fn any_varint() -> impl Strategy<Value = VarInt> {
        (0_u32..=62, any::<u64>()).prop_map(|(bits, value)| {
            VarInt::from_u64(value & ((1_u64 << bits) - 1)).expect("at most 62 bits")
        })
    }

    fn any_address() -> impl Strategy<Value = Address> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| Address::new(ip, port))
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let advertised = (any_varint(), any_address());
        prop_oneof![
            advertised.prop_map(|(sequence, address)| {
                Frame::AddAddress(AddAddress { sequence, address })
            }),
            (any_varint(), any_varint(), any_address()).prop_map(
                |(round, paired_with, address)| {
                    Frame::PunchMeNow(PunchMeNow {
                        round,
                        paired_with,
                        address,
                    })
                }
            ),
            any_varint().prop_map(|sequence| Frame::RemoveAddress(RemoveAddress { sequence })),
            (any_varint(), any_address()).prop_map(|(sequence, address)| {
                Frame::ObservedAddress(ObservedAddress { sequence, address })
            }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(frames in prop::collection::vec(any_frame(), 0..8)) {
            let bytes: Vec<u8> = frames.iter().flat_map(encoded).collect();
            let mut rest = &bytes[..];
            for frame in frames {
                let before = rest.len();
                prop_assert_eq!(Frame::decode(&mut rest)?, frame);
                prop_assert_eq!(before - rest.len(), frame.encoded_len());
                prop_assert!(frame.encoded_len() <= MAX_FRAME_BYTES);
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn every_truncation_is_an_error(frame in any_frame()) {
            let bytes = encoded(&frame);
            for cut in 0..bytes.len() {
                let mut rest = &bytes[..cut];
                prop_assert_eq!(
                    Frame::decode(&mut rest),
                    Err(FrameError::UnexpectedEnd(UnexpectedEnd))
                );
                prop_assert_eq!(rest.len(), cut);
            }
        }

        /// Whatever is read can be written, and reads the same again.
        #[test]
        fn arbitrary_bytes_never_panic(
            frame_type in prop_oneof![0x3d_7e90_u32..0x3d_7e95, 0x9f_81a6_u32..0x9f_81a8],
            body in prop::collection::vec(any::<u8>(), 0..48),
            noise in prop::collection::vec(any::<u8>(), 0..48),
        ) {
            let _ = Frame::decode(&mut &noise[..]);
            let mut bytes = Vec::new();
            varint(frame_type).encode(&mut bytes);
            bytes.extend(body);
            if let Ok(frame) = Frame::decode(&mut &bytes[..]) {
                prop_assert_eq!(Frame::decode(&mut &encoded(&frame)[..])?, frame);
            }
        }
    }
}
