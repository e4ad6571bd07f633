//! One peer reached through a tunnel and directly: two paths of one connection.
//!
//! What comes out of a tunnel enters the engine under a synthetic address, so that the engine takes
//! it for another path, with a congestion window, round-trip time and MTU of its own. Shown here:
//! either way can come first, data uses both ends of it, and closing one under load, alive or dead,
//! loses nothing. And that synthetic addresses stay inside: neither the peer nor the program is shown
//! one.
//!
//! Not shown: what a real relay adds (its own congestion control, delay and loss), and who decides
//! when to close. The tunnel here is a function call.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyreach_net::{Injector, SyntheticAddr, Tunnel, TunnelSend, TunnelSendError, is_synthetic};
use anyreach_quic::{
    Connection, DialError, Directory, Endpoint, Event, PacketTap, PathOptions, PeerId, Resolved,
    TapFactory,
};
use anyreach_wire::{frames::Frame, walk::frame_at};
use bytes::{Bytes, BytesMut};
use common::{LONG, endpoint_with, within};
use noq::{PathId, PathStatus};

/// Larger than all windows together, so that closing a path meets data in flight.
const AMOUNT: usize = 32 << 20;

/// What the relay carries in one datagram: less than the loopback does, more than an Initial.
const CARRIES: usize = 1_300;

/// The nodes as the relay sees them.
const ALICE: ([u8; 4], u16) = ([203, 0, 113, 7], RELAYED_PORT);
const BOB: ([u8; 4], u16) = ([203, 0, 113, 8], RELAYED_PORT);
const RELAYED_PORT: u16 = 4433;
const RELAY: PeerId = PeerId([7; 32]);

/// What the relay has told about whoever is in the tunnel.
struct Told(([u8; 4], u16));

impl Directory for Told {
    fn resolve(&self, address: SyntheticAddr) -> Option<Resolved> {
        (address.index() == 0).then_some(Resolved {
            remote: self.0.into(),
            relay: Some(RELAY),
        })
    }
}

/// Knows nothing.
struct Forgotten;

impl Directory for Forgotten {
    fn resolve(&self, _: SyntheticAddr) -> Option<Resolved> {
        None
    }
}

/// The way into the other node's tunnel.
#[derive(Clone, Default)]
struct Wire(Arc<WireState>);

#[derive(Default)]
struct WireState {
    far_end: OnceLock<Injector>,
    bytes: AtomicU64,
    cut: AtomicBool,
}

impl TunnelSend for Wire {
    fn try_send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        if datagram.len() > CARRIES {
            return Err(TunnelSendError::TooLarge);
        }
        // A dead relay takes everything and delivers nothing.
        if !self.0.cut.load(Ordering::Relaxed) {
            self.0
                .bytes
                .fetch_add(datagram.len() as u64, Ordering::Relaxed);
            let far_end = self.0.far_end.get().expect("tied together");
            let _ = far_end.inject(index, Bytes::copy_from_slice(datagram));
        }
        Ok(())
    }
}

impl Wire {
    fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

/// Two nodes on loopback with a tunnel between them.
struct Lab {
    alice: Endpoint,
    bob: Endpoint,
    /// From Alice to Bob and back.
    wires: [Wire; 2],
    tunnels: [Tunnel; 2],
}

impl Lab {
    fn new(tap: Option<&TapFactory>) -> Self {
        let node = || endpoint_with(|config| config.tap = tap.cloned());
        let (alice, bob) = (node(), node());
        alice.set_directory(Arc::new(Told(BOB)));
        bob.set_directory(Arc::new(Told(ALICE)));
        let wires = [Wire::default(), Wire::default()];
        let tunnels = [
            alice
                .socket()
                .add_tunnel(Box::new(wires[0].clone()))
                .unwrap(),
            bob.socket().add_tunnel(Box::new(wires[1].clone())).unwrap(),
        ];
        assert!(wires[0].0.far_end.set(tunnels[1].injector()).is_ok());
        assert!(wires[1].0.far_end.set(tunnels[0].injector()).is_ok());
        Self {
            alice,
            bob,
            wires,
            tunnels,
        }
    }

    /// Bob's address in Alice's tunnel.
    fn tunnelled(&self) -> SocketAddr {
        self.tunnels[0].address(0).into()
    }

