//! Cost of finding the context of a packet, in both directions, in a full table.

use std::{
    hint::black_box,
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyreach_masque::contexts::{MAX_CONTEXTS, ProxyContexts};
use anyreach_wire::{bound::bound_head, capsule::Capsule, context::ContextId};
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};

const IDLE: Duration = Duration::from_secs(30);

fn remote(n: u16) -> SocketAddr {
    let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, n, 0, 0, 0, 1);
    SocketAddr::from((ip, 9000 + n))
}

/// A proxy whose client has registered as many contexts as it may.
fn full(now: Instant) -> ProxyContexts {
    let mut proxy = ProxyContexts::bound(None, IDLE);
    for n in 0..=MAX_CONTEXTS as u16 {
        let capsule = Capsule::CompressionAssign {
            context: ContextId::from_u32(2 + 2 * u32::from(n)),
            target: (n > 0).then(|| remote(n)),
        };
        proxy
            .on_capsule(capsule, now, |_| true)
            .expect("within the rules");
    }
    proxy
}

fn lookups(c: &mut Criterion) {
    let now = Instant::now();
    let mut proxy = full(now);
    assert_eq!(proxy.len(), MAX_CONTEXTS);

    let known: Vec<SocketAddr> = (1..=MAX_CONTEXTS as u16).map(remote).collect();
    let mut next = known.iter().cycle();
    c.bench_function("contexts/route/compressed", |b| {
        b.iter(|| proxy.route(*next.next().expect("endless"), now));
    });
    c.bench_function("contexts/route/uncompressed", |b| {
        b.iter(|| proxy.route(black_box(remote(999)), now));
    });

    let payload = [0xaa; 1200];
    let compressed: Vec<Bytes> = (1..=MAX_CONTEXTS as u32)
        .map(|n| [&ContextId::from_u32(2 + 2 * n).head(), &payload[..]].concat())
        .map(Bytes::from)
        .collect();
    let mut next = compressed.iter().cycle();
    c.bench_function("contexts/on_datagram/compressed", |b| {
        b.iter(|| proxy.on_datagram(next.next().expect("endless").clone(), now));
    });
    let head = bound_head(ContextId::from_u32(2), remote(999));
    let uncompressed = Bytes::from([&head, &payload[..]].concat());
    c.bench_function("contexts/on_datagram/uncompressed", |b| {
        b.iter(|| proxy.on_datagram(black_box(&uncompressed).clone(), now));
    });
}

criterion_group!(benches, lookups);
criterion_main!(benches);
