//! NAT traversal between two nodes, with the frames of draft-seemann-quic-nat-traversal-02 on an
//! unmodified engine that speaks a dialect of them.
//!
//! What these tests show: only the draft's frames and parameters leave either end; addresses and
//! punches arrive, under loss too; a round ends with a punched path, and data moves to it; a peer that
//! breaks the rules ends its connection, and one that abuses them achieves little. What they do not:
//! real NATs (tests/netlab does), and other implementations of the draft.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "traversal/hostile.rs"]
mod hostile;
#[path = "traversal/lab.rs"]
mod lab;

use std::{collections::BTreeSet, net::SocketAddr, ops::Range, time::Duration};

use anyreach_net::SyntheticAddr;
use anyreach_quic::{Connection, Event};
use anyreach_wire::{
    frames::{AddAddress, Frame, PunchMeNow, RemoveAddress},
    transport_parameters::{ADDRESS_DISCOVERY, NAT_TRAVERSAL, Parameters},
    varint::VarInt,
};
use common::within;
use lab::{End, Relay, forge, stat, until};

const ADD_ADDRESS: u64 = 0x3d_7e90;
const PUNCH_ME_NOW: u64 = 0x3d_7e92;
const REMOVE_ADDRESS: u64 = 0x3d_7e94;
const OBSERVED_ADDRESS: u64 = 0x9f_81a6;

/// The engine's own.
const ENGINE_TYPES: Range<u64> = 0x3d_7f90..0x3d_7f95;
const ENGINE_PARAMETER: u64 = 0x3d7f_9112_0401;

/// An address nobody answers at.
pub fn nowhere(host: u8, port: u16) -> SocketAddr {
    ([127, 9, 9, host], port).into()
}

fn sorted(addresses: impl IntoIterator<Item = SocketAddr>) -> BTreeSet<SocketAddr> {
    addresses.into_iter().collect()
}

fn offered(client: &Connection) -> BTreeSet<SocketAddr> {
    sorted(client.peer_candidates())
}

pub fn add(sequence: u32, address: SocketAddr) -> Frame {
    Frame::AddAddress(AddAddress {
        sequence: VarInt::from_u32(sequence),
        address: address.into(),
    })
}

pub fn remove(sequence: u32) -> Frame {
    Frame::RemoveAddress(RemoveAddress {
        sequence: VarInt::from_u32(sequence),
    })
}

pub fn punch(round: u32, paired_with: u32, address: SocketAddr) -> Frame {
    Frame::PunchMeNow(PunchMeNow {
        round: VarInt::from_u32(round),
        paired_with: VarInt::from_u32(paired_with),
        address: address.into(),
    })
}

