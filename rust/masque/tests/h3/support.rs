//! Endpoints, a recording service, and HTTP/3 written by hand.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use anyreach_masque::{
    carrier::{
        Accepted, BoxFuture, CarrierError, CarrierKind, Client, ClientCarrier, ProtocolViolation,
        Refused, Service, TunnelIn, TunnelOut,
    },
    h3::{H3Carrier, connect, serve},
};
use anyreach_wire::capsule::Capsule;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use noq::{
    ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{sync::mpsc, task::JoinHandle};

const NAME: &str = "relay.test";

/// More than any test needs, so that a hang is a failure and not a hang.
const LONG: Duration = Duration::from_secs(30);

static IDENTITY: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    (made.cert.into(), made.signing_key.serialize_der())
});

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// Waits for a condition that nothing announces.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn server_endpoint(transport: TransportConfig) -> Endpoint {
    let (cert, key) = &*IDENTITY;
    let key = PrivateKeyDer::try_from(key.clone()).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    Endpoint::server(config, loopback()).unwrap()
}

pub(crate) fn client_endpoint(transport: TransportConfig) -> Endpoint {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(IDENTITY.0.clone()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client(loopback()).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Both ends of a new QUIC connection.
pub(crate) async fn connected(client: &Endpoint, server: &Endpoint) -> (Connection, Connection) {
    let dial = client.connect(server.local_addr().unwrap(), NAME).unwrap();
    let accept = async { server.accept().await.unwrap().await.unwrap() };
    let (dialed, accepted) = within(async { tokio::join!(dial, accept) }).await;
    (dialed.unwrap(), accepted)
}

/// What a tunnel was told.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Datagram(Bytes),
    Flush,
    Capsule(Capsule),
    Closed(String),
}

/// A [`TunnelIn`] that writes everything down.
pub(crate) struct Recorder(mpsc::UnboundedSender<Event>);

pub(crate) struct Events(mpsc::UnboundedReceiver<Event>);

/// A datagram the recorder does not like.
pub(crate) const BAD: &[u8] = b"bad datagram";

pub(crate) fn recorder() -> (Arc<Recorder>, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Arc::new(Recorder(sender)), Events(receiver))
}

impl TunnelIn for Recorder {
    fn datagram(&self, datagram: Bytes) -> Result<(), ProtocolViolation> {
        let bad = datagram == BAD;
        let _ = self.0.send(Event::Datagram(datagram));
        if bad {
            return Err(ProtocolViolation("a bad datagram".into()));
        }
        Ok(())
    }

    fn flush(&self) {
        let _ = self.0.send(Event::Flush);
    }

    fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        let _ = self.0.send(Event::Capsule(capsule));
        Ok(())
    }

    fn closed(&self, reason: String) {
        let _ = self.0.send(Event::Closed(reason));
    }
}

impl Events {
    /// The next event that is no flush.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            match within(self.0.recv()).await {
                Some(Event::Flush) => {}
                event => return event,
            }
        }
    }

    pub(crate) async fn any(&mut self) -> Option<Event> {
        within(self.0.recv()).await
    }

    pub(crate) async fn datagram(&mut self) -> Bytes {
        match self.next().await {
            Some(Event::Datagram(datagram)) => datagram,
            other => panic!("{other:?} instead of a datagram"),
        }
    }

    /// Waits for the end, whatever comes before, and that nothing comes after it.
    pub(crate) async fn closed(&mut self) -> String {
        let reason = loop {
            match self.next().await {
                Some(Event::Closed(reason)) => break reason,
                Some(_) => {}
                None => panic!("never told of the end"),
            }
        };
        // The recorder is dropped with the tunnel.
        assert_eq!(self.any().await, None);
        reason
    }
}

/// A tunnel as the service sees it.
pub(crate) struct Opened {
    pub(crate) request: Request<()>,
    pub(crate) out: Arc<dyn TunnelOut>,
    pub(crate) events: Events,
}

/// A [`Service`] that tells of every tunnel. It refuses the host `refuse.test`, and never decides
/// about `pending.test`.
pub(crate) struct Relay {
    opened: mpsc::UnboundedSender<Opened>,
    /// Told when a decision is no longer waited for.
    abandoned: mpsc::UnboundedSender<()>,
}