    fn direct(&self) -> SocketAddr {
        self.bob.local_addr()
    }

    async fn connect(&self, address: SocketAddr) -> (Connection, Connection) {
        let bob = self.bob.identity().peer_id();
        let dial = async {
            match SyntheticAddr::from_socket_addr(address) {
                Some(tunnelled) => self.alice.dial_through(tunnelled, Some(bob), LONG).await,
                None => self.alice.dial(address, Some(bob), LONG).await,
            }
        };
        let (dialed, accepted) = within(async { tokio::join!(dial, self.bob.accept()) }).await;
        (dialed.unwrap().connection, accepted.unwrap())
    }

    fn tunnelled_bytes(&self) -> u64 {
        self.wires.iter().map(Wire::bytes).sum()
    }

    fn cut_tunnel(&self) {
        for wire in &self.wires {
            wire.0.cut.store(true, Ordering::Relaxed);
        }
    }
}

async fn open_path(connection: &Connection, address: SocketAddr) -> PathId {
    let opening = connection
        .engine()
        .open_path(address, PathStatus::Available);
    within(opening).await.unwrap().id()
}

/// Waits until data goes by a path.
async fn uses(connection: &Connection, id: u32) {
    within(async {
        while connection
            .paths()
            .first()
            .map(|path| (path.id, path.current))
            != Some((id, true))
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn close_path(connection: &Connection, id: PathId) {
    connection.engine().path(id).unwrap().close().unwrap();
}

/// The connection's remotes at this end, in the order of their paths.
fn remotes(connection: &Connection) -> Vec<SocketAddr> {
    let mut paths = connection.paths();
    paths.sort_by_key(|path| path.id);
    paths.into_iter().map(|path| path.remote).collect()
}

/// Sends [`AMOUNT`] bytes of a pattern and has the other end check it; `midway` runs when a quarter
/// has arrived, with the rest under way.
async fn transfer(from: &Connection, to: &Connection, midway: impl FnOnce()) {
    let byte = |at: usize| (at % 251) as u8;
    let sending = async {
        let (mut send, _) = from.open_stream(false).await.unwrap();
        let pattern: Vec<u8> = (0..AMOUNT).map(byte).collect();
        send.write_all(&pattern).await.unwrap();
        send.finish().unwrap();
        send.stopped().await.unwrap();
    };
    let receiving = async {
        let (_, mut recv) = to.accept_stream(false).await.unwrap();
        let (mut at, mut midway) = (0, Some(midway));
        while let Some(chunk) = recv.read_chunk(usize::MAX).await.unwrap() {
            assert!(
                chunk
                    .iter()
                    .enumerate()
                    .all(|(offset, b)| *b == byte(at + offset))
            );
            at += chunk.len();
            if at > AMOUNT / 4
                && let Some(act) = midway.take()
            {
                act();
            }
        }
        at
    };
    let (_, received) = within(async { tokio::join!(sending, receiving) }).await;
    assert_eq!(received, AMOUNT);
}

#[tokio::test]
async fn a_direct_path_joins_a_tunnelled_connection_and_takes_over() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.tunnelled()).await;
    assert_eq!(remotes(&alice), [BOB.into()]);
    // Left to itself, the connection would take to the direct path at once.
    alice.rank_paths([(0, 0)]);
    let direct = open_path(&alice, lab.direct()).await;
    assert_ne!(direct, PathId::ZERO);
    assert_eq!(remotes(&alice), [BOB.into(), lab.direct()]);

    let before = lab.tunnelled_bytes();
    let mut when_closed = 0;
    transfer(&alice, &bob, || {
        when_closed = lab.tunnelled_bytes();
        close_path(&alice, PathId::ZERO);
    })
    .await;
    assert!(
        when_closed - before > 1 << 20,
        "data went through the tunnel until it was closed"
    );
    // What was under way there came again directly, and so did the rest.
    assert!(lab.tunnelled_bytes() - when_closed < (AMOUNT / 4) as u64);
    assert_eq!(remotes(&alice), [lab.direct()]);
    transfer(&bob, &alice, || ()).await;
    assert!(lab.tunnelled_bytes() - when_closed < (AMOUNT / 4) as u64);
    assert!(alice.close_reason().is_none() && bob.close_reason().is_none());
}

/// Nobody has to say so: direct comes before relayed, at both ends.
#[tokio::test]
async fn a_direct_path_is_used_as_soon_as_it_is_there() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.tunnelled()).await;
    let opening = alice.open_path(lab.direct(), PathOptions::default(), LONG);
    let direct = within(opening).await.unwrap();
    uses(&alice, direct).await;
    uses(&bob, direct).await;
    let before = lab.tunnelled_bytes();
    transfer(&alice, &bob, || ()).await;
    transfer(&bob, &alice, || ()).await;
    assert!(lab.tunnelled_bytes() - before < 64 << 10);
    // The tunnel stays as a standby, until it is not wanted any more.
    assert_eq!(alice.paths().len(), 2);
    assert!(alice.close_path(0) && !alice.close_path(direct));
    within(async {
        while bob.paths().len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(alice.paths().len(), 1);
}

#[tokio::test]
async fn a_ranking_is_followed_at_both_ends() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.direct()).await;
    let tunnelled = SyntheticAddr::from_socket_addr(lab.tunnelled()).unwrap();
    let options = PathOptions {
        standby: true,
        ..PathOptions::default()
    };
    let opening = alice.open_path_through(tunnelled, options, LONG);
    let relayed = within(opening).await.unwrap();
    assert!(alice.paths().iter().any(|path| path.standby));
    assert!(alice.paths()[0].id == 0);
    alice.rank_paths([(relayed, 0), (0, 1)]);
    uses(&alice, relayed).await;
    uses(&bob, relayed).await;
    alice.rank_paths([]);
    uses(&alice, 0).await;
    uses(&bob, 0).await;
}