pub fn encoded(frame: Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

/// Sends `amount` bytes from one end and returns how many arrived unchanged at the other.
async fn transfer(from: &Connection, to: &Connection, amount: usize) -> usize {
    let sending = async {
        let (mut stream, _) = from.open_stream(false).await.unwrap();
        let data: Vec<u8> = (0..amount).map(|at| (at % 251) as u8).collect();
        stream.write_all(&data).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receiving = async {
        let (_, mut stream) = to.accept_stream(false).await.unwrap();
        let data = stream.read_to_end(amount).await.unwrap();
        let right = |(at, byte): (usize, &u8)| *byte == (at % 251) as u8;
        assert!(data.iter().enumerate().all(right));
        data.len()
    };
    within(async { tokio::join!(sending, receiving) }).await.1
}

fn is_open(ends: [&Connection; 2]) -> bool {
    ends.iter().all(|end| end.close_reason().is_none())
}

#[tokio::test]
async fn a_round_ends_with_a_punched_path_and_only_draft_frames_on_the_wire() {
    let (a, b) = (End::new(), End::new());
    let relay = Relay::to(b.address()).await;
    let (client, server) = a.connect(&b, relay.address).await;
    assert!(client.can_punch() && server.can_punch());
    assert!(server.peer_candidates().is_empty());
    server.set_candidates(&[b.address()]);
    a.candidates().await;
    assert_eq!(client.peer_candidates(), [b.address()]);
    let pairs = [(a.address(), b.address())];
    assert_eq!(server.start_round(&pairs).unwrap_err().reason, "not-dialed");
    assert_eq!(client.start_round(&pairs).unwrap(), 1);
    b.event(|event| matches!(event, Event::Round { round: 1, .. }))
        .await;

    for (end, other) in [(&client, &b), (&server, &a)] {
        // Nobody has to choose it: it is direct, and the other is not.
        until(|| end.paths()[0].method == "punched").await;
        let paths = end.paths();
        assert_eq!(paths[0].remote, other.address());
        assert!(paths[0].current && !paths[0].tunnelled);
    }
    assert_eq!(client.paths()[1].method, "relayed");
    assert_eq!(client.first_path().unwrap().method, "relayed");
    // Data moves over without a reconnect.
    let relayed = relay.bytes();
    assert_eq!(transfer(&client, &server, 1 << 20).await, 1 << 20);
    assert_eq!(transfer(&server, &client, 1 << 20).await, 1 << 20);
    assert!(relay.bytes() - relayed < 1 << 18, "the relay carried data");
    assert!(stat(&server, "probes_sent") > 0 && stat(&client, "probes_sent") > 0);
    assert_eq!((stat(&client, "rounds"), stat(&server, "rounds")), (1, 1));

    a.log(|log| assert!(log.sent.contains(&PUNCH_ME_NOW) && log.received.contains(&ADD_ADDRESS)));
    b.log(|log| assert!(log.frames_received.contains(&punch(1, 0, a.address()))));
    for end in [&a, &b] {
        end.log(|log| {
            assert!(log.sent.contains(&OBSERVED_ADDRESS));
            for dialect in ENGINE_TYPES {
                assert!(!log.sent.contains(&dialect) && !log.received.contains(&dialect));
            }
            assert_eq!(log.datagrams_sent, 0, "a carrier left as it is");
        });
    }
    let again = client.start_round(&pairs).unwrap_err();
    assert_eq!(again.reason, "limit");
}

#[tokio::test]
async fn the_parameters_on_the_wire_are_those_of_the_drafts() {
    let (a, b) = (End::new(), End::new());
    let (_client, _server) = a.connect(&b, b.address()).await;
    let engines = VarInt::from_u64(ENGINE_PARAMETER).unwrap();
    for (end, sent) in [(&a, vec![]), (&b, vec![32])] {
        end.log(|log| {
            let ours = Parameters::parse(&log.parameters_sent).unwrap();
            assert_eq!(ours.get(NAT_TRAVERSAL), Some(&sent[..]));
            let theirs = Parameters::parse(&log.parameters_received).unwrap();
            assert!(theirs.get(NAT_TRAVERSAL).is_some());
            for block in [ours, theirs] {
                assert!(block.get(ADDRESS_DISCOVERY).is_some() && block.get(engines).is_none());
            }
        });
    }
}

#[tokio::test]
async fn without_the_parameter_of_both_ends_nothing_is_negotiated() {
    for (client_has, server_has) in [(true, false), (false, true)] {
        let end = |has| End::with(move |config| config.nat_traversal = has, |_| ());
        let (a, b) = (end(client_has), end(server_has));
        let (client, server) = a.connect(&b, b.address()).await;
        assert!(!client.can_punch() && !server.can_punch());
        server.set_candidates(&[b.address()]);
        client.set_candidates(&[a.address()]);
        let refused = client.start_round(&[]).unwrap_err();
        assert_eq!(refused.reason, "protocol");
        assert_eq!(transfer(&server, &client, 1000).await, 1000);
        assert!(client.peer_candidates().is_empty());
    }
}

#[tokio::test]
async fn http_has_no_part_in_it() {
    let relay = End::with(|config| config.serve_h3 = true, |_| ());
    let node = End::new();
    let dial = node.node.dial_http(relay.address(), None, common::LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, relay.node.accept_http()) }).await;
    for engine in [dialed.unwrap().engine, accepted.unwrap().engine] {
        assert!(engine.get_local_nat_traversal_addresses().is_err());
    }
    relay.log(|log| {
        let theirs = Parameters::parse(&log.parameters_received).unwrap();
        assert!(theirs.get(NAT_TRAVERSAL).is_none());
    });
}

#[tokio::test]
async fn addresses_come_and_go() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let v6 = "[2001:db8::1]:4433".parse().unwrap();
    let (one, two) = (nowhere(1, 4433), nowhere(2, 4433));
    server.set_candidates(&[one, two, v6, one]);
    until(|| offered(&client) == sorted([one, two, v6])).await;
    a.candidates().await;
    server.set_candidates(&[two]);
    until(|| offered(&client) == sorted([two])).await;
    a.candidates().await;
    // Again, under a new number.
    server.set_candidates(&[one, two]);
    until(|| offered(&client) == sorted([one, two])).await;
    a.candidates().await;
    a.log(|log| {
        for frame_type in [ADD_ADDRESS, ADD_ADDRESS + 1, REMOVE_ADDRESS] {
            assert!(log.received.contains(&frame_type), "{frame_type:#x}");
        }
        let number_of = |frame: &Frame| match frame {
            Frame::AddAddress(add) if add.address == one.into() => Some(add.sequence),
            _ => None,
        };
        let numbers: BTreeSet<VarInt> = log.frames_received.iter().filter_map(number_of).collect();
        assert_eq!(numbers.len(), 2);
    });
    assert!(is_open([&client, &server]));
}

