//! NAT traversal with the frames of draft-seemann-quic-nat-traversal-02 on an unmodified engine
//! that speaks a dialect of them: a translating layer at the packet-protection boundary, against
//! the engine itself.
//!
//! What these tests show: only the draft's frames and parameters leave either end; addresses and
//! punches reach the peer's engine, under loss too; a round ends with a new path through two
//! firewalls, and data moves to it. What they do not: real NATs, other implementations of the
//! draft, the cost per packet, and behaviour under congestion. The layer here is the proof, written to
//! be read; one for daily use needs the path's round-trip time for its resend timer and no
//! allocation for packets without extension frames.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

#[path = "translating_layer/lab.rs"]
mod lab;
#[path = "translating_layer/layer.rs"]
mod layer;

use std::{collections::BTreeSet, net::SocketAddr};

use anyreach_quic::PacketTap;
use anyreach_wire::{
    address::Address,
    frames::{AddAddress, Frame, PunchMeNow, RemoveAddress},
    transport_parameters::{ADDRESS_DISCOVERY, NAT_TRAVERSAL, Parameters},
    varint::VarInt,
};
use bytes::BytesMut;
use lab::{ADDRESSES, End, Relay, forge, identifiers, next, until, within};
use layer::{ENGINE_PARAMETER, ENGINE_TYPES, Layer};
use noq::{ConnectionError, PathEvent, PathId, PathStatus};
use noq_proto::{Side, TransportErrorCode, n0_nat_traversal};
use proptest::prelude::*;

const ADD_ADDRESS: u64 = 0x3d_7e90;
const PUNCH_ME_NOW: u64 = 0x3d_7e92;
const REMOVE_ADDRESS: u64 = 0x3d_7e94;
const OBSERVED_ADDRESS: u64 = 0x9f_81a6;

/// An address nobody answers at.
fn nowhere(host: u8, port: u16) -> SocketAddr {
    ([127, 9, 9, host], port).into()
}

fn sorted(addresses: impl IntoIterator<Item = SocketAddr>) -> BTreeSet<SocketAddr> {
    addresses.into_iter().collect()
}

/// What the client's engine believes the server advertises.
fn advertised(client: &noq::Connection) -> BTreeSet<SocketAddr> {
    sorted(client.get_remote_nat_traversal_addresses().unwrap())
}

