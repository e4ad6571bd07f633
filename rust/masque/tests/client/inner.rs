//! Connections of two endpoints through tunnels, while the carriers come and go.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyreach_masque::{
    carrier::CarrierKind,
    client::{Purpose, Tunnel, TunnelOptions, Tunnels},
};
use anyreach_quic::{Connection, Endpoint, EndpointConfig, Identity};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    fake::{FakeDialer, Line, RelayEnd, Way, target},
    scene::{is_up, is_up_again},
    switch::Switch,
};

/// More than any test needs, so that a hang is a failure and not a hang.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("done in time")
}

/// An endpoint with a tunnel to the relay in memory.
struct Node {
    endpoint: Endpoint,
    tunnels: Tunnels,
    tunnel: Tunnel,
    public: SocketAddr,
    opened: mpsc::UnboundedReceiver<RelayEnd>,
    line: Line,
    switch: Switch,
}

impl Node {
    async fn new(switch: &Switch, port: u16) -> Self {
        let mut config = EndpointConfig::new(([127, 0, 0, 1], 0).into());
        config.idle_timeout = Duration::from_secs(10);
        let identity = Arc::new(Identity::generate().unwrap());
        let endpoint = Endpoint::bind(identity, config).unwrap();
        let tunnels = Tunnels::new(endpoint.socket().clone());
        endpoint.set_directory(tunnels.directory());
        let public = SocketAddr::from(([192, 0, 2, 1], port));
        let way = Way::with_addresses(&format!("\"{public}\""));
        let (dialer, _, mut opened) = FakeDialer::in_turn([way]);
        let options = TunnelOptions {
            target: target(),
            plan: vec![(CarrierKind::H3, Duration::ZERO)],
            purpose: Purpose::Bind,
            persist: false,
        };
        let tunnel = tunnels.open(dialer, options).unwrap();
        let end = within(opened.recv()).await.unwrap();
        let line = switch.serve(public, end);
        within(is_up(&tunnel)).await;
        Self {
            endpoint,
            tunnels,
            tunnel,
            public,
            opened,
            line,
            switch: switch.clone(),
        }
    }

    /// Cuts the carrier, and serves the next one.
    async fn reconnect(&mut self, carriers: u32) {
        self.line.cut("the relay restarts");
        let end = within(self.opened.recv()).await.unwrap();
        self.line = self.switch.serve(self.public, end);
        within(is_up_again(&self.tunnel, carriers)).await;
    }
}

async fn pair() -> (Node, Node) {
    let switch = Switch::default();
    (Node::new(&switch, 1).await, Node::new(&switch, 2).await)
}

async fn connected(from: &Node, to: &Node) -> (Connection, Connection) {
    let address = from.tunnel.synthetic(to.public).unwrap();
    let peer = to.endpoint.identity().peer_id();
    let dial = from.endpoint.dial_through(address, Some(peer), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, to.endpoint.accept()) }).await;
    (dialed.unwrap().connection, accepted.unwrap())
}

pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Sends `data` while `meanwhile` happens, and compares what arrives.
pub(crate) async fn transferred<T>(
    from: &Connection,
    to: &Connection,
    data: &[u8],
    meanwhile: impl Future<Output = T>,
) -> T {
    let send = async {
        let mut stream = from.engine().open_uni().await.unwrap();
        stream.write_all(data).await.unwrap();
        stream.finish().unwrap();
        stream
    };
    let receive = async {
        let mut stream = to.engine().accept_uni().await.unwrap();
        stream.read_to_end(data.len()).await.unwrap()
    };
    let (_stream, received, result) =
        within(async { tokio::join!(send, receive, meanwhile) }).await;
    assert!(received == data, "the bytes differ");
    result
}

#[tokio::test]
async fn two_tunnels_are_a_way() {
    let (alice, bob) = pair().await;
    let (out, inn) = connected(&alice, &bob).await;
    transferred(&out, &inn, &pattern(1 << 20), async {}).await;
    transferred(&inn, &out, &pattern(1 << 20), async {}).await;
    let counters = alice.tunnel.counters();
    assert!(
        counters.sent > 800 && counters.received > 800,
        "{counters:?}"
    );
    assert!(counters.received_bytes > 1 << 20);
    assert_eq!((counters.send_no_remote, counters.recv_unknown), (0, 0));
    assert_eq!(bob.tunnels.all().len(), 1);
    // Each knows the other by its address at the relay.
    let seen = |connection: &Connection| connection.paths()[0].remote;
    assert_eq!(seen(&out), bob.public);
    assert_eq!(seen(&inn), alice.public);
}

#[tokio::test]
async fn connections_outlive_their_carriers() {
    let (mut alice, mut bob) = pair().await;
    let (out, inn) = connected(&alice, &bob).await;
    let address = alice.tunnel.synthetic(bob.public).unwrap();
    let data = pattern(8 << 20);
    let outages = async {
        for carriers in 2..5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            alice.reconnect(carriers).await;
            bob.reconnect(carriers).await;
        }
    };
    transferred(&out, &inn, &data, outages).await;
    transferred(&inn, &out, &pattern(1 << 20), async {}).await;
    assert!(out.close_reason().is_none() && inn.close_reason().is_none());
    assert_eq!(alice.tunnel.synthetic(bob.public), Ok(address));
    assert_eq!(out.paths().len(), 1);
    assert_eq!(alice.tunnel.counters().sessions, 4);
}

#[tokio::test]
async fn what_is_too_large_for_the_carrier_tells_the_connection_its_mtu() {
    let (alice, bob) = pair().await;
    // What an IPv6 minimum link leaves with a compressed context: an Initial, just.
    alice.line.set_max_datagram(1_201);
    bob.line.set_max_datagram(1_201);
    let (out, inn) = connected(&alice, &bob).await;
    transferred(&out, &inn, &pattern(2 << 20), async {}).await;
    let counters = alice.tunnel.counters();
    assert!(counters.send_too_large > 0, "{counters:?}");
    assert!(counters.send_too_large < 100, "{counters:?}");
}

#[tokio::test]
async fn a_tunnel_that_is_closed_leads_nowhere() {
    let (alice, bob) = pair().await;
    let (out, _inn) = connected(&alice, &bob).await;
    let address = alice.tunnel.synthetic(bob.public).unwrap();
    alice.tunnel.close();
    let mut states = alice.tunnel.states();
    let closed = |state: &anyreach_masque::client::State| {
        matches!(state, anyreach_masque::client::State::Closed(_))
    };
    within(states.wait_for(closed)).await.unwrap();
    let dropped = || {
        let counters = alice.endpoint.counters();
        counters
            .iter()
            .find(|(name, _)| *name == "send_no_tunnel")
            .unwrap()
            .1
    };
    let before = dropped();
    out.engine().send_datagram(vec![1; 100].into()).unwrap();
    within(async {
        while dropped() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let peer = bob.endpoint.identity().peer_id();
    let short = Duration::from_millis(300);
    let failed = alice
        .endpoint
        .dial_through(address, Some(peer), short)
        .await;
    // The connection of before is still there, but does not answer.
    assert!(failed.is_err());
    assert!(alice.tunnel.synthetic(bob.public).is_err());
}
