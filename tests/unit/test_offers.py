"""Which addresses named by a peer are dialed."""

from __future__ import annotations

import pytest

from anyreach.addresses import HostPort, SocketAddress
from anyreach.candidates import InterfaceAddress
from anyreach.offers import (
    DENIED_PORTS,
    MAX_PER_HOST,
    Neighbourhood,
    acceptable,
    may_be_relay,
)


def address(text: str) -> SocketAddress:
    found = HostPort.parse(text).address
    assert found is not None
    return found


def around(
    answerer: str | None = "203.0.113.1:9000",
    external: str | None = "198.51.100.7:1",
    interface: str = "192.168.5.20",
) -> Neighbourhood:
    own = InterfaceAddress.of("eth0", interface, 24)
    assert own is not None
    return Neighbourhood(
        None if answerer is None else address(answerer),
        frozenset() if external is None else frozenset({address(external).ip}),
        (own,),
    )


def accepted(offered: str, seen: str | None, where: Neighbourhood) -> bool:
    result = acceptable((address(offered),), None if seen is None else address(seen), where)
    return address(offered) in result


def test_where_the_peer_is_seen_comes_first() -> None:
    offered = (address("203.0.113.9:9000"), address("203.0.113.8:9000"))
    seen = address("203.0.113.8:9000")
    assert acceptable(offered, seen, around()) == (seen, offered[0])


@pytest.mark.parametrize(
    "offered", ["127.0.0.1:9000", "[::1]:9000", "169.254.1.1:9000", "224.0.0.1:9000"]
)
def test_addresses_that_lead_nowhere_else_are_refused(offered: str) -> None:
    assert not accepted(offered, "203.0.113.8:9000", around())


@pytest.mark.parametrize("port", sorted(DENIED_PORTS - {0}))
def test_services_that_amplify_are_not_dialed(port: int) -> None:
    assert not accepted(f"203.0.113.9:{port}", None, around())


def test_private_addresses_need_a_sign_of_a_common_site() -> None:
    elsewhere, here = "10.1.2.3:9000", "192.168.5.30:9000"
    assert not accepted(elsewhere, "203.0.113.8:9000", around())
    # On our own link.
    assert accepted(here, "203.0.113.8:9000", around())
    # Behind the same NAT.
    assert accepted(elsewhere, "198.51.100.7:4000", around())
    # The one that answers is inside, and sees the other one inside.
    assert accepted(elsewhere, "10.1.2.3:9000", around(answerer="10.9.9.9:9000"))
    # It claims to, but is outside.
    assert not accepted(elsewhere, "10.1.2.3:9000", around())


def test_the_own_host_counts_only_if_all_are_on_it() -> None:
    assert accepted("127.0.0.1:9001", "127.0.0.1:9001", around(answerer="127.0.0.1:9000"))
    assert not accepted("127.0.0.1:9001", "203.0.113.8:1", around(answerer="127.0.0.1:9000"))
    assert not accepted("127.0.0.1:9001", "127.0.0.1:9001", around(answerer=None))


def test_one_that_answers_through_a_relay_vouches_for_no_site() -> None:
    assert not accepted("10.1.2.3:9000", "10.1.2.3:9000", around(answerer=None))
    assert accepted("203.0.113.9:9000", None, around(answerer=None, external=None))


def test_many_ports_of_one_host_are_not_tried() -> None:
    offered = [address(f"203.0.113.9:{port}") for port in range(40000, 40032)]
    assert acceptable(offered, None, around()) == tuple(offered[:MAX_PER_HOST])


@pytest.mark.parametrize(
    ("named", "answerer", "taken"),
    [
        ("203.0.113.9:50000", "203.0.113.1:9000", True),
        ("203.0.113.9:50000", None, True),
        ("203.0.113.9:53", "203.0.113.1:9000", False),
        # Our router, our printer, and ourselves, in the words of a stranger.
        ("192.168.5.1:50000", "203.0.113.1:9000", False),
        ("192.168.5.1:50000", None, False),
        ("127.0.0.1:50000", "203.0.113.1:9000", False),
        ("127.0.0.1:50000", "192.168.5.9:9000", False),
        ("169.254.169.254:50000", "192.168.5.9:9000", False),
        ("224.0.0.1:50000", "127.0.0.1:9000", False),
        # Those in the site know its relays.
        ("192.168.5.1:50000", "192.168.5.9:9000", True),
        ("127.0.0.1:50000", "127.0.0.1:9000", True),
        ("192.168.5.1:50000", "127.0.0.1:9000", True),
    ],
)
def test_relays_of_a_site_are_believed_to_those_in_it(
    named: str, answerer: str | None, taken: bool
) -> None:
    assert may_be_relay(address(named), around(answerer=answerer)) is taken
