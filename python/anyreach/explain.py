"""Why a connection takes the path it takes: what was tried, what came of it, what would help.

Pure. Whoever keeps the log of a connection passes it to :func:`explain` as an :class:`Account`;
the :class:`Explanation` is what users get, with a text for people.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from anyreach.nat import NatReport

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyreach.connection import Method, Path
    from anyreach.punching import Plan, PlanMethod
    from anyreach.rounds import Method as Technique
    from anyreach.rounds import Outcome

__all__ = [
    "Account",
    "CandidateNote",
    "Explanation",
    "PunchAttempt",
    "explain",
    "nat_text",
]

CandidateOutcome: TypeAlias = Literal[
    "works", "worked", "no-answer", "pending", "no-pair", "untried"
]

_DEPENDENT: Final = frozenset({"address-dependent", "address-and-port-dependent"})

_SHOWN_ATTEMPTS: Final = 8
"""Attempts in the text: the latest say why it is so now."""

_SHOWN_ADDRESSES: Final = 3
"""Addresses of an attempt in the text."""


@dataclass(frozen=True, slots=True)
class PunchAttempt:
    """One attempt at a direct path.

    Attributes:
        technique: ``"simple"``: packets to the known addresses of the peer; ``"predict"``: also to
            the ports its NAT uses next; ``"pool"``, ``"spray"``: a birthday attempt, in which the
            side that was dialed opens many sockets and the other tries many ports, or the other way
            round.
        round: number of the round (PUNCH_ME_NOW), or ``None`` if there was none.
        started: when, as :func:`time.time` has it.
        seconds: how long it took; ``None`` while it goes on.
        local: addresses of this side it was for, ``ip:port``.
        remote: addresses of the peer it was for, ``ip:port``.
        outcome: ``"direct"``: it made a path; ``"failed"``; ``"refused"``: a limit of this node or
            the peer said no; ``None`` while it goes on.
        reason: one sentence for people.
    """

    technique: Technique
    round: int | None
    started: float
    seconds: float | None
    local: tuple[str, ...]
    remote: tuple[str, ...]
    outcome: Outcome | None
    reason: str

    def __str__(self) -> str:
        number = "" if self.round is None else f" {self.round}"
        head = f"{self.technique}{number} to {_some(self.remote)}"
        if self.seconds is None:
            return f"{head}: under way"
        return f"{head}: {self.outcome} after {self.seconds * 1000:.0f} ms, {self.reason}"


@dataclass(frozen=True, slots=True)
class CandidateNote:
    """What became of one address.

    Attributes:
        side: ``"own"`` or ``"peer"``.
        address: ``ip:port``.
        kind: where it comes from: ``"host"``, ``"observed"``, ``"mapped"``, ``"predicted"``; what
            the peer told has ``"told"``.
        outcome: ``"works"``: a direct path uses it; ``"worked"``: one did; ``"no-answer"``;
            ``"pending"``; ``"no-pair"``: no address of the other side goes with it; ``"untried"``.
        detail: one sentence for people.
    """

    side: Literal["own", "peer"]
    address: str
    kind: str
    outcome: CandidateOutcome
    detail: str

    def __str__(self) -> str:
        return f"{self.address} ({self.kind}): {self.detail}"


@dataclass(frozen=True, slots=True)
class Account:
    """What is known about one connection when it is asked to explain itself.

    Attributes:
        peer_id: the peer, as text.
        outbound: whether this side dialed; that side starts the rounds.
        paths: the open paths, the one in use first.
        own, peer: the NATs of both ends; ``None`` where the peer has told nothing.
        plan: what they allow; ``None`` if nothing was planned, which needs a relayed path first.
        can_punch: whether both ends negotiated NAT traversal.
        direct: whether this node wants direct paths.
        birthday: whether it makes birthday attempts.
        udp_blocked: whether everything this node sends goes through TCP.
        own_candidates: ``(address, kind)`` of this side, best first.
        peer_candidates: addresses the peer told that are not refused, best first.
        no_pair: ``(address, reason)`` of addresses of either side nothing goes with.
        attempts: the log, oldest first.
        refused: how many addresses of the peer were refused, by reason.
    """

    peer_id: str
    outbound: bool
    paths: tuple[Path, ...]
    own: NatReport = field(default_factory=NatReport)
    peer: NatReport | None = None
    plan: Plan | None = None
    can_punch: bool = True
    direct: bool = True
    birthday: bool = True
    udp_blocked: bool = False
    own_candidates: tuple[tuple[str, str], ...] = ()
    peer_candidates: tuple[str, ...] = ()
    no_pair: tuple[tuple[str, str], ...] = ()
    attempts: tuple[PunchAttempt, ...] = ()
    refused: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a connection takes the path it takes. ``str()`` of it is for people.

    Attributes:
        peer_id: the peer.
        direction: ``"out"`` if this side dialed. That side starts rounds of punching; the other
            answers them, so its log has only what it was asked for.
        method: of the path in use; ``None`` if there is none.
        remote: ``ip:port`` of that path.
        relay: PeerId of its relay, if it is relayed and that is known.
        own_nat, peer_nat: the NATs of both ends, as far as they are known; ``None`` where the peer
            has told nothing.
        plan: the first thing to try between the two: a technique of :class:`PunchAttempt`, or
            ``"hopeless"``; ``None`` if nothing was planned, as for connections that never were
            relayed.
        why: the reason for the plan.
        certain: whether the plan rests on reports of both sides.
        candidates: what became of each address of both sides.
        attempts: what was tried, oldest first.
        helps: what would make a direct path possible or likelier; empty if there is one.
    """

    peer_id: str
    direction: Literal["in", "out"]
    method: Method | None
    remote: str | None
    relay: str | None
    own_nat: NatReport
    peer_nat: NatReport | None
    plan: PlanMethod | None
    why: str
    certain: bool
    candidates: tuple[CandidateNote, ...]
    attempts: tuple[PunchAttempt, ...]
    helps: tuple[str, ...]

    @property
    def is_direct(self) -> bool:
        """Whether data needs no relay now."""
        return self.method is not None and self.method != "relayed"

    def __str__(self) -> str:
        lines = [self._headline(), f"  here: {nat_text(self.own_nat)}"]
        lines.append(f"  peer: {nat_text(self.peer_nat)}")
        if self.plan is not None:
            lines.append(f"  plan: {self.plan} ({self.why})")
        for side, title in (("own", "own addresses"), ("peer", "addresses of the peer")):
            notes = [note for note in self.candidates if note.side == side]
            lines += [f"  {title}:"] * bool(notes) + [f"    {note}" for note in notes]
        if self.attempts:
            total = len(self.attempts)
            lines.append("  attempts:" + f" (the latest of {total})" * (total > _SHOWN_ATTEMPTS))
            lines += [f"    {attempt}" for attempt in self.attempts[-_SHOWN_ATTEMPTS:]]
        if self.helps:
            lines.append("  what would help:")
            lines += [f"    {text}" for text in self.helps]
        return "\n".join(lines)

    def _headline(self) -> str:
        who = f"{self.peer_id[:10]}…"
        if self.method is None:
            return f"{who} has no path now"
        via = f" through relay {self.relay[:10]}…" if self.relay else ""
        return f"{who} is {self.method}{via}, at {self.remote}"


