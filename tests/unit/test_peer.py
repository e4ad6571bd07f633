"""PeerIds, PEER arguments, known peers and tickets."""

from __future__ import annotations

import base64
import copy
import hashlib
import pickle

import pytest

from anyreach.addresses import HostPort, SocketAddress
from anyreach.errors import ConfigError
from anyreach.peer import MAX_ADDRESSES, KnownPeer, PeerAddress, PeerId, Ticket, parse_peer

ID = PeerId.from_public_key(b"a public key")
TEXT = str(ID)
V4 = HostPort("203.0.113.10", 9000)
V6 = HostPort("2001:db8::1", 9000)
NAME = HostPort("relay.example.org", 443)


def ticket_of(body: bytes, prefix: str = "anyr1") -> str:
    """A ticket with a right checksum around any contents."""
    checksum = hashlib.sha256(prefix.encode() + body).digest()[:4]
    return prefix + base64.b32encode(body + checksum).decode().rstrip("=").lower()


class TestPeerId:
    def test_is_the_hash_of_the_key_in_base32(self) -> None:
        digest = hashlib.sha256(b"a public key").digest()
        assert bytes(ID) == ID.raw == digest
        assert len(TEXT) == 52
        assert base64.b32encode(digest).decode().rstrip("=").lower() == TEXT

    def test_parse(self) -> None:
        assert PeerId.parse(TEXT) == ID
        assert PeerId.parse(TEXT.upper()) == ID
        assert hash(PeerId.parse(TEXT)) == hash(ID)

    @pytest.mark.parametrize(
        ("text", "remedy"),
        [
            ("", "this has 0"),
            (TEXT[:-1], "this has 51"),
            (TEXT + "a", "this has 53"),
            (TEXT + "====", "this has 56"),
            ("1" + TEXT[1:], "'1' cannot occur"),
            ("=" + TEXT[1:], "'=' cannot occur"),
            (" " + TEXT[1:], "' ' cannot occur"),
            # The Kelvin sign is "k" in lower case, but no base32.
            ("\N{KELVIN SIGN}" + TEXT[1:], "cannot occur"),
            (TEXT[:-1] + "b", "last character is mistyped"),
        ],
    )
    def test_rejects(self, text: str, remedy: str) -> None:
        with pytest.raises(ConfigError) as caught:
            PeerId.parse(text)
        assert remedy in caught.value.remedy

    def test_every_trailing_bit_pattern_but_zero_is_refused(self) -> None:
        valid = [c for c in "abcdefghijklmnopqrstuvwxyz234567" if _parses("a" * 51 + c)]
        assert valid == ["a", "q"]

    @pytest.mark.parametrize("raw", [b"", b"x" * 31, b"x" * 33, "x" * 32, None])
    def test_is_32_bytes(self, raw: object) -> None:
        with pytest.raises(ConfigError):
            PeerId(raw)  # type: ignore[arg-type]

    def test_order_repr_and_copies(self) -> None:
        low, high = PeerId(bytes(32)), PeerId(b"\xff" * 32)
        assert low < ID < high
        assert TEXT[:10] in repr(ID)
        assert len(repr(ID)) < 30
        assert pickle.loads(pickle.dumps(ID)) == copy.deepcopy(ID) == ID


def _parses(text: str) -> bool:
    try:
        PeerId.parse(text)
    except ConfigError:
        return False
    return True


