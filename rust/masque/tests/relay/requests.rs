//! What is asked for, and what is answered.

use std::{sync::Arc, time::Duration};

use anyreach_masque::{
    carrier::Service,
    relay::{Relay, RelayConfig},
};
use anyreach_wire::proxy_fields::{
    CAPSULE_PROTOCOL, CONNECT_UDP_BIND, PROXY_PUBLIC_ADDRESS, ProxyError, TRUE,
};

use crate::kit::{ANY, Who, addresses, at, open_config, relay, remote, why};

#[tokio::test]
async fn a_bound_request_is_answered_with_addresses() {
    let relay = relay();
    relay.set_public_addresses(vec![
        "192.0.2.9".parse().unwrap(),
        "2001:db8::9".parse().unwrap(),
    ]);
    let tunnel = Who::peer(1).bind(&relay).await.unwrap();
    assert_eq!(tunnel.headers[CAPSULE_PROTOCOL], TRUE);
    assert_eq!(tunnel.headers[CONNECT_UDP_BIND], TRUE);
    let public = addresses(&tunnel.headers, PROXY_PUBLIC_ADDRESS);
    let ips: Vec<_> = public
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    // Where the client came to, as it came from inside; then what the world knows.
    assert_eq!(ips, ["127.0.0.1", "192.0.2.9", "2001:db8::9"]);
    assert!(
        public
            .iter()
            .all(|address| address.port() == public[0].port())
    );

    let outside = Who::peer(2).from("198.51.100.7:5000", "10.0.0.5:9000");
    let tunnel = outside.bind(&relay).await.unwrap();
    let public = addresses(&tunnel.headers, PROXY_PUBLIC_ADDRESS);
    let ips: Vec<_> = public
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    assert_eq!(ips, ["192.0.2.9", "2001:db8::9"]);
}

#[tokio::test]
async fn a_tunnel_to_one_target_is_answered_without() {
    let relay = relay();
    let tunnel = Who::peer(1).connect(&relay, "127.0.0.1", 40000).await;
    let tunnel = tunnel.unwrap();
    assert_eq!(tunnel.headers[CAPSULE_PROTOCOL], TRUE);
    assert_eq!(tunnel.headers.len(), 1);
}

#[tokio::test]
async fn malformed_requests() {
    let relay = relay();
    let client = Who::peer(1);
    for (path, bind, status) in [
        ("/", true, 404),
        ("/.well-known/masque/udp/%2A/", true, 404),
        ("/.well-known/masque/udp/%2A/443/", true, 400),
        ("/.well-known/masque/udp/192.0.2.1/%2A/", true, 400),
        ("/.well-known/masque/udp/192.0.2.1/0/", false, 400),
        ("/.well-known/masque/udp/192.0.2.1/65536/", false, 400),
        ("/.well-known/masque/udp/0x7f.1/443/", false, 400),
        (ANY, false, 400),
    ] {
        let refused = client.open(&relay, path, bind, None).await;
        assert_eq!(
            why(refused),
            (status, ProxyError::HttpRequestError),
            "{path}"
        );
    }
    let refused = client.open(&relay, ANY, true, Some("nonsense")).await;
    assert_eq!(why(refused), (400, ProxyError::HttpRequestError));
    assert!(relay.stats().refused.contains(&("malformed", 9)));
    assert_eq!(relay.stats().accepted, 0);
}

#[tokio::test]
async fn who_does_not_say_who_he_is() {
    let anonymous = Who::peer(1).anonymous();
    let closed = relay();
    let refused = anonymous.bind(&closed).await;
    assert_eq!(why(refused), (403, ProxyError::HttpRequestDenied));
    let refused = anonymous.connect(&closed, "127.0.0.1", 40000).await;
    assert_eq!(why(refused), (403, ProxyError::HttpRequestDenied));

    let open = Relay::new(RelayConfig {
        allow_anonymous: true,
        tunnels_per_client: 1,
        ..open_config()
    });
    let (socket, address) = remote().await;
    let tunnel = anonymous.connect(&open, "127.0.0.1", address.port()).await;
    let tunnel = tunnel.unwrap();
    tunnel.send(0, b"hello").unwrap();
    assert_eq!(at(&socket).await.0, b"hello");
    // All of a network together.
    let neighbour = Who::peer(2).anonymous();
    let refused = neighbour.connect(&open, "127.0.0.1", address.port()).await;
    assert_eq!(why(refused), (503, ProxyError::ConnectionLimitReached));
    // No leases.
    let bound = anonymous.bind_as(&open, 7).await.unwrap();
    bound.lose();
    assert_eq!(open.stats().leases, 0);
}