fn encoded(frame: Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

/// Sends `amount` bytes from one end and returns how many arrived unchanged at the other.
async fn transfer(from: &noq::Connection, to: &noq::Connection, amount: usize) -> usize {
    let sending = async {
        let mut stream = from.open_uni().await.unwrap();
        let data: Vec<u8> = (0..amount).map(|at| (at % 251) as u8).collect();
        stream.write_all(&data).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receiving = async {
        let data = to
            .accept_uni()
            .await
            .unwrap()
            .read_to_end(amount)
            .await
            .unwrap();
        assert!(
            data.iter()
                .enumerate()
                .all(|(at, byte)| *byte == (at % 251) as u8)
        );
        data.len()
    };
    within(async { tokio::join!(sending, receiving) }).await.1
}

#[tokio::test]
async fn a_round_ends_with_a_direct_path_and_only_draft_frames_on_the_wire() {
    let (a, b) = (End::new(true).await, End::new(true).await);
    let relay = Relay::to(b.address).await;
    a.line.raise_firewall();
    let (client, server) = a.connect(&b, relay.address).await;
    b.line.raise_firewall();
    let mut updates = client.nat_traversal_updates();
    let mut paths = client.path_events();

    server.add_nat_traversal_address(b.address).unwrap();
    let n0_nat_traversal::Event::AddressAdded(added) = next(&mut updates).await.unwrap() else {
        panic!("nothing was removed")
    };
    assert_eq!(added, b.address);
    client.add_nat_traversal_address(a.address).unwrap();
    assert_eq!(client.initiate_nat_traversal_round().unwrap(), [b.address]);

    let direct = loop {
        if let PathEvent::Established { id, .. } = next(&mut paths).await.unwrap() {
            break client.path(id).unwrap();
        }
    };
    assert_ne!(direct.id(), PathId::ZERO);
    assert_eq!(direct.remote_address().unwrap(), b.address);
    // Only the PUNCH_ME_NOW can have told the server where to probe: its firewall let nothing of
    // the client's own probes through before it had sent something there itself.
    assert!(b.line.contacted(a.address));

    // Data moves over without a reconnect: nothing of it goes through the relay.
    direct.set_status(PathStatus::Available).unwrap();
    client.path(PathId::ZERO).unwrap().close().unwrap();
    let relayed = relay.bytes();
    assert_eq!(transfer(&client, &server, 1 << 20).await, 1 << 20);
    assert_eq!(transfer(&server, &client, 1 << 20).await, 1 << 20);
    assert!(relay.bytes() - relayed < 1 << 18, "the relay carried data");

    // Inside, the engines spoke their dialect; outside, nobody did.
    a.log(|log| assert!(log.from_engine.contains(&0x3d_7f92)));
    b.log(|log| assert!(log.from_engine.contains(&0x3d_7f90)));
    a.log(|log| assert!(log.sent.contains(&PUNCH_ME_NOW) && log.received.contains(&ADD_ADDRESS)));
    b.log(|log| assert!(log.sent.contains(&ADD_ADDRESS) && log.received.contains(&PUNCH_ME_NOW)));
    b.log(|log| assert!(log.to_engine.contains(&0x3d_7f92)));
    for end in [&a, &b] {
        end.log(|log| {
            assert!(log.sent.contains(&OBSERVED_ADDRESS));
            for dialect in ENGINE_TYPES {
                assert!(!log.sent.contains(&dialect) && !log.received.contains(&dialect));
            }
            assert_eq!(log.carriers_leaked, 0);
        });
    }
    let punch = Frame::PunchMeNow(PunchMeNow {
        round: VarInt::from_u32(1),
        paired_with: VarInt::from_u32(0),
        address: a.address.into(),
    });
    b.log(|log| assert!(log.frames_received.contains(&punch)));
}

#[tokio::test]
async fn the_parameters_on_the_wire_are_those_of_the_drafts() {
    let (a, b) = (End::new(true).await, End::new(true).await);
    a.connect(&b, b.address).await;
    for end in [&a, &b] {
        end.log(|log| {
            for wire in [&log.parameters_sent, &log.parameters_received] {
                let ids = identifiers(wire);
                assert!(ids.contains(&NAT_TRAVERSAL) && ids.contains(&ADDRESS_DISCOVERY));
                assert!(!ids.contains(&ENGINE_PARAMETER));
            }
            let ids = identifiers(&log.parameters_to_engine);
            assert!(ids.contains(&ENGINE_PARAMETER) && !ids.contains(&NAT_TRAVERSAL));
        });
    }
    let nat_traversal = |block: &[u8]| {
        Parameters::parse(block)
            .unwrap()
            .get(NAT_TRAVERSAL)
            .map(<[u8]>::to_vec)
    };
    a.log(|log| assert_eq!(nat_traversal(&log.parameters_sent), Some(vec![])));
    b.log(|log| assert_eq!(nat_traversal(&log.parameters_sent), Some(vec![ADDRESSES])));
}

#[tokio::test]
async fn without_the_parameter_of_both_ends_nothing_is_negotiated() {
    for (client_has, server_has) in [(true, false), (false, true)] {
        let (a, b) = (End::new(client_has).await, End::new(server_has).await);
        let (client, server) = a.connect(&b, b.address).await;
        for result in [
            client.add_nat_traversal_address(a.address),
            server.add_nat_traversal_address(b.address),
        ] {
            assert!(matches!(
                result,
                Err(n0_nat_traversal::Error::ExtensionNotNegotiated)
            ));
        }
    }
}

#[tokio::test]
async fn addresses_come_and_go() {
    let (a, b) = (End::new(true).await, End::new(true).await);
    let (client, server) = a.connect(&b, b.address).await;
    let v6 = "[2001:db8::1]:4433".parse().unwrap();
    let all = [nowhere(1, 1), nowhere(2, 2), v6];
    for address in all {
        server.add_nat_traversal_address(address).unwrap();
    }
    until(|| advertised(&client) == sorted(all)).await;
    server.remove_nat_traversal_address(nowhere(1, 1)).unwrap();
    server.remove_nat_traversal_address(v6).unwrap();
    until(|| advertised(&client) == sorted([nowhere(2, 2)])).await;
    a.log(|log| {
        for frame_type in [ADD_ADDRESS, ADD_ADDRESS + 1, REMOVE_ADDRESS] {
            assert!(log.received.contains(&frame_type), "{frame_type:#x}");
        }
    });
    assert!(client.close_reason().is_none() && server.close_reason().is_none());
}

/// The engine keeps what it hears last, so an ADD_ADDRESS overtaken by its REMOVE_ADDRESS, or sent
/// again by mistake, would leave a dead address behind for good.
#[tokio::test]
async fn a_late_advertisement_does_not_bring_an_address_back() {
    let (a, b) = (End::new(true).await, End::new(true).await);
    let (client, server) = a.connect(&b, b.address).await;
    let sequence = VarInt::from_u32(40);
    let late = AddAddress {
        sequence,
        address: nowhere(1, 1).into(),
    };
    forge(
        &server,
        &encoded(Frame::RemoveAddress(RemoveAddress { sequence })),
    );
    until(|| a.log(|log| log.received.contains(&REMOVE_ADDRESS))).await;
    forge(&server, &encoded(Frame::AddAddress(late)));
    server.add_nat_traversal_address(nowhere(2, 2)).unwrap();
    until(|| !advertised(&client).is_empty()).await;
    until(|| a.log(|log| log.frames_received.contains(&Frame::AddAddress(late)))).await;
    // What was sent after it has been read, so it has been read as well.
    assert_eq!(transfer(&server, &client, 1).await, 1);
    assert_eq!(advertised(&client), sorted([nowhere(2, 2)]));
}

/// 200 frames each way at 5 % loss, with 10 % of the datagrams arriving twice and key updates:
/// about ten are lost each way, and all arrive.
#[tokio::test]
async fn frames_survive_loss() {
    const ROUNDS: u32 = 200;
    let (a, b) = (End::new(true).await, End::new(true).await);
    let relay = Relay::to(b.address).await;
    let (client, server) = a.connect(&b, relay.address).await;
    a.line.disturb(5, 10);
    b.line.disturb(5, 10);
    let bulk = tokio::spawn({
        let (client, server) = (client.clone(), server.clone());
        async move {
            loop {
                transfer(&server, &client, 1 << 16).await;
            }
        }
    });

    for round in 1..=ROUNDS {
        let (ours, theirs) = (nowhere(1, round as u16), nowhere(2, round as u16));
        server.add_nat_traversal_address(theirs).unwrap();
        until(|| advertised(&client) == sorted([theirs])).await;
        client.add_nat_traversal_address(ours).unwrap();
        client.initiate_nat_traversal_round().unwrap();
        let arrived = |frame: &Frame| {
            matches!(frame, Frame::PunchMeNow(punch)
                if punch.round == VarInt::from_u32(round)
                    && punch.paired_with == VarInt::from_u32(round - 1)
                    && punch.address == ours.into())
        };
        until(|| b.log(|log| log.frames_received.iter().any(arrived))).await;
        // Arrived is not delivered: the layer stops at the acknowledgement.
        until(|| a.layer().in_flight() == 0).await;
        client.remove_nat_traversal_address(ours).unwrap();
        server.remove_nat_traversal_address(theirs).unwrap();
        until(|| advertised(&client).is_empty()).await;
        if round % 50 == 0 {
            client.force_key_update();
        }
    }
    bulk.abort();
    assert!(
        a.layer().resent() > 0,
        "no carrier was lost: nothing was tested"
    );
    assert!(client.close_reason().is_none() && server.close_reason().is_none());
    for end in [&a, &b] {
        end.log(|log| assert_eq!(log.carriers_leaked, 0));
    }
}

/// Frames in the wrong direction, without negotiation, or of the engine's dialect.
#[tokio::test]
async fn misbehaviour_ends_the_connection() {
    let address = Address::from(nowhere(1, 1));
    let sequence = VarInt::from_u32(1);
    let add = encoded(Frame::AddAddress(AddAddress { sequence, address }));
    let remove = encoded(Frame::RemoveAddress(RemoveAddress { sequence }));
    let punch = encoded(Frame::PunchMeNow(PunchMeNow {
        round: sequence,
        paired_with: sequence,
        address,
    }));
    let mut dialect = add.clone();
    dialect[2] = 0x7f;

    let violation = TransportErrorCode::PROTOCOL_VIOLATION;
    let unknown = TransportErrorCode::FRAME_ENCODING_ERROR;
    let cases = [
        (
            "server gets ADD_ADDRESS",
            true,
            Side::Client,
            &add,
            violation,
        ),
        (
            "server gets REMOVE_ADDRESS",
            true,
            Side::Client,
            &remove,
            violation,
        ),
        (
            "client gets PUNCH_ME_NOW",
            true,
            Side::Server,
            &punch,
            violation,
        ),
        (
            "not negotiated, ADD_ADDRESS",
            false,
            Side::Server,
            &add,
            violation,
        ),
        (
            "not negotiated, PUNCH_ME_NOW",
            false,
            Side::Client,
            &punch,
            violation,
        ),
        (
            "the engine's dialect",
            true,
            Side::Server,
            &dialect,
            unknown,
        ),
    ];
    for (case, negotiated, forger, frame, code) in cases {
        let (a, b) = (End::new(negotiated).await, End::new(true).await);
        let (client, server) = a.connect(&b, b.address).await;
        let (forger, victim) = match forger {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        forge(&forger, frame);
        match within(victim.closed()).await {
            ConnectionError::TransportError(error) => assert_eq!(error.code, code, "{case}"),
            other => panic!("{case}: {other:?}"),
        }
    }
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

/// The layer leaves alone what the walker cannot walk, so an engine that can read it would get
/// frames of the peer untranslated.
#[test]
fn what_the_walker_refuses_the_engine_refuses() {
    let mut config = ProptestConfig::default();
    // A connection each.
    config.cases /= 4;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    proptest!(config, |(frames in any_frames())| {
        runtime.block_on(async {
            let (a, b) = (End::new(true).await, End::new(true).await);
            let (client, server) = a.connect(&b, b.address).await;
            forge(&client, &frames);
            if !a.forgery_walked().await {
                let error = within(server.closed()).await;
                assert!(matches!(error, ConnectionError::TransportError(_)), "{error:?}");
            }
        });
    });
}

/// The layer alone, where the engine is not needed to see what it does.
mod alone {
    use super::*;

    fn opened(layer: &Layer, payload: &[u8]) -> Vec<u8> {
        let mut payload = BytesMut::from(payload);
        layer.opened(PathId::ZERO, 0, &mut payload);
        payload.to_vec()
    }

    #[test]
    fn what_cannot_be_walked_is_left_alone() {
        let layer = Layer::new(Side::Client);
        let add = encoded(Frame::AddAddress(AddAddress {
            sequence: VarInt::from_u32(1),
            address: nowhere(1, 1).into(),
        }));
        for end in [&[0x02, 0x40][..], &[0x40, 0x40], &add[..add.len() - 1]] {
            let payload = [&add[..], end].concat();
            assert_eq!(opened(&layer, &payload), payload);
        }
        assert_ne!(opened(&layer, &add), add);
    }

    #[test]
    fn a_punch_shrinks_in_place() {
        let punch = encoded(Frame::PunchMeNow(PunchMeNow {
            round: VarInt::from_u32(300),
            paired_with: VarInt::from_u32(70_000),
            address: nowhere(7, 0x1234).into(),
        }));
        let payload = [&[0x01][..], &punch, &[0x1e]].concat();
        let layer = Layer::new(Side::Server);
        assert_eq!(
            opened(&layer, &payload),
            [
                0x01, 0x80, 0x3d, 0x7f, 0x92, 0x41, 0x2c, 127, 9, 9, 7, 0x12, 0x34, 0, 0, 0, 0,
                0x1e
            ]
        );
    }

    #[test]
    fn a_packet_still_elicits_its_acknowledgement() {
        let layer = Layer::new(Side::Client);
        let reach_out = [0x80, 0x3d, 0x7f, 0x92, 1, 127, 9, 9, 7, 0x12, 0x34];
        let blank = [0; 11];
        let alone = [&[0x02, 5, 0, 0, 0][..], &reach_out, &[0; 3]].concat();
        let mut payload = alone.clone();
        layer.sealing(PathId::ZERO, 1, &mut payload);
        assert_eq!(payload[5..], [&[0x01][..], &blank[1..], &[0; 3]].concat());

        // A PATH_CHALLENGE elicits one already; a PING would have the peer take the probe for
        // the path to migrate to.
        let probe = [&[0x1a, 1, 2, 3, 4, 5, 6, 7, 8][..], &reach_out].concat();
        let mut payload = probe.clone();
        layer.sealing(PathId::ZERO, 2, &mut payload);
        assert_eq!(payload, [&probe[..9], &blank].concat());
    }

    /// A DATAGRAM frame around a carrier.
    fn carrier(layer: &Layer) -> Vec<u8> {
        let data = layer.carrier();
        [&[0x31, data.len() as u8][..], &data].concat()
    }

    #[test]
    fn a_carrier_takes_the_frame_once_and_is_blank_otherwise() {
        let layer = Layer::new(Side::Client);
        let reach_out = [0x80, 0x3d, 0x7f, 0x92, 1, 127, 9, 9, 7, 0x12, 0x34];
        for packet in 1..3 {
            // The second time the engine repeats what it believes lost.
            layer.sealing(PathId::ZERO, packet, &mut reach_out.clone());
        }
        let mut payload = [carrier(&layer), carrier(&layer)].concat();
        layer.sealing(PathId::ZERO, 3, &mut payload);
        let punch = encoded(Frame::PunchMeNow(PunchMeNow {
            round: VarInt::from_u32(1),
            paired_with: VarInt::from_u32(0),
            address: nowhere(7, 0x1234).into(),
        }));
        assert!(payload.starts_with(&punch));
        assert!(payload[punch.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(layer.in_flight(), 1);
        let mut payload = carrier(&layer);
        layer.sealing(PathId::ZERO, 4, &mut payload);
        assert!(payload[0] == 0x01 && payload[1..].iter().all(|byte| *byte == 0));

        // Acknowledged on another path it is still under way; then it is lost, and sent again.
        opened(&layer, &[0x3e, 1, 9, 0, 0, 0]);
        assert_eq!((layer.in_flight(), layer.resent()), (1, 0));
        opened(&layer, &[0x02, 6, 0, 0, 0]);
        assert_eq!((layer.in_flight(), layer.resent()), (1, 1));
        let mut payload = carrier(&layer);
        layer.sealing(PathId::ZERO, 7, &mut payload);
        assert!(payload.starts_with(&punch));
        opened(&layer, &[0x02, 7, 0, 0, 0]);
        assert_eq!((layer.in_flight(), layer.resent()), (0, 1));
    }

    #[test]
    fn a_replay_teaches_nothing() {
        let layer = Layer::new(Side::Client);
        let add = |sequence| {
            let (sequence, address) = (VarInt::from_u32(sequence), nowhere(1, 1).into());
            encoded(Frame::AddAddress(AddAddress { sequence, address }))
        };
        let sequence = VarInt::from_u32(5);
        let remove = encoded(Frame::RemoveAddress(RemoveAddress { sequence }));
        for payload in [add(5), add(6), add(6), remove.clone(), add(5), remove] {
            opened(&layer, &payload);
        }
        let reach_out = [0x80, 0x3d, 0x7f, 0x92, 1, 127, 9, 9, 7, 0x12, 0x34];
        layer.sealing(PathId::ZERO, 1, &mut reach_out.clone());
        let mut payload = carrier(&layer);
        layer.sealing(PathId::ZERO, 2, &mut payload);
        let Ok(Frame::PunchMeNow(punch)) = Frame::decode(&mut &payload[..]) else {
            panic!("carried")
        };
        assert_eq!(punch.paired_with, VarInt::from_u32(6));
    }

    proptest! {
        /// Whatever a peer sends is translated in place or left alone, and nothing of it panics.
        #[test]
        fn arbitrary_payloads(
            parts in prop::collection::vec(prop_oneof![
                Just(vec![0x80, 0x3d, 0x7e, 0x90]), Just(vec![0x80, 0x3d, 0x7e, 0x92]),
                Just(vec![0x80, 0x3d, 0x7e, 0x93]), Just(vec![0x80, 0x3d, 0x7f, 0x92]),
                Just(vec![0xc0, 0, 0, 0, 0, 0x3d, 0x7f, 0x94, 1]), Just(vec![0x02, 9, 0, 0]),
                prop::collection::vec(any::<u8>(), 0..24),
            ], 0..12),
            side in prop_oneof![Just(Side::Client), Just(Side::Server)],
        ) {
            let payload = parts.concat();
            let layer = Layer::new(side);
            prop_assert_eq!(opened(&layer, &payload).len(), payload.len());
        }
    }

    #[test]
    fn illegal_parameters_are_refused() {
        let block = |value: &[u8]| {
            let mut parameters = Parameters::default();
            parameters.insert(NAT_TRAVERSAL, value.to_vec()).unwrap();
            parameters.encode()
        };
        let refused = |side, mut encoded: Vec<u8>| {
            Layer::new(side).incoming_parameters(&mut encoded).is_err()
        };
        assert!(!refused(Side::Server, block(&[])));
        assert!(refused(Side::Server, block(&[8])));
        assert!(!refused(Side::Client, block(&[8])));
        assert!(refused(Side::Client, block(&[])));
        assert!(refused(Side::Client, block(&[0])));
        assert!(refused(Side::Client, [block(&[8]), block(&[8])].concat()));
    }
}
