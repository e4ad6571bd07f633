"""Counters, gauges and histograms of a node, and their Prometheus text form.

:class:`NodeMetrics` is an immutable snapshot; :func:`exposition` writes it in the Prometheus
text exposition format 0.0.4. :class:`Recorder` is the only mutable part and belongs to one
node on one event loop, so it needs no lock. Nothing here reads a clock or a socket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._core import PathInfo

__all__ = ["CONTENT_TYPE", "Histogram", "NodeMetrics", "Recorder", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The ``Content-Type`` to serve :func:`exposition` with."""

METHODS = ("direct", "punched", "relayed")
"""Ways a path can be made; each has its series from the start, so that ratios never miss one."""

CONNECT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds. A post-quantum handshake on loopback takes about 3 ms; 30 s is the longest timeout
that makes sense to people."""

OBSERVED_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds. A report takes one round trip, plus one probe timeout for each loss."""


FAILOVER_BUCKETS = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds. A dead path is noticed after 150 ms at the least; 30 s without data is a lost line."""

ROUND_RESULTS = ("direct", "failed", "refused")
"""How a round of punching can end."""

ROLES = ("relay", "client")
"""Sides of a tunnel this node may be on: carrying packets for others, or having them carried."""

DIRECTIONS = ("sent", "received")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values counted by size.

    Attributes:
        bounds: upper bounds of the buckets, ascending; the last bucket, without bound, is extra.
        counts: values per bucket (not cumulative), ``len(bounds) + 1`` of them.
        sum: sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class NodeMetrics:
    """What a node counted since it was started.

    Attributes:
        connect_seconds: time from the call to ``connect()`` (for incoming connections: from
            the first packet) to the established connection, by method.
        connections: connections open now, by method of the current path.
        connections_total: connections established, by method of their first path.
        candidate_pairs_total: pairs of a local and a remote address by what became of them:
            ``kept``, ``cross_family``, ``scope`` or ``limit``.
        candidates_total: remote addresses by ``(source, outcome)``. Sources: ``given`` (by the
            caller or a ticket), ``dns``, ``remembered``, ``peer`` (told for punching); outcomes:
            ``connected``, ``failed``, ``cancelled`` (another was faster), ``unused`` (never
            tried), ``family``, ``unreachable`` (no own address reaches its scope), ``limit``. Own
            addresses that peers reported: source ``observed``, outcome ``reported`` for each report
            and ``believed`` each time an address became believed; that routers lent: source
            ``mapped``, outcomes ``reported`` and ``lost``.
        observed_address_seconds: from the start of a path, or a change of its address, to the
            peer's report of our address.
        rejected_total: datagrams and handshakes refused, by reason.
        bytes_total: UDP payload bytes by ``(method, direction)``; direction ``sent`` or
            ``received``.
        path_switches_total: changes of the path data takes, by ``(from, to, reason)``: methods of
            the old and the new path, and ``better``, ``failover`` or ``roamed``.
        punch_rounds_total: rounds of punching this node began, by result: ``direct``, ``failed`` or
            ``refused``.
        failover_seconds: from the last sign of life of a path that died to data on another one.
        relay_bytes_total: UDP payload bytes inside tunnels by ``(role, direction)``. Role
            ``relay``: carried for others, ``received`` from them and ``sent`` to them through
            their tunnels; ``client``: of this node, through its own tunnels.
        relay_sessions: tunnels of others this node serves now.
        relay_reservations: addresses this node holds at relays now.
        relay_reservations_total: attempts to get one by ``(carrier, outcome)``; outcomes
            ``reserved``, ``failed`` and, for one that was held before, ``lost``.
        events_dropped_total: events that slow consumers of :meth:`anyreach.Node.events` missed.
    """

    connect_seconds: Mapping[str, Histogram]
    connections: Mapping[str, int]
    connections_total: Mapping[str, int]
    candidate_pairs_total: Mapping[str, int]
    candidates_total: Mapping[tuple[str, str], int]
    observed_address_seconds: Histogram
    rejected_total: Mapping[str, int]
    bytes_total: Mapping[tuple[str, str], int]
    path_switches_total: Mapping[tuple[str, str, str], int]
    punch_rounds_total: Mapping[str, int]
    failover_seconds: Histogram
    relay_bytes_total: Mapping[tuple[str, str], int]
    relay_sessions: int
    relay_reservations: int
    relay_reservations_total: Mapping[tuple[str, str], int]
    events_dropped_total: int


class _MutableHistogram:
    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        # bisect_left: a value equal to a bound belongs to that bucket ("le").
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def snapshot(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._sum)


@dataclass(slots=True)
class _PathBytes:
    method: str
    sent: int = 0
    received: int = 0


@dataclass(slots=True)
class Recorder:
    """Collects what happens in one node; :meth:`snapshot` gives the numbers."""

    _connect: dict[str, _MutableHistogram] = field(
        default_factory=lambda: {m: _MutableHistogram(CONNECT_BUCKETS) for m in METHODS}
    )
    _connections_total: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(METHODS, 0))
    )
    _pairs: Counter[str] = field(
        default_factory=lambda: Counter(
            dict.fromkeys(("kept", "cross_family", "scope", "limit"), 0)
        )
    )
    _candidates: Counter[tuple[str, str]] = field(default_factory=Counter)
    _observed: _MutableHistogram = field(
        default_factory=lambda: _MutableHistogram(OBSERVED_BUCKETS)
    )
    _bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _paths: dict[int, dict[int, _PathBytes]] = field(default_factory=dict)
    _switches: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _rounds: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(ROUND_RESULTS, 0)))
    _failover: _MutableHistogram = field(
        default_factory=lambda: _MutableHistogram(FAILOVER_BUCKETS)
    )
    _relay_bytes: Counter[tuple[str, str]] = field(
        default_factory=lambda: Counter({(r, d): 0 for r in ROLES for d in DIRECTIONS})
    )
    _tunnels: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    _reservations: Counter[tuple[str, str]] = field(default_factory=Counter)
    _events_dropped: int = 0

    def connected(self, method: str, seconds: float) -> None:
        """Count an established connection that took ``seconds``."""
        self._connections_total[method] += 1
        self._connect.setdefault(method, _MutableHistogram(CONNECT_BUCKETS)).observe(seconds)

    def candidate_pair(self, outcome: str, count: int = 1) -> None:
        """Count pairs of a local and a remote candidate."""
        self._pairs[outcome] += count

    def candidate(self, source: str, outcome: str) -> None:
        """Count what became of one candidate address."""
        self._candidates[source, outcome] += 1

    def observed(self, seconds: float) -> None:
        """Count a report of our own address that came ``seconds`` after its cause."""
        self._observed.observe(seconds)
        self._candidates["observed", "reported"] += 1

    def events_dropped(self, count: int = 1) -> None:
        """Count events a slow consumer missed."""
        self._events_dropped += count

    def paths(self, connection_id: int, paths: Iterable[PathInfo]) -> None:
        """Add what the paths of a connection carried since the last call for it."""
        seen = self._paths.setdefault(connection_id, {})
        for path in paths:
            last = seen.setdefault(path.id, _PathBytes(path.method))
            # The engine's counters only grow; max() keeps ours monotonic if that ever breaks.
            self._bytes[path.method, "sent"] += max(0, path.sent_bytes - last.sent)
            self._bytes[path.method, "received"] += max(0, path.received_bytes - last.received)
            last.sent = path.sent_bytes
            last.received = path.received_bytes

    def ended(self, connection_id: int, sent: int, received: int) -> None:
        """Add what a connection carried since the last look at its paths.

        Its paths are gone by now; what its totals have more than they had goes to the method
        it used last.
        """
        seen = list(self._paths.pop(connection_id, {}).values())
        method = seen[-1].method if seen else METHODS[0]
        self._bytes[method, "sent"] += max(0, sent - sum(path.sent for path in seen))
        self._bytes[method, "received"] += max(0, received - sum(path.received for path in seen))

    def path_switched(self, before: str, after: str, reason: str) -> None:
        """Count a change of the path data takes, from one method to another or the same."""
        self._switches[before, after, reason] += 1

    def punch_round(self, result: str) -> None:
        """Count a round of punching that is over."""
        self._rounds[result] += 1

    def failed_over(self, seconds: float) -> None:
        """Count a failover that took ``seconds``."""
        self._failover.observe(seconds)

    def relayed(self, role: str, tunnel: int, sent: int, received: int) -> None:
        """Add what a tunnel carried since the last call for it.

        Args:
            role: ``"relay"`` or ``"client"``.
            tunnel: a number of the tunnel, or of the relay service as a whole.
            sent, received: bytes since the tunnel exists; they only grow.
        """
        before = self._tunnels.get((role, tunnel), (0, 0))
        self._relay_bytes[role, "sent"] += max(0, sent - before[0])
        self._relay_bytes[role, "received"] += max(0, received - before[1])
        self._tunnels[role, tunnel] = (sent, received)

    def tunnel_ended(self, role: str, tunnel: int) -> None:
        """Forget a tunnel; what it carried was added by a last :meth:`relayed`."""
        self._tunnels.pop((role, tunnel), None)

    def reservation(self, carrier: str, outcome: str) -> None:
        """Count an attempt to reserve an address, or the loss of one."""
        self._reservations[carrier, outcome] += 1

    def snapshot(
        self,
        *,
        connections: Mapping[str, int],
        rejected: Mapping[str, int],
        relay_sessions: int = 0,
        relay_reservations: int = 0,
    ) -> NodeMetrics:
        """The numbers now; gauges and the core's counters are passed in."""
        byte_series = {(m, d): 0 for m in METHODS for d in DIRECTIONS}
        return NodeMetrics(
            connect_seconds=_frozen({m: h.snapshot() for m, h in self._connect.items()}),
            connections=_frozen({**dict.fromkeys(METHODS, 0), **connections}),
            connections_total=_frozen(self._connections_total),
            candidate_pairs_total=_frozen(self._pairs),
            candidates_total=_frozen(self._candidates),
            observed_address_seconds=self._observed.snapshot(),
            rejected_total=_frozen(rejected),
            bytes_total=_frozen({**byte_series, **self._bytes}),
            path_switches_total=_frozen(self._switches),
            punch_rounds_total=_frozen(self._rounds),
            failover_seconds=self._failover.snapshot(),
            relay_bytes_total=_frozen(self._relay_bytes),
            relay_sessions=relay_sessions,
            relay_reservations=relay_reservations,
            relay_reservations_total=_frozen(self._reservations),
            events_dropped_total=self._events_dropped,
        )


