"""How a pair of NATs is got through, and when it is tried.

Pure. :func:`plan` judges a pair from what both sides know of their NATs; :class:`Schedule` says
when the next round of punching is due and what is different in it (see :mod:`anyreach.rounds`).
Only the side that dialed begins rounds (draft-seemann-quic-nat-traversal-02, 4).

A packet gets in where a NAT has sent one out before: to the same address and port, or, where it
filters by address only, to that address. So each side must know what the other one's packets will
come from. For mappings that do not depend on the destination that is known; for others it can be
predicted if ports are counted, and guessed by many pairs at once (the birthday paradox) if only one
side is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from anyreach.addresses import Scope
from anyreach.rounds import (
    BIRTHDAY_METHODS,
    BirthdayBudget,
    Method,
    Outcome,
    Round,
    Schedule,
    Tried,
    Wait,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.addresses import SocketAddress
    from anyreach.nat import NatReport

__all__ = [
    "BIRTHDAY_METHODS",
    "BirthdayBudget",
    "Method",
    "Outcome",
    "Plan",
    "PlanMethod",
    "Round",
    "Schedule",
    "Tried",
    "Wait",
    "could_improve",
    "plan",
]

PlanMethod: TypeAlias = Literal["simple", "predict", "pool", "spray", "hopeless"]

_DEPENDENT: Final = frozenset({"address-dependent", "address-and-port-dependent"})
_OPEN: Final = frozenset({"endpoint-independent", "address-dependent"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try for a pair, and why.

    Attributes:
        methods: what is worth trying, in this order and then from the start again; empty if
            nothing is. ``"simple"``: both sides send to the known addresses of the other;
            ``"predict"``: also to the ports the NATs will use next; ``"pool"``: the side that was
            dialed opens a pool of sockets and the other one sprays; ``"spray"``: the other way
            round.
        reason: one sentence for people.
        certain: whether it rests on reports of both sides.
    """

    methods: tuple[Method, ...]
    reason: str
    certain: bool = True

    @property
    def method(self) -> PlanMethod:
        """The first method, or ``"hopeless"``."""
        return self.methods[0] if self.methods else "hopeless"


@dataclass(frozen=True, slots=True)
class _Side:
    """One end, reduced to what matters for the other."""

    known: bool
    certain: bool
    dependent: bool
    sequential: bool
    preserving: bool
    random: bool
    strict: bool
    tested: bool
    by_address: bool

    @classmethod
    def of(cls, nat: NatReport | None) -> _Side:
        if nat is None:
            return cls(False, False, False, False, False, False, True, False, False)
        dependent = nat.mapping in _DEPENDENT
        return cls(
            # With one relay an endpoint-independent mapping cannot be told from an
            # address-dependent one, which are rare; ports are known when it was tried.
            known=nat.mapping != "unknown" or nat.ports != "unknown",
            certain=nat.mapping != "unknown",
            dependent=dependent,
            sequential=nat.ports == "sequential",
            preserving=nat.ports == "preserving",
            random=nat.ports == "random",
            # Unknown: as most are.
            strict=nat.filtering not in _OPEN,
            tested=nat.filtering != "unknown",
            # One mapping for all ports of the other end, open to all of them: whoever finds it
            # is answered from it.
            by_address=nat.mapping == "address-dependent" and nat.filtering in _OPEN,
        )

    @property
    def countable(self) -> bool:
        """Whether ports can be predicted; one that keeps them does so while they are free."""
        return self.sequential or self.preserving


