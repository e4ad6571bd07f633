"""One cell after the other: two nodes at sites of given kinds meet, and what became of it.

A *ground* is a lab with a near and a far site of each kind that was asked for, and a node at each
of them, which stays for all trials: so no two nodes meet twice. What nodes claim is compared with
what the internet's router counted.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Self

from . import truth
from .agent import STRAIGHT, Agent, ConnectFailedError
from .emulation import Quality
from .kinds import Egress
from .process import NoEventError
from .truth import Cheapest
from .world import World, is_open

if TYPE_CHECKING:
    from .kinds import SiteKind
    from .lab import Lab
    from .machine import Machine
    from .process import Event
    from .routers import Engine
    from .sites import LanHost, Site
    from .topology import Host
    from .traffic import Located, Traffic

__all__ = [
    "BULK",
    "DISTANT",
    "PERFECT",
    "Ground",
    "Inhabited",
    "Lines",
    "Meeting",
    "Trial",
    "patience",
]

BULK: Final = 1_000_000
"""Bytes of payload by which routers tell which way data goes."""

_STRAY: Final = BULK / 5
"""Bytes that may have gone another way: probes, openers, what was under way when paths changed."""

_WATCHED: Final = 2.5
"""Seconds for which a pair that must stay relayed is watched, where UDP gets out at both ends."""

_SETTLING: Final = 10.0
"""Seconds to find out that no address at a relay is needed; that is tested elsewhere."""

_STRICT: Final = "address-and-port-dependent"

_MEETING: Final = 45.0
"""Seconds; a bound on liveness."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What lies between any two hosts.

    Attributes:
        delay: milliseconds, one way.
        loss: per cent of packets, one way.
    """

    delay: float = 0.0
    loss: float = 0.0

    @property
    def quality(self) -> Quality:
        """Of each of the two lines on the way."""
        return Quality(delay=self.delay / 2000, loss=1 - (1 - self.loss / 100) ** 0.5)

    def __str__(self) -> str:
        return f"{self.delay:g}ms-{self.loss:g}pct" if self != PERFECT else "perfect"


PERFECT: Final = Lines()
DISTANT: Final = Lines(delay=20, loss=1)


Inhabited = tuple["Site", Agent["Machine"]]
"""A site and a node at one of its hosts."""


class End(Enum):
    """Which of the two sites of a kind."""

    NEAR = "near"
    FAR = "far"


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a cell.

    Attributes:
        near, far: the kinds.
        engine: what translates addresses at their sites.
        method: how data goes in the end; ``None`` if the pair did not connect.
        remote: where the near node sends it.
        ms_first: milliseconds from the call until the first path was usable.
        ms: until ``connect()`` returned.
        ms_direct: until data took a path without a relay; ``None`` if that did not happen.
        rtt_ms: round-trip time in the end.
        packets: that the pair sent each other and the relays until then.
        faults: what is wrong with it; empty if all is well.
    """

    near: SiteKind
    far: SiteKind
    engine: Engine
    method: str | None
    remote: str | None
    ms_first: float | None
    ms: float | None
    ms_direct: float | None
    rtt_ms: float | None
    packets: int
    faults: tuple[str, ...]

    @classmethod
    def failed(cls, near: SiteKind, far: SiteKind, engine: Engine, fault: str) -> Self:
        """A pair that did not connect."""
        return cls(near, far, engine, None, None, None, None, None, None, 0, (fault,))


def patience(near: SiteKind, far: SiteKind) -> float:
    """Seconds after which a pair must be direct, where it can be.

    One birthday attempt in 250 misses, and takes a second one (256 sockets, 1,400 ports).
    """
    return 50.0 if truth.cheapest(near, far) is Cheapest.BIRTHDAY else 10.0


