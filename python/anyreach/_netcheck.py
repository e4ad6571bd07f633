"""Gathers the facts of a :class:`anyreach.netcheck.NetworkReport` from a running node.

Whether a relay can be reached in each way is tried from an endpoint of its own, with a key of its
own: a relay lends one address per PeerId, and a second tunnel of the node would take the address of
the first.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

from anyreach._local import from_core, to_core
from anyreach._paths import current
from anyreach.addresses import HostPort, Scope, scope_of
from anyreach.netcheck import (
    CarrierCheck,
    FamilyCheck,
    InterfaceCheck,
    NetworkReport,
    PeerCheck,
    Switches,
    outlook,
    udp_state,
)
from anyreach.peer import PeerId
from anyreach.reachability import FAMILIES
from anyreach.resolver import ResolutionError, resolve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach.addresses import IpMode, SocketAddress
    from anyreach.carriers import Carrier
    from anyreach.nat import NatReport
    from anyreach.netcheck import PortMapping
    from anyreach.peer import KnownPeer
    from anyreach.proxies import ProxySettings
    from anyreach.reachability import Reachability

__all__ = ["MAX_PEERS", "CarrierProber", "Facts", "Place", "gather"]

MAX_PEERS: Final = 8
"""Peers that are looked at: as many as a report for people has room for."""

CARRIER_SECONDS: Final = 5.0
"""How long a way to a relay may take: a handshake with one repetition over a slow line."""

JOIN_SECONDS: Final = 6.0
"""How long to wait for known peers; where UDP is blocked, TCP has brought one in by then."""

SETTLE_SECONDS: Final = 5.0
"""How long to wait for what the node finds out about its NAT: some packets to itself through its
relay, one after the other, and a router may take seconds to answer or not to."""

_LOOK: Final = 0.05
"""Seconds between two looks at whether it has settled; nothing announces that."""

# Private IPv4 addresses usually have a NAT that leads out; unique-local IPv6 ones do not.
_OUTWARD: Final = {
    4: frozenset({Scope.GLOBAL, Scope.CGN, Scope.PRIVATE}),
    6: frozenset({Scope.GLOBAL}),
}

_T = TypeVar("_T")


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def open_tunnel(
        self,
        *,
        peer_id: bytes | None,
        host: str,
        port: int,
        udp: Sequence[tuple[str, int]],
        tcp: Sequence[tuple[str, int]],
        plan: Sequence[tuple[str, float]],
        proxy: str | None,
        ca_file: str | None,
        allow_tls_inspection: bool,
    ) -> _core.Tunnel:
        """Start a tunnel."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a relay is.

    Attributes:
        host: as it was named, for HTTP proxies.
        addresses: where that is.
        peer_id: who it is, if that is known.
    """

    host: HostPort
    addresses: tuple[SocketAddress, ...]
    peer_id: PeerId | None = None


class CarrierProber:
    """Tries ways to relays.

    Args:
        core: an endpoint nobody else uses.
        wait: awaits a ``poll_*`` method of the core.
        mode: the families of its socket.
        proxies: the HTTP proxy, if there is one.
        ca_file: certificates that may vouch for relays with an ordinary one.
        allow_tls_inspection: whether a proxy may break the TLS to the relay.
    """

    def __init__(
        self,
        core: Core,
        wait: Waiter,
        *,
        mode: IpMode,
        proxies: ProxySettings,
        ca_file: str | None,
        allow_tls_inspection: bool,
    ) -> None:
        self._core = core
        self._wait = wait
        self._mode = mode
        self._proxies = proxies
        self._ca_file = ca_file
        self._allow_tls_inspection = allow_tls_inspection

    async def check(self, place: Place) -> tuple[CarrierCheck, ...]:
        """All ways to one relay, tried at once."""
        addresses = [(to_core(a), a.port) for a in place.addresses if self._mode.allows(a.ip)]
        proxy = self._proxies.for_host(place.host.host, place.host.port)
        ways: list[tuple[Carrier, str | None]] = []
        if addresses:
            ways += [("h3", None), ("h2", None)]
        if proxy is not None:
            ways.append(("h2-proxy", proxy.url))
        return tuple(await asyncio.gather(*(self._try(place, addresses, *way) for way in ways)))

    async def _try(
        self,
        place: Place,
        addresses: Sequence[tuple[str, int]],
        carrier: Carrier,
        proxy: str | None,
    ) -> CarrierCheck:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        tunnel = self._core.open_tunnel(
            peer_id=None if place.peer_id is None else bytes(place.peer_id),
            host=place.host.host,
            port=place.host.port,
            udp=addresses,
            tcp=addresses,
            plan=((carrier, 0.0),),
            proxy=proxy,
            ca_file=self._ca_file,
            allow_tls_inspection=self._allow_tls_inspection and proxy is not None,
        )
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CARRIER_SECONDS):
                    seen = 0
                    while tunnel.state not in ("up", "closed"):
                        seen = await self._wait(tunnel.poll_change, seen)
            ms = (loop.time() - begun) * 1000
            if tunnel.state == "up":
                where = tunnel.remote
                rtt = tunnel.rtt
                return CarrierCheck(
                    carrier,
                    ok=True,
                    ms=ms,
                    rtt_ms=None if rtt is None else rtt * 1000,
                    detail="through the proxy" if where is None else str(from_core(*where)),
                )
            told = [detail for *_, detail, _ in tunnel.attempts]
            detail = told[-1] if told else f"no answer within {CARRIER_SECONDS:g} s"
            return CarrierCheck(carrier, ok=False, ms=ms, rtt_ms=None, detail=detail)
        finally:
            tunnel.close()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node knows and can do, as far as a report needs it.

    Attributes:
        me: the node.
        mode: the families of its socket.
        switches: what its configuration allows.
        local: its addresses.
        nat: what is known about a NAT by now.
        known: the configured peers, who was found there, and why the last attempt failed.
        cores: the connections.
        reserved: the addresses held at a relay.
        reachability: whether strangers can reach the node, by now.
        mapping: what routers said, by now.
        joined: waits until every known peer was reached, or not.
        check: tries ways to a relay.
    """

    me: PeerId
    mode: IpMode
    switches: Switches
    local: LocalView
    nat: Callable[[], NatReport]
    known: Callable[[], tuple[tuple[KnownPeer, PeerId | None, str | None], ...]]
    cores: Callable[[], Iterable[_core.Connection]]
    reserved: Callable[[PeerId], tuple[SocketAddress, ...]]
    reachability: Callable[[], Reachability]
    mapping: Callable[[], PortMapping]
    joined: Callable[[], Awaitable[None]]
    check: Callable[[Place], Awaitable[tuple[CarrierCheck, ...]]]


