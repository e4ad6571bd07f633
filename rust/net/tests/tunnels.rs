//! Tunnels and extra sockets under the engine: paths over them, limits, and what must not leak.

mod common;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyreach_net::{
    ExtraOptions, Injector, MuxError, SyntheticAddr, Tunnel, TunnelSend, TunnelSendError,
    canonical, is_synthetic, mux::MAX_TUNNELS,
};
use bytes::Bytes;
use common::{Node, run, transfer, until};
use noq::{Connection, PathId, PathStatus};

/// A carrier that leads straight into the other node's tunnel.
#[derive(Clone, Default)]
struct Wire(Arc<WireState>);

#[derive(Default)]
struct WireState {
    far_end: OnceLock<Injector>,
    datagrams: AtomicUsize,
    largest: AtomicUsize,
    full: AtomicBool,
}

/// What the carrier takes at most, as a relay's datagrams would.
const CARRIES: usize = 1_300;

impl TunnelSend for Wire {
    fn try_send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        if datagram.len() > CARRIES {
            return Err(TunnelSendError::TooLarge);
        }
        if self.0.full.load(Ordering::Relaxed) {
            return Err(TunnelSendError::Full);
        }
        self.0.datagrams.fetch_add(1, Ordering::Relaxed);
        self.0.largest.fetch_max(datagram.len(), Ordering::Relaxed);
        let far_end = self.0.far_end.get().ok_or(TunnelSendError::Closed)?;
        far_end
            .inject(index, Bytes::copy_from_slice(datagram))
            .map_err(|_| TunnelSendError::Closed)
    }
}

/// Two nodes, each with a tunnel that leads to the other.
struct Tunnelled {
    a: Node,
    b: Node,
    a_tunnel: Tunnel,
    b_tunnel: Tunnel,
    a_wire: Wire,
    b_wire: Wire,
}

fn tunnelled(a: &str, b: &str) -> Tunnelled {
    let (a, b) = (Node::bind(a), Node::bind(b));
    let (a_wire, b_wire) = (Wire::default(), Wire::default());
    // The tunnels have different numbers, as they would in two processes.
    let spare = b
        .handle
        .add_tunnel(Box::new(Wire::default()))
        .expect("spare");
    let a_tunnel = a
        .handle
        .add_tunnel(Box::new(a_wire.clone()))
        .expect("tunnel");
    let b_tunnel = b
        .handle
        .add_tunnel(Box::new(b_wire.clone()))
        .expect("tunnel");
    assert_ne!(spare.number(), b_tunnel.number());
    a_wire.0.far_end.set(b_tunnel.injector()).expect("unset");
    b_wire.0.far_end.set(a_tunnel.injector()).expect("unset");
    Tunnelled {
        a,
        b,
        a_tunnel,
        b_tunnel,
        a_wire,
        b_wire,
    }
}

fn remote(connection: &Connection, path: PathId) -> SocketAddr {
    let path = connection.path(path).expect("path");
    path.remote_address().expect("open")
}

#[test]
fn a_connection_lives_in_a_tunnel_alone() {
    run(async {
        // IPv4-only and IPv6-only sockets: the tunnel does not care what is below.
        let t = tunnelled("127.0.0.1:0", "[::1]:0");
        let dial = t.a_tunnel.address(5).socket_addr();
        let (out, inn) = t.a.connect(&t.b, dial).await;
        assert_eq!(remote(&out, PathId::ZERO), dial);
        let seen = SyntheticAddr::from_socket_addr(remote(&inn, PathId::ZERO));
        assert_eq!(seen, Some(t.b_tunnel.address(5)));
        transfer(&out, &inn, 2_000_000).await;
        transfer(&inn, &out, 2_000_000).await;
        // Batches were split, and MTU discovery was told where the tunnel ends.
        assert!(t.a_wire.0.datagrams.load(Ordering::Relaxed) > 2_000_000 / CARRIES);
        assert!(t.a_wire.0.largest.load(Ordering::Relaxed) <= CARRIES);
        assert!(t.a.counters.snapshot().send_tunnel_too_large > 0);
        // Nothing went by the wire.
        assert_eq!(t.a.counters.snapshot().send_wrong_family, 0);
    });
}

