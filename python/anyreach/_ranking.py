"""Has the path policy rank the paths of each connection, and tells the core what came of it.

For connections this node has dialed: the side that dialed leads, and both ends use the same path.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from anyreach._paths import current
from anyreach.paths import FlapRecord, PathSituation, PathView, RttFloor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyreach import _core
    from anyreach.paths import PathPolicy

__all__ = ["Ranking"]

TICK: Final = 2.0
"""Seconds between two looks at connections with several paths, besides those when paths come and
go: round trips and rates are not worth more, and dying paths are the core's business."""

BUSY_BYTES: Final = 4096
"""More than so many bytes between two looks are data; keep-alives and probes are fewer."""

MIN_PACKETS: Final = 20
"""Packets from which on a share of lost ones means something."""

LOSS_SECONDS: Final = 30.0
"""For so long a share of lost packets is held against a path that since then carried too little to
tell: then it gets another chance."""

LOADED: Final = 0.7
"""Share of what the congestion window allows from which on a path was filled, so that what it
carried is what it can carry."""

TWIN_SECONDS: Final = 5.0
"""Age from which on a path is closed that leads where the one in use does: no heir by then."""

SILENT_PACKETS: Final = 8
"""Packets without any in return that show that a path carries nothing, while another one works."""


@dataclass(slots=True)
class _Seen:
    """Counters of a path at the last look, and what they showed."""

    sent: int
    received: int
    lost: int
    at: float
    floor: RttFloor
    rtt: float
    rate: float | None = None
    loss: float | None = None
    loss_at: float = 0.0
    carries: bool | None = None
    # What the latest look showed; it takes two in a row, because paths that die look the same, and
    # those the core has left before the second one.
    share: float | None = None
    silent: bool = False


@dataclass(slots=True)
class _Entry:
    core: _core.Connection
    active_at: float
    seen: dict[int, _Seen] = field(default_factory=dict)
    flaps: FlapRecord = field(default_factory=FlapRecord)
    used: tuple[str, tuple[str, int]] | None = None
    applied: tuple[tuple[int, int], ...] = ()


class Ranking:
    """Ranks the paths of the connections of one node.

    Args:
        policy: decides.
        standby: seconds relayed paths are kept after a direct one is up.
        declined: called when the policy lets the last spare relayed path of a connection go.
    """

    def __init__(
        self,
        policy: PathPolicy,
        *,
        standby: float,
        declined: Callable[[_core.Connection], None],
    ) -> None:
        self._policy = policy
        self._standby = standby
        self._declined = declined
        self._loop = asyncio.get_running_loop()
        self._entries: dict[int, _Entry] = {}
        self._several = asyncio.Event()

    def changed(self, core: _core.Connection, *, failed_over: bool = False) -> None:
        """The paths of a connection changed; ``failed_over``: because the one in use died."""
        if not core.outbound:
            return
        paths = core.paths()
        entry = self._entries.get(core.id)
        if entry is None:
            if len(paths) < 2:
                return
            entry = self._entries[core.id] = _Entry(core, self._loop.time())
        if failed_over and entry.used is not None:
            entry.flaps.lost(entry.used, self._loop.time())
        self._decide(entry, paths)
        if len(paths) > 1:
            self._several.set()

    def ended(self, connection_id: int) -> None:
        """The connection has ended."""
        self._entries.pop(connection_id, None)

    def network_changed(self) -> None:
        """The node is somewhere else: what was lost before says nothing."""
        for entry in self._entries.values():
            entry.flaps.network_changed()

    async def run(self) -> None:
        """Look again from time to time, until cancelled."""
        while True:
            await self._several.wait()
            await asyncio.sleep(TICK)
            several = False
            for entry in tuple(self._entries.values()):
                paths = entry.core.paths()
                if len(paths) > 1:
                    several = True
                    self._decide(entry, paths)
            if not several:
                self._several.clear()

    def _decide(self, entry: _Entry, paths: Sequence[_core.PathInfo]) -> None:
        now = self._loop.time()
        self._measure(entry, paths, now)
        path = current(paths)
        entry.used = None if path is None else (path.method, path.remote)
        if len(paths) < 2:
            entry.applied = ()
            return
        decision = self._policy.decide(
            PathSituation(
                paths=tuple(_view(path, entry, now) for path in paths),
                current=None if path is None else path.id,
                relay_standby=self._standby,
                idle=now - entry.active_at,
            )
        )
        if decision.ranking != entry.applied:
            entry.applied = decision.ranking
            entry.core.rank_paths(decision.ranking)
        spare = {path.id for path in paths if path.method == "relayed" and not path.current}
        if spare and spare <= set(decision.close):
            self._declined(entry.core)
        for number in {*decision.close, *_twins(paths)}:
            entry.core.close_path(number)

    def _measure(self, entry: _Entry, paths: Sequence[_core.PathInfo], now: float) -> None:
        before, entry.seen = entry.seen, {}
        moved = 0
        for path in paths:
            last = before.get(path.id)
            if last is None:
                last = _Seen(
                    path.sent_bytes,
                    path.received_bytes,
                    path.lost_packets,
                    now,
                    RttFloor(),
                    path.rtt,
                )
            elif now - last.at >= TICK / 2:
                moved += path.sent_bytes - last.sent + path.received_bytes - last.received
                last = _compared(last, path, now)
            last.rtt = last.floor.sample(path.rtt, now)
            entry.seen[path.id] = last
        if moved > BUSY_BYTES:
            entry.active_at = now


def _twins(paths: Sequence[_core.PathInfo]) -> list[int]:
    """Paths that lead from the same address to the same one as the path in use: what both ends sent
    at once may have opened two. They only cost keep-alives."""
    path = current(paths)
    if path is None or path.method == "relayed" or path.age < TWIN_SECONDS:
        return []
    way = (path.remote, path.local_ip)
    return [
        other.id
        for other in paths
        if other.method != "relayed"
        and not other.current
        and other.age >= TWIN_SECONDS
        and (other.remote, other.local_ip) == way
    ]


def _compared(last: _Seen, path: _core.PathInfo, now: float) -> _Seen:
    """What the counters show since the last look."""
    seconds = now - last.at
    sent, received = path.sent_bytes - last.sent, path.received_bytes - last.received
    packets = sent // max(path.mtu, 1)
    seen = replace(
        last,
        sent=path.sent_bytes,
        received=path.received_bytes,
        lost=path.lost_packets,
        at=now,
    )
    if path.rtt > 0 and sent / seconds >= LOADED * path.congestion_window / path.rtt:
        seen.rate = sent / seconds
    if packets >= MIN_PACKETS:
        seen.share = min(1.0, (path.lost_packets - last.lost) / packets)
        if last.share is not None:
            seen.loss, seen.loss_at = min(last.share, seen.share), now
    elif now - last.loss_at >= LOSS_SECONDS:
        seen.loss = seen.share = None
    if received > 0:
        seen.carries, seen.silent = None, False
    elif packets >= SILENT_PACKETS:
        seen.carries, seen.silent = False if last.silent else last.carries, True
    return seen


def _view(path: _core.PathInfo, entry: _Entry, now: float) -> PathView:
    seen = entry.seen[path.id]
    return PathView(
        id=path.id,
        method=path.method,
        family=6 if ":" in path.remote[0] else 4,
        rtt=seen.rtt,
        age=path.age,
        relay=None if path.via is None else path.via.hex(),
        delivery_rate=seen.rate,
        mtu=path.mtu,
        loss=seen.loss,
        carries=seen.carries,
        flaps=entry.flaps.count((path.method, path.remote), now),
    )
