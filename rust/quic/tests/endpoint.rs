//! Endpoints against each other over loopback: who gets connected to whom, and with what errors.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyreach_quic::{Connection, Endpoint, EndpointConfig, Event, Identity, code};
use common::{LONG, connected, endpoint, endpoint_with, identity, loopback, within};

async fn echo(from: &Connection, to: &Connection, message: &[u8]) {
    let answering = async {
        let (send, mut recv) = to.accept_stream(true).await.unwrap();
        let received = recv.read_to_end(1 << 20).await.unwrap();
        let mut send = send.unwrap();
        send.write_all(&received).await.unwrap();
        send.finish().unwrap();
        send.stopped().await.unwrap();
    };
    let asking = async {
        let (mut send, recv) = from.open_stream(true).await.unwrap();
        send.write_all(message).await.unwrap();
        send.finish().unwrap();
        recv.unwrap().read_to_end(1 << 20).await.unwrap()
    };
    let (_, answer) = within(async { tokio::join!(answering, asking) }).await;
    assert_eq!(answer, message);
}

#[tokio::test]
async fn both_ends_know_each_other_and_the_keys_are_post_quantum() {
    let (alice, bob) = (endpoint(), endpoint());
    let (out, inn) = connected(&alice, &bob).await;
    assert_eq!(out.peer_id(), bob.identity().peer_id());
    assert_eq!(inn.peer_id(), alice.identity().peer_id());
    assert_eq!(out.public_key(), bob.identity().public_key());
    assert_eq!(
        (out.group(), inn.group()),
        ("X25519MLKEM768", "X25519MLKEM768")
    );
    assert!(out.outbound() && !inn.outbound());
    let paths = out.paths();
    assert_eq!(paths.len(), 1);
    assert_eq!(paths[0].remote, bob.local_addr());
    assert!(paths[0].current);
    echo(&out, &inn, b"hello").await;
    echo(&inn, &out, &vec![7; 200_000]).await;
}

#[tokio::test]
async fn each_end_learns_its_address_from_the_other() {
    let (alice, bob) = (endpoint(), endpoint());
    let _both = connected(&alice, &bob).await;
    for (node, address) in [(&alice, alice.local_addr()), (&bob, bob.local_addr())] {
        let observed = within(async {
            loop {
                for event in node.events().await.unwrap() {
                    if let Event::Observed { address, after, .. } = event {
                        assert!(after > Duration::ZERO);
                        return address;
                    }
                }
            }
        });
        assert_eq!(observed.await, address);
    }
}

#[tokio::test]
async fn a_stranger_under_the_address_is_not_accepted() {
    let (alice, bob, carol) = (endpoint(), endpoint(), identity());
    let error = within(alice.dial(bob.local_addr(), Some(carol.peer_id()), LONG))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "peer-id-mismatch");
    assert_eq!(error.actual, Some(bob.identity().peer_id()));
    assert!(bob.connections().is_empty());
}

#[tokio::test]
async fn a_silent_address_is_given_up_in_time() {
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let alice = endpoint();
    let error = within(alice.dial(
        silent.local_addr().unwrap(),
        None,
        Duration::from_millis(300),
    ))
    .await
    .unwrap_err();
    assert_eq!(error.reason, "handshake-timeout");
}

#[tokio::test]
async fn a_node_does_not_connect_to_itself() {
    let alice = endpoint();
    let own = alice.local_addr();
    for expected in [None, Some(alice.identity().peer_id())] {
        let error = within(alice.dial(own, expected, LONG)).await.unwrap_err();
        assert_eq!(error.reason, "self");
    }
    assert!(alice.connections().is_empty());
}

