//! Clients and strangers that mean no good.

use std::{collections::HashSet, net::SocketAddr, sync::atomic::Ordering};

use anyreach_masque::{
    carrier::Close,
    contexts::{MAX_CONTEXTS, MAX_UNANSWERED},
    relay::{DropReason, Relay, RelayConfig},
};
use anyreach_wire::capsule::Capsule;
use bytes::Bytes;
use proptest::prelude::*;

use crate::kit::{Who, at, freed, id, open_config, relay, remote, until};

#[tokio::test]
async fn policy_holds_for_every_datagram_and_every_context() {
    // The ranges of this test's network are allowed, the rest is the world's.
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    tunnel.listen().await;
    let refused = [
        "10.0.0.1:40000",
        "192.168.1.1:40000",
        "172.16.0.1:40000",
        "100.64.0.1:40000",
        "169.254.169.254:80",
        "224.0.0.1:40000",
        "255.255.255.255:40000",
        "0.0.0.0:40000",
        "127.0.0.1:0",
        "127.0.0.1:53",
        "[::ffff:10.0.0.1]:40000",
    ];
    for (number, target) in refused.into_iter().enumerate() {
        let target: SocketAddr = target.parse().unwrap();
        tunnel.send_to(target, b"boo");
        let dropped = relay.stats().dropped(DropReason::Target);
        assert_eq!(dropped, number as u64 + 1, "{target}");
        let context = 4 + 2 * number as u32;
        let answer = tunnel.assign(context, Some(target)).await;
        assert_eq!(answer, Capsule::CompressionClose(id(context)), "{target}");
        // What is sent in a rejected context goes nowhere.
        tunnel.send(context, b"boo").unwrap();
    }
    assert_eq!(
        relay.stats().dropped(DropReason::Context),
        refused.len() as u64
    );
    assert_eq!(relay.stats().from_clients.packets, 0);
}

#[tokio::test]
async fn a_port_lent_is_a_target_only_as_long_as_it_is() {
    let relay = Relay::new(RelayConfig::default());
    let one = Who::peer(1).bind(&relay).await.unwrap();
    let two = Who::peer(2).anonymous();
    assert!(two.bind(&relay).await.is_err());
    let two = Who::peer(2).bind(&relay).await.unwrap();
    let target = two.public();
    assert_eq!(
        one.assign(4, Some(target)).await,
        Capsule::CompressionAck(id(4))
    );
    relay.close();
    drop(two);
    // Whoever has the port now is none of the client's business; its session is over anyway.
    let socket = freed(target.port()).await;
    one.send(4, b"boo").unwrap();
    one.send_to(target, b"boo");
    let quiet = tokio::time::timeout(std::time::Duration::from_millis(30), socket.readable());
    quiet.await.expect_err("nothing arrives");
}

#[tokio::test]
async fn violations_abort_the_tunnel() {
    let relay = relay();
    let (_socket, address) = remote().await;
    let bind = async || Who::peer(1).bind(&relay).await.unwrap();
    // Context 0 with `*` as the target.
    let tunnel = bind().await;
    assert!(tunnel.send(0, b"boo").is_err());
    // No context at all.
    assert!(tunnel.input.datagram(Bytes::new()).is_err());
    // An ID of the relay's, one twice, a target twice, an answer to nothing.
    let assign = |context, target| Capsule::CompressionAssign {
        context: id(context),
        target,
    };
    assert!(tunnel.capsule(assign(1, Some(address))).is_err());
    let tunnel = bind().await;
    tunnel.assign(4, Some(address)).await;
    assert!(tunnel.capsule(assign(4, None)).is_err());
    let tunnel = bind().await;
    tunnel.assign(4, Some(address)).await;
    assert!(tunnel.capsule(assign(6, Some(address))).is_err());
    let tunnel = bind().await;
    assert!(tunnel.capsule(Capsule::CompressionAck(id(1))).is_err());
    // What is no violation: unknown contexts, and payloads that cannot be read.
    let tunnel = bind().await;
    tunnel.listen().await;
    tunnel.send(77, b"boo").unwrap();
    for payload in [&b""[..], b"\x05", b"\x04\x7f", b"\x06\0\0\0"] {
        tunnel.send(2, payload).unwrap();
    }
    assert!(relay.stats().dropped(DropReason::Malformed) >= 4);
}

