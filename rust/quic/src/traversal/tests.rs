//! The layer alone, where the engine is not needed to see what it does.

use anyreach_wire::{
    frames::{AddAddress, Frame, PunchMeNow, RemoveAddress},
    transport_parameters::{NAT_TRAVERSAL, Parameters},
};
use bytes::BytesMut;
use noq_proto::PathId;
use proptest::prelude::*;

use super::*;

/// A REACH_OUT of the engine in its first round, for `203.0.113.7:4660`.
const REACH_OUT: [u8; 11] = [0x80, 0x3d, 0x7f, 0x92, 1, 203, 0, 113, 7, 0x12, 0x34];

/// A layer on which both ends have agreed.
fn layer(side: Side) -> Layer {
    layer_to(side, true)
}

/// As [`layer`], to a peer that does multipath or not.
fn layer_to(side: Side, multipath: bool) -> Layer {
    let layer = Layer::new(side, Near::default());
    let mut ours = parameters(parameters::ENGINE_PARAMETER, &[32]);
    layer.outgoing_parameters(&mut ours);
    let theirs: &[u8] = match side {
        Side::Client => &[32],
        Side::Server => &[],
    };
    let mut parameters = Parameters::default();
    parameters.insert(NAT_TRAVERSAL, theirs.to_vec()).unwrap();
    if multipath {
        let id = VarInt::from_u32(0x3e);
        parameters.insert(id, vec![8]).unwrap();
    }
    layer.incoming_parameters(&mut parameters.encode()).unwrap();
    layer
}

fn parameters(id: VarInt, value: &[u8]) -> Vec<u8> {
    let mut parameters = Parameters::default();
    parameters.insert(id, value.to_vec()).unwrap();
    parameters.encode()
}

fn address(host: u8) -> Address {
    Address::new([203, 0, 113, host].into(), 0x1234)
}

