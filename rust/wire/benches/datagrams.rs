//! Cost of what a relay does to every packet: taking an HTTP Datagram apart, putting the head of
//! one together, and cutting DATAGRAM capsules out of a stream.

use std::hint::black_box;
use std::net::SocketAddr;

use anyreach_wire::bound::{bound_head, split_bound};
use anyreach_wire::capsule::{Decoder, encode_datagram_header};
use anyreach_wire::context::{ContextId, split_datagram};
use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// A packet of the inner connection.
const PACKET: usize = 1200;

fn datagrams(c: &mut Criterion) {
    let context = ContextId::from_u32(7);
    let remote: SocketAddr = "[2001:db8::1]:9000".parse().expect("an address");
    for (name, head) in [
        ("compressed", context.head()),
        ("uncompressed_v6", bound_head(context, remote)),
    ] {
        let mut datagram = head.to_vec();
        datagram.resize(head.len() + PACKET, 0xaa);
        let datagram = Bytes::from(datagram);
        c.bench_function(&format!("datagram/decode/{name}"), |b| {
            b.iter(|| {
                let (context, payload) = split_datagram(black_box(&datagram).clone())?;
                let bound = (head.len() > 1).then(|| split_bound(payload.clone()));
                Ok::<_, anyreach_wire::context::DatagramError>((context, payload, bound))
            });
        });
    }
    c.bench_function("datagram/head/compressed", |b| {
        b.iter(|| black_box(context).head());
    });
    c.bench_function("datagram/head/uncompressed_v6", |b| {
        b.iter(|| bound_head(black_box(context), black_box(remote)));
    });
}

/// A stream of packets in the chunks HTTP/2 gives: frames of 16 KiB.
fn capsules(c: &mut Criterion) {
    let mut stream = BytesMut::new();
    for _ in 0..100 {
        let head = ContextId::from_u32(7).head();
        stream.extend_from_slice(&encode_datagram_header(head.len() + PACKET));
        stream.extend_from_slice(&head);
        stream.resize(stream.len() + PACKET, 0xaa);
    }
    let mut chunks = Vec::new();
    while !stream.is_empty() {
        let chunk = stream.split_to(stream.len().min(16_384));
        chunks.push(chunk.freeze());
    }
    let mut group = c.benchmark_group("capsules");
    group.throughput(Throughput::Elements(100));
    group.bench_function("decode/100_packets", |b| {
        b.iter(|| {
            let mut decoder = Decoder::new();
            let mut items = 0;
            for chunk in &chunks {
                let mut chunk = black_box(chunk).clone();
                while let Ok(Some(item)) = decoder.next(&mut chunk) {
                    black_box(item);
                    items += 1;
                }
            }
            assert_eq!(items, 100);
        });
    });
    group.finish();
}

criterion_group!(benches, datagrams, capsules);
criterion_main!(benches);
