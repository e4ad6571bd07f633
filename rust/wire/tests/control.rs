//! Control messages: what is written is read, and what a hostile peer writes is refused.

use anyreach_wire::control::{
    self, ControlError, Decoder, Field, Hello, MAX_AGENT_BYTES, MAX_BUFFERED_BYTES,
    MAX_CAPABILITIES, MAX_CAPABILITY_BYTES, MAX_MESSAGE_BYTES, Message,
};
use anyreach_wire::varint::VarInt;
use proptest::prelude::*;

/// One message from a body written by hand.
fn decode(body: &[u8]) -> Result<Message, ControlError> {
    let mut decoder = Decoder::new();
    decoder.push(&framed(body))?;
    let message = decoder.next()?.expect("the body is complete");
    assert_eq!(decoder.next(), Ok(None));
    Ok(message)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    VarInt::try_from(body.len() as u64)
        .expect("small")
        .encode(&mut out);
    out.extend_from_slice(body);
    out
}

fn hello() -> Hello {
    Hello {
        capabilities: vec!["relay".into(), "coordinate".into()],
        agent: "anyreach/0.1.0 (linux)".into(),
        ..Hello::new(u64::MAX, 0)
    }
}

#[test]
fn the_encoding_is_as_documented() {
    let message = Message::Accept(Hello {
        version: 1,
        instance: 0x1234,
        serial: 5,
        capabilities: vec!["x".into()],
        agent: "a".into(),
    });
    let expected = [
        19, 0xa6, 0, 2, 1, 1, 2, 0x19, 0x12, 0x34, 3, 5, 4, 0x81, 0x61, b'x', 5, 0x61, b'a',
    ];
    // The first byte counts the others but itself.
    let mut expected = expected.to_vec();
    expected[0] = expected.len() as u8 - 1;
    assert_eq!(control::encode(&message), expected);
}

#[test]
fn capabilities_and_agent_may_be_left_out() {
    let minimal = [0xa4, 0, 1, 1, 1, 2, 7, 3, 9];
    assert_eq!(decode(&minimal), Ok(Message::Hello(Hello::new(7, 9))));
}

#[test]
fn required_fields_are_required() {
    assert_eq!(decode(&[0xa0]), Err(ControlError::Missing(Field::Kind)));
    assert_eq!(
        decode(&[0xa1, 1, 1]),
        Err(ControlError::Missing(Field::Kind))
    );
    assert_eq!(
        decode(&[0xa1, 0, 1]),
        Err(ControlError::Missing(Field::Version))
    );
    assert_eq!(
        decode(&[0xa2, 0, 1, 1, 1]),
        Err(ControlError::Missing(Field::Instance))
    );
    assert_eq!(
        decode(&[0xa3, 0, 1, 1, 1, 2, 1]),
        Err(ControlError::Missing(Field::Serial))
    );
}

#[test]
fn a_field_appears_once() {
    let twice = [0xa5, 0, 1, 1, 1, 2, 7, 3, 9, 3, 9];
    assert_eq!(decode(&twice), Err(ControlError::Duplicate(Field::Serial)));
    let kind_again = [0xa5, 0, 1, 1, 1, 2, 7, 3, 9, 0, 1];
    assert_eq!(
        decode(&kind_again),
        Err(ControlError::Duplicate(Field::Kind))
    );
}

#[test]
fn known_fields_have_their_type() {
    // A text where the serial belongs, then the other mistakes.
    let cases: [(&[u8], ControlError); 6] = [
        (
            &[0xa4, 0, 1, 1, 1, 2, 7, 3, 0x60],
            ControlError::WrongType(Field::Serial),
        ),
        (
            &[0xa4, 0, 1, 1, 1, 2, 0x20, 3, 9],
            ControlError::WrongType(Field::Instance),
        ),
        (&[0xa1, 0, 0x61, b'h'], ControlError::WrongType(Field::Kind)),
        (
            &[0xa5, 0, 1, 1, 1, 2, 7, 3, 9, 4, 0x60],
            ControlError::WrongType(Field::Capabilities),
        ),
        (
            &[0xa5, 0, 1, 1, 1, 2, 7, 3, 9, 4, 0x81, 1],
            ControlError::WrongType(Field::Capabilities),
        ),
        (
            &[0xa5, 0, 1, 1, 1, 2, 7, 3, 9, 5, 0x41, b'a'],
            ControlError::WrongType(Field::Agent),
        ),
    ];
    for (body, error) in cases {
        assert_eq!(decode(body), Err(error), "{body:02x?}");
    }
}