#[test]
fn direct_and_tunnelled_are_two_paths_of_one_connection() {
    run(async {
        let t = tunnelled("[::]:0", "[::]:0");
        let dial = t.a_tunnel.address(1).socket_addr();
        let (out, inn) = t.a.connect(&t.b, dial).await;
        transfer(&out, &inn, 100_000).await;

        let direct = SocketAddr::from(([127, 0, 0, 1], t.b.addr.port()));
        let path = out
            .open_path(direct, PathStatus::Available)
            .await
            .expect("direct path");
        assert_eq!(canonical(remote(&out, path.id())), direct);
        out.path(PathId::ZERO)
            .expect("path")
            .close()
            .expect("closes");
        let carried = t.a_wire.0.datagrams.load(Ordering::Relaxed);
        transfer(&out, &inn, 4_000_000).await;
        transfer(&inn, &out, 4_000_000).await;
        let carried = t.a_wire.0.datagrams.load(Ordering::Relaxed) - carried;
        assert!(carried < 100, "{carried} datagrams still in the tunnel");
    });
}

#[test]
fn a_tunnel_that_is_dropped_takes_nothing_with_it() {
    run(async {
        let t = tunnelled("[::]:0", "[::]:0");
        let direct = SocketAddr::from(([127, 0, 0, 1], t.b.addr.port()));
        let (out, inn) = t.a.connect(&t.b, direct).await;
        let (lost, _far) = t.a.connect(&t.b, t.a_tunnel.address(1).socket_addr()).await;
        let injector = t.a_tunnel.injector();
        let carrier = Arc::downgrade(&t.a_wire.0);
        drop((t.a_tunnel, t.a_wire));
        assert!(
            carrier.upgrade().is_none(),
            "the carrier went with the tunnel"
        );
        assert!(injector.inject(1, Bytes::from(vec![0x40; 64])).is_err());
        let mut stream = lost.open_uni().await.expect("stream");
        stream.write_all(&[7; 1000]).await.expect("buffered");
        until(|| t.a.counters.snapshot().send_no_tunnel > 0).await;
        transfer(&out, &inn, 1_000_000).await;

        // Numbers are not used again.
        let next =
            t.a.handle
                .add_tunnel(Box::new(Wire::default()))
                .expect("tunnel");
        assert_ne!(
            next.address(1),
            SyntheticAddr::from_socket_addr(remote(&lost, PathId::ZERO)).expect("synthetic")
        );
    });
}

#[test]
fn a_full_tunnel_drops_and_holds_up_nobody() {
    run(async {
        let t = tunnelled("[::]:0", "[::]:0");
        let (slow, far) = t.a.connect(&t.b, t.a_tunnel.address(1).socket_addr()).await;
        let direct = SocketAddr::from(([127, 0, 0, 1], t.b.addr.port()));
        let (out, inn) = t.a.connect(&t.b, direct).await;
        t.a_wire.0.full.store(true, Ordering::Relaxed);
        let stuck = tokio::spawn(async move { transfer(&slow, &far, 200_000).await });
        until(|| t.a.counters.snapshot().send_tunnel_full > 0).await;
        transfer(&out, &inn, 1_000_000).await;
        t.a_wire.0.full.store(false, Ordering::Relaxed);
        stuck.await.expect("loss recovery brings it through");
        drop(t.b_wire);
    });
}

#[test]
fn synthetic_addresses_without_a_tunnel_end_here() {
    run(async {
        let a = Node::bind("[::]:0");
        let nowhere = SyntheticAddr::new(77, 1).socket_addr();
        let malformed = SocketAddr::new(nowhere.ip(), 4433);
        assert!(is_synthetic(malformed.ip()));
        let dials: Vec<_> = [nowhere, malformed]
            .map(|addr| a.endpoint.connect(addr, "node.test"))
            .into();
        until(|| a.counters.snapshot().send_no_tunnel >= 2).await;
        assert_eq!(
            a.counters.snapshot().send_unreachable,
            0,
            "the wire was not tried"
        );
        drop(dials);
    });
}

