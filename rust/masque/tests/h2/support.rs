//! Nodes, a recording service, and HTTP/2 written by hand.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyreach_masque::{
    carrier::{
        Accepted, BoxFuture, Client, ClientCarrier, ProtocolViolation, Refused, Service, TunnelIn,
        TunnelOut,
    },
    client::{Attempt, Dialed},
    h2::{Limits, Route, Security, Target, dial, serve_listener},
};
use anyreach_quic::{Identity, PeerId, https, https::TcpTls};
use anyreach_wire::capsule::Capsule;
use bytes::Bytes;
use h2::{RecvStream, SendStream, ext::Protocol};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// More than any test needs, so that a hang is a failure and not a hang.
const LONG: Duration = Duration::from_secs(30);

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

/// What a tunnel was told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Heard {
    pub(crate) datagrams: Vec<Bytes>,
    pub(crate) capsules: Vec<Capsule>,
    pub(crate) flushes: usize,
    pub(crate) closed: Vec<String>,
}

/// A [`TunnelIn`] that writes down what it is told, and breaks off at a datagram `violation`.
pub(crate) struct Recorder(watch::Sender<Heard>);

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::channel(Heard::default()).0))
    }

    pub(crate) fn heard(&self) -> Heard {
        self.0.borrow().clone()
    }

    /// Waits until what was heard is so.
    pub(crate) async fn until(&self, condition: impl FnMut(&Heard) -> bool) -> Heard {
        let mut heard = self.0.subscribe();
        let waited = tokio::time::timeout(LONG, heard.wait_for(condition)).await;
        match waited {
            Ok(heard) => heard.unwrap().clone(),
            Err(_) => {
                let heard = self.heard();
                panic!(
                    "not in time: {} datagrams, {} capsules, closed {:?}",
                    heard.datagrams.len(),
                    heard.capsules.len(),
                    heard.closed
                );
            }
        }
    }

    pub(crate) async fn closed(&self) -> String {
        let heard = self.until(|heard| !heard.closed.is_empty()).await;
        heard.closed[0].clone()
    }
}

impl TunnelIn for Recorder {
    fn datagram(&self, datagram: Bytes) -> Result<(), ProtocolViolation> {
        if datagram == "violation" {
            return Err(ProtocolViolation("as the test asked".into()));
        }
        self.0.send_modify(|heard| heard.datagrams.push(datagram));
        Ok(())
    }

    fn flush(&self) {
        self.0.send_modify(|heard| heard.flushes += 1);
    }

    fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        self.0.send_modify(|heard| heard.capsules.push(capsule));
        Ok(())
    }

    fn closed(&self, reason: String) {
        self.0.send_modify(|heard| heard.closed.push(reason));
    }
}

/// One request the relay was asked to decide about.
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) input: Arc<Recorder>,
    pub(crate) out: Arc<dyn TunnelOut>,
}

/// A relay that accepts paths but for `/forbidden`, and never answers `/never`.
#[derive(Default)]
pub(crate) struct Recording {
    opened: Mutex<Vec<Arc<Opened>>>,
    /// Requests whose decision was not waited for.
    pub(crate) abandoned: Arc<Mutex<usize>>,
}

impl Recording {
    pub(crate) fn count(&self) -> usize {
        self.opened.lock().unwrap().len()
    }

    /// The request number `n`, once it is there.
    pub(crate) async fn opened(&self, n: usize) -> Arc<Opened> {
        until(|| self.count() > n).await;
        self.opened.lock().unwrap()[n].clone()
    }

    pub(crate) fn abandoned(&self) -> usize {
        *self.abandoned.lock().unwrap()
    }
}

struct Abandon(Arc<Mutex<usize>>);

impl Drop for Abandon {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

impl Service for Recording {
    fn open<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Result<(Accepted, Arc<dyn TunnelIn>), Refused>> {
        let input = Recorder::new();
        let path = request.uri().path().to_owned();
        let mut headers = HeaderMap::new();
        if path == "/forbidden" {
            let status = HeaderValue::from_static("relay; error=destination_ip_prohibited");
            headers.insert("proxy-status", status);
            let status = StatusCode::FORBIDDEN;
            return Box::pin(async move { Err(Refused { status, headers }) });
        }
        if path == "/early" {
            out.send_datagram(b"", b"before the answer").unwrap();
        }
        self.opened.lock().unwrap().push(Arc::new(Opened {
            client: client.clone(),
            path: path.clone(),
            headers: request.headers().clone(),
            input: input.clone(),
            out,
        }));
        let abandoned = self.abandoned.clone();
        Box::pin(async move {
            if path == "/never" {
                let _guard = Abandon(abandoned);
                return std::future::pending().await;
            }
            headers.insert("x-test", HeaderValue::from_static("yes"));
            Ok((Accepted { headers }, input as Arc<dyn TunnelIn>))
        })
    }
}

/// A listening relay; stops when dropped.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    pub(crate) peer_id: PeerId,
    pub(crate) service: Arc<Recording>,
    pub(crate) task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    pub(crate) async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let identity = Identity::generate().unwrap();
        let tls = TcpTls::new(&identity, false).unwrap().server;
        let service = Arc::new(Recording::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(serve_listener(
            listener,
            tls,
            https::peer_id,
            service.clone(),
            limits,
        ));
        Self {
            addr,
            peer_id: identity.peer_id(),
            service,
            task,
        }
    }

