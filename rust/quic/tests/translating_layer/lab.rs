//! Two endpoints of the engine on loopback, each behind a firewall and on a lossy line if wanted,
//! with a relay between them; and a wiretap at the sealing boundary of each.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use anyreach_quic::{Identity, PacketTap, TapFactory, tls};
use anyreach_wire::{
    frames::Frame, transport_parameters::Parameters, varint::VarInt, walk::frame_at,
};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use noq::{AsyncUdpSocket, TokioRuntime, TransportConfig, UdpSender, udp};
use noq_proto::PathId;
use tokio::{io::ReadBuf, net::UdpSocket};

use super::layer::Layer;

/// More than any test needs, so that a hang is a failure and not a hang.
pub const LONG: Duration = Duration::from_secs(30);

/// Addresses each side takes from the other.
pub const ADDRESSES: u8 = 8;

/// Datagrams that begin with this are replaced by the frame that follows: a peer that misbehaves.
const FORGERY: &[u8] = b"forgery:";

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future)
        .await
        .expect("done in time")
}

/// Waits until `done` holds.
pub async fn until(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

pub async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    within(poll_fn(|cx| pin!(&mut *stream).poll_next(cx)))
        .await
        .expect("the stream goes on")
}

/// One end of the connection under test.
pub struct End {
    pub engine: noq::Endpoint,
    pub address: SocketAddr,
    pub line: Arc<Line>,
    wiretap: Arc<OnceLock<Arc<Wiretap>>>,
    peer_id: String,
    session: anyreach_quic::SessionConfig,
    transport: Arc<TransportConfig>,
}

impl End {
    pub async fn new(nat_traversal: bool) -> Self {
        let wiretap = Arc::new(OnceLock::new());
        let made = wiretap.clone();
        let tap: TapFactory = Arc::new(move |side| {
            let wiretap = Arc::new(Wiretap {
                layer: Layer::new(side),
                log: Mutex::default(),
            });
            assert!(
                made.set(wiretap.clone()).is_ok(),
                "an end has one connection"
            );
            wiretap
        });
        let identity = Identity::generate().unwrap();
        let session = tls::session_config(&identity, false, false, Some(tap)).unwrap();
        let mut transport = TransportConfig::default();
        transport
            .send_observed_address_reports(true)
            .receive_observed_address_reports(true)
            .max_concurrent_multipath_paths(8);
        if nat_traversal {
            transport.max_remote_nat_traversal_addresses(ADDRESSES);
        }
        let transport = Arc::new(transport);
        let mut server = noq::ServerConfig::with_crypto(Arc::new(session.clone()));
        server.transport_config(transport.clone());
        let io = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = io.local_addr().unwrap();
        let line = Arc::new(Line::new(io));
        let engine = noq::Endpoint::new_with_abstract_socket(
            noq::EndpointConfig::default(),
            Some(server),
            Box::new(LabSocket(line.clone())),
            Arc::new(TokioRuntime),
        )
        .unwrap();
        let peer_id = identity.peer_id().to_string();
        Self {
            engine,
            address,
            line,
            wiretap,
            peer_id,
            session,
            transport,
        }
    }

    /// Dials `to` at `address`, which may be a relay's.
    pub async fn connect(
        &self,
        to: &Self,
        address: SocketAddr,
    ) -> (noq::Connection, noq::Connection) {
        let mut config = noq::ClientConfig::new(Arc::new(self.session.clone()));
        config.transport_config(self.transport.clone());
        let dialing = async {
            self.engine
                .connect_with(config, address, &to.peer_id)
                .unwrap()
                .await
                .unwrap()
        };
        let accepting = async { to.engine.accept().await.unwrap().await.unwrap() };
        let (client, server) = within(async { tokio::join!(dialing, accepting) }).await;
        within(client.handshake_confirmed()).await.unwrap();
        for (end, connection) in [(self, &client), (to, &server)] {
            let (wiretap, connection) = (end.wiretap.get().unwrap().clone(), connection.clone());
            tokio::spawn(async move { wiretap.layer.drive(connection).await });
        }
        (client, server)
    }