_K = TypeVar("_K")
_V = TypeVar("_V")


def _frozen(values: Mapping[_K, _V]) -> Mapping[_K, _V]:
    return MappingProxyType(dict(values))


def exposition(metrics: NodeMetrics) -> str:
    """The Prometheus text exposition (format 0.0.4) of a snapshot, ending in a newline."""
    out: list[str] = []
    _family(
        out,
        "anyreach_connect_seconds",
        "histogram",
        "Time to an established connection, by method.",
    )
    for method, histogram in metrics.connect_seconds.items():
        _histogram(out, "anyreach_connect_seconds", {"method": method}, histogram)
    _simple(
        out,
        "anyreach_connections",
        "gauge",
        "Connections open now, by method of the current path.",
        [({"method": m}, n) for m, n in metrics.connections.items()],
    )
    _simple(
        out,
        "anyreach_connections_total",
        "counter",
        "Connections established, by method of their first path.",
        [({"method": m}, n) for m, n in metrics.connections_total.items()],
    )
    _simple(
        out,
        "anyreach_candidate_pairs_total",
        "counter",
        "Address pairs considered for connecting, by what became of them.",
        [({"outcome": o}, n) for o, n in metrics.candidate_pairs_total.items()],
    )
    _simple(
        out,
        "anyreach_candidates_total",
        "counter",
        "Candidate addresses by where they came from and what became of them.",
        [({"source": s, "outcome": o}, n) for (s, o), n in metrics.candidates_total.items()],
    )
    _family(
        out,
        "anyreach_observed_address_seconds",
        "histogram",
        "Time from a path's start or address change to the peer's OBSERVED_ADDRESS.",
    )
    _histogram(out, "anyreach_observed_address_seconds", {}, metrics.observed_address_seconds)
    _simple(
        out,
        "anyreach_rejected_total",
        "counter",
        "Datagrams and handshakes refused, by reason.",
        [({"reason": r}, n) for r, n in metrics.rejected_total.items()],
    )
    _simple(
        out,
        "anyreach_bytes_total",
        "counter",
        "UDP payload bytes, by method of the path and direction.",
        [({"method": m, "direction": d}, n) for (m, d), n in metrics.bytes_total.items()],
    )
    _simple(
        out,
        "anyreach_path_switches_total",
        "counter",
        "Changes of the path data takes, by methods and reason.",
        [
            ({"from": before, "to": after, "reason": reason}, n)
            for (before, after, reason), n in metrics.path_switches_total.items()
        ],
    )
    _simple(
        out,
        "anyreach_punch_rounds_total",
        "counter",
        "Rounds of punching this node began, by result.",
        [({"result": r}, n) for r, n in metrics.punch_rounds_total.items()],
    )
    _family(
        out,
        "anyreach_failover_seconds",
        "histogram",
        "Time from the last sign of life of a path that died to data on another.",
    )
    _histogram(out, "anyreach_failover_seconds", {}, metrics.failover_seconds)
    _relay_families(out, metrics)
    _simple(
        out,
        "anyreach_events_dropped_total",
        "counter",
        "Events that slow consumers missed.",
        [({}, metrics.events_dropped_total)],
    )
    return "\n".join(out) + "\n"


