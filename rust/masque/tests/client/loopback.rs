//! The real thing on loopback: nodes, a relay, and the carriers between them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyreach_masque::{
    carrier::CarrierKind,
    client::{Dialers, Purpose, RelayTarget, Tunnel, TunnelOptions, Tunnels},
    relay::{Relay, RelayConfig},
    server::{Listeners, RelayServer},
};
use anyreach_quic::{Connection, Endpoint, EndpointConfig, Identity, https::TcpTls};
use anyreach_wire::uri_template::Host;

use crate::{
    inner::{LONG, pattern, transferred, within},
    supervision::{is_closed, is_down, is_up, is_up_again},
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn endpoint(adjust: impl FnOnce(&mut EndpointConfig)) -> Endpoint {
    let mut config = EndpointConfig::new((LOOPBACK, 0).into());
    adjust(&mut config);
    Endpoint::bind(Arc::new(Identity::generate().unwrap()), config).unwrap()
}

/// A node that relays.
struct RelayNode {
    endpoint: Endpoint,
    relay: Relay,
    server: Option<RelayServer>,
    tcp: SocketAddr,
}

impl RelayNode {
    fn new(serve_h3: bool) -> Self {
        let endpoint = endpoint(|config| config.serve_h3 = serve_h3);
        let relay = Relay::new(RelayConfig {
            allow_targets: vec!["127.0.0.0/8".parse().unwrap()],
            ..RelayConfig::default()
        });
        relay.set_public_addresses(vec![LOOPBACK]);
        relay.set_node_addresses(vec![endpoint.local_addr()]);
        let mut this = Self {
            endpoint,
            relay,
            server: None,
            tcp: (LOOPBACK, 0).into(),
        };
        this.start();
        this
    }

    /// Opens for clients, on the TCP port of before.
    fn start(&mut self) {
        let listeners = Listeners {
            tcp: Some(self.tcp),
            ..Listeners::default()
        };
        let server = RelayServer::start(&self.endpoint, &self.relay, listeners).unwrap();
        self.tcp = server.tcp_addr().unwrap();
        self.server = Some(server);
    }

    /// Ends all carriers.
    fn stop(&mut self) {
        self.server = None;
    }

    fn target(&self) -> RelayTarget {
        let peer = Some(self.endpoint.identity().peer_id());
        let host = Host::parse("127.0.0.1").unwrap();
        let mut target = RelayTarget::node(peer, host, self.tcp.port(), &[]);
        target.udp = vec![self.endpoint.local_addr()];
        target.tcp = vec![self.tcp];
        target
    }
}

/// A node with a tunnel.
struct Node {
    endpoint: Endpoint,
    tunnel: Tunnel,
    _tunnels: Tunnels,
}

impl Node {
    fn begin(relay: &RelayNode, plan: &[(CarrierKind, u64)], purpose: Purpose) -> Self {
        let endpoint = endpoint(|_| ());
        let tunnels = Tunnels::new(endpoint.socket().clone());
        endpoint.set_directory(tunnels.directory());
        let tls = TcpTls::new(endpoint.identity(), false).unwrap();
        let dialers = Arc::new(Dialers::new(endpoint.clone(), &tls));
        let options = TunnelOptions {
            target: relay.target(),
            plan: plan
                .iter()
                .map(|&(kind, ms)| (kind, Duration::from_millis(ms)))
                .collect(),
            purpose,
            persist: false,
        };
        let tunnel = tunnels.open(dialers, options).unwrap();
        Self {
            endpoint,
            tunnel,
            _tunnels: tunnels,
        }
    }

    async fn new(relay: &RelayNode, carrier: CarrierKind) -> Self {
        let node = Self::begin(relay, &[(carrier, 0)], Purpose::Bind);
        within(is_up(&node.tunnel)).await;
        node
    }

    fn public(&self) -> SocketAddr {
        self.tunnel.public_addresses()[0]
    }
}

/// Dials `bob` from a node without a tunnel, by its address at the relay.
async fn dialed_from_outside(outside: &Endpoint, bob: &Node) -> (Connection, Connection) {
    let peer = bob.endpoint.identity().peer_id();
    let dial = outside.dial(bob.public(), Some(peer), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, bob.endpoint.accept()) }).await;
    (dialed.unwrap().connection, accepted.unwrap())
}