    /// Whether a frame in place of a DATAGRAM of `connection`, this end's, can be walked; once sent.
    pub async fn forgery_walked(&self) -> bool {
        until(|| self.log(|log| log.forgery_walked.is_some())).await;
        self.log(|log| log.forgery_walked == Some(true))
    }

    pub fn layer(&self) -> &Layer {
        &self.wiretap.get().expect("connected").layer
    }

    /// What was seen at the sealing boundary.
    pub fn log<T>(&self, read: impl FnOnce(&Log) -> T) -> T {
        read(&self.wiretap.get().expect("connected").log.lock().unwrap())
    }
}

/// Has `connection` send `frame` in place of a DATAGRAM.
pub fn forge(connection: &noq::Connection, frame: &[u8]) {
    let mut datagram = FORGERY.to_vec();
    datagram.extend_from_slice(frame);
    connection.send_datagram(Bytes::from(datagram)).unwrap();
}

/// Frame types and parameters on both sides of the layer. The side of the wire is what a peer, or
/// somebody with the keys, sees.
#[derive(Default)]
pub struct Log {
    pub from_engine: BTreeSet<u64>,
    pub sent: BTreeSet<u64>,
    pub received: BTreeSet<u64>,
    pub to_engine: BTreeSet<u64>,
    pub parameters_sent: Vec<u8>,
    pub parameters_received: Vec<u8>,
    pub parameters_to_engine: Vec<u8>,
    /// Extension frames as they arrived.
    pub frames_received: Vec<Frame>,
    /// Whether the walker found its way through the last packet with a forgery.
    pub forgery_walked: Option<bool>,
    /// Carriers that left as the datagrams they are not.
    pub carriers_leaked: u64,
}

/// The layer, with an eye on what goes in and out.
struct Wiretap {
    layer: Layer,
    log: Mutex<Log>,
}

impl PacketTap for Wiretap {
    fn outgoing_parameters(&self, encoded: &mut Vec<u8>) {
        self.layer.outgoing_parameters(encoded);
        self.log.lock().unwrap().parameters_sent = encoded.clone();
    }

    fn incoming_parameters(&self, encoded: &mut Vec<u8>) -> Result<(), String> {
        self.log.lock().unwrap().parameters_received = encoded.clone();
        self.layer.incoming_parameters(encoded)?;
        self.log.lock().unwrap().parameters_to_engine = encoded.clone();
        Ok(())
    }

    fn sealing(&self, path: PathId, packet: u64, payload: &mut [u8]) {
        let mut log = self.log.lock().unwrap();
        let walked = each_frame(payload, |frame_type, _| {
            log.from_engine.insert(frame_type);
        });
        assert!(walked, "the walker knows every frame of the engine");
        self.layer.sealing(path, packet, payload);
        let mut forged = false;
        let sealed = payload.to_vec();
        each_frame(&sealed, |frame_type, frame| {
            log.sent.insert(frame_type);
            if frame_type != 0x31 {
                return;
            }
            let mut data = &frame[1..];
            VarInt::decode(&mut data).unwrap();
            log.carriers_leaked += u64::from(self.layer.is_carrier(data));
            if let Some(forgery) = data.strip_prefix(FORGERY) {
                assert!(!forged, "one at a time");
                forged = true;
                let at = payload
                    .windows(frame.len())
                    .position(|window| window == frame)
                    .unwrap();
                payload[at..at + frame.len()].fill(0);
                payload[at..at + forgery.len()].copy_from_slice(forgery);
            }
        });
        if forged {
            log.forgery_walked = Some(each_frame(payload, |_, _| ()));
        }
    }

    fn opened(&self, path: PathId, packet: u64, payload: &mut BytesMut) {
        let mut log = self.log.lock().unwrap();
        each_frame(payload, |frame_type, mut frame| {
            log.received.insert(frame_type);
            if let Ok(frame) = Frame::decode(&mut frame) {
                log.frames_received.push(frame);
            }
        });
        self.layer.opened(path, packet, payload);
        each_frame(payload, |frame_type, _| {
            log.to_engine.insert(frame_type);
        });
    }
}

