//! What a tunnel says to its relay, and what it makes of what the relay says.

use std::net::SocketAddr;

use anyreach_masque::{
    carrier::Close,
    client::{MAX_REMOTES, Purpose, RemoteError, RemotesFull},
};
use anyreach_net::{SyntheticAddr, is_synthetic};
use anyreach_quic::Directory;
use anyreach_wire::{bound::bound_head, capsule::Capsule, context::ContextId};
use bytes::Bytes;

use crate::{
    fake::{FakeDialer, RELAY, RelayEnd, Sent, Way},
    scene::{Scene, is_up, is_up_again, up},
};

const UNCOMPRESSED: ContextId = ContextId::from_u32(2);

fn id(number: u32) -> ContextId {
    ContextId::from_u32(number)
}

fn remote(number: usize) -> SocketAddr {
    ([198, 51, 100, 7], 1_000 + number as u16).into()
}

fn assign(context: u32, target: Option<SocketAddr>) -> Capsule {
    Capsule::CompressionAssign {
        context: id(context),
        target,
    }
}

/// A payload the engine would take for QUIC.
fn payload(number: u8) -> Vec<u8> {
    vec![0x40 | number; 40]
}

fn in_context(context: u32, payload: &[u8]) -> Bytes {
    [&id(context).head()[..], payload].concat().into()
}

fn uncompressed(from: SocketAddr, payload: &[u8]) -> Bytes {
    [&bound_head(UNCOMPRESSED, from)[..], payload]
        .concat()
        .into()
}

/// Takes the client's uncompressed context.
async fn greeted(end: &mut RelayEnd) {
    assert_eq!(end.capsule().await, assign(2, None));
    let ack = Capsule::CompressionAck(UNCOMPRESSED);
    end.input.capsule(ack).unwrap();
}

#[tokio::test]
async fn the_uncompressed_context_comes_first_and_then_one_for_each_remote_dialed() {
    let (dialer, _, mut opened) = FakeDialer::in_turn([Way::good()]);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    // Dialed before there is a carrier.
    let early = tunnel.synthetic(remote(1)).unwrap();
    is_up(&tunnel).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    assert_eq!(end.capsule().await, assign(4, Some(remote(1))));
    // And while there is one.
    let late = tunnel.synthetic(remote(2)).unwrap();
    assert_eq!(end.capsule().await, assign(6, Some(remote(2))));
    // Once each, however it is written.
    assert_eq!(tunnel.synthetic(remote(1)), Ok(early));
    let mapped = "[::ffff:198.51.100.7]:1002".parse().unwrap();
    assert_eq!(tunnel.synthetic(mapped), Ok(late));
    assert_eq!(end.drain(), []);

    assert_eq!(early.tunnel(), tunnel.number());
    assert!(is_synthetic(early.socket_addr().ip()));
    assert_eq!(tunnel.remote_of(early), Some(remote(1)));
    assert_eq!(tunnel.remote_of(late), Some(remote(2)));
    assert_eq!(tunnel.remote_of(SyntheticAddr::new(99, 0)), None);
    let resolved = scene.tunnels.directory().resolve(late).unwrap();
    assert_eq!((resolved.remote, resolved.relay), (remote(2), Some(RELAY)));
    assert_eq!(
        scene.tunnels.directory().resolve(SyntheticAddr::new(99, 0)),
        None
    );
}

#[tokio::test]
async fn sources_are_numbered_as_they_come_whatever_their_context() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    let dialed = tunnel.synthetic(remote(1)).unwrap();
    end.capsule().await;
    end.input.datagram(in_context(4, &payload(1))).unwrap();
    end.input
        .datagram(uncompressed(remote(1), &payload(2)))
        .unwrap();
    end.input
        .datagram(uncompressed(remote(9), &payload(3)))
        .unwrap();
    end.input.capsule(assign(1, Some(remote(8)))).unwrap();
    assert_eq!(end.capsule().await, Capsule::CompressionAck(id(1)));
    end.input.datagram(in_context(1, &payload(4))).unwrap();
    let counters = tunnel.counters();
    assert_eq!((counters.received, counters.received_bytes), (4, 160));
    assert_eq!(tunnel.remotes(), 3);
    let number = tunnel.number();
    let behind = |index| tunnel.remote_of(SyntheticAddr::new(number, index));
    assert_eq!(dialed.index(), 0);
    assert_eq!(behind(1), Some(remote(9)));
    assert_eq!(behind(2), Some(remote(8)));
}

