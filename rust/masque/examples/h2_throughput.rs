//! How many MB of 1200-byte datagrams per second one tunnel over HTTP/2 carries on loopback, with
//! TLS as between nodes: when there is always more to send, and when the sender waits for what is
//! on its way, as a congestion controller does.
//!
//! `cargo run --release -p anyreach-masque --example h2_throughput`

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_masque::{
    carrier::{
        Accepted, BoxFuture, Client, Decision, ProtocolViolation, Service, TunnelIn, TunnelOut,
    },
    h2::{Limits, Route, Security, Target, dial, serve_listener},
};
use anyreach_quic::{Identity, https, https::TcpTls};
use anyreach_wire::capsule::Capsule;
use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::{net::TcpListener, sync::Notify};

const PAYLOAD: [u8; 1200] = [7; 1200];
const TIME: Duration = Duration::from_secs(3);

/// Counts what arrives.
#[derive(Default)]
struct Sink {
    count: AtomicU64,
    flushes: AtomicU64,
    more: Notify,
}

impl Sink {
    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

struct Input(Arc<Sink>);

impl TunnelIn for Input {
    fn datagram(&self, _: Bytes) -> Result<(), ProtocolViolation> {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) {
        self.0.flushes.fetch_add(1, Ordering::Relaxed);
        self.0.more.notify_one();
    }

    fn capsule(&self, _: Capsule) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    fn closed(&self, _: String) {}
}

struct Relay(Arc<Sink>);

impl Service for Relay {
    fn open<'a>(
        &'a self,
        _: &'a Client,
        _: &'a Request<()>,
        _: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Decision> {
        let input: Arc<dyn TunnelIn> = Arc::new(Input(self.0.clone()));
        let headers = HeaderMap::new();
        Box::pin(async move { Ok((Accepted { headers }, input)) })
    }
}

/// Sends with at most `window` datagrams on their way.
async fn measure(name: &str, out: &dyn TunnelOut, sink: &Sink, window: u64) {
    let (start, before, dropped) = (Instant::now(), sink.count(), out.dropped());
    let flushes = sink.flushes.load(Ordering::Relaxed);
    let mut sent = 0;
    let on_their_way = |sent: u64| sent - (sink.count() - before + out.dropped() - dropped);
    while start.elapsed() < TIME {
        if on_their_way(sent) < window {
            out.send_datagram(&[0], &PAYLOAD).unwrap();
            sent += 1;
            if sent.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        } else {
            // A wake-up may have been for less than is wanted.
            let _ = tokio::time::timeout(Duration::from_millis(5), sink.more.notified()).await;
        }
    }
    let (elapsed, count) = (start.elapsed().as_secs_f64(), sink.count() - before);
    let batches = sink.flushes.load(Ordering::Relaxed) - flushes;
    println!(
        "{name}: {:>6.0} MB/s, {:>7.0} datagrams/s, {:>4.1} in a batch, {:.1} % dropped",
        (count * PAYLOAD.len() as u64) as f64 / 1e6 / elapsed,
        count as f64 / elapsed,
        count as f64 / batches.max(1) as f64,
        (out.dropped() - dropped) as f64 / sent as f64 * 100.0
    );
    while on_their_way(sent) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let (relay, node) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (up, down) = (Arc::new(Sink::default()), Arc::new(Sink::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve_listener(
        listener,
        TcpTls::new(&relay, false).unwrap().server,
        https::peer_id,
        Arc::new(Relay(up.clone())),
        Limits::default(),
    ));
    let target = Target {
        host: addr.ip().to_string(),
        port: addr.port(),
        security: Security::Node {
            tls: TcpTls::new(&node, false).unwrap().client,
            expected: Some(relay.peer_id()),
        },
    };
    let carrier = dial(&target, &Route::Direct(vec![addr]))
        .await
        .unwrap()
        .carrier;
    let request = Request::get("https://relay.test/").body(()).unwrap();
    let input = Arc::new(Input(down));
    let (_, out) = carrier.open(request, input).await.unwrap();
    for window in [32, 128, 256] {
        let name = format!("{window:>4} on their way");
        measure(&name, &*out, &up, window).await;
    }
    measure("always more to go", &*out, &up, u64::MAX).await;
    serving.abort();
}
