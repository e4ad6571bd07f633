//! The NAT against hand-made packets.

use std::time::Duration;

use super::packet::{Packet, Protocol, checksum};
use super::*;
use crate::words::Words;

const US: &str = "203.0.113.1:0";
const INSIDE: &str = "192.168.1.10:5000";
const FAR: &str = "198.51.100.7:443";
const FAR_OTHER_PORT: &str = "198.51.100.7:444";
const FURTHER: &str = "198.51.100.8:443";

fn endpoint(text: &str) -> SocketAddrV4 {
    text.parse().expect("an endpoint")
}

fn nat(mapping: &str, filtering: &str, ports: &str, hairpin: bool) -> Nat {
    let words = Words::parse([
        format!("mapping={mapping}"),
        format!("filtering={filtering}"),
        format!("ports={ports}"),
        format!("hairpin={hairpin}"),
        "timeout_ms=30000".to_owned(),
    ]);
    let policy = Policy::parse(&words.expect("words")).expect("a policy");
    Nat::new(policy, *endpoint(US).ip(), 1)
}

fn ip(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    let total = u16::try_from(20 + payload.len()).expect("a small packet");
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = checksum(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn transport_sum(packet: &[u8]) -> u16 {
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, packet[9]]);
    pseudo.extend(
        u16::try_from(packet.len() - 20)
            .expect("small")
            .to_be_bytes(),
    );
    pseudo.extend(&packet[20..]);
    checksum(&pseudo)
}

fn datagram(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut udp = Vec::new();
    for word in [from.port(), to.port(), 13, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(b"hello");
    let mut packet = ip(17, *from.ip(), *to.ip(), &udp);
    let sum = transport_sum(&packet);
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Source and destination after the NAT, which must have kept all checksums right.
fn pass(
    nat: &mut Nat,
    from: SocketAddrV4,
    to: SocketAddrV4,
    now: Instant,
) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let mut bytes = datagram(from, to);
    nat.translate(&mut bytes, now)?;
    assert_eq!(checksum(&bytes[..20]), 0, "IP checksum");
    assert_eq!(transport_sum(&bytes), 0, "UDP checksum");
    let packet = Packet::parse(&mut bytes).expect("still a packet");
    Some((packet.source(), packet.destination()))
}

fn out(nat: &mut Nat, from: &str, to: &str, now: Instant) -> SocketAddrV4 {
    let (source, destination) = pass(nat, endpoint(from), endpoint(to), now).expect("goes out");
    assert_eq!(destination, endpoint(to));
    assert_eq!(source.ip(), endpoint(US).ip());
    source
}

fn comes_in(nat: &mut Nat, from: &str, to: SocketAddrV4, now: Instant) -> bool {
    let passed = pass(nat, endpoint(from), to, now);
    if let Some((source, destination)) = passed {
        assert_eq!((source, destination), (endpoint(from), endpoint(INSIDE)));
    }
    passed.is_some()
}

#[test]
fn mappings_depend_on_what_the_policy_says() {
    let now = Instant::now();
    for (mapping, distinct) in [("ei", 1), ("ad", 2), ("apd", 3)] {
        let mut nat = nat(mapping, "apd", "random", false);
        let mut seen: Vec<SocketAddrV4> = [FAR, FAR_OTHER_PORT, FURTHER, FAR]
            .map(|to| out(&mut nat, INSIDE, to, now))
            .to_vec();
        assert_eq!(seen[0], seen[3], "the same remote keeps its mapping");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), distinct, "{mapping}");
    }
}

#[test]
fn filters_depend_on_what_the_policy_says() {
    let now = Instant::now();
    for (filtering, other_port, other_address) in [
        ("ei", true, true),
        ("ad", true, false),
        ("apd", false, false),
    ] {
        let mut nat = nat("ei", filtering, "preserve", false);
        let mapped = out(&mut nat, INSIDE, FAR, now);
        assert!(comes_in(&mut nat, FAR, mapped, now));
        assert_eq!(
            comes_in(&mut nat, FAR_OTHER_PORT, mapped, now),
            other_port,
            "{filtering}"
        );
        assert_eq!(
            comes_in(&mut nat, FURTHER, mapped, now),
            other_address,
            "{filtering}"
        );
        let unmapped = SocketAddrV4::new(*mapped.ip(), mapped.port() + 1);
        assert!(!comes_in(&mut nat, FAR, unmapped, now));
    }
}

