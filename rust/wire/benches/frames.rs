//! Cost of reading and writing one extension frame; each happens a few times per connection and
//! second at most, the reading of frame types once per packet.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyreach_wire::address::Address;
use anyreach_wire::frames::{AddAddress, Frame, MAX_FRAME_BYTES, PunchMeNow};
use anyreach_wire::varint::VarInt;
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

criterion_group!(benches, frames);
criterion_main!(benches);
