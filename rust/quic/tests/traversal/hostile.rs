//! Peers that break the rules of NAT traversal, or make the most of them.

use std::{net::SocketAddr, time::Duration};

use anyreach_quic::Connection;
use anyreach_wire::{transport_parameters::NAT_TRAVERSAL, varint::VarInt};
use noq_proto::TransportErrorCode;
use proptest::prelude::*;

use super::{
    add, encoded,
    lab::{Bystander, End, forge, stat, until},
    nowhere, punch, remove, transfer,
};
use crate::common::{LONG, within};

/// Frames in the wrong direction, without negotiation, or of the engine's dialect.
#[tokio::test]
async fn misbehaviour_ends_the_connection() {
    let address = nowhere(1, 4433);
    let add = encoded(add(1, address));
    let remove = encoded(remove(1));
    let punch = encoded(punch(1, 1, address));
    let mut dialect = add.clone();
    dialect[2] = 0x7f;
    // Refused is not the same as forgiven.
    let refused = encoded(super::add(1, "127.0.0.1:53".parse().unwrap()));

    let violation = TransportErrorCode::PROTOCOL_VIOLATION;
    let unknown = TransportErrorCode::FRAME_ENCODING_ERROR;
    let (from_client, from_server) = (true, false);
    for (case, negotiated, forger, frame, code) in [
        ("server, ADD_ADDRESS", true, from_client, &add, violation),
        ("server, refused", true, from_client, &refused, violation),
        (
            "server, REMOVE_ADDRESS",
            true,
            from_client,
            &remove,
            violation,
        ),
        ("client, PUNCH_ME_NOW", true, from_server, &punch, violation),
        ("no ADD_ADDRESS agreed", false, from_server, &add, violation),
        ("no refused agreed", false, from_server, &refused, violation),
        (
            "no REMOVE_ADDRESS agreed",
            false,
            from_server,
            &remove,
            violation,
        ),
        (
            "no PUNCH_ME_NOW agreed",
            false,
            from_client,
            &punch,
            violation,
        ),
        ("dialect", true, from_server, &dialect, unknown),
        ("dialect, not agreed", false, from_server, &dialect, unknown),
    ] {
        let a = End::with(move |config| config.nat_traversal = negotiated, |_| ());
        let b = End::new();
        let (client, server) = a.connect(&b, b.address()).await;
        let (forger, victim) = match forger {
            true => (client, server),
            false => (server, client),
        };
        forge(&forger, frame);
        let reason = within(victim.closed()).await;
        assert_eq!(
            (reason.kind, reason.code),
            ("transport", code.into()),
            "{case}"
        );
    }
}

#[tokio::test]
async fn illegal_parameters_end_the_handshake() {
    let spoilt = |value: &'static [u8]| {
        End::with(
            |_| (),
            move |parameters| {
                let done = parameters.rewrite(NAT_TRAVERSAL, NAT_TRAVERSAL, value.to_vec());
                assert_eq!(done, Ok(true));
            },
        )
    };
    for value in [&[0][..], &[8], &[0x40, 8]] {
        let (a, b) = (spoilt(value), End::new());
        // The engine does not tell a client whose hello was refused with its second packet.
        let patience = Duration::from_secs(1);
        let dial = a.node.dial(b.address(), None, patience);
        assert!(within(dial).await.is_err());
        let refused = ("rejected_handshake", 1);
        until(|| b.node.counters().contains(&refused)).await;
    }
    for value in [&[][..], &[0], &[8, 8], &[0x40]] {
        let (a, b) = (End::new(), spoilt(value));
        let error = within(a.node.dial(b.address(), None, LONG))
            .await
            .unwrap_err();
        assert!(error.detail.contains("transport parameter"), "{error:?}");
    }
    // A server may allow more and less than we do.
    for (value, told) in [(&[2][..], 2), (&[0x7f, 0xff], 32)] {
        let (a, b) = (End::new(), spoilt(value));
        let (client, _server) = a.connect(&b, b.address()).await;
        let ours: Vec<SocketAddr> = (1..=40).map(|host| nowhere(host, 4433)).collect();
        client.set_candidates(&ours);
        let told_now = client.engine().get_local_nat_traversal_addresses();
        assert_eq!(told_now.unwrap().len(), told);
    }
}

#[tokio::test]
async fn a_server_that_offers_too_much_is_cut_short() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    for number in 0..40 {
        forge(&server, &encoded(add(number, nowhere(number as u8, 4433))));
    }
    assert_eq!(transfer(&server, &client, 1000).await, 1000);
    assert_eq!(client.peer_candidates().len(), 32);
    assert_eq!(stat(&client, "refused_limit"), 8);
}

#[tokio::test]
async fn a_client_that_asks_for_more_than_allowed_breaks_the_protocol() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let frames: Vec<u8> = (1..=33)
        .flat_map(|host| encoded(punch(1, 0, nowhere(host, 4433))))
        .collect();
    forge(&client, &frames);
    let reason = within(server.closed()).await;
    let violation = TransportErrorCode::PROTOCOL_VIOLATION;
    assert_eq!((reason.kind, reason.code), ("transport", violation.into()));
}

