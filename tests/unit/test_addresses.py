"""Addresses: canonical forms, scopes, HOST:PORT."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from anyreach.addresses import (
    HostPort,
    IpMode,
    Scope,
    SocketAddress,
    canonical_ip,
    parse_ip,
    scope_of,
)
from anyreach.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("0.0.0.0", Scope.UNSPECIFIED),
        ("0.1.2.3", Scope.RESERVED),
        ("10.255.255.255", Scope.PRIVATE),
        ("11.0.0.0", Scope.GLOBAL),
        ("100.63.255.255", Scope.GLOBAL),
        ("100.64.0.0", Scope.CGN),
        ("100.127.255.255", Scope.CGN),
        ("100.128.0.0", Scope.GLOBAL),
        ("127.0.0.1", Scope.LOOPBACK),
        ("127.255.255.255", Scope.LOOPBACK),
        ("169.254.169.254", Scope.LINK_LOCAL),
        ("172.15.255.255", Scope.GLOBAL),
        ("172.16.0.1", Scope.PRIVATE),
        ("172.32.0.0", Scope.GLOBAL),
        ("192.0.0.8", Scope.RESERVED),
        ("192.168.1.1", Scope.PRIVATE),
        ("198.18.0.1", Scope.PRIVATE),
        ("224.0.0.1", Scope.MULTICAST),
        ("240.0.0.1", Scope.RESERVED),
        ("255.255.255.255", Scope.RESERVED),
        # Documentation ranges stand for the Internet in test labs.
        ("192.0.2.1", Scope.GLOBAL),
        ("198.51.100.1", Scope.GLOBAL),
        ("203.0.113.1", Scope.GLOBAL),
        ("2001:db8::1", Scope.GLOBAL),
        ("::", Scope.UNSPECIFIED),
        ("::1", Scope.LOOPBACK),
        ("::2", Scope.RESERVED),
        ("100::1", Scope.RESERVED),
        ("fe80::1", Scope.LINK_LOCAL),
        ("fe80::1%eth0", Scope.LINK_LOCAL),
        ("febf::1", Scope.LINK_LOCAL),
        ("fec0::1", Scope.UNIQUE_LOCAL),
        ("fc00::1", Scope.UNIQUE_LOCAL),
        ("fdff::1", Scope.UNIQUE_LOCAL),
        ("ff02::1", Scope.MULTICAST),
        ("2606:4700::1111", Scope.GLOBAL),
        # Disguises reach no further than the address inside.
        ("::ffff:127.0.0.1", Scope.LOOPBACK),
        ("::ffff:10.0.0.1", Scope.PRIVATE),
        ("64:ff9b::7f00:1", Scope.LOOPBACK),
        ("64:ff9b::8.8.8.8", Scope.GLOBAL),
        ("64:ff9b:1::1", Scope.UNIQUE_LOCAL),
        ("2002:7f00:1::1", Scope.LOOPBACK),
        ("2002:c0a8:101::1", Scope.PRIVATE),
        ("2002:808:808::1", Scope.GLOBAL),
    ],
)
def test_scope(text: str, scope: Scope) -> None:
    assert scope_of(ip_address(text)) is scope


def test_mapped_addresses_become_ipv4() -> None:
    mapped = ip_address("::ffff:192.0.2.7")
    assert canonical_ip(mapped) == ip_address("192.0.2.7")
    assert SocketAddress(mapped, 9) == SocketAddress.of("192.0.2.7", 9)
    assert str(HostPort.parse("[::ffff:192.0.2.7]:9")) == "192.0.2.7:9"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "1.2.3.256",
        "::1::",
        "12345::",
        "fe80::1%",
        "fe80::1%a b",
        "fe80::1%a/b",
        "2001:db8::1%eth0",
        "::1%lo",
        "\N{ARABIC-INDIC DIGIT ONE}.2.3.4",
    ],
)
def test_not_an_ip(text: str) -> None:
    assert parse_ip(text) is None


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("203.0.113.10:9000", "203.0.113.10:9000"),
        ("[2001:DB8:0:0::1]:9000", "[2001:db8::1]:9000"),
        ("[fe80::1%eth0]:9000", "[fe80::1%eth0]:9000"),
        ("Relay.Example.ORG:1", "relay.example.org:1"),
        ("relay.example.org.:65535", "relay.example.org.:65535"),
        ("localhost:00080", "localhost:80"),
        ("_service.a-b.example:9", "_service.a-b.example:9"),
        ("xn--mller-kva.example:9", "xn--mller-kva.example:9"),
        ("1e100.net:443", "1e100.net:443"),
    ],
)
def test_host_port(text: str, canonical: str) -> None:
    parsed = HostPort.parse(text)
    assert str(parsed) == canonical
    assert HostPort.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "add the port"),
        ("example.org", "add the port"),
        (":9000", "host is missing"),
        ("example.org:", "the port is ''"),
        ("example.org:x", "the port is 'x'"),
        ("example.org:-1", "the port is '-1'"),
        ("example.org:+1", "the port is '+1'"),
        ("example.org: 1", "the port is ' 1'"),
        ("example.org:\N{FULLWIDTH DIGIT ONE}", "the port is"),
        ("example.org:65536", "65535"),
        ("example.org:000080", "the port"),
        ("example.org:0", "port 0"),
        ("2001:db8::1:9000", "brackets"),
        ("[2001:db8::1]", "add the port"),
        ("[2001:db8::1]9000", "add the port"),
        ("[2001:db8::1:9000", "in brackets goes"),
        ("[]:9000", "in brackets goes"),
        ("[192.0.2.1]:9000", "in brackets goes"),
        ("[example.org]:9000", "in brackets goes"),
        ("[2001:db8::1%eth0]:9", "in brackets goes"),
        ("256.0.0.1:9", "neither an IPv4 address nor a name"),
        ("127.1:9", "neither an IPv4 address nor a name"),
        ("0x7f000001:9", "neither an IPv4 address nor a name"),
        ("2130706433:9", "neither an IPv4 address nor a name"),
        ("exa mple.org:9", "not a host name"),
        ("-a.example:9", "not a host name"),
        ("a-.example:9", "not a host name"),
        ("a..example:9", "not a host name"),
        (".:9", "not a host name"),
        ("a" * 64 + ".example:9", "not a host name"),
        (".".join(["a" * 50] * 6) + ":9", "not a host name"),
        ("müller.example:9", "xn--"),
        ("http://example.org:9", "brackets"),
    ],
)
def test_bad_host_port(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match="address=") as caught:
        HostPort.parse(text)
    assert remedy in caught.value.remedy
    assert caught.value.value == text


def test_port_zero_is_for_binding_only() -> None:
    assert HostPort.parse("[::]:0", port_zero=True).port == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]", "255.255.255.255"])
def test_no_host_to_dial(host: str) -> None:
    with pytest.raises(ConfigError, match="no host has"):
        HostPort.parse_peer(f"{host}:9000")
    assert HostPort.parse(f"{host}:9000").port == 9000


def test_socket_address() -> None:
    v4, v6 = SocketAddress.of("192.0.2.1", 1), SocketAddress.of("fe80::1%eth0", 2)
    assert (v4.host, v4.port, v4.version, str(v4)) == ("192.0.2.1", 1, 4, "192.0.2.1:1")
    assert (v6.host, v6.version, str(v6)) == ("fe80::1%eth0", 6, "[fe80::1%eth0]:2")
    assert sorted([v6, v4], key=lambda a: a.sort_key) == [v4, v6]
    for host, port in [("example.org", 1), ("192.0.2.1", 65536), ("192.0.2.1", -1)]:
        with pytest.raises(ConfigError):
            SocketAddress.of(host, port)


def test_ip_mode_families() -> None:
    assert [(m.ipv4, m.ipv6) for m in IpMode] == [(True, True), (True, False), (False, True)]
    assert not IpMode.IPV6_ONLY.allows(ip_address("192.0.2.1"))
    assert IpMode.IPV6_ONLY.allows(ip_address("2001:db8::1"))
