//! HTTP/3 beside anyreach on one port: who gets which connection.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyreach_net::{TunnelSend, TunnelSendError};
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

/// The outside of a bound address, for one client.
#[derive(Clone)]
struct Bound {
    socket: Arc<UdpSocket>,
    client: Arc<OnceLock<SocketAddr>>,
}

impl TunnelSend for Bound {
    fn try_send(&self, _: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        let client = self.client.get().ok_or(TunnelSendError::Closed)?;
        let _ = self.socket.send_to(datagram, client);
        Ok(())
    }
}

/// A node that is itself reached through a relay lends nothing: it does not know who asks from
/// where, and tunnels within tunnels can lead into themselves.
#[tokio::test]
async fn nobody_relays_through_a_tunnel() {
    let (behind, node) = (relay(), endpoint());
    let socket = Arc::new(UdpSocket::bind(common::loopback()).unwrap());
    let bound = Bound {
        socket: socket.clone(),
        client: Arc::default(),
    };
    let tunnel = behind.socket().add_tunnel(Box::new(bound.clone())).unwrap();
    let injector = tunnel.injector();
    let address = socket.local_addr().unwrap();
    let forwarding = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if length == 0 {
                return;
            }
            let _ = bound.client.set(from);
            let _ = injector.inject(0, Bytes::copy_from_slice(&buffer[..length]));
        }
    });
    let dialed = node.dial_http(address, Some(behind.identity().peer_id()), LONG);
    let dialed = within(dialed).await.unwrap();
    let noq::ConnectionError::ApplicationClosed(close) = within(dialed.engine.closed()).await
    else {
        panic!("it goes on");
    };
    assert_eq!(close.reason, &b"no relaying through a relay"[..]);
    let nobody = tokio::time::timeout(Duration::from_millis(1), behind.accept_http()).await;
    assert!(nobody.is_err());
    UdpSocket::bind(common::loopback())
        .unwrap()
        .send_to(&[], address)
        .unwrap();
    forwarding.join().unwrap();
}