#[tokio::test]
async fn refused_addresses_are_left_alone_and_counted() {
    let (a, b) = (End::new(), End::new());
    b.node.set_near([]);
    let (client, server) = a.connect(&b, b.address()).await;
    let bystander = Bystander::new().await;
    let addresses = [
        bystander.address(1),
        "10.0.0.1:4433".parse().unwrap(),
        "169.254.169.254:4433".parse().unwrap(),
        "[fe80::1]:4433".parse().unwrap(),
        "203.0.113.1:53".parse().unwrap(),
    ];
    let frames: Vec<u8> = addresses
        .iter()
        .flat_map(|address| encoded(punch(1, 0, *address)))
        .collect();
    forge(&client, &frames);
    assert_eq!(transfer(&client, &server, 1000).await, 1000);
    assert_eq!(stat(&server, "refused_scope"), 3);
    assert_eq!(stat(&server, "refused_private"), 1);
    assert_eq!(stat(&server, "refused_port"), 1);
    assert_eq!(
        (stat(&server, "rounds"), stat(&server, "probes_sent")),
        (0, 0)
    );
    assert_eq!(bystander.bytes(), 0);
}

/// What `connection` has sent, in bytes.
fn sent(connection: &Connection) -> u64 {
    connection.stats().udp_tx.bytes
}

/// As many rounds as it likes, of as many addresses as it likes.
#[tokio::test]
async fn a_client_makes_a_server_send_no_more_than_three_times_what_it_sends_itself() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let bystander = Bystander::new().await;
    let until_then = tokio::time::Instant::now() + Duration::from_secs(4);
    let mut round = 0;
    while tokio::time::Instant::now() < until_then {
        round += 1;
        let frames: Vec<u8> = (1..=32)
            .flat_map(|host| encoded(punch(round, 0, bystander.address(host))))
            .collect();
        forge(&client, &frames);
        // Counted while it goes on, so that at no time it is more.
        assert!(bystander.bytes() <= 3 * sent(&client));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let rounds = stat(&server, "rounds");
    assert!((3..=7).contains(&rounds), "{rounds} rounds in four seconds");
    assert!(stat(&server, "refused_pace") > 0 && stat(&server, "budget_refused") > 0);
    assert!(bystander.bytes() > 0 && bystander.bytes() <= 3 * sent(&client));
    assert_eq!(server.close_reason(), None);
}

/// Nor the other way round: it is the client that probes, but the server that says where.
#[tokio::test]
async fn a_server_makes_a_client_send_no_more_than_three_times_what_it_sends_itself() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let bystander = Bystander::new().await;
    let victims: Vec<SocketAddr> = (1..=32).map(|host| bystander.address(host)).collect();
    server.set_candidates(&victims);
    until(|| client.peer_candidates().len() == 32).await;
    client.set_candidates(&[nowhere(1, 4433)]);
    let until_then = tokio::time::Instant::now() + Duration::from_secs(4);
    while tokio::time::Instant::now() < until_then {
        if let Err(error) = client.start_round(&[]) {
            assert_eq!(error.reason, "limit");
        }
        assert!(bystander.bytes() <= 3 * sent(&server));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stat(&client, "budget_refused") > 0 && bystander.bytes() > 0);
    assert_eq!(client.close_reason(), None);
}

/// Frames of all kinds, whole and damaged.
fn any_frames() -> impl Strategy<Value = Vec<u8>> {
    let frame_type = prop_oneof![
        0_u64..0x40,
        Just(0xaf),
        0x3e74_u64..0x3e7e,
        0x3d_7e8f_u64..0x3d_7e96,
        0x3d_7f8f_u64..0x3d_7f96,
        0x9f_81a5_u64..0x9f_81a9,
    ];
    let encoded_type = (frame_type, any::<bool>()).prop_map(|(frame_type, shortest)| {
        let mut out = Vec::new();
        VarInt::try_from(frame_type).unwrap().encode(&mut out);
        if !shortest {
            out = (frame_type | 0b11 << 62).to_be_bytes().to_vec();
        }
        out
    });
    let contents = prop::collection::vec(prop_oneof![0_u8..8, any::<u8>()], 0..40);
    let frame = (encoded_type, contents).prop_map(|(start, contents)| [start, contents].concat());
    prop::collection::vec(frame, 1..3).prop_map(|frames| frames.concat())
}

/// What the walker cannot walk is left alone, so an engine that can read it would get frames of the
/// peer untranslated.
#[test]
fn what_the_walker_refuses_the_engine_refuses() {
    let mut config = ProptestConfig::default();
    // A connection each.
    config.cases /= 4;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    proptest!(config, |(frames in any_frames(), by_client: bool)| {
        runtime.block_on(async {
            let (a, b) = (End::new(), End::new());
            let (client, server) = a.connect(&b, b.address()).await;
            let (forger, end, victim) = match by_client {
                true => (client, &a, server),
                false => (server, &b, client),
            };
            forge(&forger, &frames);
            if !end.forgery_walked().await {
                let reason = within(victim.closed()).await;
                assert_eq!(reason.kind, "transport", "{reason:?}");
            }
        });
    });
}