#[tokio::test]
async fn a_client_that_does_not_take_answers_is_aborted() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    tunnel.out.capsule_room.store(3, Ordering::Relaxed);
    let mut taken = 0;
    for number in 0..100 {
        let assign = Capsule::CompressionAssign {
            context: id(4 + 2 * number),
            target: Some(SocketAddr::from(([127, 0, 0, 1], 40000 + number as u16))),
        };
        if tunnel.capsule(assign).is_err() {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, 3);
}

#[tokio::test]
async fn contexts_are_bounded() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let mut open = 0;
    for number in 0..300_u32 {
        let target = SocketAddr::from(([127, 0, 0, 1], 40000 + number as u16));
        match tunnel.assign(4 + 2 * number, Some(target)).await {
            Capsule::CompressionAck(_) => open += 1,
            Capsule::CompressionClose(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(open, MAX_CONTEXTS);
}

#[tokio::test]
async fn a_crowd_of_strangers_does_not_use_up_the_tunnel() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    tunnel.listen().await;
    // What a carrier queues at most.
    tunnel.out.capsule_room.store(64, Ordering::Relaxed);
    let mut sockets = Vec::new();
    for number in 0..300_u16 {
        let (socket, address) = remote().await;
        socket
            .send_to(&number.to_be_bytes(), tunnel.public())
            .await
            .unwrap();
        sockets.push((socket, address));
    }
    let mut seen = HashSet::new();
    let mut assigned = 0;
    while seen.len() < 300 {
        let (context, payload) = tunnel.received().await;
        // Through contexts of their own, or the uncompressed one; nobody is left out.
        let number = match context {
            2 => payload[7..9].to_vec(),
            _ => payload.to_vec(),
        };
        seen.insert(number);
    }
    while let Some(capsule) = tunnel.has_been_told() {
        assert!(matches!(capsule, Capsule::CompressionAssign { .. }));
        assigned += 1;
    }
    assert_eq!(assigned, MAX_UNANSWERED);
    assert!(tunnel.out.ended.borrow().is_none());
    // And a friend is heard among them.
    let (friend, address) = remote().await;
    tunnel.send_to(address, b"hello");
    let (_, from) = at(&friend).await;
    friend.send_to(b"world", from).await.unwrap();
    let (remote, payload) = tunnel.received_from().await;
    assert_eq!((remote, payload), (address, b"world"[..].into()));
}

#[tokio::test]
async fn a_carrier_whose_capsule_queue_is_full_loses_the_tunnel_not_the_relay() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let other = Who::peer(2).bind(&relay).await.unwrap();
    tunnel.listen().await;
    tunnel.out.capsule_room.store(0, Ordering::Relaxed);
    let (socket, _) = remote().await;
    socket.send_to(b"hello", tunnel.public()).await.unwrap();
    assert_eq!(tunnel.ended().await, Close::DatagramError);
    other.listen().await;
    socket.send_to(b"hello", other.public()).await.unwrap();
    assert_eq!(other.received().await.1, b"hello"[..]);
}

#[tokio::test]
async fn empty_datagrams_neither_hang_nor_hurt() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (socket, address) = remote().await;
    tunnel.assign(4, Some(address)).await;
    for _ in 0..100 {
        socket.send_to(b"", tunnel.public()).await.unwrap();
        tunnel.send(4, b"").unwrap();
    }
    for _ in 0..100 {
        assert_eq!(tunnel.received().await, (4, Bytes::new()));
        assert_eq!(at(&socket).await.0, b"");
    }
}

