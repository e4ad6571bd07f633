use proptest::prelude::*;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("literal")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

fn check(policy: &Policy, target: &str) -> Result<(), Refusal> {
    policy.check(at(target), Scope::default())
}

/// A relay at 203.0.113.10 and 2001:db8::10, with one private interface.
fn relay() -> Policy {
    Policy {
        own: Own {
            addresses: ["203.0.113.10", "2001:db8::10", "10.0.0.5"].map(ip).into(),
            node: vec![
                at("203.0.113.10:9000"),
                at("10.0.0.5:9000"),
                at("127.0.0.1:9000"),
            ],
            lent: [54321].into(),
        },
        ..Policy::default()
    }
}

#[test]
fn every_range_has_its_reason() {
    use Refusal as R;
    for (target, refusal) in [
        ("0.0.0.0", R::Unspecified),
        ("0.1.2.3", R::Unspecified),
        ("127.0.0.1", R::Loopback),
        ("127.255.255.255", R::Loopback),
        ("10.0.0.0", R::Private),
        ("172.16.0.1", R::Private),
        ("172.31.255.255", R::Private),
        ("192.168.1.1", R::Private),
        ("100.64.0.1", R::Shared),
        ("100.127.255.255", R::Shared),
        ("169.254.169.254", R::LinkLocal),
        ("192.0.0.170", R::Reserved),
        ("192.88.99.1", R::Reserved),
        ("198.18.0.1", R::Reserved),
        ("198.19.255.255", R::Reserved),
        ("224.0.0.1", R::Multicast),
        ("239.255.255.250", R::Multicast),
        ("240.0.0.1", R::Reserved),
        ("255.255.255.255", R::Broadcast),
        ("[::]", R::Unspecified),
        ("[::1]", R::Loopback),
        ("[::2]", R::Disguised),
        ("[::10.0.0.1]", R::Disguised),
        ("[::8.8.8.8]", R::Disguised),
        ("[::ffff:0:8.8.8.8]", R::Disguised),
        ("[::ffff:127.0.0.1]", R::Loopback),
        ("[::ffff:169.254.169.254]", R::LinkLocal),
        ("[64:ff9b::10.0.0.1]", R::Disguised),
        ("[64:ff9b::255.255.255.255]", R::Disguised),
        ("[64:ff9b:1::8.8.8.8]", R::Disguised),
        ("[64:ff9b:2::1]", R::Reserved),
        ("[2002:7f00:1::1]", R::Disguised),
        ("[2002:a00:1::]", R::Disguised),
        ("[2001:0:cb00:710a::1]", R::Disguised),
        ("[2001:2::1]", R::Reserved),
        ("[2001:20::1]", R::Reserved),
        ("[100::1]", R::Reserved),
        ("[4000::1]", R::Reserved),
        ("[5f00::1]", R::Reserved),
        ("[3fff::1]", R::Reserved),
        ("[fc00::1]", R::UniqueLocal),
        ("[fd12:3456::1]", R::UniqueLocal),
        ("[fe80::1]", R::LinkLocal),
        ("[febf::1]", R::LinkLocal),
        ("[fec0::1]", R::Private),
        ("[ff02::fb]", R::Multicast),
    ] {
        let found = check(&Policy::default(), &format!("{target}:40000"));
        assert_eq!(found, Err(refusal), "{target}");
    }
}

#[test]
fn the_internet_is_open_and_so_are_the_ranges_of_laboratories() {
    for target in [
        "8.8.8.8",
        "203.0.113.1",
        "198.51.100.1",
        "192.0.2.1",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.0.1",
        "172.32.0.1",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "[::ffff:8.8.8.8]",
        "[2001:db8::1]",
        "[2001:200::1]",
        "[2a00:1450::1]",
        "[3ffe::1]",
        "[64:ff9b::8.8.8.8]",
        "[2002:808:808::1]",
    ] {
        let target = format!("{target}:40000");
        assert_eq!(check(&Policy::default(), &target), Ok(()), "{target}");
        assert!(is_global(at(&target).ip()), "{target}");
    }
}

#[test]
fn ports() {
    let policy = Policy::default();
    assert_eq!(check(&policy, "8.8.8.8:0"), Err(Refusal::PortZero));
    for (port, _) in DENIED_PORTS {
        let refused = Err(Refusal::DeniedPort);
        assert_eq!(check(&policy, &format!("8.8.8.8:{port}")), refused);
        assert_eq!(check(&policy, &format!("[2a00::1]:{port}")), refused);
    }
    for port in [1, 443, 3478, 9000, 32768, 65535] {
        assert_eq!(check(&policy, &format!("8.8.8.8:{port}")), Ok(()));
    }
    assert!(DENIED_PORTS.is_sorted_by(|a, b| a.0 < b.0), "no port twice");
}

