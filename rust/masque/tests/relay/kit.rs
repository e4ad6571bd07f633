//! A carrier that ends in the test instead of a network, and what a client does with it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyreach_masque::{
    carrier::{
        CapsuleError, CarrierKind, Client, Close, DatagramError, ProtocolViolation, Refused,
        Service, TunnelIn, TunnelOut,
    },
    relay::{ANYREACH_LEASE, Relay, RelayConfig},
};
use anyreach_quic::PeerId;
use anyreach_wire::{
    bound::{bound_head, split_bound},
    capsule::{Capsule, Decoder, Item},
    context::{ContextId, split_datagram},
    proxy_fields::{
        ANYREACH_NODE, CONNECT_UDP_BIND, PROXY_PUBLIC_ADDRESS, PROXY_STATUS, ProxyError,
        ProxyStatus, TRUE, read_addresses,
    },
};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    time::timeout,
};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const ANY: &str = "/.well-known/masque/udp/%2A/%2A/";

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("happens in time")
}

/// Waits for a condition that nothing announces.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The outgoing half, as a carrier would have it.
#[derive(Debug)]
pub(crate) struct FakeOut {
    datagrams: mpsc::UnboundedSender<Bytes>,
    capsules: mpsc::UnboundedSender<Capsule>,
    /// Most bytes of a datagram.
    pub(crate) max_datagram: AtomicUsize,
    /// Datagrams taken before the queue is full.
    pub(crate) datagram_room: AtomicUsize,
    /// Capsules taken before the queue is full.
    pub(crate) capsule_room: AtomicUsize,
    pub(crate) ended: watch::Sender<Option<Close>>,
}

fn take(room: &AtomicUsize) -> bool {
    let taken = room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
        room.checked_sub(1)
    });
    taken.is_ok()
}

impl TunnelOut for FakeOut {
    fn send_datagram(&self, head: &[u8], payload: &[u8]) -> Result<(), DatagramError> {
        if self.ended.borrow().is_some() {
            return Err(DatagramError::Closed);
        }
        if head.len() + payload.len() > self.max_datagram() {
            return Err(DatagramError::TooLarge);
        }
        if !take(&self.datagram_room) {
            return Err(DatagramError::Full);
        }
        let whole = [head, payload].concat();
        self.datagrams
            .send(whole.into())
            .map_err(|_| DatagramError::Closed)
    }

    fn max_datagram(&self) -> usize {
        self.max_datagram.load(Ordering::Relaxed)
    }

    fn send_capsule(&self, mut capsule: Bytes) -> Result<(), CapsuleError> {
        if self.ended.borrow().is_some() {
            return Err(CapsuleError::Closed);
        }
        if !take(&self.capsule_room) {
            return Err(CapsuleError::QueueFull);
        }
        let item = Decoder::new().next(&mut capsule);
        let Ok(Some(Item::Capsule(capsule))) = item else {
            panic!("a whole capsule: {item:?}");
        };
        self.capsules
            .send(capsule)
            .map_err(|_| CapsuleError::Closed)
    }

    fn close(&self, end: Close) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(end);
            first
        });
    }

    fn rtt(&self) -> Option<Duration> {
        None
    }

    fn dropped(&self) -> u64 {
        0
    }
}

/// An open tunnel.
pub(crate) struct Tunnel {
    pub(crate) input: Arc<dyn TunnelIn>,
    pub(crate) out: Arc<FakeOut>,
    pub(crate) headers: HeaderMap,
    datagrams: Mutex<mpsc::UnboundedReceiver<Bytes>>,
    capsules: Mutex<mpsc::UnboundedReceiver<Capsule>>,
}

/// Where a client comes from, and who it is.
#[derive(Clone)]
pub(crate) struct Who(pub Client);

impl Who {
    /// A node on the relay's own host, by IPv4.
    pub(crate) fn peer(number: u8) -> Self {
        Self(Client {
            peer_id: Some(PeerId([number; 32])),
            remote: SocketAddr::from(([127, 0, 0, 1], 5000 + u16::from(number))),
            local: Some(SocketAddr::from(([127, 0, 0, 1], 9000))),
            carrier: CarrierKind::H3,
        })
    }