struct Told(mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Service for Relay {
    fn open<'a>(
        &'a self,
        _: &'a Client,
        request: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Result<(Accepted, Arc<dyn TunnelIn>), Refused>> {
        Box::pin(async move {
            let path = request.uri().path();
            if path.contains("refuse.test") {
                let mut headers = HeaderMap::new();
                let status = "relay.test; error=destination_ip_prohibited";
                headers.insert("proxy-status", HeaderValue::from_static(status));
                let status = StatusCode::FORBIDDEN;
                return Err(Refused { status, headers });
            }
            let (input, events) = recorder();
            let mut parts = Request::new(());
            *parts.uri_mut() = request.uri().clone();
            *parts.headers_mut() = request.headers().clone();
            let opened = Opened {
                request: parts,
                out,
                events,
            };
            if path.contains("pending.test") {
                let _told = Told(self.abandoned.clone());
                let _ = self.opened.send(opened);
                std::future::pending::<()>().await;
                unreachable!();
            }
            let _ = self.opened.send(opened);
            let mut headers = HeaderMap::new();
            headers.insert("x-told", HeaderValue::from_static("yes"));
            Ok((Accepted { headers }, input as Arc<dyn TunnelIn>))
        })
    }
}

/// A relay and a client with a QUIC connection between them, served on the one side.
pub(crate) struct Pair {
    pub(crate) server: Endpoint,
    pub(crate) client: Endpoint,
    pub(crate) accepted: Connection,
    pub(crate) dialed: Connection,
    pub(crate) serving: JoinHandle<()>,
    opened: mpsc::UnboundedReceiver<Opened>,
    abandoned: mpsc::UnboundedReceiver<()>,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        Self::with(TransportConfig::default(), TransportConfig::default()).await
    }

    pub(crate) async fn with(client: TransportConfig, server: TransportConfig) -> Self {
        let server = server_endpoint(server);
        let client = client_endpoint(client);
        let (dialed, accepted) = connected(&client, &server).await;
        let (opened_sender, opened) = mpsc::unbounded_channel();
        let (abandoned_sender, abandoned) = mpsc::unbounded_channel();
        let relay = Arc::new(Relay {
            opened: opened_sender,
            abandoned: abandoned_sender,
        });
        let who = Client {
            peer_id: None,
            remote: client.local_addr().unwrap(),
            local: None,
            carrier: CarrierKind::H3,
        };
        let serving = tokio::spawn(serve(accepted.clone(), who, relay));
        Self {
            server,
            client,
            accepted,
            dialed,
            serving,
            opened,
            abandoned,
        }
    }

    /// HTTP/3 on the client's side.
    pub(crate) async fn carrier(&self) -> H3Carrier {
        within(connect(self.dialed.clone(), None)).await.unwrap()
    }

    /// The next tunnel the relay was asked for.
    pub(crate) async fn opened(&mut self) -> Opened {
        within(self.opened.recv()).await.unwrap()
    }

    pub(crate) async fn abandoned(&mut self) {
        within(self.abandoned.recv()).await.unwrap();
    }

    /// A tunnel, both ends of it.
    pub(crate) async fn tunnel(&mut self, carrier: &H3Carrier) -> (Tunnel, Opened) {
        let (input, events) = recorder();
        let (response, out) = within(carrier.open(request("192.0.2.1"), input))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let opened = self.opened().await;
        (Tunnel { out, events }, opened)
    }
}

/// A tunnel as the client sees it.
pub(crate) struct Tunnel {
    pub(crate) out: Arc<dyn TunnelOut>,
    pub(crate) events: Events,
}

pub(crate) fn request(host: &str) -> Request<()> {
    Request::builder()
        .method("CONNECT")
        .uri(format!(
            "https://{NAME}/.well-known/masque/udp/{host}/4433/"
        ))
        .body(())
        .unwrap()
}

/// Opens a tunnel that is expected to be refused.
pub(crate) async fn refused(carrier: &H3Carrier, request: Request<()>) -> CarrierError {
    let (input, mut events) = recorder();
    let error = within(carrier.open(request, input))
        .await
        .map(|_| ())
        .unwrap_err();
    // Never used, and so not told of an end either.
    assert_eq!(events.any().await, None);
    error
}

/// HTTP/3 by hand, for what the crate would not send.
pub(crate) mod raw {
    use noq::{RecvStream, SendStream};

    use super::*;

    pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        assert!(payload.len() < 1 << 14);
        let length = (payload.len() as u16) | 0x4000;
        [&[kind][..], &length.to_be_bytes(), payload].concat()
    }

    pub(crate) fn data(payload: &[u8]) -> Vec<u8> {
        frame(0, payload)
    }

    /// A HEADERS frame: only literals without Huffman coding (RFC 9204, section 4.5.6).
    pub(crate) fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = vec![0, 0];
        for (name, value) in fields {
            integer(&mut block, 0x20, 3, name.len());
            block.extend_from_slice(name.as_bytes());
            integer(&mut block, 0, 7, value.len());
            block.extend_from_slice(value.as_bytes());
        }
        frame(1, &block)
    }

    fn integer(out: &mut Vec<u8>, flags: u8, bits: u32, mut value: usize) {
        let limit = (1 << bits) - 1;
        if value < limit {
            out.push(flags | value as u8);
            return;
        }
        out.push(flags | limit as u8);
        value -= limit;
        while value >= 128 {
            out.push(value as u8 | 128);
            value >>= 7;
        }
        out.push(value as u8);
    }

    /// The header section of a request for a tunnel.
    pub(crate) fn connect_udp(host: &str) -> Vec<u8> {
        headers(&[
            (":method", "CONNECT"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", &format!("/.well-known/masque/udp/{host}/4433/")),
            (":protocol", "connect-udp"),
        ])
    }

    /// A request stream that starts with these bytes.
    pub(crate) async fn stream(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = within(connection.open_bi()).await.unwrap();
        within(send.write_all(bytes)).await.unwrap();
        (send, recv)
    }

    /// A control stream with these settings.
    pub(crate) async fn control(connection: &Connection, settings: &[u8]) -> SendStream {
        let mut send = within(connection.open_uni()).await.unwrap();
        let bytes = [&[0][..], &frame(4, settings)].concat();
        within(send.write_all(&bytes)).await.unwrap();
        send
    }
}
