//! Packets through the relay.

use std::{net::SocketAddr, sync::atomic::Ordering};

use anyreach_masque::relay::{DropReason, Relay, RelayConfig};
use anyreach_wire::capsule::Capsule;

use crate::kit::{Who, at, id, open_config, relay, remote, remote_v6, until, within};

#[tokio::test]
async fn a_bound_address_is_a_place_on_the_network_v4() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    tunnel.listen().await;
    let (socket, address) = remote().await;

    tunnel.send_to(address, b"hello");
    let (payload, from) = at(&socket).await;
    assert_eq!((payload, from), (b"hello".to_vec(), tunnel.public()));
    socket.send_to(b"world", tunnel.public()).await.unwrap();

    // The relay registers the remote and uses its context at once.
    let assigned = tunnel.told().await;
    let expected = Capsule::CompressionAssign {
        context: id(1),
        target: Some(address),
    };
    assert_eq!(assigned, expected);
    assert_eq!(tunnel.received().await, (1, b"world"[..].into()));
    // And the client does, too.
    tunnel.send(1, b"again").unwrap();
    assert_eq!(at(&socket).await.0, b"again");

    let stats = relay.stats();
    assert_eq!((stats.sessions, stats.tunnels, stats.leases), (1, 0, 0));
    assert_eq!(
        (stats.from_clients.packets, stats.from_clients.bytes),
        (2, 10)
    );
    assert_eq!((stats.to_clients.packets, stats.to_clients.bytes), (1, 5));
}

#[tokio::test]
async fn a_bound_address_is_a_place_on_the_network_v6() {
    let relay = relay();
    let tunnel = Who::peer(1).v6().bind(&relay).await.unwrap();
    assert!(tunnel.public().is_ipv6());
    tunnel.listen().await;
    let (socket, address) = remote_v6().await;
    tunnel.send_to(address, b"hello");
    let (payload, from) = at(&socket).await;
    assert_eq!((payload, from), (b"hello".to_vec(), tunnel.public()));
    socket.send_to(b"world", from).await.unwrap();
    assert_eq!(tunnel.received().await.1, b"world"[..]);
}

#[tokio::test]
async fn the_clients_contexts_work_both_ways() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (socket, address) = remote().await;
    let answer = tunnel.assign(4, Some(address)).await;
    assert_eq!(answer, Capsule::CompressionAck(id(4)));
    tunnel.send(4, b"hello").unwrap();
    let (payload, from) = at(&socket).await;
    assert_eq!(payload, b"hello");
    socket.send_to(b"world", from).await.unwrap();
    assert_eq!(tunnel.received().await, (4, b"world"[..].into()));
    assert_eq!(tunnel.has_been_told(), None);
}

#[tokio::test]
async fn without_the_uncompressed_context_strangers_are_not_heard() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (friend, address) = remote().await;
    let (stranger, _) = remote().await;
    tunnel.assign(4, Some(address)).await;
    stranger.send_to(b"psst", tunnel.public()).await.unwrap();
    until(|| relay.stats().dropped(DropReason::Unsolicited) == 1).await;
    friend.send_to(b"hello", tunnel.public()).await.unwrap();
    assert_eq!(tunnel.received().await, (4, b"hello"[..].into()));
    assert_eq!(tunnel.has_received(), None);
}

#[tokio::test]
async fn a_datagram_may_overtake_the_capsule_that_explains_it() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (socket, address) = remote().await;
    tunnel.send(4, b"first").unwrap();
    tunnel.assign(4, Some(address)).await;
    tunnel.send(4, b"second").unwrap();
    assert_eq!(at(&socket).await.0, b"first");
    assert_eq!(at(&socket).await.0, b"second");
}

#[tokio::test]
async fn batches_arrive_whole_and_in_order() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (one, first) = remote().await;
    let (two, second) = remote().await;
    tunnel.assign(4, Some(first)).await;
    tunnel.assign(6, Some(second)).await;
    for number in 0..90_u8 {
        // Mostly of one size, interleaved, with an odd one in between and one of nothing.
        let size = match number {
            40 => 7,
            60 => 0,
            _ => 1200,
        };
        tunnel.push(4, &vec![number; size]).unwrap();
        tunnel.push(6, &vec![number; 600]).unwrap();
    }
    tunnel.input.flush();
    for number in 0..90_u8 {
        let size = match number {
            40 => 7,
            60 => 0,
            _ => 1200,
        };
        assert_eq!(at(&one).await.0, vec![number; size], "{number}");
        assert_eq!(at(&two).await.0, vec![number; 600], "{number}");
    }
    assert_eq!(relay.stats().from_clients.packets, 180);
}

