"""NAT traversal of a node: which connections take part, and who is told what happens.

The two ends of a connection have different parts (draft-seemann-quic-nat-traversal-02, 4): see
:mod:`anyreach._punch_client` and :mod:`anyreach._punch_server`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from anyreach._local import from_core
from anyreach._paths import is_relayed
from anyreach._punch_client import Client
from anyreach._punch_server import Server
from anyreach.candidates import DropReason
from anyreach.explain import Account
from anyreach.near import near_prefixes
from anyreach.peer import PeerId
from anyreach.punching import plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyreach import _core
    from anyreach._punch_end import Kit
    from anyreach.connection import Path

__all__ = ["Punching"]


class Punching:
    """Looks for direct paths of the connections of one node that go through a relay.

    Args:
        kit: what all connections share.
        enabled: whether direct paths are wanted, and may be punched.
    """

    def __init__(self, kit: Kit, *, enabled: bool) -> None:
        self._kit = kit
        self._enabled = enabled
        self._ends: dict[int, Client | Server] = {}
        self._near: tuple[str, ...] | None = None

    def begin(self, core: _core.Connection) -> None:
        """A connection is there, or its paths changed: one that is relayed takes part from now on,
        also when it has become direct, so that it finds its way back."""
        if not self._enabled or core.id in self._ends or core.close_reason is not None:
            return
        if not _began_relayed(core) or not core.can_punch:
            return
        self._set_near()
        end = Client(self._kit, core) if core.outbound else Server(self._kit, core)
        self._ends[core.id] = end
        end.start()

    # What happens

    def news(self, core: _core.Connection) -> None:
        """The peer told something: addresses, its NAT, where it can be reached."""
        self.begin(core)
        end = self._ends.get(core.id)
        if end is not None:
            end.news()

    def own_news(self) -> None:
        """Something is known about this node that was not known before."""
        for end in tuple(self._ends.values()):
            end.news()

    def paths_changed(self, core: _core.Connection) -> None:
        """The paths of a connection changed."""
        self.begin(core)
        end = self._ends.get(core.id)
        if end is not None:
            end.changed()

    def round(self, core: _core.Connection, number: int) -> None:
        """The peer has begun a round."""
        end = self._ends.get(core.id)
        if isinstance(end, Server):
            end.round(number)

    def opened(self, core: _core.Connection, ip: str, port: int) -> None:
        """An authentic packet of the peer came from there."""
        end = self._ends.get(core.id)
        if end is not None:
            end.opened(from_core(ip, port))

    def prepare(
        self,
        core: _core.Connection,
        number: int,
        method: str,
        addresses: Iterable[tuple[str, int]],
        count: int,
    ) -> None:
        """The peer asks for a step."""
        self.begin(core)
        end = self._ends.get(core.id)
        if isinstance(end, Server):
            end.prepare(number, method, [from_core(*address) for address in addresses], count)
        else:
            core.prepared(number, False, [])

    def prepared(
        self,
        core: _core.Connection,
        number: int,
        ok: bool,
        addresses: Iterable[tuple[str, int]],
    ) -> None:
        """The peer has answered."""
        end = self._ends.get(core.id)
        if isinstance(end, Client):
            end.prepared(number, ok, (from_core(*address) for address in addresses))

    def network_changed(self) -> None:
        """The node is somewhere else: tell other addresses, and try at once."""
        self._set_near()
        for end in tuple(self._ends.values()):
            end.network_changed()

    def _set_near(self) -> None:
        near = near_prefixes(self._kit.local.interfaces) if self._enabled else ()
        if near != self._near:
            self._near = near
            self._kit.core.set_near(list(near))

    # Questions

    async def settled(self, core: _core.Connection) -> None:
        """Wait until a direct path is up, or it is certain that none can be made."""
        end = self._ends.get(core.id)
        if isinstance(end, Client):
            await end.settled.wait()

    def is_open(self, core: _core.Connection) -> bool:
        """Whether a direct path may be made soon."""
        end = self._ends.get(core.id)
        return isinstance(end, Client) and not end.settled.is_set() and not self._is_udp_blocked()

    def is_promising(self, core: _core.Connection) -> bool:
        """Whether both ends have told addresses that go together."""
        end = self._ends.get(core.id)
        return isinstance(end, Client) and bool(end.pairing.kept)

    def _is_udp_blocked(self) -> bool:
        """Whether everything this node sends goes through TCP."""
        ways = [path for core in self._kit.core.connections() for path in core.paths()]
        return bool(ways) and all(path.tunnelled for path in ways)

    def account(self, core: _core.Connection, paths: Sequence[Path]) -> Account:
        """Everything :func:`anyreach.explain.explain` needs."""
        end = self._ends.get(core.id)
        if end is not None:
            end.changed()  # a path may be up before anybody has told
        account = Account(
            peer_id=str(PeerId(core.peer_id)),
            outbound=core.outbound,
            paths=tuple(paths),
            own=self._kit.local.nat(),
            can_punch=core.can_punch,
            direct=self._enabled,
            birthday=self._kit.birthday,
            udp_blocked=self._is_udp_blocked(),
        )
        return account if end is None else _filled(account, end)

    # The end

    def ended(self, connection_id: int) -> None:
        """The connection has ended."""
        end = self._ends.pop(connection_id, None)
        if end is not None:
            end.end()

    async def end(self) -> None:
        """Stop everything."""
        tasks = self.abandon()
        if tasks:
            await asyncio.wait(tasks)

    def abandon(self) -> list[asyncio.Task[None]]:
        """Stop everything without waiting; what is about to end."""
        tasks = [task for end in self._ends.values() for task in end.end()]
        self._ends.clear()
        return tasks


def _began_relayed(core: _core.Connection) -> bool:
    """Whether a relay is needed, or was: a direct path may be up before anybody has looked."""
    first = core.first_path
    return is_relayed(core) or (first is not None and first.method == "relayed")


def _filled(account: Account, end: Client | Server) -> Account:
    """With what the end of a connection knows."""
    told = end.own()
    no_pair: dict[str, str] = {}
    if isinstance(end, Client):
        paired = {a for p in end.pairing.kept for a in (p.local.address, p.remote.address)}
        for dropped in end.pairing.dropped:
            for candidate in (dropped.local, dropped.remote):
                if candidate.address not in paired:
                    no_pair.setdefault(str(candidate.address), _WHY[dropped.reason])
    return replace(
        account,
        peer=end.peer_nat,
        plan=plan(account.own, end.peer_nat, client=account.outbound, birthday=account.birthday)
        if not isinstance(end, Client) or end.plan is None
        else end.plan,
        own_candidates=tuple((str(c.address), c.kind.value) for c in told.candidates),
        peer_candidates=tuple(map(str, end.peer_addresses())),
        no_pair=tuple(no_pair.items()),
        attempts=end.log.attempts,
        refused=tuple(
            (name.removeprefix("refused_").replace("_", " "), count)
            for name, count in end.core.punch_stats().items()
            if name.startswith("refused_") and count
        ),
    )


_WHY: Final = {
    DropReason.CROSS_FAMILY: "the other side has no address of its family",
    DropReason.SCOPE: "no address of the other side is on a network it reaches",
    DropReason.LIMIT: "there are too many addresses",
}