#[derive(Debug, Clone)]
enum Act {
    /// Any bytes as a datagram.
    Noise(Vec<u8>),
    /// A datagram in a small context, so that it is often one there is.
    Datagram(u32, Vec<u8>),
    Assign(u32, Option<SocketAddr>),
    Ack(u32),
    Close(u32),
    Flush,
}

fn any_act() -> impl Strategy<Value = Act> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let context = || 0..12_u32;
    let remote = (any::<bool>(), any::<[u8; 16]>(), any::<u16>()).prop_map(|(v4, ip, port)| {
        let [a, b, c, d, ..] = ip;
        match v4 {
            true => SocketAddr::from(([a, b, c, d], port)),
            false => SocketAddr::from((ip, port)),
        }
    });
    prop_oneof![
        bytes().prop_map(Act::Noise),
        (context(), bytes()).prop_map(|(context, bytes)| Act::Datagram(context, bytes)),
        // Never 0, which the decoder refuses.
        (1..12_u32, prop::option::of(remote)).prop_map(|(id, target)| Act::Assign(id, target)),
        (1..12_u32).prop_map(Act::Ack),
        (1..12_u32).prop_map(Act::Close),
        Just(Act::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a client says, where everything is denied nothing is sent, and the relay lives.
    #[test]
    fn no_sequence_gets_past_the_policy(acts in prop::collection::vec(any_act(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let relay = Relay::new(RelayConfig {
                deny_targets: ["0.0.0.0/0", "::/0"]
                    .map(|text| text.parse().unwrap())
                    .into(),
                ..open_config()
            });
            let tunnel = Who::peer(1).bind(&relay).await.unwrap();
            tunnel.listen().await;
            for act in acts {
                // A violation ends the tunnel in a carrier; here it just goes on.
                let _ = match act {
                    Act::Noise(bytes) => tunnel.input.datagram(bytes.into()),
                    Act::Datagram(context, bytes) => tunnel.push(context, &bytes),
                    Act::Assign(context, target) => tunnel.capsule(Capsule::CompressionAssign {
                        context: id(context),
                        target,
                    }),
                    Act::Ack(context) => tunnel.capsule(Capsule::CompressionAck(id(context))),
                    Act::Close(context) => tunnel.capsule(Capsule::CompressionClose(id(context))),
                    Act::Flush => {
                        tunnel.input.flush();
                        Ok(())
                    }
                };
            }
            tunnel.input.flush();
            let stats = relay.stats();
            assert_eq!(stats.from_clients.packets, 0);
            assert_eq!(stats.dropped(DropReason::SendFailed), 0);
            tunnel.lose();
            Who::peer(1).bind(&relay).await.unwrap().listen().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_towards_one_client_leaves_the_others_alone() {
    let relay = Relay::new(RelayConfig {
        client_bytes_per_second: 1_000_000,
        client_burst_bytes: 10_000,
        ..open_config()
    });
    let victim = Who::peer(1).bind(&relay).await.unwrap();
    let other = Who::peer(2).bind(&relay).await.unwrap();
    victim.listen().await;
    other.listen().await;
    let to = victim.public();
    let flood = tokio::spawn(async move {
        let (socket, _) = remote().await;
        for _ in 0..20_000 {
            // The system may have no buffer left: it is a flood.
            let _ = socket.send_to(&[0; 1000], to).await;
        }
    });
    let (socket, address) = remote().await;
    for number in 0..50_u8 {
        other.send_to(address, &[number]);
        let (payload, from) = at(&socket).await;
        assert_eq!(payload, [number]);
        socket.send_to(&[number], from).await.unwrap();
        other.received().await;
    }
    flood.await.unwrap();
    until(|| relay.stats().dropped(DropReason::ClientQuota) > 0).await;
    // The victim itself can still send.
    victim.send_to(address, b"help");
    assert_eq!(at(&socket).await.0, b"help");
}