class Meeting:
    """Nodes at two sites that get connected.

    Attributes:
        near, far: the sites.
        a, b: their nodes.
    """

    def __init__(self, world: World, near: Inhabited, far: Inhabited) -> None:
        self._world = world
        self.near, self.a = near
        self.far, self.b = far

    def judge(self, required: frozenset[str], engine: Engine, wait: float) -> Trial:
        """Connect them, wait for what must become of it, see which way data goes.

        Args:
            required: methods of which one must be reached.
            engine: for the record.
            wait: seconds that may take.
        """
        kinds = self.near.kind, self.far.kind
        a, b = self.a, self.b
        begun = self._world.counters.read()
        marks = len(a.process.events), len(b.process.events)
        try:
            connected = a.connect_by_id(b)
        except (ConnectFailedError, NoEventError) as error:
            return Trial.failed(*kinds, engine, f"not connected: {error}")
        faults = self._settle(required, marks, wait)
        packets = _packets(self._world.counters.read() - begun, self._world, self.near, self.far)
        faults += self._carry(straight=required <= STRAIGHT) if not faults else []
        ways = a.ways(b, since=marks[0])
        straight = [event["ms"] for event in ways if event["method"] in STRAIGHT]
        first = [e["ms"] for e in a.process.events[marks[0] :] if _is_first(e, b)]
        trial = Trial(
            *kinds,
            engine,
            ways[-1]["method"],
            ways[-1]["remote"],
            first[0] if first else None,
            connected["ms"],
            straight[0] if straight else None,
            ways[-1]["rtt_ms"],
            packets,
            (*faults, *self._stories()) if faults else (),
        )
        self._part()
        return trial

    def _settle(self, required: frozenset[str], marks: tuple[int, int], wait: float) -> list[str]:
        """Wait until both ends are where they must get; what is wrong if they do not."""
        ends = ((self.a, self.b, marks[0]), (self.b, self.a, marks[1]))
        for one, other, since in ends:
            one.wait_way(other, STRAIGHT | {"relayed"}, since=since)
        if required == {"relayed"}:
            if self.near.kind.egress is self.far.kind.egress is Egress.ANY:
                time.sleep(_WATCHED)  # that nothing happens is what is tested
            claims = [one.method(other) for one, other, _ in ends]
            return [f"claims to be {m} where that cannot be" for m in claims if m != "relayed"]
        deadline = time.monotonic() + wait
        try:
            for one, other, since in ends:
                left = max(0.0, deadline - time.monotonic())
                one.wait_way(other, STRAIGHT, since=since, timeout=left)
        except NoEventError:
            return [f"not {' or '.join(sorted(required))} within {wait:g} s"]
        claim = self.a.way(self.b)["method"]
        if claim not in required:
            return [f"{claim} at last, not {' or '.join(sorted(required))}"]
        return []

    def _carry(self, *, straight: bool) -> list[str]:
        """Send something each way; what is wrong with the way it took.

        Args:
            straight: whether it must go without a relay.
        """
        faults = []
        for one, other, sender, receiver in (
            (self.a, self.b, self.near, self.far),
            (self.b, self.a, self.far, self.near),
        ):
            claims = [one.way(other)["method"]]
            seen = len(one.process.events)
            before = self._world.counters.read()
            try:
                one.start_transfer(BULK, other)(timeout=_MEETING)
            except AssertionError as error:
                faults.append(f"no transfer from {sender.label}: {error}")
                continue
            traffic = self._world.counters.read() - before
            claims += [event["method"] for event in one.ways(other, since=seen)]
            if straight and "relayed" in claims:
                faults.append(f"{sender.label} went back to the relay: {', '.join(claims)}")
            elif straight:
                relayed = _relayed(traffic, self._world, sender, receiver)
                if relayed > _STRAY:
                    faults.append(f"{sender.label} says {claims}, but sent {relayed} B by relay")
            # To a public end by TCP: it may be its own relay.
            elif truth.cheapest(sender.kind, receiver.kind) is not Cheapest.TCP:
                amount = traffic.sent(sender, receiver).bytes
                if amount > _STRAY:
                    faults.append(f"{sender.label} says {claims}, but sent {amount} B straight")
        return faults

    def _part(self) -> None:
        marks = [(agent, len(agent.process.events)) for agent in (self.a, self.b)]
        self.a.close(self.b)
        for agent, since in marks:
            agent.process.wait_event("lost", since=since)

    def _stories(self) -> list[str]:
        told = []
        for one, other in ((self.a, self.b), (self.b, self.a)):
            try:
                told.append(f"[{one.host.label}] {one.explain(other)}")
            except NoEventError as error:
                told.append(str(error))
            told.append(one.process.transcript())
        return told