#[tokio::test]
async fn a_second_dial_finds_the_connection_there_is() {
    let (alice, bob) = (endpoint(), endpoint());
    let (out, inn) = connected(&alice, &bob).await;
    let again = within(alice.dial(bob.local_addr(), None, LONG))
        .await
        .unwrap();
    let back = within(bob.dial(alice.local_addr(), None, LONG))
        .await
        .unwrap();
    assert_eq!(again.connection.id(), out.id());
    assert_eq!(back.connection.id(), inn.id());
    assert!(!again.made_here && !back.made_here);
    echo(&out, &inn, b"still here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_dial_each_other_at_once_share_one_connection() {
    for _ in 0..40 {
        let (alice, bob) = (endpoint(), endpoint());
        let (from_alice, from_bob) = within(async {
            tokio::join!(
                alice.dial(bob.local_addr(), Some(bob.identity().peer_id()), LONG),
                bob.dial(alice.local_addr(), Some(alice.identity().peer_id()), LONG),
            )
        })
        .await;
        let (a, b) = (from_alice.unwrap().connection, from_bob.unwrap().connection);
        assert_ne!(
            a.outbound(),
            b.outbound(),
            "the same connection seen from both ends"
        );
        echo(&a, &b, b"one").await;
        assert_eq!((alice.connections().len(), bob.connections().len()), (1, 1));
        assert_eq!(a.close_reason(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_over_several_addresses_makes_one_connection() {
    let (alice, bob) = (endpoint(), endpoint());
    let dials: Vec<_> = (0..8)
        .map(|_| {
            let (alice, to) = (alice.clone(), bob.local_addr());
            tokio::spawn(async move {
                alice
                    .dial(to, None, LONG)
                    .await
                    .map(|made| made.connection.id())
            })
        })
        .collect();
    let mut ids = Vec::new();
    for dial in dials {
        ids.push(within(dial).await.unwrap().unwrap());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let inn = within(bob.accept()).await.unwrap();
    echo(&alice.connections()[0], &inn, b"one").await;
    assert_eq!(bob.connections().len(), 1);
}

#[tokio::test]
async fn a_dropped_dial_leaves_nothing() {
    let (alice, bob) = (endpoint(), endpoint());
    for delay in [0, 1, 2, 5] {
        let dial = alice.dial(bob.local_addr(), None, LONG);
        let _ = tokio::time::timeout(Duration::from_millis(delay), dial).await;
    }
    let (out, _inn) = connected(&alice, &bob).await;
    assert_eq!(alice.connections().len(), 1);
    assert_eq!(out.close_reason(), None);
}

#[tokio::test]
async fn a_clean_close_is_told_at_once() {
    let (alice, bob) = (endpoint(), endpoint());
    let (out, inn) = connected(&alice, &bob).await;
    out.close(7, b"bye");
    let reason = within(inn.closed()).await;
    assert_eq!((reason.kind, reason.code), ("closed", 7));
    assert_eq!(reason.message, "bye");
    assert_eq!(within(out.closed()).await.kind, "local");
    within(async {
        while bob.connection(&alice.identity().peer_id()).is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn closing_an_endpoint_tells_its_peers_and_frees_the_port() {
    let bob = endpoint();
    let alice_identity = identity();
    let mut address = loopback();
    for _ in 0..10 {
        let mut config = EndpointConfig::new(address);
        config.keep_alive_interval = None;
        let alice = Endpoint::bind(alice_identity.clone(), config).unwrap();
        address = alice.local_addr();
        let (_out, inn) = connected(&alice, &bob).await;
        alice.close(code::NODE_CLOSED, b"done");
        within(alice.closed()).await;
        assert_eq!(within(inn.closed()).await.kind, "closed");
        assert!(alice.accept().await.is_none());
    }
}

/// The process died: nobody was told. The restarted node has the same key and port.
#[tokio::test]
async fn a_restarted_node_resets_the_connections_of_its_former_life() {
    let bob = endpoint();
    let alice_identity = identity();
    let (port, inn) = {
        let runtime = std::thread::spawn({
            let (alice_identity, bob_addr) = (alice_identity.clone(), bob.local_addr());
            move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                let port = runtime.block_on(async {
                    let alice =
                        Endpoint::bind(alice_identity, EndpointConfig::new(loopback())).unwrap();
                    let _connection = alice.dial(bob_addr, None, LONG).await.unwrap();
                    let port = alice.local_addr().port();
                    // The port is free, and nobody says goodbye.
                    alice.socket().close().await;
                    std::mem::forget(alice);
                    port
                });
                runtime.shutdown_background();
                port
            }
        });
        let inn = within(bob.accept()).await.unwrap();
        (runtime.join().unwrap(), inn)
    };
    let again = SocketAddr::new(loopback().ip(), port);
    let alice = within(async {
        loop {
            match Endpoint::bind(alice_identity.clone(), EndpointConfig::new(again)) {
                Ok(alice) => return alice,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    // Data under way meets the new endpoint, which knows nothing of the connection.
    let (mut send, _) = inn.open_stream(false).await.unwrap();
    send.write_all(b"anybody there?").await.unwrap();
    assert_eq!(within(inn.closed()).await.kind, "reset");
    // And it can dial again at once, whatever the peer still believes.
    let (out, inn) = connected(&alice, &bob).await;
    echo(&out, &inn, b"back").await;
}

#[tokio::test]
async fn a_restarted_node_replaces_its_old_connection() {
    let bob = endpoint();
    let alice_identity = identity();
    let bind = || Endpoint::bind(alice_identity.clone(), EndpointConfig::new(loopback())).unwrap();
    let (old_life, new_life) = (bind(), bind());
    let (_old_out, old_in) = connected(&old_life, &bob).await;
    let (new_out, new_in) = connected(&new_life, &bob).await;
    assert_eq!(within(old_in.closed()).await.kind, "replaced");
    echo(&new_out, &new_in, b"new").await;
    assert_eq!(bob.connections().len(), 1);
}

#[tokio::test]
async fn a_full_node_refuses() {
    let bob = endpoint_with(|config| config.max_connections = 1);
    let first = endpoint();
    let _connection = connected(&first, &bob).await;
    let second = endpoint();
    let error = within(second.dial(bob.local_addr(), None, LONG))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "refused");
    let refused = bob
        .counters()
        .into_iter()
        .find(|(name, _)| *name == "rejected_limit");
    assert_eq!(refused, Some(("rejected_limit", 1)));
}

#[tokio::test]
async fn many_from_one_prefix_prove_their_address_first() {
    let bob = endpoint();
    let alices: Vec<Endpoint> = (0..40).map(|_| endpoint()).collect();
    for alice in &alices {
        connected(alice, &bob).await;
    }
    assert_eq!(bob.connections().len(), 40);
}

#[tokio::test]
async fn lost_peers_are_noticed_by_the_idle_timeout() {
    let quiet = |config: &mut EndpointConfig| {
        config.keep_alive_interval = None;
        config.idle_timeout = Duration::from_millis(300);
    };
    let (alice, bob) = (endpoint_with(quiet), endpoint_with(quiet));
    let (out, inn) = connected(&alice, &bob).await;
    assert_eq!(within(out.closed()).await.kind, "timeout");
    assert_eq!(within(inn.closed()).await.kind, "timeout");
}

#[tokio::test]
async fn keep_alives_of_the_dialing_side_keep_both_ends() {
    let lively = |config: &mut EndpointConfig| {
        config.keep_alive_interval = Some(Duration::from_millis(50));
        config.idle_timeout = Duration::from_millis(300);
    };
    let (alice, bob) = (endpoint_with(lively), endpoint_with(lively));
    let (out, inn) = connected(&alice, &bob).await;
    let ended = tokio::time::timeout(Duration::from_secs(1), inn.closed()).await;
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(out.close_reason(), None);
}

#[test]
fn identities_are_shared_between_endpoints() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Endpoint>();
    assert_send_sync::<Connection>();
    assert_send_sync::<Arc<Identity>>();
}

/// The peer vanished without a word and is back on another port, as behind a NAT that rebooted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_moved_is_reached_although_the_old_connection_looks_alive() {
    let bob = endpoint_with(|config| config.keep_alive_interval = None);
    let alice_identity = identity();
    let elsewhere = || {
        let (identity, to) = (alice_identity.clone(), bob.local_addr());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let alice = Endpoint::bind(identity, EndpointConfig::new(loopback())).unwrap();
                alice.dial(to, None, LONG).await.unwrap();
                // Or it would say goodbye.
                std::mem::forget(alice);
            });
            runtime.shutdown_background();
        })
        .join()
        .unwrap();
    };
    for expect in [true, false] {
        elsewhere();
        let zombie = within(bob.accept()).await.unwrap();
        assert_eq!(zombie.close_reason(), None);
        let alice =
            Endpoint::bind(alice_identity.clone(), EndpointConfig::new(loopback())).unwrap();
        let expected = expect.then(|| alice_identity.peer_id());
        let made = within(bob.dial(alice.local_addr(), expected, LONG))
            .await
            .unwrap();
        assert!(made.made_here);
        assert_eq!(zombie.close_reason().unwrap().kind, "replaced");
        let inn = within(alice.accept()).await.unwrap();
        echo(&made.connection, &inn, b"found you").await;
        alice.close(0, b"");
        within(alice.closed()).await;
    }
}

#[tokio::test]
async fn a_connection_knows_whether_its_peer_answers() {
    let (alice, bob) = (endpoint(), endpoint());
    let (out, inn) = connected(&alice, &bob).await;
    assert!(within(out.answers()).await && within(inn.answers()).await);
    inn.close(0, b"");
    within(out.closed()).await;
    assert!(!within(out.answers()).await);
}

#[tokio::test]
async fn a_made_connection_nobody_takes_can_be_closed_and_a_taken_one_not() {
    let (alice, bob) = (endpoint(), endpoint());
    let (out, _inn) = connected(&alice, &bob).await;
    out.claim();
    out.close_unclaimed();
    assert_eq!(out.close_reason(), None);
    let carol = endpoint();
    let (back, _) = connected(&carol, &bob).await;
    back.close_unclaimed();
    assert_eq!(
        back.close_reason().unwrap().code,
        u64::from(code::CANCELLED)
    );
}

#[tokio::test]
async fn addresses_no_host_has_are_refused_at_once() {
    let alice = endpoint();
    for text in [
        "0.0.0.0:9",
        "224.0.0.1:9",
        "127.0.0.1:0",
        "[fd5a:b0b4:e561::1:0:1]:9",
    ] {
        let error = within(alice.dial(text.parse().unwrap(), None, LONG))
            .await
            .unwrap_err();
        assert_eq!(error.reason, "unreachable", "{text}: {error}");
        assert!(!error.detail.contains("ffff"), "{error}");
    }
}

#[tokio::test]
async fn only_version_one_is_offered() {
    let node = endpoint();
    let socket = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let mut unknown = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    unknown.extend([7; 8]);
    unknown.push(0);
    unknown.resize(1200, 0);
    socket.send_to(&unknown, node.local_addr()).await.unwrap();
    let mut answer = [0; 1500];
    let length = within(socket.recv(&mut answer)).await.unwrap();
    // Flags, version 0, and both connection ids of 0 and 8 bytes; then the versions, of which some
    // are reserved to exercise version negotiation (RFC 9000, section 15).
    let versions = &answer[1 + 4 + 1 + 1 + 8..length];
    let offered: Vec<&[u8]> = versions
        .chunks(4)
        .filter(|version| version.iter().any(|byte| byte & 0xf != 0xa))
        .collect();
    assert_eq!(offered, [[0, 0, 0, 1]]);
}

/// Sees what leaves a connection just before it is sealed.
#[derive(Default)]
struct Witness(std::sync::Mutex<Vec<Vec<u8>>>);

impl anyreach_quic::PacketTap for Witness {
    fn sealing(&self, _: noq::PathId, _: u64, payload: &mut [u8]) {
        self.0.lock().unwrap().push(payload.to_vec());
    }

    fn opened(&self, _: noq::PathId, _: u64, _: &mut bytes::BytesMut) {}
}

#[tokio::test]
async fn no_mapped_address_leaves_a_dual_stack_socket() {
    use anyreach_wire::{frames::Frame, walk::frame_at};

    let witness = Arc::new(Witness::default());
    let node = endpoint_with(|config| {
        config.bind_addr = "[::]:0".parse().unwrap();
        let witness = witness.clone();
        config.tap = Some(Arc::new(move |_| witness.clone()));
    });
    let guest = endpoint();
    let to = SocketAddr::new(loopback().ip(), node.local_addr().port());
    let made = within(guest.dial(to, None, LONG)).await.unwrap();
    let observed = within(async {
        loop {
            for event in guest.events().await.unwrap() {
                if let Event::Observed { address, .. } = event {
                    return address;
                }
            }
        }
    });
    assert_eq!(observed.await, guest.local_addr());
    assert_eq!(made.connection.close_reason(), None);
    let mut reports = 0;
    for payload in witness.0.lock().unwrap().iter() {
        let mut at = 0;
        while let Ok(Some(frame)) = frame_at(payload, at) {
            at = frame.range.end;
            if let Ok(Frame::ObservedAddress(report)) = Frame::decode(&mut &payload[frame.range]) {
                reports += 1;
                assert_eq!(frame.frame_type, 0x9f_81a6, "{report:?}");
            }
        }
    }
    assert!(reports > 0);
}

#[tokio::test]
async fn each_end_hears_what_the_other_offers() {
    let relay = endpoint_with(|config| config.capabilities = vec!["relay".into()]);
    let (out, inn) = connected(&endpoint(), &relay).await;
    assert_eq!(out.capabilities(), ["relay"]);
    assert!(inn.capabilities().is_empty());
}
