//! Whose address a bound address is, and for how long.

use std::time::Duration;

use anyreach_masque::{
    carrier::Close,
    relay::{DropReason, Relay, RelayConfig},
};
use anyreach_wire::proxy_fields::ProxyError;

use crate::kit::{Who, at, freed, open_config, relay, remote, until, why};

#[tokio::test]
async fn a_client_gets_its_address_back_after_a_lost_connection() {
    let relay = relay();
    let client = Who::peer(1);
    let first = client.bind_as(&relay, 7).await.unwrap();
    first.listen().await;
    first.lose();
    assert_eq!((relay.stats().sessions, relay.stats().leases), (0, 1));
    // From another network, over another carrier.
    let moved = Who::peer(1).from("127.9.9.9:7777", "127.0.0.1:9000");
    let second = moved.bind_as(&relay, 7).await.unwrap();
    assert_eq!(second.public(), first.public());
    assert_eq!((relay.stats().sessions, relay.stats().leases), (1, 0));
    // Contexts are of the tunnel, not of the address.
    second.listen().await;
    let (socket, address) = remote().await;
    second.send_to(address, b"hello");
    assert_eq!(at(&socket).await.1, second.public());
    assert_eq!(relay.stats().taken_over, 1);
}

#[tokio::test]
async fn nothing_is_delivered_to_nobody() {
    let relay = relay();
    let client = Who::peer(1);
    let tunnel = client.bind(&relay).await.unwrap();
    tunnel.lose();
    let (socket, _) = remote().await;
    for _ in 0..5 {
        socket.send_to(b"hello?", tunnel.public()).await.unwrap();
    }
    until(|| relay.stats().dropped(DropReason::Unattached) == 5).await;
    let again = client.bind(&relay).await.unwrap();
    assert_eq!(again.public(), tunnel.public());
    again.listen().await;
    socket.send_to(b"hello", again.public()).await.unwrap();
    assert_eq!(again.received().await.1, b"hello"[..]);
    assert_eq!(again.has_received(), None);
}

#[tokio::test]
async fn a_client_takes_over_from_its_own_dead_connection_at_once() {
    let relay = relay();
    let old = Who::peer(1).bind_as(&relay, 7).await.unwrap();
    old.listen().await;
    let new = Who::peer(1).bind_as(&relay, 7).await.unwrap();
    assert_eq!(new.public(), old.public());
    assert_eq!(old.ended().await, Close::Done);
    new.listen().await;
    // What the old connection still says, and its end, change nothing.
    let (socket, address) = remote().await;
    old.send_to(address, b"old");
    old.lose();
    drop(old);
    new.send_to(address, b"new");
    let (payload, from) = at(&socket).await;
    assert_eq!(payload, b"new");
    socket.send_to(b"answer", from).await.unwrap();
    assert_eq!(new.received().await.1, b"answer"[..]);
    assert_eq!((relay.stats().sessions, relay.stats().leases), (1, 0));
}

#[tokio::test]
async fn another_client_does_not_get_it_whatever_it_says() {
    let relay = relay();
    let victim = Who::peer(1).bind_as(&relay, 7).await.unwrap();
    let thief = Who::peer(2).bind_as(&relay, 7).await.unwrap();
    assert_ne!(thief.public(), victim.public());
    victim.lose();
    let thief = Who::peer(2).bind_as(&relay, 7).await.unwrap();
    assert_ne!(thief.public(), victim.public());
}

#[tokio::test]
async fn a_lease_ends() {
    let relay = Relay::new(RelayConfig {
        lease_time: Duration::from_millis(40),
        ..open_config()
    });
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    tunnel.lose();
    until(|| relay.stats().leases == 0).await;
    // The port is free again.
    freed(tunnel.public().port()).await;
}