def explain(account: Account) -> Explanation:
    """What the account amounts to."""
    path = next((path for path in account.paths if path.current), None)
    plan = account.plan
    return Explanation(
        peer_id=account.peer_id,
        direction="out" if account.outbound else "in",
        method=path.method if path else None,
        remote=path.remote if path else None,
        relay=path.relay if path else None,
        own_nat=account.own,
        peer_nat=account.peer,
        plan=plan.method if plan else None,
        why=plan.reason if plan else "",
        certain=plan is not None and plan.certain,
        candidates=tuple(_notes(account)),
        attempts=account.attempts,
        helps=() if path and path.method != "relayed" else tuple(_helps(account)),
    )


def nat_text(nat: NatReport | None) -> str:
    """What a NAT does, in a few words."""
    if nat is None or nat.mapping == "unknown":
        return "nothing is known of a NAT"
    if nat.mapping == "none":
        match nat.filtering:
            case "endpoint-independent":
                return "no NAT, and strangers get in"
            case "unknown":
                return "no NAT"
            case _:
                return f"no NAT, but a firewall with {nat.filtering} filtering"
    step = f" (step {nat.step:+d})" if nat.ports == "sequential" else ""
    return f"{nat.mapping} mapping, {nat.filtering} filtering, {nat.ports} ports{step}"


