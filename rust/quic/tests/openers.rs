//! Openers between two nodes: ways that open become paths, and what is forged, repeated, refused or
//! not paid for comes to nothing.
//!
//! The nodes are connected over IPv6 and look for ways over IPv4, both on loopback: so there is an
//! address of each that no path leads to yet. There is no NAT here; tests/netlab has those.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU8,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyreach_net::{Injector, SyntheticAddr, TunnelSend, TunnelSendError};
use anyreach_quic::{
    Connection, Directory, Endpoint, Event, MAX_REFLECTIONS, PathOptions, PeerId, ReflectError,
    Reflected, Resolved,
};
use anyreach_wire::opener::{OPENER_FIRST_BYTE, OPENER_LEN, Opener, OpenerKind, is_opener};
use bytes::Bytes;
use common::{LONG, endpoint_with, within};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn node() -> Endpoint {
    let node = endpoint_with(|config| config.bind_addr = "[::]:0".parse().unwrap());
    node.set_near(["127.0.0.0/8".parse().unwrap()]);
    node
}

/// Where a node is reached over IPv4.
fn at(node: &Endpoint) -> SocketAddr {
    SocketAddr::new(HERE, node.local_addr().port())
}

struct Pair {
    alice: Endpoint,
    bob: Endpoint,
    /// Alice's end, who dialed.
    out: Connection,
    inn: Connection,
    _turn: Turn,
}

/// A spray over the ports of this host meets the sockets of every other test on it.
static TURNS: RwLock<()> = RwLock::const_new(());

