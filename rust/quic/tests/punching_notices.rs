//! Nodes tell their peers what their NATs do, and ask each other for steps of a punch.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use anyreach_quic::{
    Connection, Endpoint, Event, Nat, NatBehaviour, PeerId, PortAllocation, PrepareMethod, Step,
    StepResult,
};
use anyreach_wire::control::{MAX_STEP_ADDRESSES, Message, Prepare, Prepared};
use common::{
    connected, endpoint,
    stranger::{Talk, close_code},
    within,
};

fn nat(step: i32) -> Nat {
    Nat {
        mapping: NatBehaviour::AddressAndPortDependent,
        filtering: NatBehaviour::AddressDependent,
        ports: PortAllocation::Sequential,
        step,
    }
}

fn step(port: u16) -> Step {
    Step {
        method: PrepareMethod::Predict,
        addresses: vec![([192, 0, 2, 1], port).into()],
        count: 3,
    }
}

async fn told(connection: &Connection, expected: Nat) {
    within(async {
        while connection.peer_nat() != Some(expected) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

async fn event<T>(endpoint: &Endpoint, wanted: impl Fn(Event) -> Option<T>) -> T {
    within(async {
        loop {
            let events = endpoint.events().await.unwrap();
            if let Some(found) = events.into_iter().find_map(&wanted) {
                return found;
            }
        }
    })
    .await
}

fn asked(event: Event) -> Option<(PeerId, u64, Step)> {
    match event {
        Event::Prepare {
            connection,
            request,
            step,
        } => Some((connection.peer_id(), request, step)),
        _ => None,
    }
}

fn answered(event: Event) -> Option<(PeerId, u64, StepResult)> {
    match event {
        Event::Prepared {
            connection,
            request,
            result,
        } => Some((connection.peer_id(), request, result)),
        _ => None,
    }
}

#[tokio::test]
async fn everybody_hears_what_the_nat_of_a_node_does() {
    let (alice, bob, carol) = (endpoint(), endpoint(), endpoint());
    let (at_bob, at_alice) = connected(&bob, &alice).await;
    assert_eq!((at_bob.peer_nat(), at_alice.peer_nat()), (None, None));
    alice.announce_nat(nat(1));
    told(&at_bob, nat(1)).await;
    let peer = event(&bob, |event| match event {
        Event::Nat { connection } => Some(connection.peer_id()),
        _ => None,
    });
    assert_eq!(peer.await, alice.identity().peer_id());
    // Those that come later, whoever dials, and those that are there hear of a change.
    let (at_carol, _) = connected(&carol, &alice).await;
    told(&at_carol, nat(1)).await;
    let dave = endpoint();
    let (_, at_dave) = connected(&alice, &dave).await;
    told(&at_dave, nat(1)).await;
    alice.announce_nat(nat(-2));
    told(&at_bob, nat(-2)).await;
    told(&at_carol, nat(-2)).await;
    assert_eq!(at_alice.peer_nat(), None);
}

#[tokio::test]
async fn a_step_is_asked_for_and_answered() {
    let (alice, bob) = (endpoint(), endpoint());
    let (to_bob, to_alice) = connected(&alice, &bob).await;
    let request = to_bob.prepare(&step(1));
    let expected = (alice.identity().peer_id(), request, step(1));
    assert_eq!(event(&bob, asked).await, expected);
    let result = StepResult {
        done: true,
        addresses: vec![([192, 0, 2, 2], 7).into()],
    };
    to_alice.prepared(request, &result);
    // Once: the second answer, and one to a question nobody asked, are not sent.
    let other = StepResult {
        done: false,
        addresses: Vec::new(),
    };
    to_alice.prepared(request, &other);
    to_alice.prepared(77, &other);
    let expected = (bob.identity().peer_id(), request, result);
    assert_eq!(event(&alice, answered).await, expected);

    // The other way round as well.
    let request = to_alice.prepare(&step(2));
    assert_eq!(event(&alice, asked).await.1, request);
    to_bob.prepared(request, &other);
    let expected = (alice.identity().peer_id(), request, other);
    assert_eq!(event(&bob, answered).await, expected);
}

#[tokio::test]
async fn who_asks_too_much_is_refused() {
    let node = endpoint();
    let mut greedy = Talk::with(&node).await;
    let connection = within(node.accept()).await.unwrap();
    for request in 0..500 {
        greedy
            .say(&Message::Prepare(step_on_the_wire(
                request,
                PrepareMethod::Pool,
            )))
            .await;
    }
    // What is let through waits for an answer, the rest gets one.
    let mut refused = 0;
    while refused < 480 {
        match greedy.hear().await {
            Message::Prepared(prepared) => {
                assert!(!prepared.done);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let events = within(node.events()).await.unwrap();
    let shown = events.into_iter().filter_map(asked).count();
    assert!((4..=20).contains(&shown), "{shown}");
    assert!(connection.close_reason().is_none());
}

fn step_on_the_wire(request: u64, method: PrepareMethod) -> Prepare {
    Prepare {
        request,
        method,
        addresses: Vec::new(),
        count: 1,
    }
}

#[tokio::test]
async fn what_a_later_version_asks_is_refused_and_answers_to_nothing_are_ignored() {
    let node = endpoint();
    let mut peer = Talk::with(&node).await;
    peer.say(&Message::Prepared(Prepared::refused(1))).await;
    let unknown = step_on_the_wire(5, PrepareMethod::Other(99));
    peer.say(&Message::Prepare(unknown)).await;
    assert_eq!(peer.hear().await, Message::Prepared(Prepared::refused(5)));
    // Nothing of it was shown; what is known is.
    let known = step_on_the_wire(6, PrepareMethod::Spray);
    peer.say(&Message::Prepare(known)).await;
    let (_, request, step) = event(&node, |event| {
        assert!(!matches!(event, Event::Prepared { .. }));
        asked(event)
    })
    .await;
    assert_eq!((request, step.method), (6, PrepareMethod::Spray));
}

#[tokio::test]
async fn impossible_addresses_are_left_out_and_too_many_end_the_connection() {
    let (alice, bob) = (endpoint(), endpoint());
    let (to_bob, _) = connected(&alice, &bob).await;
    let mut crowded = step(1);
    let synthetic = anyreach_net::SyntheticAddr::new(1, 2).socket_addr();
    crowded.addresses = vec![synthetic, ([224, 0, 0, 1], 1).into()];
    crowded.addresses.extend((1..10).map(|port| {
        let address: std::net::SocketAddr = ([192, 0, 2, 1], port).into();
        address
    }));
    to_bob.prepare(&crowded);
    let (_, _, heard) = event(&bob, asked).await;
    assert_eq!(
        heard.addresses,
        crowded.addresses[2..2 + MAX_STEP_ADDRESSES]
    );

    let mut rude = Talk::with(&bob).await;
    let body = [0xa2, 0, 8, 18, 0x80 + MAX_STEP_ADDRESSES as u8 + 1];
    rude.say_bytes(&[&[body.len() as u8][..], &body].concat())
        .await;
    let code = close_code(&rude.connection).await;
    assert_eq!(code, u64::from(anyreach_quic::code::BAD_HELLO));
}
