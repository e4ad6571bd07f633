//! Transport parameters: whole blocks, edits of them, and what the two extensions allow.

use anyreach_wire::transport_parameters::{
    ADDRESS_DISCOVERY, AddressDiscovery, ConcurrencyLimit, NAT_TRAVERSAL, NatTraversal,
    ParameterError, Parameters, Sender,
};
use anyreach_wire::varint::VarInt;
use proptest::collection::SizeRange;
use proptest::prelude::*;

fn block(parameters: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, value) in parameters {
        VarInt::try_from(*id).expect("fits").encode(&mut out);
        VarInt::try_from(value.len() as u64)
            .expect("fits")
            .encode(&mut out);
        out.extend_from_slice(value);
    }
    out
}

const NAT: u64 = NAT_TRAVERSAL.get();
const DISCOVERY: u64 = ADDRESS_DISCOVERY.get();

#[test]
fn the_identifiers_on_the_wire() {
    let mut parameters = Parameters::default();
    parameters
        .insert(NAT_TRAVERSAL, NatTraversal::Client.encode())
        .expect("new");
    parameters
        .insert(ADDRESS_DISCOVERY, AddressDiscovery::Both.encode())
        .expect("new");
    assert_eq!(
        parameters.encode(),
        [
            0xfd, 0x7e, 0x9f, 0x0b, 0xca, 0x12, 0xfe, 0xa6, 0, // nat_traversal, empty
            0xc0, 0, 0, 0, 0x9f, 0x81, 0xa1, 0x76, 1, 2, // address_discovery, 2
        ]
    );
}

#[test]
fn a_client_says_no_more_than_that_it_supports_nat_traversal() {
    let empty = block(&[(NAT, &[])]);
    let parameters = Parameters::parse(&empty).expect("well-formed");
    assert_eq!(
        parameters.nat_traversal(Sender::Client),
        Ok(Some(NatTraversal::Client))
    );
    let illegal = Err(ParameterError::IllegalValue(NAT));
    assert_eq!(parameters.nat_traversal(Sender::Server), illegal);
    for value in [&[0][..], &[8], &[0x40, 1]] {
        let bytes = block(&[(NAT, value)]);
        let parameters = Parameters::parse(&bytes).expect("well-formed");
        assert_eq!(
            parameters.nat_traversal(Sender::Client),
            illegal,
            "{value:?}"
        );
    }
}

#[test]
fn a_server_says_one_positive_integer() {
    let largest = [0xff; 8];
    let cases: [(&[u8], u64); 4] = [
        (&[1], 1),
        (&[0x3f], 63),
        (&[0x40, 1], 1),
        (&largest, VarInt::MAX.get()),
    ];
    for (value, limit) in cases {
        let bytes = block(&[(NAT, value)]);
        let parameters = Parameters::parse(&bytes).expect("well-formed");
        let Ok(Some(NatTraversal::Server { limit: read })) =
            parameters.nat_traversal(Sender::Server)
        else {
            panic!("{value:?} is legal")
        };
        assert_eq!(read.get().get(), limit);
    }
    for value in [
        &[][..],
        &[0],
        &[0x40, 0],
        &[0x40],
        &[1, 1],
        &[0xff; 7],
        &[0xff; 9],
    ] {
        let bytes = block(&[(NAT, value)]);
        let parameters = Parameters::parse(&bytes).expect("well-formed");
        assert_eq!(
            parameters.nat_traversal(Sender::Server),
            Err(ParameterError::IllegalValue(NAT)),
            "{value:?}"
        );
    }
    assert_eq!(ConcurrencyLimit::new(VarInt::from_u32(0)), None);
}

#[test]
fn address_discovery_has_three_values() {
    let modes = [
        (AddressDiscovery::Provide, true, false),
        (AddressDiscovery::Receive, false, true),
        (AddressDiscovery::Both, true, true),
    ];
    for (value, (mode, provides, receives)) in modes.into_iter().enumerate() {
        assert_eq!(mode.encode(), [value as u8]);
        let bytes = block(&[(DISCOVERY, &[value as u8])]);
        let parameters = Parameters::parse(&bytes).expect("well-formed");
        assert_eq!(parameters.address_discovery(), Ok(Some(mode)));
        assert_eq!((mode.provides(), mode.receives()), (provides, receives));
    }
    for value in [&[][..], &[3], &[0xff; 8], &[0, 0], &[0x40]] {
        let bytes = block(&[(DISCOVERY, value)]);
        let parameters = Parameters::parse(&bytes).expect("well-formed");
        assert_eq!(
            parameters.address_discovery(),
            Err(ParameterError::IllegalValue(DISCOVERY)),
            "{value:?}"
        );
    }
}

#[test]
fn an_absent_parameter_is_no_support_and_no_error() {
    let bytes = block(&[(1, &[0x30])]);
    let parameters = Parameters::parse(&bytes).expect("well-formed");
    assert_eq!(parameters.nat_traversal(Sender::Client), Ok(None));
    assert_eq!(parameters.nat_traversal(Sender::Server), Ok(None));
    assert_eq!(parameters.address_discovery(), Ok(None));
}