def _notes(account: Account) -> Iterable[CandidateNote]:
    why_not = dict(account.no_pair)
    working = [path for path in account.paths if path.method != "relayed"]
    remotes = {path.remote for path in working}
    hosts = {_ip(remote) for remote in remotes}
    # The source a path has is known by the report of the peer, or as an address without port.
    used = {path.observed for path in working} | {path.local for path in working}
    for address, kind in account.own_candidates:
        tried = [a for a in account.attempts if address in a.local]
        works = address in used or _ip(address) in used
        outcome, detail = _outcome(works, why_not.get(address), tried)
        yield CandidateNote("own", address, kind, outcome, detail)
    for address in dict.fromkeys((*account.peer_candidates, *sorted(remotes))):
        tried = [a for a in account.attempts if address in a.remote]
        outcome, detail = _outcome(address in remotes, why_not.get(address), tried)
        if outcome == "worked" and _ip(address) in hosts:
            detail = "it led to a path at another port"
        yield CandidateNote("peer", address, "told", outcome, detail)


def _outcome(
    works: bool, no_pair: str | None, tried: list[PunchAttempt]
) -> tuple[CandidateOutcome, str]:
    if works:
        return "works", "a direct path uses it"
    if no_pair is not None:
        return "no-pair", no_pair
    if not tried:
        return "untried", "not tried so far"
    if tried[-1].outcome is None:
        return "pending", "being tried now"
    times = "once" if len(tried) == 1 else f"{len(tried)} times"
    if tried[-1].outcome == "direct":
        return "worked", f"tried {times}, the last time with success; there is no such path now"
    return "no-answer", f"tried {times}, the last time: {tried[-1].reason}"


def _helps(account: Account) -> Iterable[str]:
    if not account.direct:
        yield "direct paths are turned off on this side (direct=False, --no-direct): turn them on"
        return
    if account.udp_blocked:
        yield "UDP does not get out of the network of this side: have it let out"
        return
    if not account.can_punch:
        yield (
            "the peer takes no part in NAT traversal: turn that on there (punch=True), "
            "or use a version that does"
        )
    yield from _help_nats(account)
    yield from _help_families(account)
    for reason, count in account.refused:
        noun = "address of the peer was" if count == 1 else "addresses of the peer were"
        yield f"{count} {noun} not tried: {reason}"
    if not (account.own_candidates and account.peer_candidates):
        yield "too little is known of the addresses of both ends: more known peers would tell"


def _help_nats(account: Account) -> Iterable[str]:
    own, peer = account.own, account.peer or NatReport()
    dependent = [nat for nat in (own, peer) if nat.mapping in _DEPENDENT]
    random = [nat for nat in dependent if nat.ports == "random"]
    either = "enable port mapping on either router, or IPv6 on both ends"
    if len(dependent) == 2 and random:
        ports = "with random ports" if len(random) == 2 else "that change ports, one at random"
        yield (
            f"both ends are behind NATs {ports}: enable port mapping on one router, "
            "or IPv6 on both ends"
        )
    elif random:
        if not account.birthday:
            yield "birthday attempts are turned off on this side (birthday=False): turn them on"
        side = "this side" if random[0] is own else "the peer"
        yield f"the NAT of {side} draws random ports: {either}"
    elif dependent:
        yield f"ports have to be predicted, which others behind the same NAT disturb: {either}"
    elif any(attempt.outcome == "failed" for attempt in account.attempts):
        yield (
            "what is known of the NATs is not in the way, so a firewall may be: let UDP in to the "
            "port of one side, or enable port mapping"
        )


def _help_families(account: Account) -> Iterable[str]:
    own = {_family(address) for address, _ in account.own_candidates}
    peer = {_family(address) for address in account.peer_candidates}
    if own and peer and not own & peer:
        (has,), (lacks,) = own, peer
        yield f"this side has IPv{has} only and the peer IPv{lacks} only: give one of them both"


def _family(address: str) -> int:
    return 6 if address.startswith("[") else 4


def _ip(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _some(addresses: tuple[str, ...]) -> str:
    if not addresses:
        return "no address"
    shown = ", ".join(addresses[:_SHOWN_ADDRESSES])
    more = len(addresses) - _SHOWN_ADDRESSES
    return f"{shown} and {more} more" if more > 0 else shown
