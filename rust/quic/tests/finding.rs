//! Nodes tell their peers how they can be reached, and find each other through common peers.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyreach_quic::{
    AddressKind, BoundAt, Connection, DirectAddress, Endpoint, Event, FindError, PeerId, Reach,
    RelayHint,
};
use anyreach_wire::control::{
    Find, FindStatus, MAX_DIRECT_ADDRESSES, Message, Reach as WireReach, Sought,
};
use common::{
    LONG, connected, endpoint,
    stranger::{Talk, close_code},
    within,
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn direct(text: &str) -> DirectAddress {
    DirectAddress {
        address: address(text),
        kind: AddressKind::Observed,
    }
}

/// A node that can be reached in all ways.
fn well_placed() -> Reach {
    Reach {
        direct: vec![direct("203.0.113.7:4433"), direct("[2001:db8::7]:4433")],
        bound: vec![BoundAt {
            relay: PeerId([7; 32]),
            addresses: vec![address("198.51.100.1:50000")],
        }],
        findable: true,
        load: None,
    }
}

/// Waits until the peer has said this.
async fn told(connection: &Connection, reach: &Reach) {
    within(async {
        while connection.reach().as_deref() != Some(reach) {
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

#[tokio::test]
async fn everybody_hears_how_a_node_can_be_reached() {
    let (alice, bob) = (endpoint(), endpoint());
    let (at_alice, at_bob) = connected(&bob, &alice).await;
    alice.set_reach(well_placed());
    // Those that are there, and those that come.
    told(&at_alice, &well_placed()).await;
    let carol = endpoint();
    let (late, _) = connected(&carol, &alice).await;
    told(&late, &well_placed()).await;
    // What changes replaces what was; the other side has said nothing.
    let hidden = Reach::default();
    alice.set_reach(hidden.clone());
    told(&at_alice, &hidden).await;
    assert_eq!(at_bob.reach(), None);
    let changed = |event| match event {
        Event::Reach { connection } => Some(connection.peer_id()),
        _ => None,
    };
    let peer = event(&bob, changed).await;
    assert_eq!(peer, alice.identity().peer_id());
}

/// Whoever connects is told right behind the hello, so that no path is taken for what it is not.
#[tokio::test]
async fn a_bound_address_shows_as_relayed_from_the_start() {
    let (alice, bob) = (endpoint(), endpoint());
    let relay = PeerId([9; 32]);
    let bound_at = |node: &Endpoint| Reach {
        bound: vec![BoundAt {
            relay,
            addresses: vec![node.local_addr()],
        }],
        ..Reach::default()
    };
    alice.set_reach(bound_at(&alice));
    bob.set_reach(bound_at(&bob));
    let (dialed, accepted) = connected(&alice, &bob).await;
    for end in [&dialed, &accepted] {
        assert_eq!(end.paths()[0].method, "relayed");
        assert_eq!(end.paths()[0].via, Some(relay));
        assert_eq!(end.first_path().unwrap().method, "relayed");
        assert!(!end.paths()[0].tunnelled);
    }
    // The peer gives the address up, or its tunnel is down for a moment: what still comes that way
    // is relayed as before.
    alice.set_reach(Reach::default());
    told(&accepted, &Reach::default()).await;
    assert_eq!(accepted.paths()[0].method, "relayed");
    assert_eq!(accepted.paths()[0].via, Some(relay));
    // Nor is it told to others as where the peer is.
    let carol = endpoint();
    let (asking, _) = connected(&carol, &bob).await;
    alice.set_reach(Reach {
        findable: true,
        load: None,
        ..Reach::default()
    });
    let found = within(async {
        loop {
            match asking.find(alice.identity().peer_id()).await {
                Ok(found) => break found,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    assert_eq!(found.await.observed, []);
    // And a dial may know better.
    let carol = endpoint();
    let hint = RelayHint {
        relayed: true,
        via: Some(relay),
    };
    let made = alice.dial_hinted(carol.local_addr(), None, LONG, hint);
    let made = within(made).await.unwrap().connection;
    assert_eq!(
        (made.paths()[0].method, made.paths()[0].via),
        ("relayed", Some(relay))
    );
}

#[tokio::test]
async fn a_node_is_found_through_a_common_peer() {
    let (alice, relay, bob) = (endpoint(), endpoint(), endpoint());
    let (to_relay, _) = connected(&alice, &relay).await;
    let (_, bob_at_relay) = connected(&bob, &relay).await;
    let wanted = bob.identity().peer_id();

    assert_eq!(
        within(to_relay.find(PeerId([1; 32]))).await,
        Err(FindError::Unknown)
    );
    // Who has not said that it may be found is not.
    assert_eq!(
        within(to_relay.find(wanted)).await,
        Err(FindError::NotFindable)
    );
    bob.set_reach(Reach {
        findable: false,
        load: None,
        ..well_placed()
    });
    told(
        &bob_at_relay,
        &Reach {
            findable: false,
            load: None,
            ..well_placed()
        },
    )
    .await;
    assert_eq!(
        within(to_relay.find(wanted)).await,
        Err(FindError::NotFindable)
    );

    bob.set_reach(well_placed());
    told(&bob_at_relay, &well_placed()).await;
    let found = within(to_relay.find(wanted)).await.unwrap();
    assert_eq!(found.direct, well_placed().direct);
    assert_eq!(found.bound, well_placed().bound);
    assert_eq!(found.observed, [bob.local_addr()]);

    // And is told who looks for it, and from where.
    let sought = |event| match event {
        Event::Sought {
            connection,
            peer,
            addresses,
        } => Some((connection.peer_id(), peer, addresses)),
        _ => None,
    };
    let (by, who, from) = event(&bob, sought).await;
    assert_eq!(by, relay.identity().peer_id());
    assert_eq!(who, alice.identity().peer_id());
    assert_eq!(from, [alice.local_addr()]);
}

#[tokio::test]
async fn many_questions_at_once_are_answered_up_to_a_limit() {
    let (alice, relay) = (endpoint(), endpoint());
    let (to_relay, _) = connected(&alice, &relay).await;
    let asked: Vec<_> = (0..200u8)
        .map(|n| {
            let to_relay = to_relay.clone();
            tokio::spawn(async move { to_relay.find(PeerId([n; 32])).await })
        })
        .collect();
    let (mut unknown, mut limited) = (0, 0);
    for answer in asked {
        match within(answer).await.unwrap() {
            Err(FindError::Unknown) => unknown += 1,
            Err(FindError::Limit) => limited += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(unknown >= 64 && limited > 0, "{unknown} and {limited}");
    // It passes.
    within(async {
        while to_relay.find(PeerId([1; 32])).await == Err(FindError::Limit) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_question_ends_with_its_asker_and_with_its_connection() {
    let node = endpoint();
    let mut deaf = Talk::with(&node).await;
    let connection = within(node.accept()).await.unwrap();
    // Taken back before it is answered; the answer that comes then is of no interest.
    let gone = tokio::time::timeout(Duration::from_millis(50), connection.find(PeerId([1; 32])));
    assert!(gone.await.is_err());
    let Message::Find(find) = deaf.hear().await else {
        panic!("a question")
    };
    let late = anyreach_wire::control::Found::nothing(find.request, FindStatus::Unknown);
    deaf.say(&Message::Found(late.clone())).await;
    deaf.say(&Message::Found(late)).await;

    // More than may be asked at once wait for their turn, and all hear of the end.
    let asked: Vec<_> = (0..100u8)
        .map(|n| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.find(PeerId([n; 32])).await })
        })
        .collect();
    deaf.hear().await;
    deaf.send.finish().unwrap();
    for answer in asked {
        assert_eq!(within(answer).await.unwrap(), Err(FindError::Silent));
    }
    assert!(connection.close_reason().is_none());
    deaf.connection.close(7u32.into(), b"");
    within(connection.closed()).await;
    assert!(matches!(
        within(connection.find(PeerId([1; 32]))).await,
        Err(FindError::Closed(_))
    ));
}

#[tokio::test]
async fn a_peer_that_takes_nothing_costs_little_and_holds_up_nobody() {
    let node = endpoint();
    let mut greedy = Talk::with(&node).await;
    within(node.accept()).await.unwrap();
    let bob = endpoint();
    let (_, bob_at_node) = connected(&bob, &node).await;
    bob.set_reach(well_placed());
    told(&bob_at_node, &well_placed()).await;
    // Asks and asks, and is told of many; takes nothing.
    for request in 0..2_000 {
        let peer = bob.identity().peer_id().0;
        greedy.say(&Message::Find(Find { request, peer })).await;
    }
    for turn in 0..1_000u16 {
        let mut reach = well_placed();
        reach.direct[0].address.set_port(1 + turn);
        node.set_reach(reach);
    }
    // Others are served, and it gets the last word when it listens.
    let carol = endpoint();
    let (to_node, _) = connected(&carol, &node).await;
    assert!(within(to_node.find(bob.identity().peer_id())).await.is_ok());
    let (mut found, mut limited, mut reach) = (0, 0, None);
    while found + limited < 2_000 || last_port(&reach) != Some(1_000) {
        match greedy.hear().await {
            Message::Found(answer) if answer.status == FindStatus::Found => found += 1,
            Message::Found(answer) => {
                assert_eq!(answer.status, FindStatus::Limit);
                limited += 1;
            }
            Message::Reach(news) => reach = Some(news),
            other => panic!("{other:?}"),
        }
    }
    assert!(found >= 64 && limited > 1_000, "{found} and {limited}");
    assert!(node.connection(&bob.identity().peer_id()).is_some());
}

fn last_port(reach: &Option<WireReach>) -> Option<u16> {
    Some(reach.as_ref()?.direct.first()?.address.port())
}

#[tokio::test]
async fn floods_of_notices_are_told_in_bounds() {
    let node = endpoint();
    let mut loud = Talk::with(&node).await;
    let mut bytes = Vec::new();
    for n in 0..10_000u32 {
        let mut peer = [0; 32];
        peer[..4].copy_from_slice(&n.to_be_bytes());
        let observed = Vec::new();
        let sought = Message::Sought(Sought { peer, observed });
        bytes.extend(anyreach_wire::control::encode(&sought));
        let findable = n % 2 == 0;
        let reach = WireReach {
            findable,
            load: None,
            ..WireReach::default()
        };
        bytes.extend(anyreach_wire::control::encode(&Message::Reach(reach)));
    }
    loud.say_bytes(&bytes).await;
    // The last one arrives, after all others were taken in.
    let last = WireReach {
        direct: vec![anyreach_wire::control::DirectAddress {
            address: address("192.0.2.1:9").into(),
            kind: AddressKind::Interface,
        }],
        ..WireReach::default()
    };
    loud.say(&Message::Reach(last)).await;
    let connection = within(node.accept()).await.unwrap();
    within(async {
        while connection
            .reach()
            .is_none_or(|reach| reach.direct.is_empty())
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let events = within(node.events()).await.unwrap();
    let sought = events
        .iter()
        .filter(|event| matches!(event, Event::Sought { .. }));
    assert!(sought.count() <= 256);
    let reach = events
        .iter()
        .filter(|event| matches!(event, Event::Reach { .. }));
    assert!(reach.count() <= 1);
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_connection_and_nothing_else() {
    let node = endpoint();
    let crowd = [0xa2, 0, 3, 6, 0x98, MAX_DIRECT_ADDRESSES as u8 + 1];
    let bad: [&[u8]; 4] = [
        &[&[crowd.len() as u8][..], &crowd].concat(),
        &[5, 0xa2, 0, 3, 8, 1],
        &[3, 0xa1, 0, 4],
        &[4, 0xa2, 0, 5, 9],
    ];
    for bytes in bad {
        let mut talk = Talk::with(&node).await;
        talk.say_bytes(bytes).await;
        let code = close_code(&talk.connection).await;
        assert_eq!(
            code,
            u64::from(anyreach_quic::code::BAD_HELLO),
            "{bytes:02x?}"
        );
    }
    let guest = endpoint();
    connected(&guest, &node).await;
}

/// Addresses no host can have are not passed on, in either direction.
#[tokio::test]
async fn impossible_addresses_are_left_out() {
    let (alice, bob) = (endpoint(), endpoint());
    let synthetic = anyreach_net::SyntheticAddr::new(1, 2).socket_addr();
    let mut reach = well_placed();
    for impossible in ["0.0.0.0:1", "224.0.0.1:1", "192.0.2.1:0"] {
        reach.direct.push(direct(impossible));
    }
    reach.direct.push(DirectAddress {
        address: synthetic,
        kind: AddressKind::Interface,
    });
    reach.bound[0].addresses.push(synthetic);
    reach.direct.push(direct("[::ffff:192.0.2.9]:1"));
    alice.set_reach(reach);
    let (at_bob, _) = connected(&bob, &alice).await;
    let mut expected = well_placed();
    expected.direct.push(direct("192.0.2.9:1"));
    told(&at_bob, &expected).await;

    let mut liar = Talk::with(&bob).await;
    let lie = WireReach {
        direct: vec![anyreach_wire::control::DirectAddress {
            address: synthetic.into(),
            kind: AddressKind::Interface,
        }],
        findable: true,
        load: None,
        ..WireReach::default()
    };
    liar.say(&Message::Reach(lie)).await;
    let heard = within(bob.accept()).await.unwrap();
    let expected = Arc::new(Reach {
        findable: true,
        load: None,
        ..Reach::default()
    });
    told(&heard, &expected).await;
}
