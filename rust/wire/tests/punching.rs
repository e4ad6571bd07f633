//! Control messages about NATs and steps of a punch: what is written is read, what is too much is
//! left out or refused, and what later versions add is skipped.

use anyreach_wire::address::Address;
use anyreach_wire::control::{
    self, ControlError, Decoder, Field, MAX_PORT_STEP, MAX_STEP_ADDRESSES, Message, Nat,
    NatBehaviour, PortAllocation, Prepare, PrepareMethod, Prepared,
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

fn v4(last: u8) -> Address {
    Address::new([192, 0, 2, last].into(), 4433)
}

fn nat(step: i32) -> Nat {
    Nat {
        mapping: NatBehaviour::AddressAndPortDependent,
        filtering: NatBehaviour::AddressDependent,
        ports: PortAllocation::Sequential,
        step,
    }
}

#[test]
fn the_encoding_is_as_documented() {
    let expected = [0xa5, 0, 7, 13, 4, 14, 3, 15, 2, 16, 0x21];
    assert_eq!(control::encode(&Message::Nat(nat(-2)))[1..], expected);

    let address = [0x46, 192, 0, 2, 1, 0x11, 0x51];
    let prepare = Message::Prepare(Prepare {
        request: 5,
        method: PrepareMethod::Spray,
        addresses: vec![v4(1)],
        count: 1024,
    });
    let mut expected = vec![0xa5, 0, 8, 9, 5, 17, 2, 18, 0x81];
    expected.extend(address);
    expected.extend([19, 0x19, 4, 0]);
    assert_eq!(control::encode(&prepare)[1..], expected);

    let prepared = Message::Prepared(Prepared {
        request: 5,
        done: true,
        addresses: vec![v4(1)],
    });
    let mut expected = vec![0xa4, 0, 9, 9, 5, 20, 0xf5, 18, 0x81];
    expected.extend(address);
    assert_eq!(control::encode(&prepared)[1..], expected);

    let expected = [0xa2, 0, 10, 22, 0x43, 0, 0, 0];
    assert_eq!(control::encode(&Message::Filler(3))[1..], expected);
    assert_eq!(decode(&[0xa1, 0, 10]), Ok(Message::Filler(0)));
    let wrong = ControlError::WrongType(Field::Filler);
    assert_eq!(decode(&[0xa2, 0, 10, 22, 3]), Err(wrong));
}

#[test]
fn what_is_not_said_is_not_known_and_not_done() {
    assert_eq!(decode(&[0xa1, 0, 7]), Ok(Message::Nat(Nat::default())));
    let prepare = Prepare {
        request: 1,
        method: PrepareMethod::Predict,
        addresses: Vec::new(),
        count: 0,
    };
    assert_eq!(
        decode(&[0xa3, 0, 8, 9, 1, 17, 0]),
        Ok(Message::Prepare(prepare))
    );
    let refused = Message::Prepared(Prepared::refused(1));
    assert_eq!(decode(&[0xa2, 0, 9, 9, 1]), Ok(refused));
    let cases: [(&[u8], Field); 3] = [
        (&[0xa2, 0, 8, 17, 0], Field::Request),
        (&[0xa2, 0, 8, 9, 1], Field::Method),
        (&[0xa2, 0, 9, 20, 0xf5], Field::Request),
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
    // Numbers nobody knows, and a field nobody knows; another message's field means nothing here.
    let body = [
        0xa6, 0, 7, 13, 0x18, 99, 14, 2, 15, 0x18, 99, 0x18, 77, 0x81, 0xa1, 1, 2, 20, 0x60,
    ];
    let expected = Nat {
        filtering: NatBehaviour::EndpointIndependent,
        ..Nat::default()
    };
    assert_eq!(decode(&body), Ok(Message::Nat(expected)));
    // An address of another length is left out, a method nobody knows is told as such.
    let body = [
        0xa4, 0, 8, 9, 1, 17, 0x18, 200, 18, 0x82, 0x44, 1, 2, 3, 4, 0x46, 192, 0, 2, 1, 0x11, 0x51,
    ];
    let expected = Prepare {
        request: 1,
        method: PrepareMethod::Other(200),
        addresses: vec![v4(1)],
        count: 0,
    };
    assert_eq!(decode(&body), Ok(Message::Prepare(expected)));
}

#[test]
fn known_fields_have_their_type_and_their_limits_and_appear_once() {
    let cases: [(&[u8], ControlError); 11] = [
        (
            &[0xa2, 0, 7, 13, 0x20],
            ControlError::WrongType(Field::Mapping),
        ),
        (
            &[0xa2, 0, 7, 14, 0x60],
            ControlError::WrongType(Field::Filtering),
        ),
        (
            &[0xa2, 0, 7, 15, 0xf4],
            ControlError::WrongType(Field::Ports),
        ),
        (
            &[0xa2, 0, 7, 16, 0xf4],
            ControlError::WrongType(Field::Step),
        ),
        (
            &[0xa2, 0, 7, 16, 0x1a, 0, 1, 0, 0],
            ControlError::OutOfLimits(Field::Step),
        ),
        (
            &[0xa2, 0, 7, 16, 0x3b, 255, 255, 255, 255, 255, 255, 255, 255],
            ControlError::OutOfLimits(Field::Step),
        ),
        (
            &[0xa3, 0, 7, 16, 1, 16, 1],
            ControlError::Duplicate(Field::Step),
        ),
        (&[0xa2, 0, 7, 0, 7], ControlError::Duplicate(Field::Kind)),
        (
            &[0xa2, 0, 8, 19, 0x1a, 0, 1, 0, 0],
            ControlError::OutOfLimits(Field::Count),
        ),
        (
            &[0xa2, 0, 8, 18, 0x80 + MAX_STEP_ADDRESSES as u8 + 1],
            ControlError::OutOfLimits(Field::Addresses),
        ),
        (&[0xa2, 0, 9, 20, 1], ControlError::WrongType(Field::Done)),
    ];
    for (body, error) in cases {
        assert_eq!(decode(body), Err(error), "{body:02x?}");
    }
}

#[test]
fn what_exceeds_the_limits_is_not_written() {
    let written = control::encode(&Message::Nat(nat(i32::MIN)));
    assert_eq!(read(&written), Ok(Message::Nat(nat(-MAX_PORT_STEP))));
    let prepared = |count| Prepared {
        request: 1,
        done: true,
        addresses: (0..count).map(|n| v4(n as u8)).collect(),
    };
    let written = control::encode(&Message::Prepared(prepared(MAX_STEP_ADDRESSES + 1)));
    let expected = Message::Prepared(prepared(MAX_STEP_ADDRESSES));
    assert_eq!(read(&written), Ok(expected));
}

prop_compose! {
    fn any_address()(v6: [u8; 16], v4: [u8; 4], six: bool, port: u16) -> Address {
        Address::new(if six { v6.into() } else { v4.into() }, port)
    }
}

fn any_addresses() -> impl Strategy<Value = Vec<Address>> {
    prop::collection::vec(any_address(), 0..=MAX_STEP_ADDRESSES)
}

fn any_behaviour() -> impl Strategy<Value = NatBehaviour> {
    prop_oneof![
        Just(NatBehaviour::Unknown),
        Just(NatBehaviour::None),
        Just(NatBehaviour::EndpointIndependent),
        Just(NatBehaviour::AddressDependent),
        Just(NatBehaviour::AddressAndPortDependent),
    ]
}

fn any_ports() -> impl Strategy<Value = PortAllocation> {
    prop_oneof![
        Just(PortAllocation::Unknown),
        Just(PortAllocation::Preserving),
        Just(PortAllocation::Sequential),
        Just(PortAllocation::Random),
    ]
}

fn any_method() -> impl Strategy<Value = PrepareMethod> {
    prop_oneof![
        Just(PrepareMethod::Predict),
        Just(PrepareMethod::Pool),
        Just(PrepareMethod::Spray),
        (3..=u64::MAX).prop_map(PrepareMethod::Other),
    ]
}

fn any_notice() -> impl Strategy<Value = Message> {
    let step = -MAX_PORT_STEP..=MAX_PORT_STEP;
    let nat = (any_behaviour(), any_behaviour(), any_ports(), step).prop_map(
        |(mapping, filtering, ports, step)| {
            Message::Nat(Nat {
                mapping,
                filtering,
                ports,
                step,
            })
        },
    );
    let prepare = (any::<u64>(), any_method(), any_addresses(), any::<u16>());
    let prepare = prepare.prop_map(|(request, method, addresses, count)| {
        Message::Prepare(Prepare {
            request,
            method,
            addresses,
            count,
        })
    });
    let prepared = (any::<u64>(), any::<bool>(), any_addresses());
    let prepared = prepared.prop_map(|(request, done, addresses)| {
        Message::Prepared(Prepared {
            request,
            done,
            addresses,
        })
    });
    let filler = (0..20_000_u16).prop_map(Message::Filler);
    prop_oneof![nat, prepare, prepared, filler]
}

proptest! {
    #[test]
    fn notices_survive_any_chunking(
        messages in prop::collection::vec(any_notice(), 0..5), chunk in 1_usize..100,
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
        kind in 7_u8..10,
        fields in 0xa0_u8..0xa8,
        rest in prop::collection::vec(
            prop_oneof![9_u8..21, 0_u8..5, 0x80_u8..0x86, Just(0x46), any::<u8>()], 0..120,
        ),
    ) {
        let mut body = vec![fields, 0, kind];
        body.extend(rest);
        if let Ok(message) = decode(&body) {
            prop_assert_eq!(read(&control::encode(&message)), Ok(message));
        }
    }
}