#[test]
fn a_version_is_sixteen_bits() {
    let largest = [0xa4, 0, 1, 1, 0x19, 0xff, 0xff, 2, 7, 3, 9];
    assert!(matches!(
        decode(&largest),
        Ok(Message::Hello(Hello {
            version: u16::MAX,
            ..
        }))
    ));
    let larger = [0xa4, 0, 1, 1, 0x1a, 0, 1, 0, 0, 2, 7, 3, 9];
    assert_eq!(
        decode(&larger),
        Err(ControlError::OutOfLimits(Field::Version))
    );
}

#[test]
fn unknown_fields_are_skipped_whatever_they_hold() {
    let values: [&[u8]; 9] = [
        &[0x00],
        &[0x3b, 255, 255, 255, 255, 255, 255, 255, 255],
        &[0x43, 1, 2, 3],
        &[0x63, b'a', b'b', b'c'],
        &[0x82, 0x81, 0x80, 0xa1, 1, 2],
        &[0xa1, 0x61, b'k', 0xf6],
        &[0xc1, 0x1a, 0, 0, 0, 1],
        &[0xfb, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xf8, 0x20],
    ];
    for key in [&[0x18, 99][..], &[0x61, b'k'], &[0x20], &[0x82, 1, 2]] {
        for value in values {
            let mut body = vec![0xa5, 0, 1];
            body.extend_from_slice(key);
            body.extend_from_slice(value);
            body.extend_from_slice(&[1, 1, 2, 7, 3, 9]);
            assert_eq!(
                decode(&body),
                Ok(Message::Hello(Hello::new(7, 9))),
                "{body:02x?}"
            );
        }
    }
}

#[test]
fn unknown_kinds_are_reported_and_ignorable() {
    assert_eq!(decode(&[0xa1, 0, 0x18, 77]), Ok(Message::Unknown(77)));
    let largest = [
        0xa2, 0, 0x1b, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0x80,
    ];
    assert_eq!(decode(&largest), Ok(Message::Unknown(u64::MAX)));
    assert_eq!(
        decode(&[0xa2, 0, 0x18, 77, 1]),
        Err(ControlError::Truncated)
    );
    assert_eq!(
        decode(&[0xa1, 0, 0x18, 77, 1]),
        Err(ControlError::TrailingBytes)
    );
}

#[test]
fn deep_nesting_and_lying_counts_cost_nothing() {
    let mut nested = vec![0xa2, 0, 0x18, 77, 1];
    nested.resize(MAX_MESSAGE_BYTES - 1, 0x81);
    nested.push(0x00);
    assert_eq!(decode(&nested), Ok(Message::Unknown(77)));
    for head in [0x9b, 0xbb, 0x5b, 0x7b] {
        let mut body = vec![0xa2, 0, 0x18, 77, 1, head];
        body.extend_from_slice(&[255; 8]);
        assert_eq!(decode(&body), Err(ControlError::Truncated), "{head:02x}");
    }
    let mut fields = vec![0xbb];
    fields.extend_from_slice(&[255; 8]);
    fields.extend_from_slice(&[0, 0x18, 77]);
    assert_eq!(decode(&fields), Err(ControlError::Truncated));
}

#[test]
fn only_our_profile_of_cbor_is_spoken() {
    let cases: [&[u8]; 9] = [
        &[0x80],
        &[0x00],
        &[0xbf, 0, 1, 0xff],
        &[0xa2, 0, 0x18, 77, 1, 0x9f, 0xff],
        &[0xa2, 0, 0x18, 77, 1, 0xbf, 0xff],
        &[0xa2, 0, 0x18, 77, 1, 0x7f, 0xff],
        &[0xa2, 0, 0x18, 77, 1, 0xff],
        &[0xa2, 0, 0x18, 77, 1, 0x1c],
        &[0xa2, 0, 0x18, 77, 1, 0x61, 0xff],
    ];
    for body in cases {
        assert_eq!(decode(body), Err(ControlError::Malformed), "{body:02x?}");
    }
    assert_eq!(decode(&[]), Err(ControlError::Truncated));
}