fn encoded(frame: Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

fn add(sequence: u32, address: Address) -> Vec<u8> {
    let sequence = VarInt::from_u32(sequence);
    encoded(Frame::AddAddress(AddAddress { sequence, address }))
}

fn remove(sequence: u32) -> Vec<u8> {
    let sequence = VarInt::from_u32(sequence);
    encoded(Frame::RemoveAddress(RemoveAddress { sequence }))
}

fn punch(round: u32, paired_with: u32, address: Address) -> Vec<u8> {
    encoded(Frame::PunchMeNow(PunchMeNow {
        round: VarInt::from_u32(round),
        paired_with: VarInt::from_u32(paired_with),
        address,
    }))
}

fn opened(layer: &Layer, payload: &[u8]) -> Vec<u8> {
    let mut payload = BytesMut::from(payload);
    layer.opened(&mut payload);
    payload.to_vec()
}

fn sealed(layer: &Layer, packet: u64, payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    layer.sealing(PathId::ZERO, packet, &mut payload);
    payload
}

/// What stands in the place of a frame that was taken out on the way in.
fn pinged(frame: &[u8]) -> Vec<u8> {
    let mut blank = vec![0; frame.len()];
    blank[0] = 1;
    blank
}

/// A frame in the words of the engine.
fn translated(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[2] = 0x7f;
    frame
}

/// A DATAGRAM frame around a carrier.
fn carrier(layer: &Layer) -> Vec<u8> {
    let mut data = layer.marker.to_vec();
    data.resize(CARRIER_BYTES, 0);
    [&[0x31, data.len() as u8][..], &data].concat()
}

#[test]
fn what_cannot_be_walked_is_left_alone() {
    let layer = layer(Side::Client);
    let add = add(1, address(1));
    for end in [&[0x02, 0x40][..], &[0x40, 0x40], &add[..add.len() - 1]] {
        let payload = [&add[..], end].concat();
        assert_eq!(opened(&layer, &payload), payload);
    }
    assert!(layer.candidates().is_empty());
    assert_eq!(opened(&layer, &add), translated(&add));
}

#[test]
fn a_punch_shrinks_in_place() {
    let layer = layer(Side::Server);
    let payload = [&[0x01][..], &punch(300, 70_000, address(7)), &[0x1e]].concat();
    let expected = [
        0x01, 0x80, 0x3d, 0x7f, 0x92, 0x41, 0x2c, 203, 0, 113, 7, 0x12, 0x34, 0, 0, 0, 0, 0x1e,
    ];
    assert_eq!(opened(&layer, &payload), expected);
    let news = layer.take_news().unwrap();
    assert_eq!((news.candidates, news.round), (false, Some(300)));
    // A replay, which the engine throws away afterwards, is no news.
    assert_eq!(opened(&layer, &payload), expected);
    assert_eq!(layer.take_news(), None);
}

#[test]
fn nothing_is_said_in_the_engines_dialect_by_anybody() {
    for side in [Side::Client, Side::Server] {
        let layer = layer(side);
        let dialect = translated(&add(1, address(1)));
        assert_eq!(opened(&layer, &dialect), add(1, address(1)));
    }
}

#[test]
fn what_was_not_agreed_on_or_goes_the_wrong_way_reaches_the_engine() {
    let stranger = |side| Layer::new(side, Near::default());
    // Refused addresses, too: it is the engine that ends the connection.
    for address in [address(1), Address::new([127, 0, 0, 1].into(), 53)] {
        let (add, remove, punch) = (add(1, address), remove(1), punch(1, 0, address));
        for layer in [layer(Side::Server), stranger(Side::Client)] {
            assert_eq!(opened(&layer, &add), translated(&add));
            assert_eq!(opened(&layer, &remove), translated(&remove));
        }
        for layer in [layer(Side::Client), stranger(Side::Server)] {
            let at = opened(&layer, &punch);
            assert_eq!(at[..5], translated(&punch)[..5]);
        }
    }
}

#[test]
fn without_multipath_nothing_comes_of_it_and_it_is_no_violation() {
    let client = layer_to(Side::Client, false);
    for frame in [add(0, address(1)), remove(0)] {
        assert_eq!(opened(&client, &frame), pinged(&frame));
    }
    assert!(client.candidates().is_empty());
    let frame = punch(1, 0, address(1));
    assert_eq!(opened(&client, &frame)[..4], REACH_OUT[..4], "wrong way");
    let server = layer_to(Side::Server, false);
    assert_eq!(opened(&server, &frame), pinged(&frame));
    let frame = add(0, address(1));
    assert_eq!(opened(&server, &frame), translated(&frame), "wrong way");
}

#[test]
fn refused_addresses_never_reach_the_engine() {
    let client = layer(Side::Client);
    let server = layer(Side::Server);
    for (number, text) in [
        "127.0.0.1:9000",
        "[::1]:9000",
        "10.0.0.1:9000",
        "[fd00::1]:9000",
        "[fe80::1]:9000",
        "224.0.0.1:9000",
        "203.0.113.1:53",
        "[fd5a:b0b4:e561::1:0:2]:1",
    ]
    .iter()
    .enumerate()
    {
        let address = text.parse::<SocketAddr>().unwrap().into();
        let add = add(number as u32, address);
        assert_eq!(opened(&client, &add), pinged(&add), "{text}");
        let punch = punch(1, 0, address);
        assert_eq!(opened(&server, &punch), pinged(&punch), "{text}");
    }
    for layer in [&client, &server] {
        let stats = layer.counts.by_name();
        let of = |name| stats.iter().find(|(other, _)| *other == name).unwrap().1;
        assert_eq!(of("refused_scope"), 5);
        assert_eq!((of("refused_private"), of("refused_port")), (2, 1));
        assert_eq!(layer.take_news(), None);
    }
    assert!(client.candidates().is_empty());
}

#[test]
fn a_packet_still_elicits_its_acknowledgement() {
    let layer = layer(Side::Client);
    layer.arm();
    let blank = [0; 11];
    let alone = [&[0x02, 5, 0, 0, 0][..], &REACH_OUT, &[0; 3]].concat();
    let expected = [&[0x02, 5, 0, 0, 0, 0x01][..], &blank[1..], &[0; 3]].concat();
    assert_eq!(sealed(&layer, 1, &alone), expected);

    // A PATH_CHALLENGE elicits one already; a PING would have the peer take the probe for the path
    // to migrate to.
    let probe = [&[0x1a, 1, 2, 3, 4, 5, 6, 7, 8][..], &REACH_OUT, &[0; 32]].concat();
    let expected = [&probe[..9], &blank, &[0; 32]].concat();
    assert_eq!(sealed(&layer, 2, &probe), expected);
}

#[test]
fn a_carrier_takes_the_frame_once_and_is_blank_otherwise() {
    let layer = layer(Side::Client);
    layer.arm();
    for packet in 1..3 {
        // The second time the engine repeats what it believes lost.
        sealed(&layer, packet, &REACH_OUT);
    }
    assert_eq!(layer.carriers(Instant::now()).count(), 1);
    let payload = sealed(&layer, 3, &[carrier(&layer), carrier(&layer)].concat());
    let punch = punch(1, 0, address(7));
    assert!(payload.starts_with(&punch));
    assert!(payload[punch.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(layer.outgoing(), (1, 0));
    let payload = sealed(&layer, 4, &carrier(&layer));
    assert!(payload[0] == 0x01 && payload[1..].iter().all(|byte| *byte == 0));

    // Acknowledged on another path it is still under way; then it is lost, and sent again.
    opened(&layer, &[0x3e, 1, 9, 0, 0, 0]);
    assert_eq!(layer.outgoing(), (1, 0));
    opened(&layer, &[0x02, 6, 0, 0, 0]);
    assert_eq!(layer.outgoing(), (1, 1));
    assert!(sealed(&layer, 7, &carrier(&layer)).starts_with(&punch));
    opened(&layer, &[0x02, 7, 0, 0, 0]);
    assert_eq!(layer.outgoing(), (0, 1));
}

#[test]
fn before_it_is_needed_nothing_sent_is_looked_at() {
    let layer = layer(Side::Client);
    let payload = [carrier(&layer), vec![0x01]].concat();
    assert_eq!(sealed(&layer, 1, &payload), payload);
}

#[test]
fn a_replay_teaches_nothing() {
    let layer = layer(Side::Client);
    for payload in [
        add(5, address(1)),
        add(6, address(1)),
        add(6, address(1)),
        remove(5),
        add(5, address(1)),
        remove(5),
    ] {
        opened(&layer, &payload);
    }
    assert_eq!(layer.candidates(), [address(1).into()]);
    layer.arm();
    sealed(&layer, 1, &REACH_OUT);
    let payload = sealed(&layer, 2, &carrier(&layer));
    assert!(payload.starts_with(&punch(1, 6, address(7))));
}

#[test]
fn a_late_repetition_of_the_engine_does_not_bring_an_address_back() {
    let layer = layer(Side::Server);
    layer.arm();
    let (add, remove) = (add(3, address(1)), remove(3));
    assert_eq!(sealed(&layer, 1, &translated(&add)), add);
    assert_eq!(sealed(&layer, 2, &translated(&remove)), remove);
    assert_eq!(sealed(&layer, 3, &translated(&add)), pinged(&add));
    assert_eq!(sealed(&layer, 4, &translated(&remove)), remove);
}

#[test]
fn a_round_names_the_pairs_it_was_given() {
    let layer = layer(Side::Client);
    for number in [1, 2, 3] {
        opened(&layer, &add(number, address(number as u8)));
    }
    let v6: Address = "[2001:db8::1]:4433".parse::<SocketAddr>().unwrap().into();
    let pairs = [
        (address(101), address(2)),
        (address(100), address(3)),
        (address(100), address(1)),
        (address(102), v6),
        (v6, v6),
    ];
    assert_eq!(layer.begin_round(Instant::now(), &pairs), Ok(1));
    assert_eq!(layer.carriers(Instant::now()).count(), 4);
    let mut said = Vec::new();
    for packet in 0..4 {
        let payload = sealed(&layer, packet, &carrier(&layer));
        if let Ok(Frame::PunchMeNow(punch)) = Frame::decode(&mut &payload[..]) {
            said.push((punch.address, punch.paired_with.get()));
        }
    }
    let expected = [
        (address(101), 2),
        (address(100), 3),
        (address(102), 1),
        (v6, 0),
    ];
    assert_eq!(said, expected);
    let again = layer.begin_round(Instant::now(), &pairs);
    assert_eq!(again, Err(NoRound::TooSoon));
}

#[test]
fn what_gets_near_is_told_to_the_engine_until_it_has_it() {
    let layer = layer(Side::Client);
    let private = Address::new([192, 168, 1, 7].into(), 9000);
    let frame = add(4, private);
    assert_eq!(opened(&layer, &frame), pinged(&frame));
    layer.judge_again();
    assert!(!layer.is_correcting());
    layer.set_near(["192.168.1.0/24".parse().unwrap()]);
    layer.judge_again();
    assert!(layer.is_correcting() && layer.candidates().is_empty());
    // Not with a probe, which would stop being one.
    let probe = [0x1a, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(opened(&layer, &probe), probe);
    let ack = [0x02, 5, 0, 0, 0];
    for _ in 0..2 {
        let expected = [translated(&frame), ack.to_vec()].concat();
        assert_eq!(opened(&layer, &ack), expected);
        layer.confirm(&[]);
    }
    layer.confirm(&[private.into()]);
    assert!(layer.take_news().unwrap().candidates);
    assert_eq!(layer.candidates(), [private.into()]);
    assert_eq!(opened(&layer, &ack), ack);
    // And the other way round.
    layer.set_near([]);
    layer.judge_again();
    let expected = [translated(&remove(4)), ack.to_vec()].concat();
    assert_eq!(opened(&layer, &ack), expected);
    layer.confirm(&[]);
    assert!(layer.candidates().is_empty() && opened(&layer, &ack) == ack);
}

#[test]
fn more_punches_than_allowed_are_a_violation() {
    let layer = layer(Side::Server);
    for host in 0..MAX_CANDIDATES as u8 {
        let at = opened(&layer, &punch(1, 0, address(host)));
        assert_eq!(at[..4], [0x80, 0x3d, 0x7f, 0x92]);
    }
    let frame = punch(1, 0, address(99));
    let at = opened(&layer, &frame);
    assert_eq!(at[..5], [0x80, 0x3d, 0x7f, 0x94, 1]);
    assert!(at.len() == frame.len() && at[5..].iter().all(|byte| *byte == 0));
}

#[test]
fn probes_are_counted() {
    let layer = layer(Side::Server);
    let probe = [0x1a, 1, 2, 3, 4, 5, 6, 7, 8];
    sealed(&layer, 1, &probe);
    opened(&layer, &punch(1, 0, address(1)));
    sealed(&layer, 2, &probe);
    let mut padded = probe.to_vec();
    padded.resize(1100, 0);
    sealed(&layer, 3, &padded);
    assert_eq!(layer.budget.probes_sent(), 1);
}

#[test]
fn paths_to_where_the_peer_was_met_are_punched() {
    let (layer, now) = (layer(Side::Client), Instant::now());
    assert!(!layer.has_punched(now, address(0), false));
    for host in 0..200 {
        layer.met(address(host));
    }
    let punched = |host| layer.has_punched(now, address(host), true);
    assert!(punched(199) && !punched(0));
    assert!(layer.state().coordinated.len() <= MAX_COORDINATED);
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
        negotiated: bool,
    ) {
        let payload = parts.concat();
        let layer = match negotiated {
            true => layer(side),
            false => Layer::new(side, Near::default()),
        };
        prop_assert_eq!(opened(&layer, &payload).len(), payload.len());
    }

    /// Nor what leaves, whatever it is.
    #[test]
    fn arbitrary_payloads_out(
        parts in prop::collection::vec(prop_oneof![
            Just(REACH_OUT.to_vec()), Just(vec![0x80, 0x3d, 0x7f, 0x94, 1]),
            Just(vec![0x80, 0x3d, 0x7f, 0x90, 1, 203, 0, 113, 7, 0x12, 0x34]),
            Just(vec![0x02, 9, 0, 0, 0]), Just(vec![0x01]),
            prop::collection::vec(any::<u8>(), 0..4),
        ], 0..12),
        side in prop_oneof![Just(Side::Client), Just(Side::Server)],
    ) {
        let layer = layer(side);
        layer.arm();
        let before = parts.concat();
        let after = sealed(&layer, 1, &before);
        if let Some(survey) = dialect::Survey::of(&before, |_| false) {
            // Of the dialect nothing is left, and what was to be acknowledged still is.
            let left = |frame: &anyreach_wire::walk::RawFrame| {
                dialect::ENGINE_TYPES.contains(&frame.frame_type)
            };
            let now = dialect::Survey::of(&after, left).unwrap();
            prop_assert!(!now.interesting);
            prop_assert_eq!(now.eliciting > 0, survey.eliciting > 0);
        }
    }
}
