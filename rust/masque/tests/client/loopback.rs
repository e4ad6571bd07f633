//! The real thing on loopback: nodes, a relay, and the carriers between them.

use std::time::Duration;

use anyreach_masque::{
    carrier::CarrierKind,
    client::{Purpose, State},
};

use crate::{
    inner::{LONG, pattern, transferred, within},
    lab::{LOOPBACK, Node, RelayNode, dialed_from_outside, endpoint},
    scene::{is_closed, is_down, is_up, is_up_again},
};

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
    let tried = within(
        states.wait_for(|state| matches!(state, State::Down(down) if !down.attempts.is_empty())),
    );
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
    let mut target = other.target();
    target.peer = relay.target().peer;
    let plan = [(CarrierKind::H3, 0), (CarrierKind::H2, 0)];
    let node = Node::by(target, &plan, Purpose::Bind, |_, dialers| dialers);
    let tunnel = &node.tunnel;
    let closed = within(is_closed(tunnel)).await;
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