def plan(
    own: NatReport,
    peer: NatReport | None,
    *,
    client: bool,
    predict: bool = True,
    birthday: bool = True,
    elsewhere: bool = False,
) -> Plan:
    """What to try with this peer.

    Both sides come to the same methods from the same two reports.

    Args:
        own: what our NAT does.
        peer: what the peer says about its own; ``None`` if it did not say anything yet.
        client: whether we dialed.
        predict: whether ports may be predicted.
        birthday: whether pools and sprays may be used.
        elsewhere: whether both have addresses the reports say nothing about, in another family or
            on one local network: then the simple method comes first, whatever the NATs do.
    """
    ours, theirs = _Side.of(own), _Side.of(peer)
    methods, reason = _judge(ours, theirs, client)
    allowed = tuple(
        m
        for m in methods
        if (predict or m != "predict") and (birthday or m not in BIRTHDAY_METHODS)
    )
    if methods and allowed != methods and not set(allowed) - {"simple"}:
        reason += "; that is switched off"
    if elsewhere and (not allowed or allowed[0] != "simple"):
        allowed = ("simple", *(m for m in allowed if m != "simple"))
        reason += "; other addresses of both may do"
    return Plan(allowed, reason, certain=ours.certain and theirs.certain)


def could_improve(
    remote: SocketAddress, pairs: Iterable[tuple[SocketAddress, SocketAddress]]
) -> bool:
    """Whether one of the pairs would be better than a direct path to ``remote``.

    So it is with one on a local network if the path leaves it, and with IPv6 if the path is IPv4.
    """
    near = {Scope.PRIVATE, Scope.UNIQUE_LOCAL, Scope.LINK_LOCAL}
    if remote.scope in near or remote.scope is Scope.LOOPBACK:
        return False
    return any(
        other.scope in near or (other.version == 6 and remote.version == 4) for _, other in pairs
    )


def _judge(ours: _Side, theirs: _Side, client: bool) -> tuple[tuple[Method, ...], str]:
    dependent = [side for side in (ours, theirs) if side.dependent]
    if not (ours.known and theirs.known):
        who = "our NAT" if not ours.known else "that of the peer"
        methods: tuple[Method, ...] = ("simple",)
        if any(side.countable for side in dependent):
            methods = ("simple", "predict")
        return methods, f"it is not known yet what {who} does"
    if not dependent:
        doubt = any(side.sequential and not side.certain for side in (ours, theirs))
        return (
            ("simple", "predict") if doubt else ("simple",),
            "both sides keep their address for every destination",
        )
    if len(dependent) == 2:
        return _judge_both(ours, theirs, client)
    hard, easy = (ours, theirs) if ours.dependent else (theirs, ours)
    name = "our NAT" if hard is ours else "the NAT of the peer"
    other = "the peer" if hard is ours else "we"
    if not easy.strict:
        rest = _fallback(hard, hard is ours, client)
        return ("simple", *rest), f"{name} changes ports, but {other} can be reached from any"
    if hard.countable:
        return ("predict", "predict", "simple"), f"{name} counts its ports, which can be predicted"
    many = _birthday(hard is ours, client)
    if hard.random:
        return (
            # Nobody sends a thousand packets before the first one was tried.
            (many, "simple") if easy.tested else ("simple", many),
            f"{name} draws random ports for every destination: only many attempts at once can hit",
        )
    return (
        ("simple", "predict", many),
        f"{name} changes ports, and how is not known yet",
    )


def _judge_both(ours: _Side, theirs: _Side, client: bool) -> tuple[tuple[Method, ...], str]:
    both = "both NATs change ports for every destination"
    if ours.countable and theirs.countable:
        return ("predict", "predict", "simple"), f"{both}, but count them"
    # In an order both ends agree on.
    sides = (ours, theirs) if client else (theirs, ours)
    for side in sorted(sides, key=lambda side: not side.countable):
        if side.by_address:
            mine = side is ours
            return (
                ("predict", "simple") if side.countable else (_birthday(mine, client), "simple"),
                f"{both}, but {'ours' if mine else 'that of the peer'} only by address",
            )
    if not (ours.random or theirs.random):
        return ("simple", "predict"), f"{both}, and how is not known yet"
    return (), f"{both}, at least one at random: there is no way but a relay"


def _fallback(hard: _Side, mine: bool, client: bool) -> tuple[Method, ...]:
    """What is left if the simple method should have worked and did not."""
    if hard.countable:
        return ("predict",)
    return (_birthday(mine, client),) if hard.random else ("predict",)


def _birthday(mine: bool, client: bool) -> Method:
    """Who opens a pool: the side with the random ports; named by what the dialed side does."""
    return "spray" if mine == client else "pool"