async fn reachable_by(carrier: CarrierKind) {
    let relay = RelayNode::new(true);
    let bob = Node::new(&relay, carrier).await;
    let up = bob.tunnel.up().unwrap();
    assert_eq!(up.carrier, carrier);
    assert_eq!(up.relay, Some(relay.endpoint.identity().peer_id()));
    assert_eq!(up.public[0].ip(), LOOPBACK, "{:?}", up.public);
    assert_ne!(bob.public(), bob.endpoint.local_addr());
    let outside = endpoint(|_| ());
    let (out, inn) = dialed_from_outside(&outside, &bob).await;
    transferred(&out, &inn, &pattern(4 << 20), async {}).await;
    transferred(&inn, &out, &pattern(4 << 20), async {}).await;
    // Behind the tunnel the peer is known by its real address.
    assert_eq!(inn.paths()[0].remote, outside.local_addr());
    assert!(bob.tunnel.rtt().is_some());
    let counters = bob.tunnel.counters();
    assert!(counters.received_bytes > 4 << 20, "{counters:?}");
    assert_eq!((counters.recv_unknown, counters.send_no_remote), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_reached_through_its_relay_over_http_3() {
    reachable_by(CarrierKind::H3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_reached_through_its_relay_over_http_2() {
    reachable_by(CarrierKind::H2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tunnels_meet_at_the_relay() {
    let relay = RelayNode::new(true);
    let alice = Node::new(&relay, CarrierKind::H2).await;
    let bob = Node::new(&relay, CarrierKind::H3).await;
    let address = alice.tunnel.synthetic(bob.public()).unwrap();
    let peer = bob.endpoint.identity().peer_id();
    let dial = alice.endpoint.dial_through(address, Some(peer), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, bob.endpoint.accept()) }).await;
    let (out, inn) = (dialed.unwrap().connection, accepted.unwrap());
    transferred(&out, &inn, &pattern(2 << 20), async {}).await;
    transferred(&inn, &out, &pattern(2 << 20), async {}).await;
    assert_eq!(inn.paths()[0].remote, alice.public());
    assert_eq!(out.paths()[0].remote, bob.public());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_own_node_is_reached_through_the_tunnel() {
    let relay = RelayNode::new(true);
    let alice = Node::new(&relay, CarrierKind::H2).await;
    let at = alice.tunnel.node_addresses();
    assert_eq!(at, [relay.endpoint.local_addr()]);
    let address = alice.tunnel.synthetic(at[0]).unwrap();
    let peer = relay.endpoint.identity().peer_id();
    let dial = alice.endpoint.dial_through(address, Some(peer), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, relay.endpoint.accept()) }).await;
    let (out, inn) = (dialed.unwrap().connection, accepted.unwrap());
    transferred(&out, &inn, &pattern(1 << 20), async {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_address_outlive_the_carrier() {
    let mut relay = RelayNode::new(true);
    for carrier in [CarrierKind::H3, CarrierKind::H2] {
        let bob = Node::new(&relay, carrier).await;
        let (public, number) = (bob.public(), bob.tunnel.number());
        let outside = endpoint(|_| ());
        let (out, inn) = dialed_from_outside(&outside, &bob).await;
        let outage = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            relay.stop();
            is_down(&bob.tunnel).await;
            relay.start();
            is_up_again(&bob.tunnel, 2).await;
        };
        transferred(&out, &inn, &pattern(8 << 20), outage).await;
        transferred(&inn, &out, &pattern(1 << 20), async {}).await;
        assert_eq!((bob.public(), bob.tunnel.number()), (public, number));
        assert_eq!(bob.tunnel.up().unwrap().moves, 0);
        assert!(out.close_reason().is_none() && inn.close_reason().is_none());
        assert_eq!(inn.paths().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_gone_is_looked_for() {
    let mut relay = RelayNode::new(true);
    let bob = Node::new(&relay, CarrierKind::H2).await;
    relay.stop();
    let mut states = bob.tunnel.states();
    let tried = within(states.wait_for(|state| {
        use anyreach_masque::client::State;
        matches!(state, State::Down(down) if !down.attempts.is_empty())
    }));
    let state = format!("{:?}", &*tried.await.unwrap());
    assert!(
        state.contains("refused") || state.contains("unreachable"),
        "{state}"
    );
    assert!(state.contains(&relay.tcp.to_string()), "{state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_http_3_the_race_goes_to_http_2() {
    let relay = RelayNode::new(false);
    let plan = [(CarrierKind::H3, 0), (CarrierKind::H2, 250)];
    let bob = Node::begin(&relay, &plan, Purpose::Bind);
    let up = within(is_up(&bob.tunnel)).await;
    assert_eq!(up.carrier, CarrierKind::H2);
    assert_eq!(up.address, Some(relay.tcp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_relay_than_expected_is_refused_by_name() {
    let (relay, other) = (RelayNode::new(true), RelayNode::new(true));
    let plan = [(CarrierKind::H3, 0), (CarrierKind::H2, 0)];
    let bob = Node::begin(&relay, &plan, Purpose::Bind);
    within(is_up(&bob.tunnel)).await;
    drop(bob);

    let endpoint = endpoint(|_| ());
    let tunnels = Tunnels::new(endpoint.socket().clone());
    let tls = TcpTls::new(endpoint.identity(), false).unwrap();
    let mut target = other.target();
    target.peer = Some(relay.endpoint.identity().peer_id());
    let options = TunnelOptions {
        target,
        plan: plan.map(|(kind, _)| (kind, Duration::ZERO)).to_vec(),
        purpose: Purpose::Bind,
        persist: false,
    };
    let dialers = Arc::new(Dialers::new(endpoint, &tls));
    let tunnel = tunnels.open(dialers, options).unwrap();
    let closed = within(is_closed(&tunnel)).await;
    assert_eq!(closed.attempts.len(), 2);
    for attempt in &closed.attempts {
        assert_eq!(attempt.reason, "peer-id-mismatch", "{attempt}");
        assert_eq!(attempt.actual, Some(other.endpoint.identity().peer_id()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_tunnel_leads_to_its_target() {
    let relay = RelayNode::new(true);
    let bob = endpoint(|_| ());
    for carrier in [CarrierKind::H3, CarrierKind::H2] {
        let purpose = Purpose::Target(bob.local_addr());
        let alice = Node::begin(&relay, &[(carrier, 0)], purpose);
        within(is_up(&alice.tunnel)).await;
        let address = alice.tunnel.synthetic(bob.local_addr()).unwrap();
        let peer = bob.identity().peer_id();
        let dial = alice.endpoint.dial_through(address, Some(peer), LONG);
        let (dialed, accepted) = within(async { tokio::join!(dial, bob.accept()) }).await;
        let (out, inn) = (dialed.unwrap().connection, accepted.unwrap());
        transferred(&out, &inn, &pattern(1 << 20), async {}).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_moves_from_tcp_to_udp_under_load() {
    let relay = RelayNode::new(true);
    let bob = Node::new(&relay, CarrierKind::H2).await;
    let public = bob.public();
    let outside = endpoint(|_| ());
    let (out, inn) = dialed_from_outside(&outside, &bob).await;
    let better = async {
        bob.tunnel.improve(vec![(CarrierKind::H3, Duration::ZERO)]);
        is_up_again(&bob.tunnel, 2).await
    };
    let up = transferred(&out, &inn, &pattern(8 << 20), better).await;
    assert_eq!((up.carrier, up.lost.clone()), (CarrierKind::H3, None));
    transferred(&inn, &out, &pattern(1 << 20), async {}).await;
    assert_eq!(bob.public(), public);
    assert_eq!(relay.relay.stats().sessions, 1);
}