class Ground:
    """A lab with sites of many kinds and a node at each.

    Attributes:
        world: the lab with its relays.
        engine: what translates addresses.
        lines: of every site and relay.
    """

    def __init__(
        self, lab: Lab, engine: Engine, lines: Lines = PERFECT, *, relays: int = 1
    ) -> None:
        self.world = World(lab, relays=relays)
        self.engine = engine
        self.lines = lines
        self._places: dict[tuple[SiteKind, End], Inhabited] = {}
        for relay in self.world.relays:
            self._emulate(relay.host)

    def prepare(self, *cells: tuple[SiteKind, SiteKind]) -> None:
        """Build the sites of these cells and start their nodes, all at once."""
        for near, far in cells:
            self._place(near, End.NEAR)
            self._place(far, End.FAR)

    def meet(self, near: SiteKind, far: SiteKind) -> Meeting:
        """The two nodes of a cell, ready and not connected."""
        self.prepare((near, far))
        return self.introduce(self._places[near, End.NEAR], self._places[far, End.FAR])

    def introduce(self, near: Inhabited, far: Inhabited) -> Meeting:
        """A meeting of two nodes, once they can be reached."""
        for site, agent in (near, far):
            self.join(site, agent)
        return Meeting(self.world, near, far)

    def inhabit(self, site: Site, host: Host | LanHost | None = None) -> Inhabited:
        """Start a node at a host of a site, by default the first."""
        return site, Agent(host or site.host, known_peers=self.world.known_peers(site))

    def join(self, site: Site, agent: Agent[Machine]) -> None:
        """Wait until a node can be found, and be reached."""
        agent.process.wait_event(
            "known_peer", lambda event: event["state"] == "connected", timeout=_MEETING
        )
        if is_open(site.kind):
            # It asks for an address at a relay until it has seen that it needs none, and judges its
            # filters when that is done.
            with contextlib.suppress(NoEventError):
                agent.process.wait_any(
                    ("relay", "nat"),
                    lambda e: e.get("state") == "lost" or e.get("filtering") == _STRICT,
                    timeout=_SETTLING,
                )
            return
        for relay in self.world.relays[:2]:
            agent.wait_reserved(relay.node.peer_id, timeout=_MEETING)

    def run(self, near: SiteKind, far: SiteKind) -> Trial:
        """Let the nodes of a cell meet."""
        required, wait = truth.required(near, far), patience(near, far)
        return self.meet(near, far).judge(required, self.engine, wait)

    def _place(self, kind: SiteKind, end: End) -> None:
        if (kind, end) in self._places:
            return
        label = f"{end.value}_{kind.name.replace('-', '_')}"
        site = self.world.lab.site(label, kind, engine=self.engine)
        self._emulate(site)
        self._places[kind, end] = self.inhabit(site)

    def _emulate(self, place: Site | Host) -> None:
        if self.lines != PERFECT:
            place.line.emulate(self.lines.quality)


def _is_first(event: Event, other: Agent[Machine]) -> bool:
    return event.get("event") == "first" and event["peer_id"] == other.peer_id


def _relayed(traffic: Traffic, world: World, near: Site, far: Site) -> int:
    relays = [relay.host for relay in world.relays]
    return sum(
        min(traffic.sent(near, relay).bytes, traffic.sent(relay, far).bytes) for relay in relays
    )


def _packets(traffic: Traffic, world: World, near: Site, far: Site) -> int:
    parties: list[tuple[Located, Located]] = [(near, far)]
    parties += [(site, relay.host) for relay in world.relays for site in (near, far)]
    return sum(traffic.between(one, other).packets for one, other in parties)