    pub(crate) fn target(&self, node: &Identity) -> Target {
        Target {
            host: self.addr.ip().to_string(),
            port: self.addr.port(),
            security: Security::Node {
                tls: TcpTls::new(node, false).unwrap().client,
                expected: Some(self.peer_id),
            },
        }
    }

    pub(crate) async fn dial(&self) -> Arc<dyn ClientCarrier> {
        let node = Identity::generate().unwrap();
        self.dial_as(&node).await.unwrap().carrier
    }

    pub(crate) async fn dial_as(&self, node: &Identity) -> Result<Dialed, Vec<Attempt>> {
        within(dial(&self.target(node), &Route::Direct(vec![self.addr]))).await
    }

    /// A connection with a node's TLS, and nothing on it yet.
    pub(crate) async fn raw_tls(&self) -> TlsStream<TcpStream> {
        let node = Identity::generate().unwrap();
        let tls = TcpTls::new(&node, false).unwrap().client;
        let stream = TcpStream::connect(self.addr).await.unwrap();
        within(TlsConnector::from(tls).connect(https::server_name(None), stream))
            .await
            .unwrap()
    }
}

/// An open tunnel with both of its ends.
pub(crate) struct Pair {
    pub(crate) carrier: Arc<dyn ClientCarrier>,
    pub(crate) input: Arc<Recorder>,
    pub(crate) out: Arc<dyn TunnelOut>,
    pub(crate) relay_side: Arc<Opened>,
    pub(crate) relay: Relay,
}

pub(crate) async fn pair() -> Pair {
    let relay = Relay::start().await;
    let carrier = relay.dial().await;
    let input = Recorder::new();
    let (_, out) = within(carrier.open(request("/tunnel"), input.clone()))
        .await
        .unwrap();
    Pair {
        carrier,
        input,
        out,
        relay_side: relay.service.opened(0).await,
        relay,
    }
}

pub(crate) fn request(path: &str) -> Request<()> {
    Request::builder()
        .uri(format!("https://relay.test{path}"))
        .header("capsule-protocol", "?1")
        .body(())
        .unwrap()
}

/// An extended CONNECT for [`h2`] itself.
pub(crate) fn connect_udp(path: &str) -> Request<()> {
    let mut request = request(path);
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    let protocol = Protocol::from_static("connect-udp");
    request.extensions_mut().insert(protocol);
    request
}

/// A client of plain `h2`, whose connection runs on a task of its own.
pub(crate) struct RawClient {
    pub(crate) requests: h2::client::SendRequest<Bytes>,
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

impl RawClient {
    pub(crate) async fn new(relay: &Relay) -> Self {
        Self::configured(relay.raw_tls().await, &h2::client::Builder::new()).await
    }

    pub(crate) async fn configured<S>(stream: S, builder: &h2::client::Builder) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, mut connection) =
            within(builder.handshake::<_, Bytes>(stream)).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        let connection = tokio::spawn(connection);
        // Until the SETTINGS are there.
        let _ = within(pings.ping(h2::Ping::opaque())).await;
        Self {
            requests,
            connection,
        }
    }

    pub(crate) async fn send(
        &self,
        request: Request<()>,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        let mut requests = within(self.requests.clone().ready()).await?;
        let (response, send) = requests.send_request(request, false)?;
        Ok((within(response).await?, send))
    }

    pub(crate) async fn open(&self) -> (RecvStream, SendStream<Bytes>) {
        let (response, send) = self.send(connect_udp("/tunnel")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        (response.into_body(), send)
    }
}

/// Why the other side has reset this stream.
pub(crate) async fn reset_reason(send: &mut SendStream<Bytes>) -> h2::Reason {
    within(poll_fn(|cx| send.poll_reset(cx))).await.unwrap()
}

/// The name under which [`rustls`] finds X.509 servers of the tests.
pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// The one attempt that was made.
pub(crate) fn only(attempts: Vec<Attempt>) -> Attempt {
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    attempts.into_iter().next().unwrap()
}
