//! HTTP/3 beside anyreach on one port: who gets which connection.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use anyreach_quic::Endpoint;
use bytes::Bytes;
use common::{LONG, connected, endpoint, endpoint_with, identity, within};

fn relay() -> Endpoint {
    endpoint_with(|config| config.serve_h3 = true)
}

#[tokio::test]
async fn both_protocols_share_the_port_and_prove_the_same_identities() {
    let (relay, node) = (relay(), endpoint());
    let (_out, _inn) = connected(&node, &relay).await;
    let dial = node.dial_http(relay.local_addr(), Some(relay.identity().peer_id()), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, relay.accept_http()) }).await;
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
    assert_eq!(dialed.peer_id, relay.identity().peer_id());
    assert_eq!(accepted.peer_id, node.identity().peer_id());
    assert_eq!(dialed.remote, relay.local_addr());
    assert_eq!(accepted.remote, node.local_addr());
    dialed
        .engine
        .send_datagram(Bytes::from_static(b"ping"))
        .unwrap();
    let datagram = within(accepted.engine.read_datagram()).await.unwrap();
    assert_eq!(datagram, "ping");
    // It is no connection between nodes.
    assert_eq!(relay.connections().len(), 1);
}

#[tokio::test]
async fn another_relay_is_refused_by_name() {
    let (relay, node) = (relay(), endpoint());
    let wanted = identity().peer_id();
    let error = within(node.dial_http(relay.local_addr(), Some(wanted), LONG))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "peer-id-mismatch");
    assert_eq!(error.actual, Some(relay.identity().peer_id()));
}

#[tokio::test]
async fn a_node_that_does_not_relay_says_so_at_once() {
    let (plain, node) = (endpoint(), endpoint());
    // Its refusal may be lost on an unvalidated path, so there is a limit.
    let timeout = Duration::from_secs(2);
    let error = within(node.dial_http(plain.local_addr(), None, timeout))
        .await
        .unwrap_err();
    assert!(
        ["protocol", "handshake-timeout"].contains(&error.reason),
        "{error:?}"
    );
}

#[tokio::test]
async fn closing_the_endpoint_ends_the_wait() {
    let relay = relay();
    let (none, ()) = within(async { tokio::join!(relay.accept_http(), relay.closed()) }).await;
    assert!(none.is_none());
    let node = endpoint();
    let error = within(node.dial_http(relay.local_addr(), None, Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert_ne!(error.reason, "internal");
}
