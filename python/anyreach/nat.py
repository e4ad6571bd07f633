"""What the observations of several peers say about the NAT in front of a node.

Pure: :func:`classify_mapping` looks at addresses only. Words are those of RFC 4787 (mapping and
filtering behaviour, each judged alone); nothing here is called a "cone".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = ["Behaviour", "NatReport", "classify_mapping", "revised"]

Behaviour = Literal[
    "none",
    "endpoint-independent",
    "address-dependent",
    "address-and-port-dependent",
    "unknown",
]

Address = tuple[str, int]
"""IP address in canonical text form, and port."""


@dataclass(frozen=True, slots=True)
class NatReport:
    """What is known about the NAT in front of a node.

    A verdict stays when the peers it came from leave, until others contradict it or the addresses
    of the host change: what a NAT does does not depend on who is connected.

    Attributes:
        mapping: ``"none"`` when peers see an address of this machine itself;
            ``"endpoint-independent"`` when several peers see the same address and port;
            ``"address-and-port-dependent"`` when they see different ports of one address (a
            new mapping for each destination, so that only predicted or relayed ways help);
            ``"address-dependent"`` when only peers at different addresses see different ports;
            ``"unknown"`` before two peers have reported.
        filtering: ``"unknown"``: observations tell how packets leave, not which ones are let in.
        external_addresses: ``ip:port`` addresses the connected peers see this node at, or saw it at
            before the last of them left: first those that peers in several networks agree on, then
            by how many report them. One peer can report anything.
        observers: how many peers report each of ``external_addresses``.
    """

    mapping: Behaviour = "unknown"
    filtering: Behaviour = "unknown"
    external_addresses: tuple[str, ...] = ()
    observers: tuple[int, ...] = ()


def classify_mapping(
    observations: Iterable[tuple[Address, Address]], host: Collection[Address]
) -> Behaviour:
    """The mapping behaviour that fits what the peers see.

    Args:
        observations: one ``(address of the peer, address it sees us at)`` per connected peer.
        host: addresses of this machine with the port the node is bound to.

    Peers on the same network see a host address whatever NAT stands at its edge, so they only
    decide when nobody sees anything else. Families are judged apart; the more troublesome
    verdict wins.
    """
    mapped: dict[bool, list[tuple[Address, Address]]] = defaultdict(list)
    unmapped = False
    for peer, seen in observations:
        if seen in host:
            unmapped = True
        else:
            mapped[":" in seen[0]].append((peer, seen))
    if not mapped:
        return "none" if unmapped else "unknown"
    verdicts = [_family_mapping(group) for group in mapped.values()]
    order: tuple[Behaviour, ...] = (
        "address-and-port-dependent",
        "address-dependent",
        "endpoint-independent",
    )
    return next((v for v in order if v in verdicts), "unknown")


def revised(before: Behaviour, verdict: Behaviour, *, vouched: bool) -> Behaviour:
    """What to believe now if the peers connected now alone would justify ``verdict``.

    Args:
        before: what was believed so far.
        verdict: from :func:`classify_mapping`, with at least one report.
        vouched: whether somebody outside the local network sees an address of this machine
            itself.
    """
    if verdict == "unknown":
        # Too few to tell which NAT, but they see some other address than one of ours.
        return "unknown" if before == "none" else before
    if verdict == "none" and before != "unknown" and not vouched:
        return before  # neighbours see our own address whatever NAT is at the edge
    return verdict


def _family_mapping(observations: Sequence[tuple[Address, Address]]) -> Behaviour:
    # The external IP most peers see; others are a second uplink or an outlier.
    (ip, _), *_ = Counter(seen[0] for _, seen in observations).most_common(1)
    ports = {peer: seen[1] for peer, seen in observations if seen[0] == ip}
    if len(ports) < 2:
        return "unknown"
    port, agreeing = Counter(ports.values()).most_common(1)[0]
    if agreeing * 2 > len(ports):
        if len({peer_ip for (peer_ip, _), seen in ports.items() if seen == port}) > 1:
            return "endpoint-independent"
        if agreeing == len(ports):
            # One destination address: an address-dependent mapping would look the same.
            return "unknown"
    by_ip: dict[str, list[int]] = defaultdict(list)
    for (peer_ip, _), seen in ports.items():
        by_ip[peer_ip].append(seen)
    shared = [seen for seen in by_ip.values() if len(seen) > 1]
    if shared and all(len(set(seen)) == 1 for seen in shared):
        return "address-dependent"
    return "address-and-port-dependent"