#[tokio::test]
async fn names_are_resolved_once_and_checked() {
    let (socket, address) = remote().await;
    let relay = Relay::new(RelayConfig {
        // `localhost` may be ::1 as well, where nobody listens.
        allow_targets: vec!["127.0.0.0/8".parse().unwrap()],
        ..RelayConfig::default()
    });
    let client = Who::peer(1);
    let tunnel = client.connect(&relay, "localhost", address.port()).await;
    let tunnel = tunnel.unwrap();
    tunnel.send(0, b"hello").unwrap();
    assert_eq!(at(&socket).await.0, b"hello");
    assert_eq!(relay.sessions()[0].target, Some(address));

    let strict = Relay::new(RelayConfig::default());
    let refused = client.connect(&strict, "localhost", address.port()).await;
    assert_eq!(why(refused), (403, ProxyError::DestinationIpProhibited));
    let refused = client.connect(&strict, "does-not-exist.invalid", 443).await;
    let (status, error) = why(refused);
    assert!(
        matches!(error, ProxyError::DnsError | ProxyError::DnsTimeout),
        "{status} {error:?}"
    );
}

#[tokio::test]
async fn targets_that_are_not_for_clients() {
    let relay = Relay::new(RelayConfig::default());
    for (host, port) in [
        ("127.0.0.1", 40000),
        ("::1", 40000),
        ("::ffff:127.0.0.1", 40000),
        ("10.0.0.1", 40000),
        ("169.254.169.254", 80),
        ("64:ff9b::7f00:1", 40000),
        ("8.8.8.8", 53),
        ("255.255.255.255", 40000),
    ] {
        let refused = Who::peer(1).connect(&relay, host, port).await;
        let expected = (403, ProxyError::DestinationIpProhibited);
        assert_eq!(why(refused), expected, "{host} {port}");
    }
    assert!(relay.stats().refused.contains(&("target", 8)));
}

#[tokio::test]
async fn a_relay_that_knows_no_public_address_says_so() {
    let relay = relay();
    // A one-to-one NAT in front, and nobody has said what is outside. Only a host whose own
    // interfaces are public has something to offer here.
    let client = Who::peer(1).from("198.51.100.7:5000", "10.0.0.5:9000");
    match client.bind(&relay).await {
        Ok(tunnel) => assert!(anyreach_masque::relay::is_global(tunnel.public().ip())),
        refused => assert_eq!(why(refused), (500, ProxyError::ProxyConfigurationError)),
    }
}

#[tokio::test]
async fn networks_and_clients_have_limits() {
    let relay = Relay::new(RelayConfig {
        sessions_per_prefix: 3,
        tunnels_per_client: 1,
        ..open_config()
    });
    let (_socket, address) = remote().await;
    let connect = async |number| {
        let client = Who::peer(number);
        client.connect(&relay, "127.0.0.1", address.port()).await
    };
    let kept = (
        Who::peer(1).bind(&relay).await.unwrap(),
        connect(1).await.unwrap(),
    );
    let limit = ProxyError::ConnectionLimitReached;
    assert_eq!(why(connect(1).await), (503, limit));
    let third = connect(2).await.unwrap();
    assert_eq!(why(Who::peer(3).bind(&relay).await), (503, limit));
    let elsewhere = Who::peer(3).from("127.0.9.1:5000", "127.0.0.1:9000");
    elsewhere.bind(&relay).await.unwrap();
    third.lose();
    connect(3).await.unwrap();
    let refused = relay.stats().refused;
    assert!(refused.contains(&("client-limit", 1)), "{refused:?}");
    assert!(refused.contains(&("source-limit", 1)), "{refused:?}");
    drop(kept);
}

#[tokio::test]
async fn a_request_given_up_leaves_nothing_behind() {
    let relay = relay();
    for _ in 0..20 {
        let client = Who::peer(1);
        tokio::select! {
            biased;
            _ = tokio::task::yield_now() => {}
            opened = client.bind(&relay) => drop(opened),
        }
    }
    let stats = relay.stats();
    assert_eq!(stats.sessions, 0);
    assert!(stats.leases <= 1);
}

#[tokio::test]
async fn all_clones_are_one_relay_and_a_service() {
    let relay = relay();
    let service: Arc<dyn Service> = Arc::new(relay.clone());
    let tunnel = Who::peer(1).bind(&relay.clone()).await.unwrap();
    assert_eq!(relay.stats().sessions, 1);
    drop(service);
    drop(relay);
    // The tunnel goes on as long as its carrier holds it.
    tokio::time::timeout(Duration::from_millis(20), tunnel.ended())
        .await
        .expect_err("not ended");
}