#[tokio::test]
async fn only_who_dialed_opens_paths_and_only_to_addresses_of_hosts() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.direct()).await;
    let options = PathOptions::default();
    let refused = |opened: Result<u32, DialError>| opened.unwrap_err().reason;
    let by_bob = bob.open_path(lab.alice.local_addr(), options, LONG);
    assert_eq!(refused(within(by_bob).await), "not-dialed");
    let made_up = alice.open_path(lab.tunnelled(), options, LONG);
    assert_eq!(refused(within(made_up).await), "unreachable");
    // Another path to where there is one is that one.
    let again = within(alice.open_path(lab.direct(), options, LONG)).await;
    assert_eq!(again.unwrap(), 0);
    // Addresses nobody answers at cost no path numbers, of which there are eight.
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let deaf = deaf.local_addr().unwrap();
    for _ in 0..12 {
        let opening = lab
            .alice
            .open_path(&alice, deaf, options, Duration::from_millis(50));
        assert_eq!(refused(within(opening).await), "handshake-timeout");
    }
    let tunnelled = SyntheticAddr::from_socket_addr(lab.tunnelled()).unwrap();
    let opening = lab
        .alice
        .open_path_through(&alice, tunnelled, options, LONG);
    assert_eq!(within(opening).await.unwrap(), 1);
}

#[tokio::test]
async fn a_tunnel_stands_in_for_a_closed_direct_path() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.direct()).await;
    open_path(&alice, lab.tunnelled()).await;
    assert_eq!(remotes(&alice), [lab.direct(), BOB.into()]);
    let before = lab.tunnelled_bytes();
    transfer(&bob, &alice, || close_path(&alice, PathId::ZERO)).await;
    assert!(lab.tunnelled_bytes() - before > (AMOUNT / 4) as u64);
    assert_eq!(remotes(&alice), [BOB.into()]);
    assert!(alice.close_reason().is_none() && bob.close_reason().is_none());
}

/// The tunnel dies with data in it, in both directions at once; closing its path brings all of it
/// back on the direct one.
#[tokio::test]
async fn what_a_dead_tunnel_swallowed_comes_again() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.tunnelled()).await;
    open_path(&alice, lab.direct()).await;
    let reverse = transfer(&bob, &alice, || ());
    let forward = transfer(&alice, &bob, || {
        lab.cut_tunnel();
        close_path(&alice, PathId::ZERO);
    });
    tokio::join!(forward, reverse);
    assert_eq!(remotes(&alice), [lab.direct()]);
    assert!(alice.close_reason().is_none() && bob.close_reason().is_none());
}

/// Keeps the reports of addresses that left.
#[derive(Default)]
struct Reports(Mutex<Vec<SocketAddr>>);

