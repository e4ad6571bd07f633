//! Two nodes on loopback with a relay between them that loses and doubles datagrams if wanted, and a
//! wiretap at each, which sees what is on the wire in clear and can forge it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyreach_quic::{
    Connection, Endpoint, EndpointConfig, Event, PacketTap, RelayHint, TapFactory,
};
use anyreach_wire::{
    frames::Frame, transport_parameters::Parameters, varint::VarInt, walk::frame_at,
};
use bytes::{Bytes, BytesMut};
use noq::PathId;
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::common::{LONG, endpoint_with, within};

/// Datagrams that begin with this are replaced by what follows: a peer that misbehaves.
const FORGERY: &[u8] = b"forgery:";

/// Waits until `done` holds.
pub async fn until(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A node, with its wiretap. To it, everything on this host is near.
pub struct End {
    pub node: Endpoint,
    wiretap: Arc<OnceLock<Arc<Wiretap>>>,
    events: Mutex<Vec<Event>>,
}

impl End {
    pub fn new() -> Self {
        Self::with(|_| (), |_| ())
    }

    /// `spoil` changes the transport parameters that are sent.
    pub fn with(
        adjust: impl FnOnce(&mut EndpointConfig),
        spoil: impl Fn(&mut Parameters<'_>) + Send + Sync + 'static,
    ) -> Self {
        let wiretap = Arc::new(OnceLock::new());
        let made = wiretap.clone();
        let spoil: Arc<Spoil> = Arc::new(spoil);
        let tap: TapFactory = Arc::new(move |_| {
            let wiretap = Arc::new(Wiretap {
                log: Mutex::default(),
                spoil: spoil.clone(),
            });
            // The first connection is the one that is looked at.
            let _ = made.set(wiretap.clone());
            wiretap
        });
        let node = endpoint_with(|config| {
            config.tap = Some(tap);
            adjust(config);
        });
        node.set_near(["127.0.0.0/8".parse().unwrap()]);
        Self {
            node,
            wiretap,
            events: Mutex::default(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.node.local_addr()
    }

    /// Dials `to` at `address`, which is said to be a relay's.
    pub async fn connect(&self, to: &Self, address: SocketAddr) -> (Connection, Connection) {
        let hint = RelayHint {
            relayed: true,
            via: None,
        };
        let peer = to.node.identity().peer_id();
        let dial = self.node.dial_hinted(address, Some(peer), LONG, hint);
        let (dialed, accepted) = within(async { tokio::join!(dial, to.node.accept()) }).await;
        let ends = (dialed.unwrap().connection, accepted.unwrap());
        within(ends.0.engine().handshake_confirmed()).await.unwrap();
        ends
    }

    /// Waits for an event.
    pub async fn event(&self, is_it: impl Fn(&Event) -> bool) {
        within(async {
            loop {
                let mut events = std::mem::take(&mut *self.events.lock().unwrap());
                if let Some(at) = events.iter().position(&is_it) {
                    events.remove(at);
                    *self.events.lock().unwrap() = events;
                    return;
                }
                events.extend(self.node.events().await.unwrap());
                *self.events.lock().unwrap() = events;
            }
        })
        .await;
    }

    pub async fn candidates(&self) {
        self.event(|event| matches!(event, Event::Candidates { .. }))
            .await;
    }

    /// Whether the last forgery of this end can be walked; once it is sent.
    pub async fn forgery_walked(&self) -> bool {
        until(|| self.log(|log| log.forgery_walked.is_some())).await;
        self.log(|log| log.forgery_walked == Some(true))
    }

    /// What was seen on the wire.
    pub fn log<T>(&self, read: impl FnOnce(&Log) -> T) -> T {
        read(&self.wiretap.get().expect("connected").log.lock().unwrap())
    }
}

/// Has `connection` send `frames` in place of a DATAGRAM.
pub fn forge(connection: &Connection, frames: &[u8]) {
    let datagram = [FORGERY, frames].concat();
    connection
        .engine()
        .send_datagram(Bytes::from(datagram))
        .unwrap();
}

/// A number out of [`Connection::punch_stats`].
pub fn stat(connection: &Connection, name: &str) -> u64 {
    let stats = connection.punch_stats();
    stats.iter().find(|(other, _)| *other == name).unwrap().1
}

/// Frame types and parameters, as somebody with the keys sees them.
#[derive(Default)]
pub struct Log {
    pub sent: BTreeSet<u64>,
    pub received: BTreeSet<u64>,
    pub parameters_sent: Vec<u8>,
    pub parameters_received: Vec<u8>,
    /// Extension frames as they arrived.
    pub frames_received: Vec<Frame>,
    /// And as they left.
    pub frames_sent: Vec<Frame>,
    /// Whether the walker found its way through the last packet with a forgery.
    pub forgery_walked: Option<bool>,
    /// Data of datagrams that left.
    pub datagrams_sent: usize,
}

type Spoil = dyn Fn(&mut Parameters<'_>) + Send + Sync;

struct Wiretap {
    log: Mutex<Log>,
    spoil: Arc<Spoil>,
}

impl PacketTap for Wiretap {
    fn outgoing_parameters(&self, encoded: &mut Vec<u8>) {
        let copy = encoded.clone();
        let mut parameters = Parameters::parse(&copy).unwrap();
        (self.spoil)(&mut parameters);
        *encoded = parameters.encode();
        self.log.lock().unwrap().parameters_sent = encoded.clone();
    }

    fn incoming_parameters(&self, encoded: &mut Vec<u8>) -> Result<(), String> {
        self.log.lock().unwrap().parameters_received = encoded.clone();
        Ok(())
    }

    fn sealing(&self, _: PathId, _: u64, payload: &mut [u8]) {
        let mut log = self.log.lock().unwrap();
        let sealed = payload.to_vec();
        let mut forged = false;
        let walked = each_frame(&sealed, |frame_type, range| {
            log.sent.insert(frame_type);
            if let Ok(frame) = Frame::decode(&mut &sealed[range.clone()]) {
                log.frames_sent.push(frame);
            }
            if frame_type != 0x31 {
                return;
            }
            log.datagrams_sent += 1;
            let mut data = &sealed[range.start + 1..range.end];
            VarInt::decode(&mut data).unwrap();
            if let Some(forgery) = data.strip_prefix(FORGERY) {
                forged = true;
                let space = &mut payload[range];
                space.fill(0);
                space[..forgery.len()].copy_from_slice(forgery);
            }
        });
        assert!(walked, "the walker knows every frame of the engine");
        if forged {
            log.forgery_walked = Some(each_frame(payload, |_, _| ()));
        }
    }

    fn opened(&self, _: PathId, _: u64, payload: &mut BytesMut) {
        let mut log = self.log.lock().unwrap();
        each_frame(payload, |frame_type, range| {
            log.received.insert(frame_type);
            if let Ok(frame) = Frame::decode(&mut &payload[range]) {
                log.frames_received.push(frame);
            }
        });
    }
}

/// Whether all frames could be told apart.
fn each_frame(payload: &[u8], mut see: impl FnMut(u64, Range<usize>)) -> bool {
    let mut at = 0;
    loop {
        match frame_at(payload, at) {
            Ok(Some(frame)) => {
                at = frame.range.end;
                see(frame.frame_type, frame.range);
            }
            end => return end.is_ok(),
        }
    }
}

/// Forwards datagrams between a server and who wrote to it first.
pub struct Relay {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    bytes: AtomicU64,
    /// Percent of the datagrams that are lost, and that arrive twice.
    loss: AtomicU32,
    doubled: AtomicU32,
}

impl Relay {
    pub async fn to(server: SocketAddr) -> Self {
        let io = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = io.local_addr().unwrap();
        let state = Arc::new(State::default());
        let task = tokio::spawn(forward(io, server, state.clone()));
        Self {
            address,
            state,
            task,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Relaxed)
    }

    pub fn disturb(&self, loss: u32, doubled: u32) {
        self.state.loss.store(loss, Ordering::Relaxed);
        self.state.doubled.store(doubled, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(io: UdpSocket, server: SocketAddr, state: Arc<State>) {
    // xorshift64: the same fate in every run, as far as timing lets it.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut client = None;
    let mut buf = [0; 2048];
    loop {
        let Ok((len, from)) = io.recv_from(&mut buf).await else {
            continue;
        };
        let to = if from == server {
            client
        } else {
            client.get_or_insert(from);
            Some(server)
        };
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let percent = (random >> 32) as u32 % 100;
        let loss = state.loss.load(Ordering::Relaxed);
        let copies = match percent {
            lost if lost < loss => 0,
            doubled if doubled < loss + state.doubled.load(Ordering::Relaxed) => 2,
            _ => 1,
        };
        for _ in 0..copies {
            if let Some(to) = to {
                state.bytes.fetch_add(len as u64, Ordering::Relaxed);
                let _ = io.send_to(&buf[..len], to).await;
            }
        }
    }
}

/// Somebody who has nothing to do with it, and counts what arrives; reached under any address of
/// 127.77.0.0/16.
pub struct Bystander {
    port: u16,
    bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Bystander {
    pub async fn new() -> Self {
        let io = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let port = io.local_addr().unwrap().port();
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = bytes.clone();
        let task = tokio::spawn(async move {
            let mut buf = [0; 2048];
            loop {
                if let Ok((len, _)) = io.recv_from(&mut buf).await {
                    counter.fetch_add(len as u64, Ordering::Relaxed);
                }
            }
        });
        Self { port, bytes, task }
    }

    pub fn address(&self, host: u8) -> SocketAddr {
        ([127, 77, 0, host], self.port).into()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.task.abort();
    }
}