/// A hello whose hints are given, past what [`control::encode`] would write.
fn with_hints(capabilities: &[&str], agent: &str) -> Vec<u8> {
    let head = |major: u8, length: usize| {
        let [high, low] = (length as u16).to_be_bytes();
        [major << 5 | 25, high, low]
    };
    let mut body = vec![0xa6, 0, 1, 1, 1, 2, 7, 3, 9, 4];
    body.extend(head(4, capabilities.len()));
    for capability in capabilities {
        body.extend(head(3, capability.len()));
        body.extend(capability.as_bytes());
    }
    body.push(5);
    body.extend(head(3, agent.len()));
    body.extend(agent.as_bytes());
    body
}

#[test]
fn hints_are_limited() {
    let long = "c".repeat(MAX_CAPABILITY_BYTES);
    let agent = "a".repeat(MAX_AGENT_BYTES);
    let most = vec![long.as_str(); MAX_CAPABILITIES];
    let Ok(Message::Hello(hello)) = decode(&with_hints(&most, &agent)) else {
        panic!("at the limits")
    };
    assert_eq!(hello.capabilities.len(), MAX_CAPABILITIES);
    assert_eq!(hello.agent, agent);

    let capabilities = Err(ControlError::OutOfLimits(Field::Capabilities));
    assert_eq!(
        decode(&with_hints(&vec!["c"; MAX_CAPABILITIES + 1], "")),
        capabilities
    );
    assert_eq!(
        decode(&with_hints(&[&format!("{long}c")], "")),
        capabilities
    );
    assert_eq!(decode(&with_hints(&["\n"], "")), capabilities);
    let agents = Err(ControlError::OutOfLimits(Field::Agent));
    assert_eq!(decode(&with_hints(&[], &format!("{agent}a"))), agents);
    assert_eq!(decode(&with_hints(&[], "\u{1b}[2J")), agents);
    assert_eq!(decode(&with_hints(&[], "\u{9b}2J")), agents);
}

#[test]
fn what_exceeds_the_limits_is_not_written() {
    let mut capabilities = vec!["c".repeat(MAX_CAPABILITY_BYTES + 1), "tab\t".into()];
    capabilities.extend((0..40).map(|n| n.to_string()));
    let message = Message::Hello(Hello {
        capabilities,
        // The limit falls into the middle of a two-byte character.
        agent: format!("{}é", "a".repeat(MAX_AGENT_BYTES - 1)),
        ..Hello::new(1, 2)
    });
    let mut decoder = Decoder::new();
    decoder.push(&control::encode(&message)).expect("small");
    let Ok(Some(Message::Hello(hello))) = decoder.next() else {
        panic!("acceptable")
    };
    assert_eq!(
        hello.capabilities,
        (0..MAX_CAPABILITIES)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
    );
    assert_eq!(hello.agent, "a".repeat(MAX_AGENT_BYTES - 1));
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_message() {
    for length in [MAX_MESSAGE_BYTES as u64 + 1, VarInt::MAX.get()] {
        let mut prefix = Vec::new();
        VarInt::try_from(length).expect("fits").encode(&mut prefix);
        let mut decoder = Decoder::new();
        decoder.push(&prefix).expect("small");
        assert_eq!(decoder.next(), Err(ControlError::TooLong(length)));
        // And the decoder stays in that state, holding nothing.
        assert_eq!(decoder.push(&[0]), Err(ControlError::TooLong(length)));
        assert_eq!(decoder.next(), Err(ControlError::TooLong(length)));
        assert_eq!(decoder.finish(), Err(ControlError::TooLong(length)));
    }
    let mut largest = vec![0xa2, 0, 0x18, 77, 1, 0x5a];
    largest.extend(((MAX_MESSAGE_BYTES - 10) as u32).to_be_bytes());
    largest.resize(MAX_MESSAGE_BYTES, 0);
    assert_eq!(decode(&largest), Ok(Message::Unknown(77)));
}

#[test]
fn bytes_not_taken_do_not_pile_up() {
    let mut decoder = Decoder::new();
    decoder
        .push(&vec![0; MAX_BUFFERED_BYTES])
        .expect("at the limit");
    assert_eq!(decoder.push(&[0]), Err(ControlError::NotTaken));

    // An unfinished message of the largest size plus a chunk still fits.
    let mut decoder = Decoder::new();
    let mut largest = vec![0xa2, 0, 0x18, 77, 1, 0x5a];
    largest.extend(((MAX_MESSAGE_BYTES - 10) as u32).to_be_bytes());
    largest.resize(MAX_MESSAGE_BYTES, 0);
    let stream = framed(&largest).repeat(20);
    let mut messages = 0;
    for chunk in stream.chunks(MAX_MESSAGE_BYTES - VarInt::MAX_LEN) {
        decoder.push(chunk).expect("taken in between");
        while let Some(message) = decoder.next().expect("well-formed") {
            assert_eq!(message, Message::Unknown(77));
            messages += 1;
        }
    }
    assert_eq!(messages, 20);
}

#[test]
fn a_stream_may_only_end_between_messages() {
    let encoded = control::encode(&Message::Hello(hello()));
    let mut decoder = Decoder::new();
    assert_eq!(decoder.finish(), Ok(()));
    decoder.push(&encoded[..encoded.len() - 1]).expect("small");
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Err(ControlError::Truncated));
    decoder.push(&encoded[encoded.len() - 1..]).expect("small");
    assert_eq!(decoder.next(), Ok(Some(Message::Hello(hello()))));
    assert_eq!(decoder.finish(), Ok(()));
}