#[test]
fn ports_are_preserved_counted_or_random() {
    let now = Instant::now();
    let mut preserving = nat("ei", "ei", "preserve", false);
    assert_eq!(out(&mut preserving, INSIDE, FAR, now).port(), 5000);
    let second = out(&mut preserving, "192.168.1.11:5000", FAR, now).port();
    assert_ne!(second, 5000, "taken");
    let mut counting = nat("apd", "apd", "sequential", false);
    let ports = [FAR, FURTHER, FAR_OTHER_PORT].map(|to| out(&mut counting, INSIDE, to, now).port());
    assert_eq!(ports, [ports[0], ports[0] + 1, ports[0] + 2]);
    let mut random = nat("apd", "apd", "random", false);
    let ports = [FAR, FURTHER, FAR_OTHER_PORT].map(|to| out(&mut random, INSIDE, to, now).port());
    assert!(
        ports[0].abs_diff(ports[1]) > 1 && ports[1].abs_diff(ports[2]) > 1,
        "{ports:?}"
    );
}

#[test]
fn hairpinning_shows_the_external_address() {
    let now = Instant::now();
    let neighbour = "192.168.1.11:6000";
    for hairpin in [false, true] {
        let mut nat = nat("ei", "ei", "preserve", hairpin);
        let mapped = out(&mut nat, INSIDE, FAR, now);
        let passed = pass(&mut nat, endpoint(neighbour), mapped, now);
        let expected = (SocketAddrV4::new(*mapped.ip(), 6000), endpoint(INSIDE));
        assert_eq!(passed, hairpin.then_some(expected));
    }
    // The filter holds for neighbours as well.
    let mut strict = nat("ei", "apd", "preserve", true);
    let mapped = out(&mut strict, INSIDE, FAR, now);
    assert_eq!(pass(&mut strict, endpoint(neighbour), mapped, now), None);
    let back = SocketAddrV4::new(*mapped.ip(), 6000);
    assert_eq!(
        pass(&mut strict, endpoint(INSIDE), back, now),
        Some((mapped, endpoint(neighbour)))
    );
    assert!(pass(&mut strict, endpoint(neighbour), mapped, now).is_some());
}

#[test]
fn mappings_expire_unless_packets_go_out() {
    let start = Instant::now();
    let seconds = |count| start + Duration::from_secs(count);
    let mut nat = nat("ei", "ei", "random", false);
    let mapped = out(&mut nat, INSIDE, FAR, start);
    assert!(comes_in(&mut nat, FAR, mapped, seconds(29)));
    assert!(
        !comes_in(&mut nat, FAR, mapped, seconds(30)),
        "inbound packets do not count"
    );
    assert_ne!(out(&mut nat, INSIDE, FAR, seconds(31)), mapped);
    let renewed = out(&mut nat, INSIDE, FAR, seconds(60));
    assert_eq!(out(&mut nat, INSIDE, FAR, seconds(61)), renewed);
    assert!(comes_in(&mut nat, FAR, renewed, seconds(90)));
    nat.expire(seconds(200));
    assert!(!comes_in(&mut nat, FAR, renewed, seconds(200)));
}

#[test]
fn a_reboot_forgets_and_a_new_address_is_used() {
    let now = Instant::now();
    let mut nat = nat("ei", "ei", "sequential", false);
    let mapped = out(&mut nat, INSIDE, FAR, now);
    nat.flush();
    assert!(!comes_in(&mut nat, FAR, mapped, now));
    assert_eq!(out(&mut nat, INSIDE, FAR, now).port(), mapped.port() + 1);
    nat.readdress(Ipv4Addr::new(203, 0, 113, 2));
    let (source, _) = pass(&mut nat, endpoint(INSIDE), endpoint(FAR), now).expect("goes out");
    assert_eq!(source.ip(), &Ipv4Addr::new(203, 0, 113, 2));
}

