//! The frame walker: every frame the engine writes, and payloads nobody should send.

use anyreach_wire::varint::{UnexpectedEnd, VarInt};
use anyreach_wire::walk::{Acknowledged, PADDING, RawFrame, WalkError, acknowledged, frame_at};
use proptest::prelude::*;

fn walk(payload: &[u8]) -> Result<Vec<RawFrame>, WalkError> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(frame) = frame_at(payload, at)? {
        assert!(frame.range.start == at && frame.body > at && frame.range.end >= frame.body);
        at = frame.range.end;
        frames.push(frame);
    }
    assert_eq!(at, payload.len());
    Ok(frames)
}

fn bytes(hex: &str) -> Vec<u8> {
    let hex = hex.replace(' ', "");
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

/// One complete frame of every type with its contents; all can be followed by others.
const FRAMES: &[(u64, &str)] = &[
    (0x01, "01"),
    (0x02, "02 4400 19 01 05 02 03"),
    (0x03, "03 4400 19 00 05 01 02 4003"),
    (0x04, "04 04 05 4100"),
    (0x05, "05 04 05"),
    (0x06, "06 4100 03 010203"),
    (0x07, "07 02 aabb"),
    (0x0a, "0a 04 02 ffff"),
    (0x0b, "0b 04 00"),
    (0x0e, "0e 04 80010000 03 010203"),
    (0x10, "10 80010000"),
    (0x11, "11 04 80010000"),
    (0x12, "12 05"),
    (0x13, "13 05"),
    (0x14, "14 4100"),
    (0x15, "15 04 4100"),
    (0x16, "16 05"),
    (0x17, "17 05"),
    (
        0x18,
        "18 05 02 04 01020304 000102030405060708090a0b0c0d0e0f",
    ),
    (0x19, "19 05"),
    (0x1a, "1a 0001020304050607"),
    (0x1b, "1b 0001020304050607"),
    (0x1c, "1c 0a 06 03 626164"),
    (0x1d, "1d 4100 03 627965"),
    (0x1e, "1e"),
    (0x1f, "1f"),
    (0x31, "31 03 010203"),
    (0xaf, "40af 01 02 4019 03"),
    (0x3e, "3e 01 4400 19 01 05 02 03"),
    (0x3f, "3f 01 4400 19 00 05 01 02 03"),
    (0x3e75, "7e75 01 3e"),
    (0x3e76, "7e76 01 02"),
    (0x3e77, "7e77 01 02"),
    (
        0x3e78,
        "7e78 01 05 02 04 01020304 000102030405060708090a0b0c0d0e0f",
    ),
    (0x3e79, "7e79 01 05"),
    (0x3e7a, "7e7a 08"),
    (0x3e7b, "7e7b 08"),
    (0x3e7c, "7e7c 01 02"),
    (0x9f_81a6, "809f81a6 05 c0000201 1234"),
    (
        0x9f_81a7,
        "809f81a7 05 20010db8000000000000000000000001 1234",
    ),
    (0x3d_7e90, "803d7e90 05 c0000201 1234"),
    (
        0x3d_7e91,
        "803d7e91 05 20010db8000000000000000000000001 1234",
    ),
    (0x3d_7e92, "803d7e92 05 06 c0000201 1234"),
    (
        0x3d_7e93,
        "803d7e93 05 06 20010db8000000000000000000000001 1234",
    ),
    (0x3d_7e94, "803d7e94 05"),
    (0x3d_7f90, "803d7f90 05 c0000201 1234"),
    (
        0x3d_7f91,
        "803d7f91 05 20010db8000000000000000000000001 1234",
    ),
    (0x3d_7f92, "803d7f92 05 c0000201 1234"),
    (
        0x3d_7f93,
        "803d7f93 05 20010db8000000000000000000000001 1234",
    ),
    (0x3d_7f94, "803d7f94 05"),
];

#[test]
fn each_frame_has_its_length() {
    for (frame_type, hex) in FRAMES {
        let mut payload = bytes(hex);
        let length = payload.len();
        payload.extend([0x01, 0x00]);
        let frames = walk(&payload).expect("known frames");
        assert_eq!(frames.len(), 3, "{hex}");
        assert_eq!(frames[0].frame_type, *frame_type, "{hex}");
        assert_eq!(frames[0].range, 0..length, "{hex}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for (_, hex) in FRAMES {
        let payload = bytes(hex);
        for cut in 1..payload.len() {
            assert_eq!(
                walk(&payload[..cut]),
                Err(WalkError::UnexpectedEnd(UnexpectedEnd)),
                "{hex} cut at {cut}"
            );
        }
    }
}

#[test]
fn stream_and_datagram_without_length_reach_to_the_end() {
    for hex in [
        "08 04 0101010101",
        "0c 04 4100 0101010101",
        "30 0101010101",
        "30",
        "09 04",
    ] {
        let payload = bytes(hex);
        let frames = walk(&payload).expect("known frames");
        assert_eq!(frames.len(), 1, "{hex}");
        assert_eq!(frames[0].range, 0..payload.len());
    }
}

#[test]
fn padding_is_one_step() {
    let mut payload = vec![0x01];
    payload.resize(1400, 0);
    let frames = walk(&payload).expect("known frames");
    assert_eq!(frames.len(), 2);
    assert_eq!(
        (frames[1].frame_type, frames[1].range.clone()),
        (PADDING, 1..1400)
    );
}

/// RFC 9000, section 12.4 lets a receiver take types that are not in their shortest encoding, and
/// the engine does.
#[test]
fn types_may_be_longer_than_need_be() {
    for (hex, frame_type, length) in [
        ("4000 01", PADDING, 2),
        ("c000000000000001", 0x01, 8),
        ("4031 02 0102", 0x31, 5),
        ("c0000000003d7e94 05", 0x3d_7e94, 9),
    ] {
        let payload = bytes(hex);
        let frame = frame_at(&payload, 0).expect("known").expect("a frame");
        assert_eq!(
            (frame.frame_type, frame.range),
            (frame_type, 0..length),
            "{hex}"
        );
    }
}

#[test]
fn what_elicits_an_acknowledgement() {
    for (frame_type, hex) in FRAMES {
        let frame = frame_at(&bytes(hex), 0).expect("known").expect("a frame");
        let silent = [0x02, 0x03, 0x1c, 0x1d, 0x3e, 0x3f].contains(frame_type);
        assert_eq!(frame.is_ack_eliciting(), !silent, "{frame_type:#x}");
    }
}

#[test]
fn unknown_types_end_the_walk() {
    for unknown in [
        0x20_u32, 0x2f, 0x32, 0x3d, 0x40, 0x3e74, 0x3e7d, 0x3d_7e95, 0x3d_7f95,
    ] {
        let mut payload = vec![0x01];
        VarInt::from_u32(unknown).encode(&mut payload);
        payload.resize(100, 0);
        assert_eq!(walk(&payload), Err(WalkError::UnknownType(unknown.into())));
    }
}

#[test]
fn acknowledged_packets() {
    let ack = |hex: &str| {
        let payload = bytes(hex);
        let frame = frame_at(&payload, 0).expect("known").expect("a frame");
        acknowledged(&payload, &frame)
    };
    // 1000 down to 995; then a gap of 2 + 1 packets, and 991 down to 988.
    let ranges = vec![995..=1000, 988..=991];
    let expected = Acknowledged { path: 0, ranges };
    assert_eq!(ack("02 43e8 19 01 05 02 03"), Ok(Some(expected.clone())));
    assert_eq!(
        ack("3e 07 43e8 19 01 05 02 03"),
        Ok(Some(Acknowledged {
            path: 7,
            ..expected
        }))
    );
    let Ok(Some(parsed)) = ack("3f 07 43e8 19 01 05 02 03 01 02 03") else {
        panic!("well-formed")
    };
    assert_eq!(parsed.largest(), 1000);
    for (packet, received) in [
        (1000, true),
        (995, true),
        (994, false),
        (991, true),
        (987, false),
    ] {
        assert_eq!(parsed.contains(packet), received, "{packet}");
    }
    assert_eq!(ack("01"), Ok(None));
    // The first range, a gap, or a further range reach below packet 0.
    for hex in [
        "02 05 00 00 06",
        "02 05 00 01 05 00 00",
        "02 05 00 01 02 00 02",
    ] {
        assert_eq!(ack(hex), Err(WalkError::BadRanges), "{hex}");
    }
    let huge = "02 ffffffffffffffff 00 01 00 ffffffffffffffff 00";
    assert_eq!(ack(huge), Err(WalkError::BadRanges));
}

proptest! {
    #[test]
    fn frames_in_any_order(order in prop::collection::vec(0..FRAMES.len(), 0..20)) {
        let payload: Vec<u8> = order.iter().flat_map(|at| bytes(FRAMES[*at].1)).collect();
        let types: Vec<_> = walk(&payload)?.iter().map(|frame| frame.frame_type).collect();
        let expected: Vec<_> = order.iter().map(|at| FRAMES[*at].0).collect();
        prop_assert_eq!(types, expected);
    }

    #[test]
    fn arbitrary_payloads_never_panic(
        start in prop::collection::vec(0..FRAMES.len(), 0..3),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut payload: Vec<u8> = start.iter().flat_map(|at| bytes(FRAMES[*at].1)).collect();
        payload.extend(noise);
        let mut at = 0;
        while let Ok(Some(frame)) = frame_at(&payload, at) {
            prop_assert!(frame.range.end > at);
            prop_assert!(frame.range.end <= payload.len());
            let _ = acknowledged(&payload, &frame);
            at = frame.range.end;
        }
    }

    /// ACK frames with arbitrary contents: ranges are descending and apart, or refused.
    #[test]
    fn acknowledgements_are_descending(
        largest in 0_u32..2000,
        first in 0_u32..100,
        further in prop::collection::vec((0_u32..100, 0_u32..100), 0..10),
    ) {
        let mut payload = vec![0x02];
        let count = further.len() as u32;
        for number in [largest, 0, count, first] {
            VarInt::from_u32(number).encode(&mut payload);
        }
        for (gap, length) in further {
            VarInt::from_u32(gap).encode(&mut payload);
            VarInt::from_u32(length).encode(&mut payload);
        }
        let frame = frame_at(&payload, 0)?.expect("a frame");
        prop_assert_eq!(frame.range.end, payload.len());
        if let Ok(parsed) = acknowledged(&payload, &frame) {
            let parsed = parsed.expect("an ACK");
            prop_assert_eq!(parsed.largest(), u64::from(largest));
            prop_assert_eq!(parsed.ranges.len(), count as usize + 1);
            for pair in parsed.ranges.windows(2) {
                prop_assert!(pair[1].end() + 1 < *pair[0].start());
            }
        }
    }
}
