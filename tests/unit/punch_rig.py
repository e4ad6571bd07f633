"""A node that punches, on a scripted core and a clock that jumps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from anyreach._proving import Contacts
from anyreach._punch_end import Kit
from anyreach._punching import Punching
from anyreach.addresses import SocketAddress
from anyreach.candidates import DefaultCandidatePolicy, LocalNetwork
from anyreach.metrics import Recorder
from anyreach.nat import FamilyNat, NatReport

from .fake_core import FakeConnection, FakeEndpoint, FakePath, settle
from .fake_local import FakeLocal

if TYPE_CHECKING:
    from anyreach._nat_probe import NatProbe
    from anyreach.candidates import Candidate
    from anyreach.events import Event
    from anyreach.nat import Behaviour
    from anyreach.ports import PortBehaviour

OURS, OURS_OUTSIDE = "192.168.1.2", "203.0.113.10 9000"
THEIRS = ("198.51.100.10", 9000)
RELAY = ("192.0.2.1", 5000)

EASY = ("endpoint-independent", "address-and-port-dependent", "preserving", 0)
COUNTED = ("address-and-port-dependent", "address-and-port-dependent", "sequential", 1)
RANDOM = ("address-and-port-dependent", "address-and-port-dependent", "random", 0)


def nat(told: tuple[str, str, str, int]) -> NatReport:
    """A report as it is told to peers, for IPv4."""
    mapping, filtering = cast("Behaviour", told[0]), cast("Behaviour", told[1])
    ports, step = cast("PortBehaviour", told[2]), told[3]
    family = FamilyNat(4, mapping, filtering, ports, step)
    return NatReport(mapping, filtering, ports=ports, step=step, families=(family,))


@dataclass
class Local(FakeLocal):
    """What the node knows about its addresses."""

    routers: tuple[SocketAddress, ...] = ()
    bound: tuple[SocketAddress, ...] = (SocketAddress.of("0.0.0.0", 9000),)

    def mapped(self) -> tuple[SocketAddress, ...]:
        return self.routers

    @property
    def external(self) -> frozenset[Any]:
        return frozenset(a.ip for a in self.observed.candidates())

    def candidates(
        self,
        observed: tuple[SocketAddress, ...] = (),
        mapped: tuple[SocketAddress, ...] = (),
        predicted: tuple[SocketAddress, ...] = (),
    ) -> tuple[Candidate, ...]:
        network = LocalNetwork(self.own, observed=observed, mapped=mapped, predicted=predicted)
        return DefaultCandidatePolicy().gather(network)


class Probe:
    """Shaped like :class:`anyreach._nat_probe.NatProbe`."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.wanted = 0
        self.next_port: int | None = 20_000
        self.asked = 0

    def want(self) -> None:
        self.wanted += 1

    async def samples(self, family: int) -> Any:
        self.asked += 1
        assert family == 4
        await asyncio.sleep(0.02)
        if self.next_port is None:
            return None
        now = asyncio.get_running_loop().time()
        ports = [(now - 0.002 + i * 0.001, self.next_port + i) for i in range(3)]
        self.next_port += 3
        return SocketAddress.of("203.0.113.10", 0).ip, tuple(ports)


class Endpoint(FakeEndpoint):
    """With what punching needs besides."""

    def __init__(self) -> None:
        super().__init__()
        self.near: list[list[str]] = []

    def set_near(self, prefixes: list[str]) -> None:
        self.near.append(prefixes)


@dataclass
class Rig:
    """One node, and a connection of it that goes through a relay."""

    ours: tuple[str, str, str, int] = EASY
    theirs: tuple[str, str, str, int] | None = EASY
    outbound: bool = True
    enabled: bool = True
    birthday: bool = True
    rtt: float = 0.04
    endpoint: Endpoint = field(default_factory=Endpoint)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.local = cast("Local", Local.at(OURS, seen=(OURS_OUTSIDE,)))
        self.local.report = nat(self.ours)
        self.probe = Probe()
        self.recorder = Recorder()
        self.contacts = Contacts()
        self.connection = FakeConnection(
            id=7,
            outbound=self.outbound,
            route=[self.relayed()],
            can_punch=True,
            peer_nat=self.theirs,
        )
        kit = Kit(
            self.endpoint,
            self.endpoint.wait,
            self.local.view(),
            cast("NatProbe", self.probe),
            DefaultCandidatePolicy(),
            self.recorder,
            self.contacts,
            self.events.append,
            birthday=self.birthday,
        )
        self.punching = Punching(kit, enabled=self.enabled)

    def relayed(self, *, current: bool = True) -> FakePath:
        return FakePath(0, RELAY, "relayed", rtt=self.rtt, current=current)

    def punched(self, remote: tuple[str, int] = THEIRS) -> FakePath:
        return FakePath(1, remote, "punched", rtt=self.rtt)

    @property
    def core(self) -> Any:
        return self.connection.core()

    async def begin(self, *candidates: tuple[str, int]) -> None:
        self.connection.peer_candidates = list(candidates)
        self.punching.begin(self.core)
        await settle()

    async def tells(self, *candidates: tuple[str, int]) -> None:
        self.connection.peer_candidates = list(candidates)
        self.punching.news(self.core)
        await asyncio.sleep(0.01)

    async def becomes(self, *route: FakePath) -> None:
        self.connection.route = list(route)
        self.punching.paths_changed(self.core)
        await settle()

    async def direct(self, remote: tuple[str, int] = THEIRS) -> None:
        await self.becomes(self.punched(remote), self.relayed(current=False))

    async def lost(self) -> None:
        await self.becomes(self.relayed())

    async def rounds(self, count: int, within: float = 10.0) -> list[Any]:
        """The rounds, of which there must be so many by then."""
        async with asyncio.timeout(within):
            while len(self.connection.rounds) < count:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.001)
        assert len(self.connection.rounds) == count
        return self.connection.rounds

    async def asked(self, count: int) -> list[Any]:
        """The steps the peer was asked for, of which there must be so many."""
        async with asyncio.timeout(10):
            while len(self.connection.steps) < count:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.001)
        return self.connection.steps

    async def prepared(self, *addresses: tuple[str, int], ok: bool = True) -> None:
        self.punching.prepared(self.core, len(self.connection.steps), ok, addresses)
        await settle()

    async def prepare(self, method: str, *addresses: tuple[str, int], count: int = 16) -> int:
        """Have the peer ask for a step."""
        number = len(self.connection.results) + 1
        self.punching.prepare(self.core, number, method, addresses, count)
        await asyncio.sleep(0.05)
        return number

    def results(self) -> dict[str, int]:
        """How rounds ended."""
        totals = self.recorder.snapshot(connections={}, rejected={}).punch_rounds_total
        return {result: count for result, count in totals.items() if count}