#[tokio::test]
async fn a_carrier_that_just_lets_go_has_ended_the_tunnel() {
    let relay = relay();
    let bound = Who::peer(1).bind(&relay).await.unwrap();
    let (_socket, address) = remote().await;
    let client = Who::peer(1);
    let connected = client.connect(&relay, "127.0.0.1", address.port()).await;
    let connected = connected.unwrap();
    drop((bound, connected));
    let stats = relay.stats();
    assert_eq!((stats.sessions, stats.tunnels, stats.leases), (0, 0, 1));
}

#[tokio::test]
async fn the_oldest_lease_makes_room_and_then_there_is_none() {
    let relay = Relay::new(RelayConfig {
        max_reservations: 2,
        ..open_config()
    });
    let one = Who::peer(1).bind(&relay).await.unwrap();
    let two = Who::peer(2).bind(&relay).await.unwrap();
    assert_eq!(
        why(Who::peer(3).bind(&relay).await),
        (503, ProxyError::ConnectionLimitReached)
    );
    two.lose();
    one.lose();
    let three = Who::peer(3).bind(&relay).await.unwrap();
    let one_again = Who::peer(1).bind(&relay).await.unwrap();
    assert_eq!(one_again.public(), one.public(), "the younger lease stayed");
    assert_ne!(three.public(), one.public());
    why(Who::peer(2).bind(&relay).await);
    let refused = relay.stats().refused;
    assert!(refused.contains(&("relay-limit", 2)), "{refused:?}");
}

#[tokio::test]
async fn the_newest_session_of_a_client_wins() {
    let relay = relay();
    let client = Who::peer(1);
    let one = client.bind_as(&relay, 1).await.unwrap();
    let two = client.bind_as(&relay, 2).await.unwrap();
    let three = client.bind_as(&relay, 3).await.unwrap();
    assert_eq!(one.ended().await, Close::Done);
    assert!(two.out.ended.borrow().is_none() && three.out.ended.borrow().is_none());
    assert_eq!(relay.stats().sessions, 2);
}

#[tokio::test]
async fn an_idle_tunnel_ends_and_a_reservation_does_not() {
    let relay = Relay::new(RelayConfig {
        idle_limit: Duration::from_millis(60),
        ..open_config()
    });
    let (_socket, address) = remote().await;
    let bound = Who::peer(1).bind(&relay).await.unwrap();
    let client = Who::peer(1);
    let tunnel = client.connect(&relay, "127.0.0.1", address.port()).await;
    let tunnel = tunnel.unwrap();
    assert_eq!(tunnel.ended().await, Close::Done);
    assert_eq!((relay.stats().sessions, relay.stats().tunnels), (1, 0));
    assert!(bound.out.ended.borrow().is_none());
}

#[tokio::test]
async fn a_closed_relay_lends_nothing() {
    let relay = relay();
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    Who::peer(2).bind(&relay).await.unwrap().lose();
    relay.close();
    assert_eq!(tunnel.ended().await, Close::Done);
    let stats = relay.stats();
    assert_eq!((stats.sessions, stats.leases), (0, 0));
    assert_eq!(
        why(Who::peer(1).bind(&relay).await),
        (503, ProxyError::DestinationUnavailable)
    );
    // Late news from carriers is harmless.
    tunnel.lose();
    relay.close();
    freed(tunnel.public().port()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn sockets_are_closed_with_what_they_were_for() {
    let sockets = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        descriptors
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    };
    let relay = Relay::new(RelayConfig {
        lease_time: Duration::ZERO,
        ..open_config()
    });
    let (_socket, address) = remote().await;
    // Other tests run in this process as well, so a leak has to stand out.
    let before = sockets();
    for round in 0..300_u16 {
        let client = Who::peer((round % 200) as u8);
        let tunnel = match round % 2 {
            0 => client.bind(&relay).await.unwrap(),
            _ => client
                .connect(&relay, "127.0.0.1", address.port())
                .await
                .unwrap(),
        };
        tunnel.lose();
    }
    until(|| sockets() < before + 150).await;
    let stats = relay.stats();
    assert_eq!((stats.sessions, stats.tunnels, stats.leases), (0, 0, 0));
    assert_eq!(stats.accepted, 300);
}
