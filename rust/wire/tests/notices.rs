//! Control messages about where nodes can be reached: what is written is read, what is too much is
//! left out or refused, and what later versions add is skipped.

use anyreach_wire::address::Address;
use anyreach_wire::control::{
    self, AddressKind, BoundAt, ControlError, Decoder, DirectAddress, Field, Find, FindStatus,
    Found, MAX_BOUND_ADDRESSES, MAX_DIRECT_ADDRESSES, MAX_MESSAGE_BYTES, MAX_OBSERVED_ADDRESSES,
    MAX_RELAYS, Message, Reach, Sought,
};
use anyreach_wire::varint::VarInt;
use proptest::prelude::*;

/// One message from a body written by hand.
fn decode(body: &[u8]) -> Result<Message, ControlError> {
    let mut stream = Vec::new();
    VarInt::try_from(body.len() as u64)
        .expect("small")
        .encode(&mut stream);
    stream.extend_from_slice(body);
    read(&stream)
}

fn read(stream: &[u8]) -> Result<Message, ControlError> {
    let mut decoder = Decoder::new();
    decoder.push(stream)?;
    let message = decoder.next()?.expect("the message is complete");
    assert_eq!(decoder.next(), Ok(None));
    Ok(message)
}

fn v4(last: u8, port: u16) -> Address {
    Address::new([192, 0, 2, last].into(), port)
}

fn direct(last: u8) -> DirectAddress {
    DirectAddress {
        address: v4(last, 4433),
        kind: AddressKind::Observed,
    }
}

#[test]
fn the_encoding_is_as_documented() {
    let address = [0x46, 192, 0, 2, 1, 0x11, 0x51];
    let reach = Message::Reach(Reach {
        direct: vec![direct(1)],
        bound: vec![BoundAt {
            relay: [7; 32],
            addresses: vec![v4(1, 4433)],
        }],
        findable: true,
        load: None,
    });
    let mut expected = vec![0xa4, 0, 3, 6, 0x81, 0x82];
    expected.extend(address);
    expected.extend([2, 7, 0x81, 0x82, 0x58, 32]);
    expected.extend([7; 32]);
    expected.push(0x81);
    expected.extend(address);
    expected.extend([8, 0xf5]);
    assert_eq!(decode(&expected), Ok(reach.clone()));
    assert_eq!(control::encode(&reach)[1..], expected);

    let find = Message::Find(Find {
        request: 5,
        peer: [9; 32],
    });
    let mut expected = vec![0xa3, 0, 4, 9, 5, 10, 0x58, 32];
    expected.extend([9; 32]);
    assert_eq!(control::encode(&find)[1..], expected);

    let unknown = Message::Found(Found::nothing(5, FindStatus::Unknown));
    let expected = [0xa6, 0, 5, 9, 5, 11, 1, 6, 0x80, 7, 0x80, 12, 0x80];
    assert_eq!(control::encode(&unknown)[1..], expected);

    let sought = Message::Sought(Sought {
        peer: [9; 32],
        observed: vec![v4(1, 4433)],
    });
    let mut expected = vec![0xa3, 0, 6, 10, 0x58, 32];
    expected.extend([9; 32]);
    expected.extend([12, 0x81]);
    expected.extend(address);
    assert_eq!(control::encode(&sought)[1..], expected);
}

#[test]
fn what_is_not_said_is_not_so() {
    assert_eq!(decode(&[0xa1, 0, 3]), Ok(Message::Reach(Reach::default())));
    assert_eq!(
        decode(&[0xa3, 0, 5, 9, 1, 11, 0]),
        Ok(Message::Found(Found::nothing(1, FindStatus::Found)))
    );
    let cases: [(&[u8], Field); 6] = [
        (&[0xa1, 0, 4], Field::Request),
        (&[0xa2, 0, 4, 9, 1], Field::Peer),
        (&[0xa1, 0, 5], Field::Request),
        (&[0xa2, 0, 5, 9, 1], Field::Status),
        (&[0xa1, 0, 6], Field::Peer),
        // A direct address without its kind.
        (
            &[0xa2, 0, 3, 6, 0x81, 0x81, 0x46, 192, 0, 2, 1, 0, 1],
            Field::Direct,
        ),
    ];
    for (body, field) in cases {
        assert_eq!(
            decode(body),
            Err(ControlError::Missing(field)),
            "{body:02x?}"
        );
    }
}

