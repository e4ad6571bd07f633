"""How the node looks from outside: what follows when peers or experiments say something new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyreach._local import from_core
from anyreach._port_mapping import behind_nat
from anyreach.events import ExternalAddress, Nat

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach import _core
    from anyreach._improving import Improving
    from anyreach._local import LocalView
    from anyreach._port_mapping import PortMapper
    from anyreach._relaying import Relaying
    from anyreach.addresses import SocketAddress
    from anyreach.events import Event
    from anyreach.metrics import Recorder
    from anyreach.observed import ObservationChange
    from anyreach.peer import PeerId

__all__ = ["Outside"]


class Outside:
    """Passes on what becomes known about the addresses and the NAT of one node.

    Args:
        core: the node's endpoint.
        local: where it is kept.
        relaying: judges whether the node can be reached.
        improving: uses the addresses.
        mapper: asks routers for a port, where there is a NAT.
        emit: takes the events.
        recorder: counts addresses.
    """

    def __init__(
        self,
        core: _core.Endpoint,
        local: LocalView,
        *,
        relaying: Relaying,
        improving: Improving,
        mapper: PortMapper,
        emit: Callable[[Event], None],
        recorder: Recorder,
    ) -> None:
        self._core = core
        self._local = local
        self._relaying = relaying
        self._improving = improving
        self._mapper = mapper
        self._emit = emit
        self._recorder = recorder
        self._nat = local.nat()
        self._stale = False

    def observed(
        self,
        observer: PeerId,
        core: _core.Connection,
        path_id: int,
        address: SocketAddress,
        now: float,
    ) -> None:
        """A peer reports an address of ours."""
        path = next((path for path in core.paths() if path.id == path_id), None)
        # What a peer sees through a relay is the relay's address, not ours.
        if path is None or path.method == "relayed":
            return
        remote = from_core(*path.remote)
        self._believe(self._local.observed.report(observer, remote, address, now))

    def left(self, observer: PeerId) -> None:
        """A peer is no longer connected."""
        self._believe(self._local.observed.remove(observer))

    def changed(self) -> None:
        """There is something new about the NAT."""
        self._stale = True

    def tell(self) -> None:
        """Tell what the latest reports say about a NAT, if it is something else than before."""
        if not self._stale:
            return
        self._stale = False
        before, nat = self._nat, self._local.nat()
        self._nat = nat
        if (before.mapping, before.filtering, before.ports, before.step) != (
            nat.mapping,
            nat.filtering,
            nat.ports,
            nat.step,
        ):
            self._core.announce_nat(nat.mapping, nat.filtering, nat.ports, nat.step)
            self._emit(Nat(nat.mapping, nat.filtering, nat.ports, nat.step))
        self._improving.own_news()

    def _believe(self, changes: tuple[ObservationChange, ...]) -> None:
        external = self._local.observed.candidates()
        ips = {address.ip for address in external}
        for change in changes:
            if change.kind == "withdrawn" and change.address.ip not in ips:
                self._improving.external_gone(6 if change.address.version == 6 else 4)
        told: set[SocketAddress] = set()
        for change in changes:
            if change.kind == "withdrawn":
                self._relaying.address_gone(change.address)
            if change.kind == "believed":
                self._recorder.candidate("observed", "believed")
            if change.kind != "withdrawn" and change.address not in told:
                told.add(change.address)  # adopted and believed by one report is one event
                self._emit(ExternalAddress(str(change.address), change.observers))
        if told or any(change.kind == "withdrawn" for change in changes):
            # Clients of the relay are told where their bound addresses are.
            self._core.set_external_addresses([str(address.ip) for address in external])
        self._stale = True
        if behind_nat(external, self._local.host_addresses()):
            self._mapper.found_nat()
        self._relaying.changed()