#[test]
fn duplicates_are_refused_wherever_they_come_from() {
    let twice = block(&[(NAT, &[]), (1, &[0]), (NAT, &[])]);
    assert_eq!(
        Parameters::parse(&twice),
        Err(ParameterError::Duplicate(NAT))
    );
    // The same identifier in a longer encoding is the same parameter.
    let disguised = [1, 0, 0x40, 1, 0];
    assert_eq!(
        Parameters::parse(&disguised),
        Err(ParameterError::Duplicate(1))
    );

    let bytes = block(&[(1, &[7]), (2, &[])]);
    let mut parameters = Parameters::parse(&bytes).expect("well-formed");
    assert_eq!(
        parameters.insert(VarInt::from_u32(1), vec![]),
        Err(ParameterError::Duplicate(1))
    );
    assert_eq!(
        parameters.rewrite(VarInt::from_u32(2), VarInt::from_u32(1), vec![]),
        Err(ParameterError::Duplicate(1))
    );
    assert_eq!(parameters.encode(), bytes);
}

#[test]
fn a_block_of_the_largest_size_is_parsed_quickly() {
    let ids = 0_u32..;
    let mut bytes = Vec::new();
    for id in ids.take_while(|id| *id < 13_000) {
        VarInt::from_u32(id).encode(&mut bytes);
        bytes.push(0);
    }
    assert!(Parameters::parse(&bytes).is_ok());
    bytes.extend([0, 0]);
    assert_eq!(Parameters::parse(&bytes), Err(ParameterError::Duplicate(0)));
}

#[test]
fn a_length_beyond_the_block_is_refused() {
    for length in [&[1][..], &[0x7f, 0xff], &[0xff; 8]] {
        let mut bytes = vec![5];
        bytes.extend(length);
        assert_eq!(
            Parameters::parse(&bytes),
            Err(ParameterError::Truncated),
            "{length:?}"
        );
    }
}

/// Distinct identifiers with values, in an order of their own.
fn any_block(count: impl Into<SizeRange>) -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let value = prop::collection::vec(any::<u8>(), 0..20);
    let id = prop_oneof![0_u64..64, 0..NAT];
    prop::collection::btree_map(id, value, count)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

fn written(parameters: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let parameters: Vec<_> = parameters
        .iter()
        .map(|(id, value)| (*id, &value[..]))
        .collect();
    block(&parameters)
}

proptest! {
    #[test]
    fn round_trip(parameters in any_block(0..12)) {
        let bytes = written(&parameters);
        let parsed = Parameters::parse(&bytes)?;
        prop_assert_eq!(&parsed.encode(), &bytes);
        let read: Vec<_> = parsed.iter().map(|(id, v)| (id.get(), v.to_vec())).collect();
        prop_assert_eq!(read, parameters);
    }

    /// Every cut is an error, but one between two parameters, which leaves a shorter block.
    #[test]
    fn truncation(parameters in any_block(0..12)) {
        let bytes = written(&parameters);
        let mut ends: Vec<usize> =
            (0..=parameters.len()).map(|n| written(&parameters[..n]).len()).collect();
        for cut in 0..bytes.len() {
            let parsed = Parameters::parse(&bytes[..cut]);
            if ends[0] == cut {
                prop_assert!(parsed.is_ok());
                ends.remove(0);
            } else {
                prop_assert_eq!(parsed, Err(ParameterError::Truncated));
            }
        }
    }

    /// Taking out, putting in and replacing touch nothing else.
    #[test]
    fn edits(parameters in any_block(1..12), at: prop::sample::Index, value: Vec<u8>) {
        let at = at.index(parameters.len());
        let id = VarInt::try_from(parameters[at].0)?;
        let bytes = written(&parameters);

        let mut edited = Parameters::parse(&bytes)?;
        prop_assert!(edited.rewrite(id, NAT_TRAVERSAL, value.clone())?);
        let mut expected = parameters.clone();
        expected[at] = (NAT, value.clone());
        prop_assert_eq!(edited.encode(), written(&expected));
        prop_assert_eq!(edited.get(NAT_TRAVERSAL), Some(&value[..]));

        let removed = edited.remove(NAT_TRAVERSAL);
        prop_assert_eq!(removed.as_deref(), Some(&value[..]));
        prop_assert_eq!(edited.remove(NAT_TRAVERSAL), None);
        prop_assert!(!edited.rewrite(id, NAT_TRAVERSAL, vec![])?);
        expected.remove(at);
        prop_assert_eq!(edited.encode(), written(&expected));

        edited.insert(id, parameters[at].1.clone())?;
        expected.push(parameters[at].clone());
        prop_assert_eq!(edited.encode(), written(&expected));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(parameters) = Parameters::parse(&bytes) {
            let _ = parameters.nat_traversal(Sender::Client);
            let _ = parameters.nat_traversal(Sender::Server);
            let _ = parameters.address_discovery();
            let encoded = parameters.encode();
            prop_assert_eq!(Parameters::parse(&encoded)?, parameters);
        }
    }
}