    pub(crate) fn v6(mut self) -> Self {
        self.0.remote = "[::1]:5000".parse().expect("literal");
        self.0.local = Some("[::1]:9000".parse().expect("literal"));
        self
    }

    pub(crate) fn anonymous(mut self) -> Self {
        self.0.peer_id = None;
        self
    }

    pub(crate) fn from(mut self, remote: &str, local: &str) -> Self {
        self.0.remote = remote.parse().expect("literal");
        self.0.local = Some(local.parse().expect("literal"));
        self
    }

    pub(crate) async fn open(
        &self,
        relay: &Relay,
        path: &str,
        bind: bool,
        lease: Option<&str>,
    ) -> Result<Tunnel, Refused> {
        let mut request = Request::builder()
            .method("CONNECT")
            .uri(format!("https://relay.example{path}"));
        if bind {
            request = request.header(CONNECT_UDP_BIND, TRUE);
        }
        if let Some(lease) = lease {
            request = request.header(ANYREACH_LEASE, lease);
        }
        let request = request.body(()).expect("well-formed");
        let (datagrams, received) = mpsc::unbounded_channel();
        let (capsules, told) = mpsc::unbounded_channel();
        let out = Arc::new(FakeOut {
            datagrams,
            capsules,
            max_datagram: AtomicUsize::new(65_600),
            datagram_room: AtomicUsize::new(usize::MAX),
            capsule_room: AtomicUsize::new(usize::MAX),
            ended: watch::Sender::new(None),
        });
        let opened = within(relay.open(&self.0, &request, out.clone())).await;
        let (accepted, input) = opened?;
        Ok(Tunnel {
            input,
            out,
            headers: accepted.headers,
            datagrams: Mutex::new(received),
            capsules: Mutex::new(told),
        })
    }

    /// A bound address.
    pub(crate) async fn bind(&self, relay: &Relay) -> Result<Tunnel, Refused> {
        self.open(relay, ANY, true, None).await
    }

    /// A bound address under a name of the client's choice.
    pub(crate) async fn bind_as(&self, relay: &Relay, lease: u8) -> Result<Tunnel, Refused> {
        let lease = format!("{lease:02x}").repeat(16);
        self.open(relay, ANY, true, Some(&lease)).await
    }

    /// A tunnel to one target.
    pub(crate) async fn connect(
        &self,
        relay: &Relay,
        host: &str,
        port: u16,
    ) -> Result<Tunnel, Refused> {
        let host = host.replace(':', "%3A");
        let path = format!("/.well-known/masque/udp/{host}/{port}/");
        self.open(relay, &path, false, None).await
    }
}

pub(crate) fn addresses(headers: &HeaderMap, name: &str) -> Vec<SocketAddr> {
    read_addresses(headers.get_all(name).iter().map(HeaderValue::as_bytes))
}

/// Status and type of error of a refusal.
pub(crate) fn why(refused: Result<Tunnel, Refused>) -> (u16, ProxyError) {
    let Err(refused) = refused else {
        panic!("the request was granted");
    };
    let fields = refused.headers.get_all(PROXY_STATUS);
    let status = ProxyStatus::read(fields.iter().map(HeaderValue::as_bytes)).expect("says why");
    (
        refused.status.as_u16(),
        status.known.expect("a type we know"),
    )
}

pub(crate) fn id(id: u32) -> ContextId {
    ContextId::from_u32(id)
}

impl Tunnel {
    /// The bound address others can use.
    pub(crate) fn public(&self) -> SocketAddr {
        addresses(&self.headers, PROXY_PUBLIC_ADDRESS)[0]
    }

    pub(crate) fn node(&self) -> Vec<SocketAddr> {
        addresses(&self.headers, ANYREACH_NODE)
    }

