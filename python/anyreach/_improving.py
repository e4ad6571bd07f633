"""What is done for connections once they are there: probes, punching, spares, ranking, ways around
an outage."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyreach._fallback import Fallback
from anyreach._local import from_core
from anyreach._lookout import Lookout
from anyreach._nat_probe import NatProbe
from anyreach._punch_end import Kit
from anyreach._punching import Punching
from anyreach._ranking import Ranking
from anyreach._upgrades import Upgrades
from anyreach._way import Way
from anyreach.peer import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._proving import Contacts
    from anyreach._tunnels import Tunnels
    from anyreach.config import P2pConfig
    from anyreach.connection import Path
    from anyreach.events import Event
    from anyreach.explain import Account
    from anyreach.metrics import Recorder
    from anyreach.reachability import Family

__all__ = ["Improving"]


class Improving:
    """Improves the connections of one node.

    Args:
        config: how to behave.
        core: the node's endpoint.
        wait: awaits a ``poll_*`` method of the core.
        tunnels: its tunnels.
        local: what it knows about its addresses.
        contacts: whom it has sent something.
        recorder: counts rounds and candidates.
        emit: takes the events.
        probed: called when experiments have told something about the NAT.

    Attributes:
        upgrades: asked for better paths by whoever dials.
    """

    def __init__(
        self,
        config: P2pConfig,
        core: _core.Endpoint,
        wait: Waiter,
        *,
        tunnels: Tunnels,
        local: LocalView,
        contacts: Contacts,
        recorder: Recorder,
        emit: Callable[[Event], None],
        probed: Callable[[], None],
    ) -> None:
        self._probe = NatProbe(
            core,
            wait,
            tunnels=tunnels,
            local=local,
            contacts=contacts,
            enabled=config.direct and config.punch and config.relay_fallback,
            changed=probed,
        )
        kit = Kit(
            core,
            wait,
            local,
            self._probe,
            config.candidate_policy,
            recorder,
            contacts,
            emit,
            birthday=config.birthday,
            per_hour=config.birthday_attempts,
        )
        self._punching = Punching(kit, enabled=config.direct and config.punch)
        self._lookout = Lookout(core, wait)
        self._fallback = Fallback(
            core, wait, tunnels=tunnels, contacts=contacts, enabled=config.relay_fallback
        )
        self.upgrades = Upgrades(
            core,
            wait,
            punching=self._punching,
            direct=config.direct,
            grace=0 if config.prefer == "fast" else config.direct_grace,
            timeout=config.handshake_timeout,
            contacts=contacts,
        )
        self._ranking = Ranking(
            config.path_policy,
            standby=config.relay_standby,
            declined=self.upgrades.declined,
        )

    def jobs(self) -> Iterable[tuple[Coroutine[None, None, None], str]]:
        """What runs as long as the node, and how it is called."""
        yield self._probe.run(), "anyreach-nat-probe"
        yield self._ranking.run(), "anyreach-ranking"
        yield self._lookout.run(), "anyreach-lookout"

    # What happens

    def handle(self, event: tuple[Any, ...]) -> bool:
        """Take in an event of the core, if it is one of NAT traversal or of silence."""
        match event:
            case ("candidates" | "nat", core):
                self._punching.news(core)
            case ("silent", core):
                self._fallback.silent(core)
            case ("round", core, number):
                self._punching.round(core, number)
            case ("opened", core, ip, port):
                self._punching.opened(core, ip, port)
            case ("prepare", core, number, method, addresses, count):
                self._punching.prepare(core, number, method, addresses, count)
            case ("prepared", core, number, ok, addresses):
                self._punching.prepared(core, number, ok, addresses)
            case _:
                return False
        return True

    def expect(self) -> None:
        """Somebody is being looked for, who may have to be punched: find out about the NAT."""
        self._probe.want()

    def entered(self, core: _core.Connection) -> None:
        """There is a connection."""
        self._punching.begin(core)
        self._probe.wake()  # it may lend a tunnel

    def reach_changed(self, core: _core.Connection) -> None:
        """A peer told where it can be reached; of use where data goes through a relay."""
        self._punching.news(core)
        if core.outbound and core.reach is not None:
            _, bound = core.reach
            ways = [
                Way(from_core(*address), relay=PeerId(relay))
                for relay, addresses in bound
                for address in addresses
            ]
            self.upgrades.begin(core, (), ways)

    def paths_changed(self, core: _core.Connection, *, failed_over: bool) -> None:
        """The paths of a connection changed."""
        if failed_over:
            self._lookout.failed_over(core)
        self._ranking.changed(core, failed_over=failed_over)
        self.upgrades.changed(core)

    def own_news(self) -> None:
        """Something is known about this node's addresses that was not known before."""
        self._probe.wake()
        self._punching.own_news()

    def external_gone(self, family: Family) -> None:
        """Nobody sees the node at an IP address any more: what was found out about it is void."""
        self._probe.external_gone(family)

    def tunnels_changed(self) -> None:
        """A tunnel came up, went down, or has other addresses."""
        self._probe.wake()

    def network_changed(self) -> None:
        """The node is somewhere else."""
        self._probe.network_changed()
        self._ranking.network_changed()
        self._punching.network_changed()

    def account(self, core: _core.Connection, paths: tuple[Path, ...]) -> Account:
        """What is known about a connection, for it to explain itself."""
        return self._punching.account(core, paths)

    # The end

    def ended(self, connection_id: int) -> None:
        """A connection has ended."""
        self._ranking.ended(connection_id)
        self._fallback.ended(connection_id)
        self.upgrades.ended(connection_id)

    async def end(self) -> None:
        """Stop everything."""
        tasks = self._fallback.abandon()
        if tasks:
            await asyncio.wait(tasks)
        await self.upgrades.end()

    def abandon(self) -> None:
        """Stop everything, without waiting."""
        self._fallback.abandon()
        self.upgrades.abandon()