impl PacketTap for Reports {
    fn sealing(&self, _path: PathId, _packet: u64, payload: &mut [u8]) {
        let mut at = 0;
        while let Some(raw) = frame_at(payload, at).unwrap() {
            at = raw.range.end;
            if let Ok(Frame::ObservedAddress(observed)) = Frame::decode(&mut &payload[raw.range]) {
                self.0.lock().unwrap().push(observed.address.into());
            }
        }
    }

    fn opened(&self, _path: PathId, _packet: u64, _payload: &mut BytesMut) {}
}

/// The next address `endpoint` is told it has, and how the path was made.
async fn first_observed(endpoint: &Endpoint) -> (SocketAddr, &'static str) {
    within(async {
        loop {
            for event in endpoint.events().await.unwrap() {
                if let Event::Observed {
                    address, method, ..
                } = event
                {
                    return (address, method);
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn no_synthetic_address_leaves_the_node() {
    for resolved in [true, false] {
        let reports = Arc::new(Reports::default());
        let tap: Arc<dyn PacketTap> = reports.clone();
        let tap: TapFactory = Arc::new(move |_| tap.clone());
        let lab = Lab::new(Some(&tap));
        if !resolved {
            lab.alice.set_directory(Arc::new(Forgotten));
            lab.bob.set_directory(Arc::new(Forgotten));
        }
        let (alice, bob) = lab.connect(lab.tunnelled()).await;
        if resolved {
            // What the relay reported, in the place of what the engine has.
            assert_eq!(first_observed(&lab.alice).await, (ALICE.into(), "relayed"));
            assert_eq!(first_observed(&lab.bob).await, (BOB.into(), "relayed"));
        }
        // The direct path is reported as ever, after anything the other one could have said.
        open_path(&alice, lab.direct()).await;
        within(async {
            while first_observed(&lab.alice).await != (lab.alice.local_addr(), "direct") {}
        })
        .await;
        transfer(&bob, &alice, || ()).await;
        let sent = reports.0.lock().unwrap().clone();
        assert!(!sent.iter().any(|address| is_synthetic(address.ip())));
        let relayed = sent.iter().filter(|address| address.port() == RELAYED_PORT);
        assert_eq!(relayed.count() > 0, resolved, "{sent:?}");
        assert!(alice.close_reason().is_none() && bob.close_reason().is_none());
    }
}

#[tokio::test]
async fn a_path_through_a_tunnel_shows_what_is_behind_it() {
    let lab = Lab::new(None);
    let (alice, bob) = lab.connect(lab.tunnelled()).await;
    open_path(&alice, lab.direct()).await;
    let shown = |connection: &Connection| {
        let mut paths = connection.paths();
        paths.sort_by_key(|path| path.id);
        paths
            .iter()
            .map(|path| (path.method, path.via, path.tunnelled))
            .collect::<Vec<_>>()
    };
    let expected = [("relayed", Some(RELAY), true), ("direct", None, false)];
    assert_eq!(shown(&alice), expected);
    within(async {
        while bob.paths().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(shown(&bob), expected);
    assert_eq!(remotes(&bob), [ALICE.into(), lab.alice.local_addr()]);
    assert_eq!(alice.first_path().unwrap().remote, BOB.into());
    // Whatever is shown of a tunnel that is gone, it is not the synthetic address.
    lab.alice.set_directory(Arc::new(Forgotten));
    let gone = alice.paths().into_iter().find(|path| path.tunnelled);
    let gone = gone.unwrap();
    assert_eq!((gone.method, gone.via), ("relayed", None));
    assert!(gone.remote.ip().is_unspecified() && gone.remote.port() == 0);
}

/// Each way has an MTU of its own: that of the tunnel does not hold the direct path down.
#[tokio::test]
async fn each_path_finds_its_own_mtu() {
    let lab = Lab::new(None);
    let (alice, _bob) = lab.connect(lab.tunnelled()).await;
    open_path(&alice, lab.direct()).await;
    let mtus = || {
        let mut paths = alice.paths();
        paths.sort_by_key(|path| path.id);
        paths
            .iter()
            .map(|path| usize::from(path.mtu))
            .collect::<Vec<_>>()
    };
    within(async {
        // Discovery is a search: wait for what only the direct path can reach.
        while mtus()[1] <= CARRIES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(mtus()[0] <= CARRIES);
}