#[test]
fn the_relay_itself_is_its_node_and_what_it_lends() {
    let policy = relay();
    assert_eq!(check(&policy, "203.0.113.10:9000"), Ok(()));
    assert_eq!(check(&policy, "203.0.113.10:54321"), Ok(()));
    assert_eq!(check(&policy, "[2001:db8::10]:54321"), Ok(()));
    for target in [
        "203.0.113.10:22",
        "203.0.113.10:9001",
        "[2001:db8::10]:9000",
        "[2001:db8::10]:161",
    ] {
        let found = check(&policy, target);
        assert!(
            matches!(found, Err(Refusal::Own | Refusal::DeniedPort)),
            "{target}: {found:?}"
        );
    }
    // By way of a translator as well.
    assert_eq!(
        check(&policy, "[64:ff9b::203.0.113.10]:22"),
        Err(Refusal::Disguised)
    );
    assert_eq!(
        check(&policy, "[2002:cb00:710a::1]:40000"),
        Err(Refusal::Disguised)
    );
    assert_eq!(check(&policy, "203.0.113.11:22"), Ok(()), "a neighbour");
}

#[test]
fn an_unspecified_node_address_means_every_own_one() {
    let mut policy = relay();
    policy.own.node = vec![at("[::]:9000")];
    for target in ["203.0.113.10:9000", "[2001:db8::10]:9000"] {
        assert_eq!(check(&policy, target), Ok(()));
    }
    assert_eq!(check(&policy, "10.0.0.5:9000"), Err(Refusal::Private));
}

#[test]
fn own_ports_inside_are_for_clients_from_inside() {
    let policy = relay();
    let outside = Scope::of(ip("198.51.100.7"), Some(ip("203.0.113.10")));
    let lan = Scope::of(ip("10.0.0.77"), Some(ip("10.0.0.5")));
    let mapped = Scope::of(ip("198.51.100.7"), Some(ip("10.0.0.5")));
    let same_host = Scope::of(ip("127.0.0.1"), Some(ip("127.0.0.1")));
    for (target, scope, expected) in [
        ("10.0.0.5:9000", outside, Err(Refusal::Private)),
        ("127.0.0.1:9000", outside, Err(Refusal::Loopback)),
        ("10.0.0.5:9000", lan, Ok(())),
        ("10.0.0.5:54321", lan, Ok(())),
        ("127.0.0.1:9000", lan, Err(Refusal::Loopback)),
        // A one-to-one NAT in front of the relay.
        ("10.0.0.5:9000", mapped, Ok(())),
        ("127.0.0.1:9000", same_host, Ok(())),
        ("[::ffff:127.0.0.1]:54321", same_host, Ok(())),
        ("[::1]:54321", same_host, Ok(())),
        // Nothing else inside, whoever asks.
        ("10.0.0.5:22", lan, Err(Refusal::Private)),
        ("10.0.0.6:9000", lan, Err(Refusal::Private)),
        ("10.0.0.6:54321", lan, Err(Refusal::Private)),
        ("127.0.0.1:22", same_host, Err(Refusal::Loopback)),
        ("169.254.169.254:80", lan, Err(Refusal::LinkLocal)),
    ] {
        assert_eq!(
            policy.check(at(target), scope),
            expected,
            "{target} {scope:?}"
        );
    }
}

#[test]
fn the_operator_has_the_last_word_but_for_what_is_no_host() {
    let policy = Policy {
        allow: ["0.0.0.0/0", "::/0"]
            .map(|text| text.parse().expect("literal"))
            .into(),
        deny: vec!["10.9.0.0/16".parse().expect("literal")],
        ..relay()
    };
    for target in [
        "10.0.0.1:40000",
        "127.0.0.1:40000",
        "[fd00::1]:40000",
        "203.0.113.10:22",
    ] {
        assert_eq!(check(&policy, target), Ok(()), "{target}");
    }
    for (target, refusal) in [
        ("10.9.1.1:40000", Refusal::Operator),
        ("[::ffff:10.9.1.1]:40000", Refusal::Operator),
        ("8.8.8.8:53", Refusal::DeniedPort),
        ("224.0.0.1:40000", Refusal::Multicast),
        ("255.255.255.255:40000", Refusal::Broadcast),
        ("0.0.0.0:40000", Refusal::Unspecified),
        ("[::]:40000", Refusal::Unspecified),
        ("[ff02::1]:40000", Refusal::Multicast),
        ("10.0.0.1:0", Refusal::PortZero),
    ] {
        assert_eq!(check(&policy, target), Err(refusal), "{target}");
    }
    let denied_inside = Policy {
        deny: vec!["8.8.8.0/24".parse().expect("literal")],
        ..Policy::default()
    };
    assert_eq!(
        check(&denied_inside, "[64:ff9b::8.8.8.8]:40000"),
        Err(Refusal::Disguised)
    );
}