async def gather(facts: Facts, timeout: float) -> NetworkReport:
    """The report. What is not known in time is left open in it.

    Args:
        facts: where everything comes from.
        timeout: seconds it may take.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    deadline = begun + timeout
    async with asyncio.TaskGroup() as tasks:

        def check(subject: _Subject) -> asyncio.Task[tuple[CarrierCheck, ...]]:
            return tasks.create_task(
                _checked(facts, subject, deadline), name=f"anyreach-netcheck {subject.place.host}"
            )

        subjects = await _known(facts, deadline)
        checks = [check(subject) for subject in subjects]
        await _until(min(deadline, begun + JOIN_SECONDS), facts.joined())
        for subject, running in zip(subjects, checks, strict=True):
            if _refuses(facts, subject):
                running.cancel()
        subjects = _others(facts, subjects)
        checks += [check(subject) for subject in subjects[len(checks) :]]
        await _settle(facts, min(deadline, loop.time() + SETTLE_SECONDS))
    peers = tuple(
        _peer(facts, subject, () if done.cancelled() else done.result())
        for subject, done in zip(subjects, checks, strict=True)
    )
    report = NetworkReport(
        peer_id=str(facts.me),
        ip_mode=facts.mode.value,
        interfaces=_interfaces(facts.local),
        families=_families(facts),
        udp=udp_state(peers),
        nat=facts.nat(),
        port_mapping=facts.mapping(),
        peers=peers,
        seconds=loop.time() - begun,
    )
    return replace(report, outlook=outlook(report, facts.switches))


@dataclass(frozen=True, slots=True)
class _Subject:
    """A peer to look at; ``entry`` is the one of the configuration."""

    place: Place
    entry: KnownPeer | None


async def _until(deadline: float, awaitable: Awaitable[_T]) -> _T | None:
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            return await awaitable
    return None


async def _known(facts: Facts, deadline: float) -> list[_Subject]:
    """The configured peers, each once."""
    entries = [entry for entry, peer_id, _ in facts.known() if peer_id != facts.me][:MAX_PEERS]
    places = await asyncio.gather(
        *(_until(deadline, _resolved(entry.addresses, facts.mode)) for entry in entries)
    )
    return [
        _Subject(Place(entry.addresses[0], found or (), entry.peer_id), entry)
        for entry, found in zip(entries, places, strict=True)
    ]


def _others(facts: Facts, known: list[_Subject]) -> list[_Subject]:
    """The known peers, and others that relay and were dialed."""
    named = {peer_id for _, peer_id, _ in facts.known()}
    others: dict[PeerId, _Subject] = {}
    for core in facts.cores():
        peer_id, path = PeerId(core.peer_id), current(core.paths())
        # Where those are that came by themselves or through a relay is not known.
        if path is None or path.method == "relayed" or not core.outbound or peer_id in named:
            continue
        if "relay" in core.capabilities:
            address = from_core(*path.remote)
            place = Place(HostPort(address.host, address.port), (address,), peer_id)
            others[peer_id] = _Subject(place, None)
    return [*known, *others.values()][:MAX_PEERS]


async def _resolved(hosts: Iterable[HostPort], mode: IpMode) -> tuple[SocketAddress, ...]:
    found: dict[SocketAddress, None] = {}
    for host in hosts:
        with suppress(ResolutionError):
            async with aclosing(resolve(host, mode=mode)) as batches:
                async for batch in batches:
                    found.update(dict.fromkeys(batch))
    return tuple(found)


async def _settle(facts: Facts, deadline: float) -> None:
    """Wait until nothing more is about to be found out."""
    loop = asyncio.get_running_loop()
    while loop.time() < deadline:
        nat = facts.nat()
        if nat.mapping == "none":
            families = facts.reachability().families  # none if it talks to its own machine only
            judged = not families or any(family.verdict != "unknown" for family in families)
        else:
            judged = "unknown" not in (nat.mapping, nat.filtering, nat.ports)
        helped = any(facts.reserved(PeerId(core.peer_id)) for core in facts.cores())
        if facts.mapping().state != "asking" and (judged or not (helped or _may_help(facts))):
            return
        await asyncio.sleep(_LOOK)


def _may_help(facts: Facts) -> bool:
    """Whether a peer may still lend an address, with which a node finds out about its NAT."""
    return facts.switches.relay and any("relay" in core.capabilities for core in facts.cores())


async def _checked(facts: Facts, subject: _Subject, deadline: float) -> tuple[CarrierCheck, ...]:
    return await _until(deadline, facts.check(subject.place)) or ()


def _refuses(facts: Facts, subject: _Subject) -> bool:
    """Whether the peer is connected and does not relay, so that nothing comes of trying."""
    found = next((p for entry, p, _ in facts.known() if entry is subject.entry), None)
    core = next((c for c in facts.cores() if found and c.peer_id == bytes(found)), None)
    return core is not None and "relay" not in core.capabilities


def _peer(facts: Facts, subject: _Subject, carriers: tuple[CarrierCheck, ...]) -> PeerCheck:
    peer_id, error = subject.place.peer_id, None
    for entry, found, failure in facts.known():
        if entry is subject.entry:
            peer_id, error = found, failure
    check = PeerCheck(
        peer_id=None if peer_id is None else str(peer_id),
        address=str(subject.place.host),
        known=subject.entry is not None,
        connected=False,
        error=error,
        carriers=carriers,
    )
    core = next((c for c in facts.cores() if peer_id and c.peer_id == bytes(peer_id)), None)
    path = None if core is None else current(core.paths())
    if core is None or path is None or peer_id is None:
        return check
    relayed, relays = path.method == "relayed", "relay" in core.capabilities
    return replace(
        check,
        carriers=carriers if relays else (),
        connected=True,
        error=None,
        method=path.method,
        remote=str(from_core(*path.remote)),
        rtt_ms=path.rtt * 1000,
        mtu=None if relayed else path.mtu,
        # Through a relay it sees the relay.
        sees=None if relayed or path.observed is None else str(from_core(*path.observed)),
        relays=relays,
        reserved=tuple(map(str, facts.reserved(peer_id))),
    )


def _interfaces(local: LocalView) -> tuple[InterfaceCheck, ...]:
    return tuple(
        InterfaceCheck(own.interface, str(own.ip), own.prefix_length, scope_of(own.ip).value)
        for own in local.interfaces
        if scope_of(own.ip) is not Scope.LOOPBACK
    )


def _families(facts: Facts) -> tuple[FamilyCheck, ...]:
    verdicts = {verdict.family: verdict for verdict in facts.reachability().families}
    paths = [path for core in facts.cores() for path in core.paths() if not path.tunnelled]
    reached = {from_core(*path.remote).version for path in paths}
    external = facts.local.observed.candidates()
    checks: list[FamilyCheck] = []
    for family in FAMILIES:
        own = [a for a in facts.local.host_addresses() if a.version == family]
        outward = [a for a in own if a.scope in _OUTWARD[family]]
        verdict = verdicts.get(family)
        checks.append(
            FamilyCheck(
                family,
                state=_state(family in reached, own, outward),
                inbound="unknown" if verdict is None else verdict.verdict,
                reason="nothing is known" if verdict is None else verdict.reason,
                external=tuple(str(a) for a in external if a.version == family),
            )
        )
    return tuple(checks)


def _state(
    reached: bool, own: list[SocketAddress], outward: list[SocketAddress]
) -> Literal["works", "silent", "local", "none"]:
    if reached:
        return "works"
    if outward:
        return "silent"
    return "local" if own else "none"
