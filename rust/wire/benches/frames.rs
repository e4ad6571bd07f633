//! Cost of one extension frame, which happens a few times per connection and second at most, and
//! of walking over the frames of a packet, which happens for every packet.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyreach_wire::address::Address;
use anyreach_wire::frames::{AddAddress, Frame, MAX_FRAME_BYTES, PunchMeNow};
use anyreach_wire::observed::{Correction, correct};
use anyreach_wire::varint::VarInt;
use anyreach_wire::walk::frame_at;
use criterion::{Criterion, criterion_group, criterion_main};

fn frames(c: &mut Criterion) {
    let cases = [
        (
            "add_address_v4",
            Frame::AddAddress(AddAddress {
                sequence: VarInt::from_u32(3),
                address: Address::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9000),
            }),
        ),
        (
            "punch_me_now_v6",
            Frame::PunchMeNow(PunchMeNow {
                round: VarInt::from_u32(70_000),
                paired_with: VarInt::from_u32(3),
                address: Address::new(Ipv6Addr::LOCALHOST.into(), 9000),
            }),
        ),
    ];
    for (name, frame) in cases {
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        c.bench_function(&format!("decode/{name}"), |b| {
            b.iter(|| Frame::decode(&mut black_box(&encoded[..])));
        });
        c.bench_function(&format!("encode/{name}"), |b| {
            b.iter(|| {
                let mut out = [0; MAX_FRAME_BYTES];
                black_box(&frame).encode(&mut &mut out[..]);
                out
            });
        });
    }
    c.bench_function("decode/other_type", |b| {
        let stream = [0x0f, 0x04, 0x52, 0x00];
        b.iter(|| Frame::decode(&mut black_box(&stream[..])));
    });
}

fn walk(c: &mut Criterion) {
    let mut bulk = vec![
        0x02, 0x44, 0x00, 0x19, 0x01, 0x05, 0x02, 0x03, 0x0c, 0x04, 0x80, 1, 0, 0,
    ];
    bulk.resize(1400, 0xaa);
    let mut probe = vec![0x01];
    probe.resize(1400, 0);
    for (name, payload) in [("ack_and_stream", bulk), ("mtu_probe", probe)] {
        c.bench_function(&format!("walk/{name}"), |b| {
            b.iter(|| {
                let mut at = 0;
                while let Ok(Some(frame)) = frame_at(black_box(&payload), at) {
                    at = frame.range.end;
                }
                at
            });
        });
    }
}

/// What every packet sent pays so that no mapped address leaves.
fn sealing(c: &mut Criterion) {
    let mut bulk = vec![0x08, 0x04];
    bulk.extend((0..1400u32).map(|n| ((n * 31) >> 3) as u8));
    c.bench_function("sealing/nothing_to_rewrite", |b| {
        b.iter(|| correct(black_box(&mut bulk), |_| Correction::Keep));
    });
}

criterion_group!(benches, frames, walk, sealing);
criterion_main!(benches);