    pub(crate) fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        self.input.capsule(capsule)
    }

    /// Registers a context, and waits for the answer.
    pub(crate) async fn assign(&self, context: u32, target: Option<SocketAddr>) -> Capsule {
        let context = id(context);
        self.capsule(Capsule::CompressionAssign { context, target })
            .expect("no violation");
        self.told().await
    }

    /// Opens context 2, for every remote.
    pub(crate) async fn listen(&self) {
        let answer = self.assign(2, None).await;
        assert_eq!(answer, Capsule::CompressionAck(id(2)));
    }

    /// Sends in a compressed context, or in context 0.
    pub(crate) fn send(&self, context: u32, payload: &[u8]) -> Result<(), ProtocolViolation> {
        self.push(context, payload)?;
        self.input.flush();
        Ok(())
    }

    /// The same without the end of a batch.
    pub(crate) fn push(&self, context: u32, payload: &[u8]) -> Result<(), ProtocolViolation> {
        let mut datagram = BytesMut::from(&id(context).head()[..]);
        datagram.put_slice(payload);
        self.input.datagram(datagram.freeze())
    }

    /// Sends in the uncompressed context.
    pub(crate) fn send_to(&self, remote: SocketAddr, payload: &[u8]) {
        let mut datagram = BytesMut::from(&bound_head(id(2), remote)[..]);
        datagram.put_slice(payload);
        self.input
            .datagram(datagram.freeze())
            .expect("no violation");
        self.input.flush();
    }

    #[allow(clippy::await_holding_lock, reason = "one task per test")]
    pub(crate) async fn received(&self) -> (u64, Bytes) {
        let mut datagrams = self.datagrams.lock().expect("not poisoned");
        let datagram = within(datagrams.recv()).await.expect("the carrier is open");
        let (context, payload) = split_datagram(datagram).expect("has a context");
        (context.get(), payload)
    }

    /// What came in the uncompressed context, and from where.
    pub(crate) async fn received_from(&self) -> (SocketAddr, Bytes) {
        let (context, payload) = self.received().await;
        assert_eq!(context, 2);
        split_bound(payload).expect("well-formed")
    }

    pub(crate) fn has_received(&self) -> Option<Bytes> {
        self.datagrams.lock().expect("not poisoned").try_recv().ok()
    }

    #[allow(clippy::await_holding_lock, reason = "one task per test")]
    pub(crate) async fn told(&self) -> Capsule {
        let mut capsules = self.capsules.lock().expect("not poisoned");
        within(capsules.recv()).await.expect("the carrier is open")
    }

    pub(crate) fn has_been_told(&self) -> Option<Capsule> {
        self.capsules.lock().expect("not poisoned").try_recv().ok()
    }

    /// Waits until the relay has ended it.
    pub(crate) async fn ended(&self) -> Close {
        let mut ended = self.out.ended.subscribe();
        let end = within(ended.wait_for(Option::is_some)).await;
        end.expect("the sender is in here").expect("waited for")
    }

    /// The connection is lost.
    pub(crate) fn lose(&self) {
        self.input.closed("lost".to_owned());
    }
}

/// Loopback as if it were the Internet.
pub(crate) fn open_config() -> RelayConfig {
    RelayConfig {
        allow_targets: ["127.0.0.0/8", "::1/128"]
            .map(|text| text.parse().expect("literal"))
            .into(),
        ..RelayConfig::default()
    }
}

pub(crate) fn relay() -> Relay {
    Relay::new(open_config())
}

/// Somebody on the Internet.
pub(crate) async fn remote() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("free port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

pub(crate) async fn remote_v6() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("[::1]:0").await.expect("free port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// The next datagram at a remote, and where it came from.
pub(crate) async fn at(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let received = within(socket.recv_from(&mut buffer)).await;
    let (len, from) = received.expect("loopback");
    buffer.truncate(len);
    (buffer, from)
}

/// Waits until nothing has this port.
pub(crate) async fn freed(port: u16) -> UdpSocket {
    within(async {
        loop {
            match UdpSocket::bind(("127.0.0.1", port)).await {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await
}
