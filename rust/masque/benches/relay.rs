//! Packets through one session of the relay, with a carrier that takes everything and does nothing:
//! what a relayed packet costs besides HTTP. Both directions include the system calls on loopback.

#![allow(missing_docs, reason = "the macros of criterion make public items")]

use std::{
    hint::black_box,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyreach_masque::{
    carrier::{
        CapsuleError, CarrierKind, Client, Close, DatagramError, Service, TunnelIn, TunnelOut,
    },
    relay::{Relay, RelayConfig},
};
use anyreach_net::{BindOptions, UdpPort, bind};
use anyreach_quic::PeerId;
use anyreach_wire::{
    capsule::Capsule,
    context::ContextId,
    proxy_fields::{CONNECT_UDP_BIND, PROXY_PUBLIC_ADDRESS, TRUE, read_addresses},
};
use bytes::{BufMut, Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderValue, Request};
use noq_udp::Transmit;

/// Packets per round: what a carrier delivers at a time under load.
const PACKETS: usize = 64;

/// Packets the remote sends with one system call, so that its cost does not hide the relay's.
const RUN: usize = 32;

/// Payload of a packet of QUIC.
const SIZE: usize = 1200;

#[derive(Debug, Default)]
struct Null {
    datagrams: AtomicUsize,
}

impl TunnelOut for Null {
    fn send_datagram(&self, head: &[u8], payload: &[u8]) -> Result<(), DatagramError> {
        black_box((head, payload));
        self.datagrams.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn max_datagram(&self) -> usize {
        usize::MAX
    }

    fn send_capsule(&self, _capsule: Bytes) -> Result<(), CapsuleError> {
        Ok(())
    }

    fn close(&self, _end: Close) {}

    fn rtt(&self) -> Option<Duration> {
        None
    }

    fn dropped(&self) -> u64 {
        0
    }
}

struct Session {
    out: Arc<Null>,
    input: Arc<dyn TunnelIn>,
    public: SocketAddr,
}

/// A session with context 4 for `remote`.
fn session(runtime: &tokio::runtime::Runtime, config: RelayConfig, remote: SocketAddr) -> Session {
    let _guard = runtime.enter();
    let relay = Relay::new(RelayConfig {
        allow_targets: vec!["127.0.0.0/8".parse().expect("a range")],
        ..config
    });
    let client = Client {
        peer_id: Some(PeerId([1; 32])),
        remote: SocketAddr::from(([127, 0, 0, 1], 5000)),
        local: Some(SocketAddr::from(([127, 0, 0, 1], 9000))),
        carrier: CarrierKind::H3,
    };
    let request = Request::builder()
        .uri("https://relay.example/.well-known/masque/udp/%2A/%2A/")
        .header(CONNECT_UDP_BIND, TRUE)
        .body(())
        .expect("well-formed");
    let out = Arc::new(Null::default());
    let opened = runtime.block_on(relay.open(&client, &request, out.clone()));
    let (accepted, input) = opened.expect("granted");
    let fields = accepted.headers.get_all(PROXY_PUBLIC_ADDRESS);
    let public = read_addresses(fields.iter().map(HeaderValue::as_bytes))[0];
    input
        .capsule(Capsule::CompressionAssign {
            context: ContextId::from_u32(4),
            target: Some(remote),
        })
        .expect("no violation");
    Session { out, input, public }
}

/// A relay without limits, and one that counts for client and total.
fn configs() -> [(&'static str, RelayConfig); 2] {
    let rate = 1 << 40;
    [
        ("unlimited", RelayConfig::default()),
        (
            "metered",
            RelayConfig {
                client_bytes_per_second: rate,
                client_burst_bytes: rate,
                total_bytes_per_second: rate,
                total_burst_bytes: rate,
                ..RelayConfig::default()
            },
        ),
    ]
}

fn relaying(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let remote = runtime.block_on(async {
        let options = BindOptions::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let port = UdpPort::new(bind(&options).expect("a free port")).await;
        port.expect("usable")
    });
    let address = remote.local_addr();
    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Elements(PACKETS as u64));

    let run = vec![7; RUN * SIZE];
    for (name, config) in configs() {
        let session = session(&runtime, config, address);
        let mut datagram = BytesMut::from(&ContextId::from_u32(4).head()[..]);
        datagram.put_bytes(7, SIZE);
        let datagram = datagram.freeze();
        group.bench_function(format!("from_client/{name}"), |b| {
            b.iter(|| {
                for _ in 0..PACKETS {
                    let result = session.input.datagram(datagram.clone());
                    result.expect("no violation");
                }
                session.input.flush();
            });
        });
        group.bench_function(format!("to_client/{name}"), |b| {
            b.iter(|| {
                let before = session.out.datagrams.load(Ordering::Acquire);
                for _ in 0..PACKETS / RUN {
                    let sent = remote.try_send(&Transmit {
                        destination: session.public,
                        ecn: None,
                        contents: &run,
                        segment_size: Some(SIZE),
                        src_ip: None,
                    });
                    sent.expect("loopback");
                }
                while session.out.datagrams.load(Ordering::Acquire) < before + PACKETS {
                    std::thread::yield_now();
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, relaying);
criterion_main!(benches);