enum Turn {
    #[allow(dead_code, reason = "held, not read")]
    Together(RwLockReadGuard<'static, ()>),
    #[allow(dead_code, reason = "held, not read")]
    Alone(RwLockWriteGuard<'static, ()>),
}

async fn pair() -> Pair {
    pair_in(Turn::Together(TURNS.read().await)).await
}

/// As [`pair`], while no other test has one.
async fn pair_alone() -> Pair {
    pair_in(Turn::Alone(TURNS.write().await)).await
}

async fn pair_in(turn: Turn) -> Pair {
    let (alice, bob) = (node(), node());
    let to = format!("[::1]:{}", bob.local_addr().port());
    let dial = alice.dial(to.parse().unwrap(), Some(bob.identity().peer_id()), LONG);
    let (out, inn) = within(async { tokio::join!(dial, bob.accept()) }).await;
    let (out, inn) = (out.unwrap().connection, inn.unwrap());
    Pair {
        alice,
        bob,
        out,
        inn,
        _turn: turn,
    }
}

/// Sends so many bytes, all of which arrive. They pay for openers of the other end.
async fn transfer(from: &Connection, to: &Connection, bytes: usize) {
    let send = async {
        let (mut stream, _) = from.open_stream(false).await.unwrap();
        stream.write_all(&vec![7; bytes]).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receive = async {
        let (_, mut stream) = to.accept_stream(false).await.unwrap();
        assert_eq!(stream.read_to_end(bytes).await.unwrap().len(), bytes);
    };
    within(async { tokio::join!(send, receive) }).await;
}

/// The next way that opens.
async fn opened(node: &Endpoint) -> SocketAddr {
    within(async {
        loop {
            for event in node.events().await.unwrap() {
                if let Event::Opened { address, .. } = event {
                    return address;
                }
            }
        }
    })
    .await
}

/// All ways that have opened, as far as told.
async fn all_opened(node: &Endpoint) -> Vec<SocketAddr> {
    let mut ways = Vec::new();
    while let Ok(events) = tokio::time::timeout(Duration::from_millis(200), node.events()).await {
        ways.extend(events.unwrap().into_iter().filter_map(|event| match event {
            Event::Opened { address, .. } => Some(address),
            _ => None,
        }));
    }
    ways
}

fn stat(connection: &Connection, name: &str) -> u64 {
    let stats = connection.punch_stats();
    stats.iter().find(|(known, _)| *known == name).unwrap().1
}

async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A socket of nobody's.
fn bystander() -> UdpSocket {
    let socket = UdpSocket::bind((HERE, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

async fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = [0; 2048];
    let mut seen = None;
    until(|| {
        seen = socket.recv_from(&mut buf).ok();
        seen.is_some()
    })
    .await;
    let (len, from) = seen.unwrap();
    (buf[..len].to_vec(), from)
}

#[tokio::test]
async fn an_opener_opens_a_way_at_both_ends() {
    let pair = pair().await;
    assert_eq!(pair.out.openers(&[at(&pair.bob)], 0), 1);
    assert_eq!(opened(&pair.bob).await, at(&pair.alice));
    assert_eq!(opened(&pair.alice).await, at(&pair.bob));
    // Whichever end begins.
    assert_eq!(pair.inn.openers(&[at(&pair.alice)], 1), 1);
    until(|| stat(&pair.out, "openers_received") == 2).await;
    assert_eq!(stat(&pair.out, "openers_forged"), 0);
    // A way that has just been told of is not told again.
    assert_eq!(all_opened(&pair.bob).await, []);
}

#[tokio::test]
async fn a_spray_meets_a_pool_and_the_socket_that_was_found_carries_the_path() {
    let pair = pair_alone().await;
    // What both ends send one another pays for it.
    transfer(&pair.out, &pair.inn, 100_000).await;
    transfer(&pair.inn, &pair.out, 100_000).await;
    // Bob's openers go astray, as at the NAT of somebody who has not sent anything yet.
    let astray = bystander();
    let pool = pair.inn.pool(astray.local_addr().unwrap(), 256).unwrap();
    assert_eq!(pool.size(), 256);
    let mut hit = false;
    // 98.3 % each.
    for _ in 0..4 {
        let spray = pair.out.spray(HERE, 1024, Duration::from_millis(300));
        let sprayed = within(spray.unwrap().run()).await;
        assert!(sprayed.sent <= 1024);
        hit = sprayed.hit;
        if hit {
            break;
        }
        transfer(&pair.inn, &pair.out, 100_000).await;
    }
    assert!(hit, "four sprays of 1,024 ports missed 256 sockets");
    let way = opened(&pair.alice).await;
    assert_eq!(opened(&pair.bob).await, at(&pair.alice));
    let adopted = pool.adopted();
    assert_eq!(adopted.len(), 1);
    assert_eq!(adopted[0].0.port(), way.port());
    assert_eq!(adopted[0].1, at(&pair.alice));

    let options = PathOptions::default();
    let opening = pair.alice.open_path(&pair.out, way, options, LONG);
    let path = within(opening).await.unwrap();
    // The pool goes, the socket in use stays.
    pool.close();
    assert_eq!(pool.size(), 0);
    let relayed = pair.out.paths().into_iter().find(|other| other.id != path);
    assert!(pair.out.close_path(relayed.unwrap().id));
    until(|| pair.inn.paths().len() == 1 && pair.out.paths().len() == 1).await;
    let before = pair.out.paths()[0].received_bytes;
    transfer(&pair.inn, &pair.out, 1_000_000).await;
    transfer(&pair.out, &pair.inn, 1_000_000).await;
    let paths = pair.out.paths();
    assert_eq!(paths.len(), 1);
    assert_eq!(paths[0].remote, way);
    let now = paths[0].received_bytes;
    assert!(now > before + 1_000_000, "{before} {now}");
    assert_eq!(pair.inn.paths()[0].remote, at(&pair.alice));
}

#[tokio::test]
async fn openers_of_a_pool_are_answered_once_and_both_ends_mean_the_same_socket() {
    let pair = pair().await;
    transfer(&pair.inn, &pair.out, 100_000).await;
    // Alice dialed, so it is her end that opens the path, through the pool.
    let pool = pair.out.pool(at(&pair.bob), 64).unwrap();
    let way = opened(&pair.bob).await;
    assert_eq!(opened(&pair.alice).await, at(&pair.bob));
    assert_eq!(all_opened(&pair.bob).await, []);
    until(|| stat(&pair.inn, "openers_received") == 64).await;
    let adopted = pool.adopted();
    assert_eq!(adopted.len(), 1);
    assert_eq!(
        (adopted[0].0.port(), adopted[0].1),
        (way.port(), at(&pair.bob))
    );
    let options = PathOptions::default();
    let opening = pair
        .alice
        .open_path(&pair.out, at(&pair.bob), options, LONG);
    within(opening).await.unwrap();
    until(|| pair.inn.paths().iter().any(|path| path.remote == way)).await;
    // Where a path leads a pool would tear it apart.
    let again = pair.out.pool(at(&pair.bob), 4);
    let error = again.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn what_is_forged_repeated_or_thrown_back_does_nothing() {
    let pair = pair().await;
    let (first, second) = (bystander(), bystander());
    assert_eq!(pair.out.openers(&[first.local_addr().unwrap()], 0), 1);
    let (genuine, from) = received(&first).await;
    assert_eq!(from, at(&pair.alice));
    assert!(is_opener(&genuine));

    // Thrown back: the wrong role.
    first.send_to(&genuine, at(&pair.alice)).unwrap();
    until(|| stat(&pair.out, "openers_forged") == 1).await;
    // Each bit changed.
    for bit in 0..OPENER_LEN * 8 {
        let mut forged = genuine.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        first.send_to(&forged, at(&pair.bob)).unwrap();
    }
    // Those with another first byte are none, those with another tag or kind nobody's.
    let others = (MAC_BITS + NUMBER_BITS + 1) as u64;
    until(|| stat(&pair.inn, "openers_forged") == others).await;
    assert_eq!(all_opened(&pair.bob).await, []);

    // Carried on, it is as good as new; repeated from elsewhere it is nothing.
    first.send_to(&genuine, at(&pair.bob)).unwrap();
    assert_eq!(opened(&pair.bob).await, first.local_addr().unwrap());
    let (answer, from) = received(&first).await;
    assert_eq!(from, at(&pair.bob));
    let (read, _) = Opener::parse(&answer).unwrap();
    assert_eq!(read.kind, OpenerKind::Answer);
    second.send_to(&genuine, at(&pair.bob)).unwrap();
    until(|| stat(&pair.inn, "openers_replayed") == 1).await;
    assert_eq!(all_opened(&pair.bob).await, []);

    // The same for the answer, of which the repeats come as well.
    second.send_to(&answer, at(&pair.alice)).unwrap();
    assert_eq!(opened(&pair.alice).await, second.local_addr().unwrap());
    first.send_to(&answer, at(&pair.alice)).unwrap();
    until(|| stat(&pair.out, "openers_replayed") == 1).await;
    assert_eq!(all_opened(&pair.alice).await, []);

    // When the connection has ended, its openers are nobody's.
    pair.out.close(0, b"");
    within(pair.inn.closed()).await;
    let unknown = || count(&pair.bob, "openers_unknown");
    until(|| pair.bob.connections().is_empty()).await;
    let before = unknown();
    until(|| {
        second.send_to(&genuine, at(&pair.bob)).unwrap();
        unknown() > before
    })
    .await;
}

const MAC_BITS: usize = 80;
const NUMBER_BITS: usize = 32;

fn count(node: &Endpoint, name: &str) -> u64 {
    let counters = node.counters();
    counters.iter().find(|(known, _)| *known == name).unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_junk_leaves_a_node_running() {
    const FLOOD: u32 = 100_000;
    let pair = pair().await;
    let taken = || count(&pair.bob, "recv_openers");
    let to = at(&pair.bob);
    let flood = tokio::task::spawn_blocking(move || {
        let socket = bystander();
        for number in 0..FLOOD {
            let mut junk = [0x5a; OPENER_LEN];
            junk[0] = OPENER_FIRST_BYTE;
            junk[1] = (number % 3) as u8;
            junk[4..8].copy_from_slice(&number.to_be_bytes());
            while socket.send_to(&junk, to).is_err() {}
        }
    });
    let begin = Instant::now();
    transfer(&pair.out, &pair.inn, 4_000_000).await;
    within(flood).await.unwrap();
    assert!(begin.elapsed() < LONG);
    until(|| taken() > 0).await;
    assert_eq!(pair.inn.openers(&[at(&pair.alice)], 0), 1);
    assert_eq!(opened(&pair.alice).await, at(&pair.bob));
    assert_eq!(stat(&pair.inn, "openers_forged"), 0, "none met a secret");
}

#[tokio::test]
async fn nobody_gets_more_than_the_peer_has_paid_for() {
    let pair = pair_alone().await;
    let victim = bystander();
    let to = vec![victim.local_addr().unwrap(); 32];
    let (mut sent, mut arrived) = (0, 0);
    let mut buf = [0; 64];
    loop {
        let now = pair.out.openers(&to, 0);
        sent += now;
        while let Ok(len) = victim.recv(&mut buf) {
            arrived += len;
        }
        if now < to.len() {
            break;
        }
    }
    let paid = pair.out.stats().udp_rx.bytes;
    assert!(arrived as u64 <= 3 * paid, "{arrived} bytes for {paid}");
    assert!(sent * OPENER_LEN >= arrived && arrived > 0);
    assert!(stat(&pair.out, "budget_refused") > 0);
    // Neither do other ways of sending help; what the peer says meanwhile pays for some.
    let spray = pair.out.spray(HERE, 100, Duration::ZERO).unwrap();
    within(spray.run()).await;
    let _pool = pair.out.pool(victim.local_addr().unwrap(), 256).unwrap();
    let sent = stat(&pair.out, "openers_sent") * OPENER_LEN as u64;
    let paid = pair.out.stats().udp_rx.bytes;
    assert!(sent <= 3 * paid, "{sent} bytes for {paid}");
    // What the peer sends pays for more.
    transfer(&pair.inn, &pair.out, 10_000).await;
    assert_eq!(pair.out.openers(&to, 0), to.len());
}

#[tokio::test]
async fn some_addresses_are_refused_whoever_asks() {
    let pair = pair().await;
    let refused: Vec<SocketAddr> = [
        "127.0.0.1:53",
        "127.0.0.1:0",
        "10.1.2.3:9000",
        "169.254.1.1:9000",
        "224.0.0.1:9000",
        "0.0.0.0:9000",
        "255.255.255.255:9000",
        "[::1]:9000",
        "[fe80::1]:9000",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .chain([SyntheticAddr::new(0, 0).socket_addr()])
    .collect();
    assert_eq!(pair.out.openers(&refused, 0), 0);
    assert_eq!(stat(&pair.out, "openers_sent"), 0);
    pair.alice.set_near([]);
    assert_eq!(pair.out.openers(&[at(&pair.bob)], 0), 0);
    let spray = pair.out.spray(HERE, 10, Duration::ZERO).unwrap();
    assert_eq!(within(spray.run()).await.sent, 0);
}

#[tokio::test]
async fn rounds_begin_with_openers_in_ascending_order() {
    let pair = pair().await;
    // What Alice says are her addresses are bystanders, who see what Bob sends them.
    let mut sockets: Vec<UdpSocket> = (0..4).map(|_| bystander()).collect();
    let address = |socket: &UdpSocket| socket.local_addr().unwrap();
    let ours: Vec<_> = sockets
        .iter()
        .map(|socket| (address(socket), at(&pair.bob)))
        .collect();
    pair.inn.set_candidates(&[at(&pair.bob)]);
    until(|| pair.out.peer_candidates() == [at(&pair.bob)]).await;
    // Alice opens first, and holds her probes back.
    let hold = Duration::from_millis(200);
    pair.out
        .start_round_after_openers(&ours, u8::MAX, hold)
        .unwrap();
    sockets.sort_by_key(address);
    let mut last = None;
    for socket in &sockets {
        let (first, from) = received(socket).await;
        assert_eq!(from, at(&pair.bob));
        let (opener, _) = Opener::parse(&first).expect("an opener comes before any probe");
        assert!(last < Some(opener.number), "in ascending order");
        last = Some(opener.number);
    }
    assert_eq!(opened(&pair.bob).await, at(&pair.alice));
    // And Alice's way to Bob comes up although her addresses are wrong.
    until(|| {
        pair.out
            .paths()
            .iter()
            .any(|path| path.remote == at(&pair.bob))
    })
    .await;
}

#[tokio::test]
async fn a_node_sees_itself() {
    let node = node();
    let own = node.reflect(at(&node), false).unwrap();
    assert_eq!(own.local_port(), at(&node).port());
    let seen = within(own.arrive(LONG)).await;
    let expected = Reflected {
        source: at(&node),
        tunnel: None,
    };
    assert_eq!(seen, Some(expected));

    let fresh = node.reflect(at(&node), true).unwrap();
    let port = fresh.local_port();
    assert_ne!(port, at(&node).port());
    let seen = within(fresh.arrive(LONG)).await.unwrap();
    assert_eq!(seen.source, SocketAddr::new(HERE, port));

    // Nobody's address, and another node's.
    let nobody = bystander();
    let lost = node.reflect(nobody.local_addr().unwrap(), false).unwrap();
    let patience = Duration::from_millis(300);
    assert_eq!(within(lost.arrive(patience)).await, None);
    let (copy, _) = received(&nobody).await;
    let other = self::node();
    nobody.send_to(&copy, at(&other)).unwrap();
    until(|| count(&other, "openers_unknown") == 1).await;
    // It is too late for this one, and nothing comes of it.
    nobody.send_to(&copy, at(&node)).unwrap();
}

#[tokio::test]
async fn what_primes_a_nat_says_nothing_and_goes_to_hosts_alone() {
    let node = node();
    let nobody = bystander();
    let hops = NonZeroU8::new(2).unwrap();
    // No router is on the way, so it gets there.
    assert_eq!(node.prime(&[nobody.local_addr().unwrap()], hops), 1);
    let (datagram, from) = received(&nobody).await;
    assert_eq!(
        (datagram.len(), from.port()),
        (OPENER_LEN, at(&node).port())
    );
    assert!(is_opener(&datagram));
    let synthetic = SyntheticAddr::new(0, 0).socket_addr();
    let bad = ["0.0.0.0:9", "127.0.0.1:0", "224.0.0.1:9"].map(|bad| bad.parse().unwrap());
    assert_eq!(node.prime(&[&bad[..], &[synthetic]].concat(), hops), 0);
}

#[tokio::test]
async fn reflections_are_bounded_and_those_given_up_make_room() {
    let node = node();
    let nobody = bystander().local_addr().unwrap();
    let mut waiting: Vec<_> = (0..MAX_REFLECTIONS)
        .map(|_| node.reflect(nobody, false).unwrap())
        .collect();
    let refused = node.reflect(nobody, false);
    assert!(matches!(refused, Err(ReflectError::Limit)));
    waiting.pop();
    node.reflect(nobody, false).unwrap();
    for bad in ["0.0.0.0:9", "127.0.0.1:0", "224.0.0.1:9"] {
        assert!(node.reflect(bad.parse().unwrap(), false).is_err(), "{bad}");
    }
    let synthetic = SyntheticAddr::new(0, 0).socket_addr();
    assert!(node.reflect(synthetic, false).is_err());
}

/// A relay that hands back what goes in, as from the address it is bound to.
#[derive(Clone, Default)]
struct Loop(Arc<OnceLock<Injector>>);

impl TunnelSend for Loop {
    fn try_send(&self, _: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        let back = self.0.get().ok_or(TunnelSendError::Closed)?;
        back.inject(BOUND_INDEX, Bytes::copy_from_slice(datagram))
            .map_err(|_| TunnelSendError::Closed)
    }
}

const BOUND_INDEX: u32 = 5;

struct Bound(SocketAddr);

impl Directory for Bound {
    fn resolve(&self, address: SyntheticAddr) -> Option<Resolved> {
        (address.index() == BOUND_INDEX).then_some(Resolved {
            remote: self.0,
            relay: Some(PeerId([7; 32])),
        })
    }
}

#[tokio::test]
async fn reflections_through_a_tunnel_tell_the_source_the_relay_saw() {
    let node = node();
    let relay = Loop::default();
    let tunnel = node.socket().add_tunnel(Box::new(relay.clone())).unwrap();
    assert!(relay.0.set(tunnel.injector()).is_ok());
    let source: SocketAddr = "203.0.113.9:4433".parse().unwrap();
    node.set_directory(Arc::new(Bound(source)));
    let reflection = node.reflect_through(tunnel.address(0)).unwrap();
    let seen = within(reflection.arrive(LONG)).await;
    let expected = Reflected {
        source,
        tunnel: Some(tunnel.number()),
    };
    assert_eq!(seen, Some(expected));
}
