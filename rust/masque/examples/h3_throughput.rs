//! How many HTTP Datagrams of 1200 bytes per second one tunnel over HTTP/3 carries on loopback,
//! beside what the engine does with bare QUIC datagrams in the same process.
//!
//! `cargo run --release -p anyreach-masque --example h3_throughput`

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_masque::{
    carrier::{
        Accepted, BoxFuture, CarrierKind, Client, ClientCarrier, Decision, ProtocolViolation,
        Service, TunnelIn, TunnelOut,
    },
    h3::{connect, serve},
};
use anyreach_wire::capsule::Capsule;
use bytes::Bytes;
use http::{HeaderMap, Request};
use noq::{
    ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::Notify;

const PAYLOAD: [u8; 1200] = [7; 1200];
const TIME: Duration = Duration::from_secs(3);

/// Datagrams on the way: less than the queue of the engine holds, so that none is dropped there.
const WINDOW: u64 = 64;

/// Counts what arrives.
#[derive(Default)]
struct Sink {
    count: AtomicU64,
    more: Notify,
}

impl Sink {
    fn take(&self, count: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
        self.more.notify_one();
    }

    /// Sends with `send` for a while; datagrams per second that arrived.
    async fn measure(&self, mut send: impl FnMut()) -> f64 {
        let (start, before) = (Instant::now(), self.count.load(Ordering::Relaxed));
        let mut sent = before;
        while start.elapsed() < TIME {
            while sent.saturating_sub(self.count.load(Ordering::Relaxed)) < WINDOW {
                send();
                sent += 1;
            }
            // What is lost on loopback would stop it for ever.
            if tokio::time::timeout(Duration::from_millis(50), self.more.notified())
                .await
                .is_err()
            {
                sent = self.count.load(Ordering::Relaxed);
            }
        }
        (self.count.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
    }
}

struct Input(Arc<Sink>);

impl TunnelIn for Input {
    fn datagram(&self, _: Bytes) -> Result<(), ProtocolViolation> {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) {
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

struct Ignore;

impl TunnelIn for Ignore {
    fn datagram(&self, _: Bytes) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    fn capsule(&self, _: Capsule) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    fn closed(&self, _: String) {}
}

fn endpoints() -> (Endpoint, Endpoint) {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.into()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h3".to_vec()];
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h3".to_vec()];
    let mut transport = TransportConfig::default();
    // As a node has it for its relays.
    transport.datagram_send_buffer_size(128 << 10);
    let server = QuicServerConfig::try_from(server).unwrap();
    let server = Endpoint::server(ServerConfig::with_crypto(Arc::new(server)), loopback).unwrap();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    config.transport_config(Arc::new(transport));
    let client = Endpoint::client(loopback).unwrap();
    client.set_default_client_config(config);
    (client, server)
}

async fn connected(client: &Endpoint, server: &Endpoint) -> (Connection, Connection) {
    let dial = client
        .connect(server.local_addr().unwrap(), "relay.test")
        .unwrap();
    let accept = async { server.accept().await.unwrap().await.unwrap() };
    let (dialed, accepted) = tokio::join!(dial, accept);
    let dialed = dialed.unwrap();
    // Until the MTU of the line is known.
    while dialed.max_datagram_size().unwrap() < PAYLOAD.len() + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (dialed, accepted)
}

#[tokio::main]
async fn main() {
    let (client, server) = endpoints();
    let sink = Arc::new(Sink::default());

    let (dialed, accepted) = connected(&client, &server).await;
    let reading = tokio::spawn({
        let sink = sink.clone();
        async move {
            let mut batch = vec![Bytes::new(); 64];
            while let Ok(count) = accepted.read_many_datagrams(&mut batch).await {
                batch[..count].fill(Bytes::new());
                sink.take(count as u64);
            }
        }
    });
    let bare = sink
        .measure(|| {
            dialed
                .send_datagram(Bytes::copy_from_slice(&PAYLOAD))
                .unwrap()
        })
        .await;
    dialed.close(0u32.into(), b"");
    reading.await.unwrap();
    println!("bare QUIC datagrams   {bare:>9.0} per second");

    let (dialed, accepted) = connected(&client, &server).await;
    let who = Client {
        peer_id: None,
        remote: client.local_addr().unwrap(),
        local: None,
        carrier: CarrierKind::H3,
    };
    let serving = tokio::spawn(serve(accepted, who, Arc::new(Relay(sink.clone()))));
    let carrier = connect(dialed, None).await.unwrap();
    let request = Request::builder()
        .method("CONNECT")
        .uri("https://relay.test/.well-known/masque/udp/192.0.2.1/4433/")
        .body(())
        .unwrap();
    let (_, out) = carrier.open(request, Arc::new(Ignore)).await.unwrap();
    let tunnel = sink
        .measure(|| out.send_datagram(&[0], &PAYLOAD).unwrap())
        .await;
    println!("through an H3 tunnel  {tunnel:>9.0} per second");
    drop(carrier);
    serving.await.unwrap();
    println!("ratio                 {:>9.2}", tunnel / bare);
}