#[tokio::test]
async fn a_burst_towards_the_client_arrives_whole_and_in_order() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (socket, address) = remote().await;
    tunnel.assign(4, Some(address)).await;
    for number in 0..200_u8 {
        let payload = vec![number; usize::from(number % 3) * 500];
        socket.send_to(&payload, tunnel.public()).await.unwrap();
    }
    for number in 0..200_u8 {
        let payload = vec![number; usize::from(number % 3) * 500];
        assert_eq!(tunnel.received().await, (4, payload.into()), "{number}");
    }
}

#[tokio::test]
async fn two_clients_of_one_relay_reach_each_other() {
    // No range is allowed: they may because these are the relay's own bound addresses.
    let relay = Relay::new(RelayConfig::default());
    let one = Who::peer(1).bind(&relay).await.unwrap();
    let two = Who::peer(2).bind(&relay).await.unwrap();
    one.listen().await;
    two.listen().await;
    one.send_to(two.public(), b"ping");
    let assigned = Capsule::CompressionAssign {
        context: id(1),
        target: Some(one.public()),
    };
    assert_eq!(two.told().await, assigned);
    assert_eq!(two.received().await, (1, b"ping"[..].into()));
    two.send(1, b"pong").unwrap();
    assert_eq!(one.received().await, (1, b"pong"[..].into()));
}

#[tokio::test]
async fn the_relays_own_node_can_be_reached_and_nothing_beside_it() {
    let relay = Relay::new(RelayConfig::default());
    let (node, address) = remote().await;
    let (other, management) = remote().await;
    relay.set_node_addresses(vec![address]);
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    assert_eq!(tunnel.node(), [address]);
    let answer = tunnel.assign(4, Some(address)).await;
    assert_eq!(answer, Capsule::CompressionAck(id(4)));
    tunnel.send(4, b"hello").unwrap();
    let (_, from) = at(&node).await;
    node.send_to(b"hello yourself", from).await.unwrap();
    assert_eq!(tunnel.received().await, (4, b"hello yourself"[..].into()));

    let answer = tunnel.assign(6, Some(management)).await;
    assert_eq!(answer, Capsule::CompressionClose(id(6)));
    other.send_to(b"hello", from).await.unwrap();
    until(|| relay.stats().dropped(DropReason::Source) == 1).await;
}

#[tokio::test]
async fn a_tunnel_to_one_target() {
    let relay = relay();
    let (socket, address) = remote().await;
    let (stranger, _) = remote().await;
    let tunnel = Who::peer(1)
        .connect(&relay, "127.0.0.1", address.port())
        .await
        .unwrap();
    tunnel.send(0, b"hello").unwrap();
    let (payload, from) = at(&socket).await;
    assert_eq!(payload, b"hello");
    stranger.send_to(b"psst", from).await.unwrap();
    until(|| relay.stats().dropped(DropReason::Unsolicited) == 1).await;
    socket.send_to(b"world", from).await.unwrap();
    assert_eq!(tunnel.received().await, (0, b"world"[..].into()));
    // Capsules of an extension that was not asked for mean nothing.
    tunnel.capsule(Capsule::CompressionAck(id(1))).unwrap();
    assert_eq!(relay.stats().tunnels, 1);
    tunnel.lose();
    assert_eq!(relay.stats().tunnels, 0);
}

#[tokio::test]
async fn a_bound_address_with_a_target_has_context_0_for_it() {
    let relay = relay();
    let (socket, address) = remote().await;
    let path = format!("/.well-known/masque/udp/127.0.0.1/{}/", address.port());
    let tunnel = Who::peer(1).open(&relay, &path, true, None).await.unwrap();
    tunnel.send(0, b"hello").unwrap();
    assert_eq!(at(&socket).await.0, b"hello");
    socket.send_to(b"world", tunnel.public()).await.unwrap();
    assert_eq!(tunnel.received().await, (0, b"world"[..].into()));
    tunnel.listen().await;
    let (other, _) = remote().await;
    other.send_to(b"psst", tunnel.public()).await.unwrap();
    assert_eq!(tunnel.received().await, (1, b"psst"[..].into()));
}

#[tokio::test]
async fn errors_of_a_datagram_concern_that_datagram() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    tunnel.listen().await;
    let (socket, address) = remote().await;
    // Nobody listens there any more: ICMP comes back.
    let (gone, nobody) = remote().await;
    drop(gone);
    for _ in 0..20 {
        tunnel.send_to(nobody, b"hello?");
    }
    // Too large for any network.
    tunnel.send_to(address, &vec![0; 65_520]);
    assert_eq!(relay.stats().dropped(DropReason::SendTooLarge), 1);
    // Of a family the relay has no address in.
    tunnel.send_to("[::1]:40000".parse().unwrap(), b"hello?");
    assert_eq!(relay.stats().dropped(DropReason::Family), 1);
    tunnel.send_to(address, b"hello");
    assert_eq!(at(&socket).await.0, b"hello");
}