/// Whether all frames could be told apart.
fn each_frame(payload: &[u8], mut see: impl FnMut(u64, &[u8])) -> bool {
    let mut at = 0;
    loop {
        match frame_at(payload, at) {
            Ok(Some(frame)) => {
                at = frame.range.end;
                see(frame.frame_type, &payload[frame.range]);
            }
            end => return end.is_ok(),
        }
    }
}

/// The identifiers of a block of transport parameters.
pub fn identifiers(block: &[u8]) -> BTreeSet<VarInt> {
    Parameters::parse(block)
        .unwrap()
        .iter()
        .map(|(id, _)| id)
        .collect()
}

/// What lies between an end and the others.
pub struct Line {
    io: UdpSocket,
    /// Percent of outgoing datagrams that are lost, and that arrive twice.
    loss: AtomicU32,
    doubled: AtomicU32,
    random: AtomicU64,
    /// Whether datagrams pass only from where something was sent to: a NAT with
    /// address-and-port-dependent filtering (RFC 4787).
    firewall: AtomicBool,
    contacted: Mutex<HashSet<SocketAddr>>,
}

impl Line {
    fn new(io: UdpSocket) -> Self {
        Self {
            io,
            loss: AtomicU32::new(0),
            doubled: AtomicU32::new(0),
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            firewall: AtomicBool::new(false),
            contacted: Mutex::default(),
        }
    }

    pub fn disturb(&self, loss: u32, doubled: u32) {
        self.loss.store(loss, Ordering::Relaxed);
        self.doubled.store(doubled, Ordering::Relaxed);
    }

    pub fn raise_firewall(&self) {
        self.firewall.store(true, Ordering::Relaxed);
    }

    pub fn contacted(&self, address: SocketAddr) -> bool {
        self.contacted.lock().unwrap().contains(&address)
    }

    /// How often the next datagram arrives. xorshift64: the same fate in every run, as far as timing
    /// lets it.
    fn copies(&self) -> usize {
        let mut random = self.random.load(Ordering::Relaxed);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.store(random, Ordering::Relaxed);
        let percent = (random >> 32) as u32 % 100;
        let loss = self.loss.load(Ordering::Relaxed);
        if percent < loss {
            0
        } else if percent < loss + self.doubled.load(Ordering::Relaxed) {
            2
        } else {
            1
        }
    }
}

struct LabSocket(Arc<Line>);

impl fmt::Debug for LabSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LabSocket")
    }
}

impl AsyncUdpSocket for LabSocket {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(Self(self.0.clone()))
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut buf = ReadBuf::new(&mut bufs[0]);
            let addr = ready!(self.0.io.poll_recv_from(cx, &mut buf))?;
            if self.0.firewall.load(Ordering::Relaxed) && !self.0.contacted(addr) {
                continue;
            }
            let len = buf.filled().len();
            meta[0] = udp::RecvMeta::default();
            (meta[0].addr, meta[0].len, meta[0].stride) = (addr, len, len);
            return Poll::Ready(Ok(1));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.io.local_addr()
    }
}

impl UdpSender for LabSocket {
    fn poll_send(
        self: Pin<&mut Self>,
        transmit: &udp::Transmit<'_>,
        _cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.0
            .contacted
            .lock()
            .unwrap()
            .insert(transmit.destination);
        for _ in 0..self.0.copies() {
            // A full socket buffer is loss like any other.
            let _ = self
                .0
                .io
                .try_send_to(transmit.contents, transmit.destination);
        }
        Poll::Ready(Ok(()))
    }
}

/// Forwards datagrams between `server` and whoever else writes to it last.
pub struct Relay {
    pub address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Relay {
    pub async fn to(server: SocketAddr) -> Self {
        let io = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = io.local_addr().unwrap();
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = bytes.clone();
        tokio::spawn(async move {
            let mut client = None;
            let mut buf = [0; 2048];
            while let Ok((len, from)) = io.recv_from(&mut buf).await {
                let to = if from == server { client } else { Some(server) };
                if from != server {
                    client = Some(from);
                }
                if let Some(to) = to {
                    counter.fetch_add(len as u64, Ordering::Relaxed);
                    let _ = io.send_to(&buf[..len], to).await;
                }
            }
        });
        Self { address, bytes }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
