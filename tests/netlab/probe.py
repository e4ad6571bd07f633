"""Measure a line of the lab with plain UDP sockets, without the software under test.

A test that trusts a line should be able to check it first: who is reached, from which address,
with packets of which size, and which error the kernel gives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from .machine import Machine
    from .process import Process

__all__ = ["Answer", "SocketSupport", "ask", "ask_in_background", "socket_support", "start_echo"]

_SCRIPT: Final = str(Path(__file__).with_name("udp_probe.py"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from an echo server.

    Attributes:
        received: datagrams that came back.
        observed: our address as the server saw it, ``None`` if nothing came back.
        errors: names of the errors sending gave, e.g. ``EHOSTUNREACH``.
    """

    received: int
    observed: tuple[str, int] | None
    errors: frozenset[str]


@dataclass(frozen=True, slots=True)
class SocketSupport:
    """Which sockets a host can make; each is ``None`` if it works, else the error's name."""

    inet: str | None
    inet6: str | None
    inet6_loopback: str | None
    dual: str | None


def start_echo(host: Machine, *, port: int = 7777) -> Process:
    """Start a UDP echo server on every address of the host; returns when it listens."""
    process = host.spawn_python(_SCRIPT, "echo", str(port))
    process.wait_event("listening")
    return process


def ask(
    host: Machine,
    address: IPv4Address | IPv6Address,
    *,
    port: int = 7777,
    size: int = 100,
    segments: int = 1,
    tries: int = 3,
    timeout: float = 0.3,
) -> Answer:
    """Send datagrams to an echo server until one try is answered completely.

    Args:
        host: where to send from.
        address: of the server.
        port: of the server.
        size: of the UDP payload in bytes.
        segments: datagrams per try; more than one are handed to the kernel as one buffer to be
            segmented (GSO).
        tries: how often.
        timeout: seconds to wait for the answers to one try.
    """
    done = host.python(
        _SCRIPT,
        *_ask_arguments(address, port, size=size, segments=segments, tries=tries, timeout=timeout),
    )
    return _answer(json.loads(done.stdout.splitlines()[-1]))


def ask_in_background(
    host: Machine,
    address: IPv4Address | IPv6Address,
    *,
    port: int = 7777,
    tries: int,
    timeout: float,
) -> Callable[[], Answer]:
    """Like :func:`ask`, going on while the test does something; call the result to wait."""
    process = host.spawn_python(
        _SCRIPT, *_ask_arguments(address, port, size=100, segments=1, tries=tries, timeout=timeout)
    )
    process.wait_event("asking")
    return lambda: _answer(process.wait_event("answer"))


def socket_support(host: Machine) -> SocketSupport:
    """Try to make and bind sockets of each family."""
    done = host.python(_SCRIPT, "families")
    return SocketSupport(**json.loads(done.stdout))


def _ask_arguments(
    address: IPv4Address | IPv6Address,
    port: int,
    *,
    size: int,
    segments: int,
    tries: int,
    timeout: float,
) -> list[str]:
    return ["ask", *map(str, (address, port, size, segments, tries, timeout))]


def _answer(event: dict[str, Any]) -> Answer:
    observed = event["observed"]
    return Answer(
        received=event["received"],
        observed=None if observed is None else (observed[0], observed[1]),
        errors=frozenset(event["errors"]),
    )