class TestParsePeer:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (TEXT, PeerAddress(ID)),
            (TEXT.upper(), PeerAddress(ID)),
            (f"  {TEXT}\n", PeerAddress(ID)),
            ("203.0.113.10:9000", PeerAddress(None, (V4,))),
            (f"{TEXT}@203.0.113.10:9000", PeerAddress(ID, (V4,))),
            (f"{TEXT}@[2001:db8::1]:9000", PeerAddress(ID, (V6,))),
            (f"{TEXT}@[fe80::1%eth0]:9", PeerAddress(ID, (HostPort("fe80::1%eth0", 9),))),
            (f"{TEXT}@relay.example.org:443", PeerAddress(ID, (NAME,))),
            ("localhost:9000", PeerAddress(None, (HostPort("localhost", 9000),))),
            (str(Ticket(ID, (V4, V6))), PeerAddress(ID, (V4, V6))),
        ],
    )
    def test_forms(self, text: str, expected: PeerAddress) -> None:
        assert parse_peer(text) == expected
        assert parse_peer(str(expected)) == expected

    def test_objects(self) -> None:
        address = PeerAddress(ID, (V4,))
        assert parse_peer(ID) == PeerAddress(ID)
        assert parse_peer(address) is address
        assert parse_peer(Ticket(ID, (V4,))) == address

    def test_an_id_that_starts_like_a_ticket(self) -> None:
        text = "anyr" + "a" * 48
        assert parse_peer(text) == PeerAddress(PeerId.parse(text))

    @pytest.mark.parametrize(
        ("text", "remedy"),
        [
            ("", "give a PeerId"),
            ("  ", "give a PeerId"),
            ("hello", "a PeerId has 52 characters"),
            ("hello world", "give a PeerId"),
            ("example.org", "add the port, like example.org:9000"),
            ("@203.0.113.10:9000", "a PeerId has 52 characters"),
            (f"{TEXT}@", "add the port"),
            (f"{TEXT}@a@b:1", "not a host name"),
            (f"{TEXT}@[::]:9000", "no host has"),
            (f"{TEXT}@203.0.113.10:0", "port 0"),
            ("anyr1", "incomplete"),
            ("anyr2abc", "another version"),
        ],
    )
    def test_rejects(self, text: str, remedy: str) -> None:
        with pytest.raises(ConfigError, match="peer=") as caught:
            parse_peer(text)
        assert remedy in caught.value.remedy
        assert caught.value.value == text

    @pytest.mark.parametrize("value", [None, 5, b"x", ("a", 1)])
    def test_other_types(self, value: object) -> None:
        with pytest.raises(ConfigError, match="give a PeerId"):
            parse_peer(value)  # type: ignore[arg-type]

    def test_needs_something(self) -> None:
        with pytest.raises(ConfigError, match="give a PeerId, an address, or both"):
            PeerAddress()
        with pytest.raises(ConfigError, match="several addresses need the PeerId"):
            PeerAddress(None, (V4, V6))


class TestKnownPeer:
    def test_parse(self) -> None:
        assert KnownPeer.parse("relay.example.org:443") == KnownPeer(None, (NAME,))
        assert KnownPeer.parse(f"{TEXT}@203.0.113.10:9000") == KnownPeer(ID, (V4,))
        ticket = str(Ticket(ID, (V4, V6)))
        known = KnownPeer.parse(ticket)
        assert known.addresses == (V4, V6)
        assert str(known) == ticket

    @pytest.mark.parametrize("text", [TEXT, str(Ticket(ID))])
    def test_needs_an_address(self, text: str) -> None:
        with pytest.raises(ConfigError, match="needs an address"):
            KnownPeer.parse(text)

    def test_several_addresses_need_an_id(self) -> None:
        with pytest.raises(ConfigError, match="several addresses need the PeerId"):
            KnownPeer(None, (V4, V6))