#[tokio::test]
async fn what_nobody_else_can_use_is_not_offered() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let synthetic = SyntheticAddr::new(1, 1).socket_addr();
    let useless = ["0.0.0.0:1", "[::]:1", "224.0.0.1:1", "192.0.2.1:0"];
    let mut candidates: Vec<SocketAddr> =
        useless.iter().map(|text| text.parse().unwrap()).collect();
    candidates.push(synthetic);
    // More than there may be.
    candidates.extend((1..=40).map(|host| nowhere(host, 4433)));
    server.set_candidates(&candidates);
    until(|| offered(&client).len() == 32).await;
    assert_eq!(
        offered(&client),
        sorted((1..=32).map(|host| nowhere(host, 4433)))
    );
    client.set_candidates(&candidates);
    client.start_round(&[]).unwrap();
    until(|| b.log(|log| log.received.contains(&PUNCH_ME_NOW))).await;
    for end in [&a, &b] {
        end.log(|log| {
            for frame in &log.frames_sent {
                let (Frame::AddAddress(AddAddress { address, .. })
                | Frame::PunchMeNow(PunchMeNow { address, .. })) = frame
                else {
                    continue;
                };
                assert!(address.to_string().starts_with("127.9.9."), "{frame:?}");
            }
        });
    }
    assert!(is_open([&client, &server]));
}

#[tokio::test]
async fn a_private_address_is_probed_once_it_is_near() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let private = "10.77.0.1:4433".parse().unwrap();
    server.set_candidates(&[private, nowhere(1, 4433)]);
    a.candidates().await;
    assert_eq!(client.peer_candidates(), [nowhere(1, 4433)]);
    assert_eq!(stat(&client, "refused_private"), 1);
    client.allow_near(["10.77.0.0/16".parse().unwrap()]);
    a.candidates().await;
    assert_eq!(offered(&client), sorted([private, nowhere(1, 4433)]));
    let engine = client.engine().get_remote_nat_traversal_addresses();
    assert_eq!(engine.unwrap().len(), 2);
    // And not any more when the network has changed.
    client.allow_near([]);
    a.candidates().await;
    assert_eq!(client.peer_candidates(), [nowhere(1, 4433)]);
    a.node.set_near(["10.0.0.0/8".parse().unwrap()]);
    a.candidates().await;
    assert_eq!(client.peer_candidates(), [private]);
    assert!(is_open([&client, &server]));
}

/// The engine keeps what it hears last, so an ADD_ADDRESS overtaken by its REMOVE_ADDRESS, or sent
/// again by mistake, would leave a dead address behind for good.
#[tokio::test]
async fn a_late_advertisement_does_not_bring_an_address_back() {
    let (a, b) = (End::new(), End::new());
    let (client, server) = a.connect(&b, b.address()).await;
    let late = add(40, nowhere(1, 4433));
    forge(&server, &encoded(remove(40)));
    until(|| a.log(|log| log.received.contains(&REMOVE_ADDRESS))).await;
    forge(&server, &encoded(late));
    until(|| a.log(|log| log.frames_received.contains(&late))).await;
    server.set_candidates(&[nowhere(2, 4433)]);
    until(|| !client.peer_candidates().is_empty()).await;
    // What was sent after it has been read, so it has been read as well.
    assert_eq!(transfer(&server, &client, 1).await, 1);
    assert_eq!(client.peer_candidates(), [nowhere(2, 4433)]);
    let engine = client.engine().get_remote_nat_traversal_addresses();
    assert_eq!(engine.unwrap(), [nowhere(2, 4433)]);
}

/// Rounds of 32 addresses each way at 20 % loss, with 10 % of the datagrams arriving twice, bulk data
/// and key updates: some are lost, and all arrive.
#[tokio::test]
async fn frames_survive_loss() {
    // A round is a handful of packets; until some were lost.
    const ROUNDS: Range<u32> = 3..12;
    let (a, b) = (End::new(), End::new());
    let relay = Relay::to(b.address()).await;
    let (client, server) = a.connect(&b, relay.address).await;
    relay.disturb(20, 10);
    let bulk = tokio::spawn({
        let (client, server) = (client.clone(), server.clone());
        async move {
            loop {
                transfer(&server, &client, 1 << 16).await;
                transfer(&client, &server, 1 << 16).await;
            }
        }
    });
    for round in 1..ROUNDS.end {
        let side = |half: u8| {
            let port = 4432 + round as u16;
            (1..=32).map(move |host| nowhere(half + host, port))
        };
        let (ours, theirs): (Vec<_>, Vec<_>) = (side(0).collect(), side(100).collect());
        server.set_candidates(&theirs);
        until(|| offered(&client) == sorted(theirs.clone())).await;
        let pairs: Vec<_> = ours.iter().copied().zip(theirs).collect();
        // Rounds are a second apart.
        within(async {
            while client.start_round(&pairs).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let told = |frame: &Frame| match frame {
            Frame::PunchMeNow(punch) if punch.round.get() == round.into() => {
                Some(SocketAddr::from(punch.address))
            }
            _ => None,
        };
        let arrived = || b.log(|log| sorted(log.frames_received.iter().filter_map(told)));
        until(|| arrived() == sorted(ours.clone())).await;
        client.engine().force_key_update();
        if ROUNDS.contains(&round) && stat(&client, "frames_resent") > 0 {
            break;
        }
    }
    bulk.abort();
    assert!(stat(&client, "frames_resent") > 0, "nothing was lost");
    assert!(is_open([&client, &server]));
    a.log(|log| assert_eq!(log.datagrams_sent, 0));
}