#[tokio::test]
async fn what_the_carrier_does_not_take_is_dropped_and_counted() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    let (socket, address) = remote().await;
    tunnel.assign(4, Some(address)).await;
    tunnel.out.max_datagram.store(100, Ordering::Relaxed);
    socket.send_to(&[0; 100], tunnel.public()).await.unwrap();
    socket.send_to(&[0; 99], tunnel.public()).await.unwrap();
    assert_eq!(tunnel.received().await.1.len(), 99);
    assert_eq!(relay.stats().dropped(DropReason::CarrierTooLarge), 1);
    tunnel.out.datagram_room.store(2, Ordering::Relaxed);
    for _ in 0..5 {
        socket.send_to(b"hello", tunnel.public()).await.unwrap();
    }
    until(|| relay.stats().dropped(DropReason::CarrierFull) == 3).await;
}

#[tokio::test]
async fn a_client_has_its_rate_in_each_direction() {
    let relay = Relay::new(RelayConfig {
        client_bytes_per_second: 1,
        client_burst_bytes: 10_000,
        ..open_config()
    });
    let one = Who::peer(1).bind(&relay).await.unwrap();
    let two = Who::peer(1).bind(&relay).await.unwrap();
    let (socket, address) = remote().await;
    for tunnel in [&one, &two] {
        tunnel.assign(4, Some(address)).await;
        for _ in 0..8 {
            tunnel.send(4, &[0; 1000]).unwrap();
        }
    }
    // Ten of sixteen, however many tunnels.
    assert_eq!(relay.stats().from_clients.packets, 10);
    assert_eq!(relay.stats().dropped(DropReason::ClientQuota), 6);
    for _ in 0..12 {
        socket.send_to(&[0; 1000], one.public()).await.unwrap();
    }
    until(|| relay.stats().dropped(DropReason::ClientQuota) == 8).await;
    assert_eq!(relay.stats().to_clients.packets, 10);
    // Others are not concerned.
    let other = Who::peer(2).bind(&relay).await.unwrap();
    other.assign(4, Some(address)).await;
    other.send(4, &[0; 1000]).unwrap();
    assert_eq!(relay.stats().from_clients.packets, 11);
}

#[tokio::test]
async fn all_together_have_a_rate_and_a_flood_leaves_others_their_part() {
    let relay = Relay::new(RelayConfig {
        total_bytes_per_second: 2_000_000,
        total_burst_bytes: 40_000,
        ..open_config()
    });
    let flood = Who::peer(1).bind(&relay).await.unwrap();
    let modest = Who::peer(2).bind(&relay).await.unwrap();
    let (_socket, address) = remote().await;
    flood.assign(4, Some(address)).await;
    modest.assign(4, Some(address)).await;
    let mut sent = 0;
    within(async {
        for _ in 0..40 {
            for _ in 0..200 {
                flood.send(4, &[0; 1000]).unwrap();
            }
            // A twentieth of the total.
            modest.send(4, &[0; 500]).unwrap();
            sent += 1;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let sessions = relay.sessions();
    let packets = |number: u8| {
        let of = |info: &&anyreach_masque::relay::SessionInfo| {
            info.peer_id == Who::peer(number).0.peer_id
        };
        sessions.iter().find(of).unwrap().from_client.packets
    };
    assert!(packets(2) + 2 >= sent, "{} of {sent}", packets(2));
    assert!(packets(1) < 40 * 200 / 2, "{}", packets(1));
    assert!(relay.stats().dropped(DropReason::TotalQuota) > 0);
}

#[tokio::test]
async fn sessions_can_be_looked_at() {
    let relay = relay();
    let mut changes = relay.changes();
    let tunnel = Who::peer(7).bind(&relay).await.unwrap();
    within(changes.changed()).await.unwrap();
    let (socket, address) = remote().await;
    tunnel.assign(4, Some(address)).await;
    tunnel.send(4, b"hello").unwrap();
    at(&socket).await;
    let sessions = relay.sessions();
    assert_eq!(sessions.len(), 1);
    let info = &sessions[0];
    assert_eq!(info.peer_id, Who::peer(7).0.peer_id);
    assert_eq!(info.remote, Who::peer(7).0.remote);
    assert!(info.bound.contains(&tunnel.public()));
    assert_eq!(info.target, None::<SocketAddr>);
    assert_eq!((info.from_client.packets, info.from_client.bytes), (1, 5));
    tunnel.lose();
    within(changes.changed()).await.unwrap();
    assert!(relay.sessions().is_empty());
    assert_eq!(relay.stats().leases, 1);
    assert_eq!(relay.stats().from_clients.packets, 1, "counters stay");
}