#[test]
fn icmp_errors_find_the_sender() {
    let now = Instant::now();
    let mut nat = nat("ei", "apd", "random", false);
    let mut sent = datagram(endpoint(INSIDE), endpoint(FAR));
    nat.translate(&mut sent, now).expect("goes out");
    let mut icmp = vec![3, 4, 0, 0, 0, 0, 5, 0];
    icmp.extend(&sent[..28]);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let router = Ipv4Addr::new(192, 0, 2, 1);
    let mut error = ip(1, router, *endpoint(US).ip(), &icmp);
    nat.translate(&mut error, now).expect("comes in");
    assert_eq!(checksum(&error[..20]), 0);
    assert_eq!(checksum(&error[20..]), 0);
    assert_eq!(checksum(&error[28..48]), 0, "quoted header");
    let packet = Packet::parse(&mut error).expect("still a packet");
    assert_eq!(packet.destination().ip(), endpoint(INSIDE).ip());
    let quoted = packet.quoted().expect("a quote");
    assert_eq!(quoted, (Protocol::Udp, endpoint(INSIDE), endpoint(FAR)));
}

#[test]
fn icmp_errors_from_inside_hide_the_inside() {
    let now = Instant::now();
    let mut nat = nat("ei", "apd", "random", false);
    let mapped = out(&mut nat, INSIDE, FAR, now);
    let mut received = datagram(endpoint(FAR), mapped);
    nat.translate(&mut received, now).expect("comes in");
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp.extend(&received[..28]);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut error = ip(1, *endpoint(INSIDE).ip(), *endpoint(FAR).ip(), &icmp);
    nat.translate(&mut error, now).expect("goes out");
    assert_eq!(checksum(&error[20..]), 0);
    let packet = Packet::parse(&mut error).expect("still a packet");
    assert_eq!(packet.source().ip(), mapped.ip());
    assert_eq!(
        packet.quoted(),
        Some((Protocol::Udp, endpoint(FAR), mapped))
    );
}

#[test]
fn echo_requests_and_their_replies_pass() {
    let now = Instant::now();
    let mut nat = nat("ei", "apd", "random", false);
    let echo = |kind: u8, id: u16| {
        let mut icmp = vec![kind, 0, 0, 0, 0, 0, 0, 1];
        icmp[4..6].copy_from_slice(&id.to_be_bytes());
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        icmp
    };
    let (inside, far) = (*endpoint(INSIDE).ip(), *endpoint(FAR).ip());
    let mut request = ip(1, inside, far, &echo(8, 77));
    nat.translate(&mut request, now).expect("goes out");
    assert_eq!(checksum(&request[20..]), 0);
    let id = u16::from_be_bytes([request[24], request[25]]);
    let mut reply = ip(1, far, *endpoint(US).ip(), &echo(0, id));
    nat.translate(&mut reply, now).expect("comes in");
    assert_eq!(checksum(&reply[20..]), 0);
    assert_eq!(&reply[16..20], &inside.octets());
    assert_eq!(&reply[24..26], &77u16.to_be_bytes());
}

#[test]
fn what_is_no_whole_translatable_packet_is_dropped() {
    let now = Instant::now();
    let mut nat = nat("ei", "ei", "preserve", false);
    let good = datagram(endpoint(INSIDE), endpoint(FAR));
    let mut fragment = good.clone();
    fragment[6] = 0x20;
    let mut ipv6 = good.clone();
    ipv6[0] = 0x65;
    let mut unknown = good.clone();
    unknown[9] = 132;
    for mut bytes in [Vec::new(), good[..27].to_vec(), fragment, ipv6, unknown] {
        assert_eq!(nat.translate(&mut bytes, now), None);
    }
    for length in 0..good.len() {
        assert_eq!(nat.translate(&mut good[..length].to_vec(), now), None);
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let now = Instant::now();
    let mut nat = nat("ei", "ei", "random", false);
    let mut packet = datagram(endpoint(INSIDE), endpoint(FAR));
    packet[26..28].fill(0);
    nat.translate(&mut packet, now).expect("goes out");
    assert_eq!(&packet[26..28], &[0, 0]);
}
