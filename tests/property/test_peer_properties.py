"""Text forms round-trip, and no text makes a parser raise anything but ConfigError."""

from __future__ import annotations

import base64
import hashlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from anyreach.addresses import HostPort, Scope, SocketAddress, canonical_ip, parse_ip, scope_of
from anyreach.errors import ConfigError
from anyreach.peer import MAX_ADDRESSES, KnownPeer, PeerAddress, PeerId, Ticket, parse_peer

ips = st.ip_addresses().map(canonical_ip)
ports = st.integers(1, 65535)
peer_ids = st.binary(min_size=32, max_size=32).map(PeerId)
labels = st.from_regex(r"[a-z_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


def _dialable(host: HostPort) -> bool:
    address = host.address
    return address is None or address.scope.dialable


hosts = st.builds(HostPort, st.one_of(names, ips.map(str)), ports).filter(_dialable)
portable = hosts.filter(lambda h: h.address is None or h.address.scope is not Scope.LINK_LOCAL)
tickets = st.builds(Ticket, peer_ids, st.lists(portable, max_size=MAX_ADDRESSES).map(tuple))
# Text near the valid forms finds more than text of any characters.
nearly = st.text(alphabet="abqz2701:@[].%-_ \tanyr1=AZ\u212a\u0661\x00", max_size=80) | st.text(
    max_size=80
)


@given(peer_ids)
def test_peer_ids_round_trip(peer_id: PeerId) -> None:
    text = str(peer_id)
    assert len(text) == 52
    assert PeerId.parse(text) == PeerId.parse(text.upper()) == peer_id
    assert parse_peer(text) == PeerAddress(peer_id)


@given(peer_ids, peer_ids)
def test_peer_ids_are_ordered_by_their_bytes(one: PeerId, other: PeerId) -> None:
    assert (one < other) == (bytes(one) < bytes(other))
    assert (one == other) == (str(one) == str(other))


@given(nearly)
@example("a" * 51 + "b")
def test_peer_id_text_is_canonical_or_refused(text: str) -> None:
    try:
        peer_id = PeerId.parse(text)
    except ConfigError:
        return
    assert str(peer_id) == text.lower()


@given(hosts)
def test_host_ports_round_trip(host: HostPort) -> None:
    assert HostPort.parse(str(host)) == HostPort.parse_peer(str(host)) == host


@given(nearly)
@example("[fe80::1%0]:1")
def test_any_text_as_host_port(text: str) -> None:
    try:
        host = HostPort.parse(text, port_zero=True)
    except ConfigError:
        return
    assert HostPort.parse(str(host), port_zero=True) == host


@given(st.one_of(st.none(), peer_ids), st.lists(portable, max_size=4))
def test_peer_addresses_round_trip(peer_id: PeerId | None, addresses: list[HostPort]) -> None:
    unique = tuple(dict.fromkeys(addresses))
    assume(peer_id is not None or len(unique) == 1)
    peer = PeerAddress(peer_id, unique)
    assert parse_peer(str(peer)) == peer
    if unique:
        assert KnownPeer.parse(str(peer)) == KnownPeer(peer_id, unique)


@given(nearly)
def test_any_text_as_peer(text: str) -> None:
    try:
        peer = parse_peer(text)
    except ConfigError:
        return
    assert parse_peer(str(peer)) == peer


@given(tickets)
def test_tickets_round_trip(ticket: Ticket) -> None:
    text = str(ticket)
    assert Ticket.parse(text) == Ticket.parse(text.upper()) == ticket
    assert parse_peer(text) == PeerAddress(ticket.peer_id, ticket.addresses)


@given(tickets, st.data())
def test_damaged_tickets_are_noticed(ticket: Ticket, data: st.DataObject) -> None:
    text = str(ticket)
    index = data.draw(st.integers(0, len(text) - 1))
    wrong = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz01234567"))
    assume(wrong != text[index])
    with pytest.raises(ConfigError):
        Ticket.parse(text[:index] + wrong + text[index + 1 :])


@given(st.binary(max_size=200), st.booleans())
def test_any_ticket_contents(body: bytes, whole_id: bool) -> None:
    """Also contents whose checksum is right, as another implementation might make them."""
    body = bytes(32) + body if whole_id else body
    checksum = hashlib.sha256(b"anyr1" + body).digest()[:4]
    text = "anyr1" + base64.b32encode(body + checksum).decode().rstrip("=").lower()
    try:
        ticket = Ticket.parse(text)
    except ConfigError:
        return
    assert len(ticket.addresses) <= MAX_ADDRESSES
    assert Ticket.parse(str(ticket)) == ticket


@given(peer_ids, st.lists(st.builds(SocketAddress, ips, st.integers(0, 65535)), max_size=40))
def test_any_addresses_make_a_ticket(peer_id: PeerId, addresses: list[SocketAddress]) -> None:
    ticket = Ticket.of(peer_id, addresses)
    assert Ticket.parse(str(ticket)) == ticket


@given(st.ip_addresses(v=4))
def test_disguised_ipv4_has_the_scope_of_ipv4(ip: IPv4Address) -> None:
    number, scope = int(ip), scope_of(ip)
    assert scope_of(IPv6Address(0xFFFF << 32 | number)) is scope
    assert scope_of(IPv6Address(0x64FF9B << 96 | number)) is scope
    assert scope_of(IPv6Address(0x2002 << 112 | number << 80 | 1)) is scope


@given(st.ip_addresses())
def test_canonical_addresses(ip: IPv4Address | IPv6Address) -> None:
    canonical = canonical_ip(ip)
    assert canonical_ip(canonical) == canonical
    assert parse_ip(str(ip)) == parse_ip(str(canonical)) == canonical
    assert scope_of(ip) is scope_of(canonical)


@given(nearly)
def test_any_text_as_ip(text: str) -> None:
    ip = parse_ip(text)
    assert ip is None or parse_ip(str(ip)) == ip