def _relay_families(out: list[str], metrics: NodeMetrics) -> None:
    _simple(
        out,
        "anyreach_relay_bytes_total",
        "counter",
        "UDP payload bytes inside tunnels, by the side of this node and direction.",
        [({"role": r, "direction": d}, n) for (r, d), n in metrics.relay_bytes_total.items()],
    )
    _simple(
        out,
        "anyreach_relay_sessions",
        "gauge",
        "Tunnels of others that this node serves now.",
        [({}, metrics.relay_sessions)],
    )
    _simple(
        out,
        "anyreach_relay_reservations",
        "gauge",
        "Addresses this node holds at relays now.",
        [({}, metrics.relay_reservations)],
    )
    _simple(
        out,
        "anyreach_relay_reservations_total",
        "counter",
        "Attempts to get an address at a relay, and losses of one, by carrier.",
        [
            ({"carrier": carrier, "outcome": outcome}, n)
            for (carrier, outcome), n in metrics.relay_reservations_total.items()
        ],
    )


def _family(out: list[str], name: str, kind: str, text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    out.append(f"# HELP {name} {escaped}")
    out.append(f"# TYPE {name} {kind}")


def _simple(
    out: list[str],
    name: str,
    kind: str,
    text: str,
    samples: Iterable[tuple[Mapping[str, str], int]],
) -> None:
    _family(out, name, kind, text)
    out.extend(f"{name}{_labels(labels)} {value}" for labels, value in samples)


def _histogram(out: list[str], name: str, labels: Mapping[str, str], histogram: Histogram) -> None:
    cumulative = 0
    for bound, count in zip([*map(repr, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        cumulative += count
        out.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {cumulative}")
    out.append(f"{name}_sum{_labels(labels)} {histogram.sum!r}")
    out.append(f"{name}_count{_labels(labels)} {cumulative}")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