prop_compose! {
    fn any_hello()(
        version: u16,
        instance: u64,
        serial: u64,
        capabilities in prop::collection::vec("\\PC{0,16}", 0..=MAX_CAPABILITIES),
        agent in "\\PC{0,32}",
    ) -> Hello {
        Hello { version, instance, serial, capabilities, agent }
    }
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_hello().prop_map(Message::Hello),
        any_hello().prop_map(Message::Accept),
        (100..=u64::MAX).prop_map(Message::Unknown),
    ]
}

proptest! {
    /// However the stream is cut, the messages are the same, and the stream ends clean.
    #[test]
    fn messages_survive_any_chunking(
        messages in prop::collection::vec(any_message(), 0..6),
        chunk in 1_usize..200,
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
    fn a_truncated_body_is_an_error(message in any_message(), cut: prop::sample::Index) {
        let encoded = control::encode(&message);
        let mut stream = &encoded[..];
        VarInt::decode(&mut stream)?;
        prop_assert!(decode(&stream[..cut.index(stream.len())]).is_err());
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&body);
    }

    /// Bodies that start like a hello get further than plain noise.
    #[test]
    fn arbitrary_fields_never_panic(
        kind in 1_u8..4,
        fields in 0xa0_u8..0xb8,
        rest in prop::collection::vec(prop_oneof![0_u8..6, any::<u8>(), Just(0x61)], 0..80),
    ) {
        let mut body = vec![fields, 0, kind];
        body.extend(rest);
        if let Ok(message) = decode(&body) {
            let encoded = control::encode(&message);
            let mut decoder = Decoder::new();
            decoder.push(&encoded)?;
            prop_assert_eq!(decoder.next()?, Some(message));
        }
    }

    /// One flipped byte in a valid message: read as something or refused, never a panic.
    #[test]
    fn damaged_messages_never_panic(
        message in any_message(), at: prop::sample::Index, value: u8,
    ) {
        let mut encoded = control::encode(&message);
        let at = at.index(encoded.len());
        encoded[at] = value;
        let mut decoder = Decoder::new();
        decoder.push(&encoded)?;
        while let Ok(Some(_)) = decoder.next() {}
    }

    #[test]
    fn arbitrary_streams_never_panic_or_pile_up(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
    ) {
        let mut decoder = Decoder::new();
        for chunk in chunks {
            if decoder.push(&chunk).is_err() {
                break;
            }
            while let Ok(Some(_)) = decoder.next() {}
        }
        let _ = decoder.finish();
    }
}