#[test]
fn later_versions_may_say_more() {
    // An address of another length, a kind nobody knows, further elements, further fields.
    let mut body = vec![0xa4, 0, 3, 6, 0x82];
    body.extend([0x82, 0x44, 1, 2, 3, 4, 1]);
    body.extend([
        0x84, 0x46, 192, 0, 2, 1, 0x11, 0x51, 0x18, 99, 0x61, b'x', 0xf6,
    ]);
    body.extend([0x18, 77, 0x81, 0xa1, 1, 2]);
    // A field of a hello has no meaning here.
    body.extend([5, 0x61, b'a']);
    let expected = Reach {
        direct: vec![DirectAddress {
            address: v4(1, 4433),
            kind: AddressKind::Unspecified,
        }],
        ..Reach::default()
    };
    assert_eq!(decode(&body), Ok(Message::Reach(expected)));
    let status = [0xa3, 0, 5, 9, 1, 11, 0x18, 200];
    let other = Found::nothing(1, FindStatus::Other(200));
    assert_eq!(decode(&status), Ok(Message::Found(other)));
    // And a hello does not know the fields of these.
    let hello = [0xa5, 0, 1, 1, 1, 2, 7, 3, 9, 6, 0x60];
    assert!(matches!(decode(&hello), Ok(Message::Hello(_))));
}

#[test]
fn known_fields_have_their_type_and_appear_once() {
    let cases: [(&[u8], ControlError); 9] = [
        (
            &[0xa2, 0, 3, 8, 1],
            ControlError::WrongType(Field::Findable),
        ),
        (
            &[0xa2, 0, 3, 6, 0x60],
            ControlError::WrongType(Field::Direct),
        ),
        (
            &[0xa2, 0, 3, 6, 0x81, 0x82, 0x60, 1],
            ControlError::WrongType(Field::Direct),
        ),
        (
            &[0xa2, 0, 3, 7, 0x81, 1],
            ControlError::WrongType(Field::Bound),
        ),
        (
            &[0xa2, 0, 4, 10, 0x41, 7],
            ControlError::OutOfLimits(Field::Peer),
        ),
        (&[0xa2, 0, 4, 10, 7], ControlError::WrongType(Field::Peer)),
        (
            &[0xa3, 0, 3, 8, 0xf4, 8, 0xf4],
            ControlError::Duplicate(Field::Findable),
        ),
        (&[0xa2, 0, 3, 0, 3], ControlError::Duplicate(Field::Kind)),
        (&[0xa2, 0, 3, 6, 0x9f, 0xff], ControlError::Malformed),
    ];
    for (body, error) in cases {
        assert_eq!(decode(body), Err(error), "{body:02x?}");
    }
}

/// As many as may be, or one more.
fn crowded(more: usize) -> Vec<Message> {
    let directs: Vec<_> = (0..MAX_DIRECT_ADDRESSES + more)
        .map(|n| direct(n as u8))
        .collect();
    let addresses = |limit| (0..limit + more).map(|n| v4(n as u8, 1)).collect();
    let bounds = |relays| {
        let bound = |n| BoundAt {
            relay: [n as u8; 32],
            addresses: addresses(MAX_BOUND_ADDRESSES),
        };
        (0..relays).map(bound).collect::<Vec<_>>()
    };
    vec![
        Message::Reach(Reach {
            direct: directs.clone(),
            bound: bounds(MAX_RELAYS + more),
            findable: true,
            load: None,
        }),
        Message::Found(Found {
            request: 1,
            status: FindStatus::Found,
            direct: directs,
            bound: bounds(MAX_RELAYS + more),
            observed: addresses(MAX_OBSERVED_ADDRESSES),
        }),
        Message::Sought(Sought {
            peer: [0; 32],
            observed: addresses(MAX_OBSERVED_ADDRESSES),
        }),
    ]
}

#[test]
fn what_exceeds_the_limits_is_not_written() {
    for (most, more) in crowded(0).into_iter().zip(crowded(1)) {
        let written = control::encode(&most);
        assert!(written.len() < MAX_MESSAGE_BYTES / 16);
        assert_eq!(read(&written), Ok(most));
        assert_eq!(control::encode(&more), written);
    }
}