class TestTicket:
    def test_text_form_is_stable(self) -> None:
        """People store tickets: this text must parse for ever."""
        ticket = Ticket(PeerId(bytes(range(32))), (V4, V6, NAME))
        text = (
            "anyr1aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypqibrdfdfqa4ikayjcgkbaaeg3qaaa"
            "aaaaaaaaaaaaaaabjyjqdo3smvwgc6jomv4gc3lqnrss433sm5mpkb2y"
        )
        assert str(ticket) == text
        assert Ticket.parse(text) == ticket

    @pytest.mark.parametrize("addresses", [(), (V4,), (V6,), (NAME,), (V4, V6, NAME)])
    def test_round_trip(self, addresses: tuple[HostPort, ...]) -> None:
        ticket = Ticket(ID, addresses)
        text = str(ticket)
        assert text.startswith("anyr1")
        assert text.isascii()
        assert text.isalnum()
        assert Ticket.parse(text) == ticket

    def test_survives_copying(self) -> None:
        ticket = Ticket(ID, (V4, V6))
        text = str(ticket)
        assert Ticket.parse(text.upper()) == ticket
        assert Ticket.parse(f"  {text[:20]}\r\n{text[20:50]} \t{text[50:]}\n") == ticket

    def test_every_single_typo_is_noticed(self) -> None:
        text = str(Ticket(ID, (V4,)))
        for index in range(len(text)):
            wrong = "a" if text[index] != "a" else "b"
            with pytest.raises(ConfigError):
                Ticket.parse(text[:index] + wrong + text[index + 1 :])
            with pytest.raises(ConfigError):
                Ticket.parse(text[:index])

    @pytest.mark.parametrize(
        ("text", "remedy"),
        [
            ("", "starts with anyr"),
            (TEXT, "starts with anyr"),
            ("anyr9" + "a" * 80, "another version"),
            ("anyr1" + "a" * 80, "damaged"),
            ("anyr1a-b", "'-' cannot occur"),
            ("anyr1abc", "part is missing"),
            ("anyr1" + "a" * 9000, "too long"),
            (ticket_of(b"short"), "damaged"),
            (ticket_of(bytes(ID) + b"\x04"), "cut short"),
            (ticket_of(bytes(ID) + b"\x04\x06\x23\x28\x7f"), "cut short"),
            (ticket_of(bytes(ID) + b"\x04\x05\x23\x28\x7f\x00\x00"), "not valid"),
            (ticket_of(bytes(ID) + b"\x06\x02\x23\x28"), "not valid"),
            (ticket_of(bytes(ID) + b"\x04\x00"), "not valid"),
            (ticket_of(bytes(ID) + b"\x04\x06\x00\x00\xcb\x00\x71\x0a"), "port 0"),
            (ticket_of(bytes(ID) + b"\x04\x06\x23\x28\x00\x00\x00\x00"), "no host has"),
            (ticket_of(bytes(ID) + b"\x04\x06\x23\x28\xa9\xfe\x01\x01"), "means nothing"),
            (ticket_of(bytes(ID) + b"N\x04\x23\x28\xff\xff"), "xn--"),
            (ticket_of(bytes(ID) + b"N\x04\x23\x28::"), "not valid"),
            (ticket_of(bytes(ID) + b"N\x09\x23\x281.2.3.4"), "not valid"),
            (ticket_of(bytes(ID) + b"N\x05\x23\x28a:1"), "not valid"),
        ],
    )
    def test_rejects(self, text: str, remedy: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Ticket.parse(text)
        assert remedy in caught.value.remedy

    def test_unknown_entries_are_skipped(self) -> None:
        v4 = b"\x04\x06\x23\x28" + bytes((203, 0, 113, 10))
        later = b"\x99\x03abc"
        assert Ticket.parse(ticket_of(bytes(ID) + later + v4 + later)) == Ticket(ID, (V4,))

    def test_surplus_addresses_are_ignored(self) -> None:
        ports = [port.to_bytes(2, "big") for port in range(1, 41)]
        entries = b"".join(b"\x04\x06" + port + b"\xcb\x00\x71\x0a" for port in ports)
        assert len(Ticket.parse(ticket_of(bytes(ID) + entries)).addresses) == MAX_ADDRESSES

    def test_limits(self) -> None:
        addresses = [HostPort("203.0.113.10", port) for port in range(1, 41)]
        with pytest.raises(ConfigError, match="at most 16"):
            Ticket(ID, tuple(addresses))
        assert Ticket.of(ID, addresses).addresses == tuple(addresses[:MAX_ADDRESSES])
        longest = HostPort(".".join(["a" * 62] * 4), 65535)
        assert len(longest.host) == 251
        names = tuple(HostPort(longest.host, port) for port in range(1, 17))
        assert Ticket.parse(str(Ticket(ID, names))).addresses == names

    def test_of_leaves_out_what_helps_nobody(self) -> None:
        useless = [
            HostPort("0.0.0.0", 9000),
            HostPort("::", 9000),
            HostPort("fe80::1%eth0", 9000),
            HostPort("169.254.1.1", 9000),
            HostPort("203.0.113.10", 0),
        ]
        ticket = Ticket.of(ID, [*useless, V4, SocketAddress.of("203.0.113.10", 9000), V6])
        assert ticket.addresses == (V4, V6)
        for address in useless:
            with pytest.raises(ConfigError, match="means nothing elsewhere"):
                Ticket(ID, (address,))