#[test]
fn the_number_of_tunnels_is_bounded() {
    run(async {
        let a = Node::bind("[::]:0");
        let mut held: Vec<_> = (0..MAX_TUNNELS)
            .map(|_| {
                a.handle
                    .add_tunnel(Box::new(Wire::default()))
                    .expect("tunnel")
            })
            .collect();
        let refused = a.handle.add_tunnel(Box::new(Wire::default()));
        assert!(matches!(refused, Err(MuxError::TooManyTunnels)));
        held.pop();
        a.handle
            .add_tunnel(Box::new(Wire::default()))
            .expect("room again");
    });
}

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn spare_socket() -> UdpSocket {
    UdpSocket::bind((LOOPBACK, 0)).expect("socket")
}

#[test]
fn an_extra_socket_listens_to_nobody_else() {
    run(async {
        let b = Node::bind("[::]:0");
        let nobody = ExtraOptions::default();
        let other = ExtraOptions {
            expect: Some("192.0.2.1".parse().expect("literal")),
            adoptions: None,
        };
        for options in [nobody, other] {
            let before = b.counters.snapshot().recv_extra_unexpected;
            let socket = b
                .handle
                .add_socket(spare_socket(), options)
                .expect("socket");
            let stranger = spare_socket();
            stranger
                .send_to(&[0xc0; 1200], socket.local_addr())
                .expect("sent");
            until(|| b.counters.snapshot().recv_extra_unexpected > before).await;
            assert!(socket.adopted().is_empty());
        }
    });
}

#[test]
fn adoption_is_exclusive_and_ends_with_the_socket() {
    run(async {
        let b = Node::bind("[::]:0");
        let add = || {
            b.handle
                .add_socket(spare_socket(), ExtraOptions::default())
                .expect("socket")
        };
        let (first, second) = (add(), add());
        let remote: SocketAddr = "192.0.2.9:4433".parse().expect("literal");
        first.adopt(remote).expect("free");
        first.adopt(remote).expect("its own");
        assert!(matches!(
            second.adopt(remote),
            Err(MuxError::AdoptedElsewhere(_))
        ));
        let synthetic = SyntheticAddr::new(0, 0).socket_addr();
        assert!(matches!(second.adopt(synthetic), Err(MuxError::Io(_))));
        assert!(second.send_to(&[0x40; 64], synthetic).await.is_err());
        drop(first);
        second.adopt(remote).expect("free again");
    });
}

#[test]
fn a_dropped_extra_socket_is_closed_at_once() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        // An idle connection holds on to the table as it was.
        let socket = b
            .handle
            .add_socket(spare_socket(), ExtraOptions::default())
            .expect("socket");
        let pair = a
            .connect(&b, SocketAddr::new(LOOPBACK, b.addr.port()))
            .await;
        let local = socket.local_addr();
        UdpSocket::bind(local).expect_err("in use");
        drop(socket);
        until(|| UdpSocket::bind(local).is_ok()).await;
        drop(pair);
    });
}

#[test]
fn nothing_can_be_added_to_an_endpoint_that_is_gone() {
    run(async {
        let node = Node::bind("[::]:0");
        let handle = node.handle.clone();
        node.endpoint.close(0_u8.into(), b"");
        node.endpoint.wait_idle().await;
        drop(node);
        until(|| handle.local_addr().is_err()).await;
        let tunnel = handle.add_tunnel(Box::new(Wire::default()));
        assert!(matches!(tunnel, Err(MuxError::Closed)));
        let socket = handle.add_socket(spare_socket(), ExtraOptions::default());
        assert!(matches!(socket, Err(MuxError::Closed)));
    });
}