#[tokio::test]
async fn datagrams_that_overtake_their_registration_wait_for_it() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    for number in 0..3 {
        end.input.datagram(in_context(1, &payload(number))).unwrap();
        end.input.datagram(in_context(3, &payload(number))).unwrap();
    }
    let counters = tunnel.counters();
    assert_eq!((counters.recv_early, counters.received), (6, 0));
    end.input.capsule(assign(1, Some(remote(1)))).unwrap();
    assert_eq!(tunnel.counters().received, 3);
    assert_eq!(end.capsule().await, Capsule::CompressionAck(id(1)));
    // Past the limit, the oldest go.
    for _ in 0..40 {
        end.input.datagram(in_context(3, &payload(9))).unwrap();
    }
    end.input.capsule(assign(3, Some(remote(3)))).unwrap();
    let counters = tunnel.counters();
    assert_eq!((counters.received, counters.recv_early), (3 + 32, 46));
    assert_eq!(counters.recv_early_dropped, 3 + 40 - 32);
    // What belongs to nothing of ours is dropped, and what is late for a closed context, too.
    end.input.datagram(in_context(88, &payload(1))).unwrap();
    end.input.capsule(Capsule::CompressionClose(id(3))).unwrap();
    end.input.datagram(in_context(3, &payload(1))).unwrap();
    assert_eq!(tunnel.counters().recv_unknown, 2);
    assert_eq!(tunnel.counters().received, 35);
}

#[tokio::test]
async fn who_breaks_the_rules_is_told_so() {
    let (_scene, _tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    assert!(end.input.datagram(in_context(0, &payload(1))).is_err());
    assert!(end.input.datagram(Bytes::new()).is_err());
    assert!(end.input.capsule(assign(1, None)).is_err());
    assert!(end.input.capsule(assign(4, Some(remote(1)))).is_err());
    let ack = Capsule::CompressionAck(id(4));
    assert!(end.input.capsule(ack).is_err());
}

#[tokio::test]
async fn past_the_limit_of_remotes_strangers_make_room_for_strangers() {
    let (scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    let dialed = tunnel.synthetic(remote(0)).unwrap();
    for number in 1..MAX_REMOTES {
        let datagram = uncompressed(remote(number), &payload(1));
        end.input.datagram(datagram).unwrap();
    }
    assert_eq!(tunnel.remotes(), MAX_REMOTES);
    assert_eq!(tunnel.counters().remotes_evicted, 0);
    let directory = scene.tunnels.directory();
    let at = |index: usize| SyntheticAddr::new(tunnel.number(), index as u32);
    assert!(directory.resolve(at(1)).is_some());

    let datagram = uncompressed(remote(MAX_REMOTES), &payload(1));
    end.input.datagram(datagram).unwrap();
    assert_eq!(tunnel.remotes(), MAX_REMOTES);
    assert_eq!(tunnel.counters().remotes_evicted, 1);
    assert_eq!(directory.resolve(at(1)), None);
    assert_eq!(
        directory.resolve(at(MAX_REMOTES)).unwrap().remote,
        remote(MAX_REMOTES)
    );
    assert_eq!(tunnel.remote_of(dialed), Some(remote(0)));
    assert_eq!(tunnel.counters().received as usize, MAX_REMOTES);
}

#[tokio::test]
async fn a_flood_of_sources_is_no_flood_of_capsules() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    end.input.capsule(assign(1, Some(remote(0)))).unwrap();
    end.input.datagram(in_context(1, &payload(1))).unwrap();
    end.capsule().await;
    for number in 1..10 * MAX_REMOTES {
        let datagram = uncompressed(remote(number), &payload(1));
        end.input.datagram(datagram).unwrap();
    }
    assert_eq!(tunnel.counters().remotes_evicted as usize, 9 * MAX_REMOTES);
    assert_eq!(end.drain(), []);
    // Its context is as good as before, but it is another number now.
    end.input.datagram(in_context(1, &payload(1))).unwrap();
    let number = tunnel.number();
    let back = SyntheticAddr::new(number, 10 * MAX_REMOTES as u32);
    assert_eq!(tunnel.remote_of(back), Some(remote(0)));
    assert_eq!(tunnel.remote_of(SyntheticAddr::new(number, 0)), None);
}

#[tokio::test]
async fn what_no_host_can_have_is_no_remote() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    let ours = SyntheticAddr::new(1, 1).socket_addr();
    let bad = ["0.0.0.0:1", "224.0.0.1:5", "198.51.100.7:0"].map(|text| text.parse().unwrap());
    for addr in bad.into_iter().chain([ours]) {
        assert_eq!(tunnel.synthetic(addr), Err(RemoteError::NoRemote));
        end.input.datagram(uncompressed(addr, &payload(1))).unwrap();
    }
    assert_eq!(tunnel.counters().recv_unknown, 4);
    assert_eq!(tunnel.remotes(), 0);
}