#[test]
fn tunnels_cannot_be_told_to_send_into_tunnels() {
    let synthetic = anyreach_net::SyntheticAddr::new(3, 4).socket_addr();
    assert!(
        Policy::default()
            .check(synthetic, Scope::default())
            .is_err()
    );
    let mut open = Policy::default();
    open.allow.push("::/0".parse().expect("literal"));
    assert!(open.check(synthetic, Scope::default()).is_err());
}

/// Every form in which an IPv4 address can be written as IPv6, with packets to it ending there.
fn disguises(v4: Ipv4Addr, noise: u64) -> Vec<Ipv6Addr> {
    let bits = u128::from(v4.to_bits());
    let noise = u128::from(noise);
    let inverted = u128::from(!v4.to_bits());
    vec![
        v4.to_ipv6_mapped(),
        Ipv6Addr::from_bits(bits),
        Ipv6Addr::from_bits(0xffff_0000_u128 << 32 | bits),
        Ipv6Addr::from_bits(0x0064_ff9b_u128 << 96 | bits),
        Ipv6Addr::from_bits(0x0064_ff9b_0001_u128 << 80 | noise << 32 | bits),
        Ipv6Addr::from_bits(0x2002_u128 << 112 | bits << 80 | noise),
        // Teredo: as the server, and as the client.
        Ipv6Addr::from_bits(0x2001_0000_u128 << 96 | bits << 64 | noise),
        Ipv6Addr::from_bits(0x2001_0000_u128 << 96 | (noise & 0xffff_ffff) << 64 | inverted),
    ]
}

fn refused_v4() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>()
        .prop_flat_map(|bits| {
            let host = move |net: u32, len: u32| {
                let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
                Ipv4Addr::from_bits((net & mask) | (bits & !mask))
            };
            prop::sample::select(vec![
                host(0x0000_0000, 8),
                host(0x7f00_0000, 8),
                host(0x0a00_0000, 8),
                host(0xac10_0000, 12),
                host(0xc0a8_0000, 16),
                host(0x6440_0000, 10),
                host(0xa9fe_0000, 16),
                host(0xc000_0000, 24),
                host(0xc058_6300, 24),
                host(0xc612_0000, 15),
                host(0xe000_0000, 4),
                host(0xf000_0000, 4),
                Ipv4Addr::BROADCAST,
            ])
        })
        .prop_filter("is in a refused range", |v4| refusal_of_v4(*v4).is_some())
}

proptest! {
    #[test]
    fn no_disguise_gets_through(v4 in refused_v4(), noise in any::<u64>(), port in any::<u16>()) {
        let policy = relay();
        for scope in [Scope::default(), Scope::of(ip("10.0.0.77"), Some(ip("203.0.113.10")))] {
            // What the relay offers inside has its own test.
            if v4 == Ipv4Addr::new(10, 0, 0, 5) {
                continue;
            }
            prop_assert!(policy.check((v4, port).into(), scope).is_err());
            for v6 in disguises(v4, noise) {
                prop_assert!(policy.check((v6, port).into(), scope).is_err(), "{v6}");
            }
        }
    }

    #[test]
    fn the_mapped_form_is_the_plain_one(v4 in any::<u32>(), port in any::<u16>(), private in any::<bool>()) {
        let v4 = Ipv4Addr::from_bits(v4);
        let client = if private { "192.168.1.2" } else { "198.51.100.1" };
        let scope = Scope::of(ip(client), None);
        let policy = relay();
        prop_assert_eq!(
            policy.check((v4, port).into(), scope),
            policy.check((v4.to_ipv6_mapped(), port).into(), scope)
        );
    }

    #[test]
    fn nothing_outside_global_unicast_passes(bits in any::<u128>(), port in any::<u16>()) {
        let v6 = Ipv6Addr::from_bits(bits);
        let passes = Policy::default().check((v6, port).into(), Scope::default()).is_ok();
        let global = v6.segments()[0] >> 13 == 1;
        let nat64 = bits >> 32 == 0x0064_ff9b_u128 << 64;
        let mapped = v6.to_ipv4_mapped().is_some();
        prop_assert!(!passes || global || nat64 || mapped);
    }
}