#[test]
fn what_exceeds_the_limits_is_not_read() {
    let limits = [
        (6, MAX_DIRECT_ADDRESSES, Field::Direct),
        (7, MAX_RELAYS, Field::Bound),
    ];
    for (key, limit, field) in limits {
        // The count alone is enough, whatever follows.
        let body = [0xa2, 0, 3, key, 0x98, limit as u8 + 1];
        assert_eq!(decode(&body), Err(ControlError::OutOfLimits(field)));
    }
    let mut bound = vec![0xa2, 0, 3, 7, 0x81, 0x82, 0x58, 32];
    bound.extend([0; 32]);
    bound.push(0x80 + MAX_BOUND_ADDRESSES as u8 + 1);
    assert_eq!(decode(&bound), Err(ControlError::OutOfLimits(Field::Bound)));
    let mut sought = vec![0xa3, 0, 6, 10, 0x58, 32];
    sought.extend([0; 32]);
    sought.extend([12, 0x80 + MAX_OBSERVED_ADDRESSES as u8 + 1]);
    let error = ControlError::OutOfLimits(Field::Observed);
    assert_eq!(decode(&sought), Err(error));
    // A count that cannot be true costs nothing.
    let lie = [0xa2, 0, 3, 6, 0x9b, 255, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(decode(&lie), Err(ControlError::OutOfLimits(Field::Direct)));
}

prop_compose! {
    fn any_address()(v6: [u8; 16], v4: [u8; 4], six: bool, port: u16) -> Address {
        Address::new(if six { v6.into() } else { v4.into() }, port)
    }
}

fn any_kind() -> impl Strategy<Value = AddressKind> {
    prop_oneof![
        Just(AddressKind::Unspecified),
        Just(AddressKind::Interface),
        Just(AddressKind::Observed),
        Just(AddressKind::Mapped),
        Just(AddressKind::Configured),
    ]
}

fn any_direct() -> impl Strategy<Value = Vec<DirectAddress>> {
    let one =
        (any_address(), any_kind()).prop_map(|(address, kind)| DirectAddress { address, kind });
    prop::collection::vec(one, 0..=MAX_DIRECT_ADDRESSES)
}

fn any_addresses(limit: usize) -> impl Strategy<Value = Vec<Address>> {
    prop::collection::vec(any_address(), 0..=limit)
}

fn any_bound() -> impl Strategy<Value = Vec<BoundAt>> {
    let one = (any::<[u8; 32]>(), any_addresses(MAX_BOUND_ADDRESSES))
        .prop_map(|(relay, addresses)| BoundAt { relay, addresses });
    prop::collection::vec(one, 0..=MAX_RELAYS)
}

fn any_status() -> impl Strategy<Value = FindStatus> {
    prop_oneof![
        Just(FindStatus::Found),
        Just(FindStatus::Unknown),
        Just(FindStatus::NotFindable),
        Just(FindStatus::Limit),
        (4..=u64::MAX).prop_map(FindStatus::Other),
    ]
}

fn any_notice() -> impl Strategy<Value = Message> {
    let reach = (any_direct(), any_bound(), any::<bool>()).prop_map(|(direct, bound, findable)| {
        Message::Reach(Reach {
            direct,
            bound,
            findable,
            load: None,
        })
    });
    let find = (any::<u64>(), any::<[u8; 32]>())
        .prop_map(|(request, peer)| Message::Find(Find { request, peer }));
    let observed = || any_addresses(MAX_OBSERVED_ADDRESSES);
    let found = (
        any::<u64>(),
        any_status(),
        any_direct(),
        any_bound(),
        observed(),
    );
    let found = found.prop_map(|(request, status, direct, bound, observed)| {
        Message::Found(Found {
            request,
            status,
            direct,
            bound,
            observed,
        })
    });
    let sought = (any::<[u8; 32]>(), observed())
        .prop_map(|(peer, observed)| Message::Sought(Sought { peer, observed }));
    prop_oneof![reach, find, found, sought]
}

proptest! {
    #[test]
    fn notices_survive_any_chunking(
        messages in prop::collection::vec(any_notice(), 0..5), chunk in 1_usize..300,
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(control::encode).collect();
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for chunk in stream.chunks(chunk) {
            decoder.push(chunk)?;
            while let Some(message) = decoder.next()? {
                decoded.push(message);
            }
        }
        decoder.finish()?;
        prop_assert_eq!(decoded, messages);
    }

    /// Cut anywhere, a body is refused and not misread.
    #[test]
    fn a_truncated_body_is_an_error(message in any_notice(), cut: prop::sample::Index) {
        let encoded = control::encode(&message);
        let mut body = &encoded[..];
        VarInt::decode(&mut body)?;
        prop_assert!(decode(&body[..cut.index(body.len())]).is_err());
    }

    /// One changed byte in a valid message: read as something or refused, never a panic.
    #[test]
    fn damaged_messages_never_panic(
        message in any_notice(), at: prop::sample::Index, value: u8,
    ) {
        let mut encoded = control::encode(&message);
        let at = at.index(encoded.len());
        encoded[at] = value;
        let mut decoder = Decoder::new();
        decoder.push(&encoded)?;
        while let Ok(Some(_)) = decoder.next() {}
    }

    /// Bodies that start like a notice get further than plain noise. What is read can be written.
    #[test]
    fn arbitrary_fields_never_panic(
        kind in 3_u8..7,
        fields in 0xa0_u8..0xa8,
        rest in prop::collection::vec(
            prop_oneof![0_u8..13, 0x80_u8..0x86, Just(0x46), any::<u8>()], 0..120,
        ),
    ) {
        let mut body = vec![fields, 0, kind];
        body.extend(rest);
        if let Ok(message) = decode(&body) {
            prop_assert_eq!(read(&control::encode(&message)), Ok(message));
        }
    }
}

#[test]
fn a_load_is_told_in_percent_or_not_at_all() {
    for (said, heard) in [(None, None), (Some(7), Some(7)), (Some(255), Some(100))] {
        let reach = Reach {
            direct: Vec::new(),
            bound: Vec::new(),
            findable: true,
            load: said,
        };
        let read = read(&control::encode(&Message::Reach(reach.clone())));
        let load = heard;
        assert_eq!(read, Ok(Message::Reach(Reach { load, ..reach })));
    }
}