#[tokio::test]
async fn remotes_that_are_dialed_are_not_forgotten() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    for number in 0..MAX_REMOTES {
        tunnel.synthetic(remote(number)).unwrap();
    }
    let full = Err(RemoteError::Full(RemotesFull));
    assert_eq!(tunnel.synthetic(remote(MAX_REMOTES)), full);
    let datagram = uncompressed(remote(MAX_REMOTES), &payload(1));
    end.input.datagram(datagram).unwrap();
    let counters = tunnel.counters();
    assert_eq!((counters.recv_no_room, counters.received), (1, 0));
    // What waits for the relay's answer is bounded.
    let asked = end.drain().len();
    assert!((1..64).contains(&asked), "{asked} capsules");
}

#[tokio::test]
async fn a_relay_without_the_family_is_not_asked_for_it() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    let six = "[2001:db8::7]:1".parse().unwrap();
    assert_eq!(tunnel.synthetic(six), Err(RemoteError::Family));
    assert!(tunnel.synthetic(remote(1)).is_ok());
}

#[tokio::test]
async fn a_relay_that_takes_no_capsules_is_given_up() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    greeted(&mut end).await;
    end.line.stop_taking_capsules();
    end.input.capsule(assign(1, Some(remote(1)))).unwrap();
    let up = is_up_again(&tunnel, 2).await;
    assert_eq!(up.lost.as_deref(), Some("the relay does not take capsules"));
    let ended = end.drain();
    assert_eq!(ended[0], Sent::End(Close::DatagramError));
}

#[tokio::test]
async fn what_a_replaced_session_still_delivers_is_dropped() {
    let (_scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let mut old = opened.recv().await.unwrap();
    greeted(&mut old).await;
    old.line.cut("gone");
    let mut new = opened.recv().await.unwrap();
    is_up_again(&tunnel, 2).await;
    greeted(&mut new).await;
    old.input
        .datagram(uncompressed(remote(1), &payload(1)))
        .unwrap();
    old.input.capsule(assign(1, Some(remote(1)))).unwrap();
    assert_eq!(tunnel.counters().received, 0);
    assert_eq!(tunnel.remotes(), 0);
    new.input.capsule(assign(1, Some(remote(2)))).unwrap();
    assert_eq!(new.capsule().await, Capsule::CompressionAck(id(1)));
}

#[tokio::test]
async fn without_bind_there_is_one_remote_and_context_zero() {
    let way = Way {
        answers: Ok(Vec::new()),
        ..Way::good()
    };
    let (dialer, _, mut opened) = FakeDialer::in_turn([way]);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |options| {
        options.purpose = Purpose::Target(remote(5))
    });
    let up = is_up(&tunnel).await;
    assert_eq!((up.public.len(), up.node.len()), (0, 0));
    let mut end = opened.recv().await.unwrap();
    assert_eq!(
        end.request.uri().path(),
        "/.well-known/masque/udp/198.51.100.7/1005/"
    );
    assert_eq!(end.field("connect-udp-bind"), None);
    let address = tunnel.synthetic(remote(5)).unwrap();
    assert_eq!(tunnel.synthetic(remote(6)), Err(RemoteError::OtherTarget));
    end.input.datagram(in_context(0, &payload(1))).unwrap();
    // Other contexts are unknown, and capsules of the extension mean nothing.
    end.input.datagram(in_context(1, &payload(1))).unwrap();
    end.input.capsule(assign(1, Some(remote(6)))).unwrap();
    let counters = tunnel.counters();
    assert_eq!((counters.received, counters.recv_unknown), (1, 1));
    assert_eq!(tunnel.remotes(), 1);
    assert_eq!(tunnel.remote_of(address), Some(remote(5)));
    assert_eq!(end.drain(), []);
}
