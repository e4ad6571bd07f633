"""What a running node says when it is asked about itself: the facts of a network report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anyreach._assembly import make_endpoint, proxies
from anyreach._netcheck import CarrierProber, Facts, gather
from anyreach.addresses import HostPort
from anyreach.identity import Identity
from anyreach.netcheck import Switches

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyreach import _core
    from anyreach._flow import Waiter
    from anyreach._local import LocalView
    from anyreach._port_mapping import PortMapper
    from anyreach._relaying import Relaying
    from anyreach._tunnels import Tunnels
    from anyreach.addresses import IpMode, SocketAddress
    from anyreach.config import P2pConfig
    from anyreach.known_peers import KnownPeers
    from anyreach.netcheck import NetworkReport
    from anyreach.peer import PeerId

__all__ = ["Diagnosis"]

_DONE: Final = b"the check is over"


class Diagnosis:
    """Looks into one node.

    Args:
        me: the node.
        config: its configuration.
        mode: the families of its socket.
        wait: awaits a ``poll_*`` method of the core.
        local: its addresses.
        known: its known peers.
        cores: its connections.
        tunnels: its tunnels.
        relaying: its addresses at relays.
        mapper: its port at a router.
    """

    def __init__(
        self,
        me: PeerId,
        config: P2pConfig,
        mode: IpMode,
        wait: Waiter,
        *,
        local: LocalView,
        known: KnownPeers,
        cores: Callable[[], list[_core.Connection]],
        tunnels: Tunnels,
        relaying: Relaying,
        mapper: PortMapper,
    ) -> None:
        self._me = me
        self._config = config
        self._mode = mode
        self._wait = wait
        self._local = local
        self._known = known
        self._cores = cores
        self._tunnels = tunnels
        self._relaying = relaying
        self._mapper = mapper

    async def netcheck(self, timeout: float) -> NetworkReport:
        """See :meth:`anyreach.Node.netcheck`."""
        config = self._config
        host = HostPort.parse(config.bind_addr, port_zero=True).host
        alike = config.replace(
            bind_addr=str(HostPort(host, 0)), ip_mode=self._mode, serve_relay=False
        )
        # With a key and a socket of its own: see _netcheck.
        prober = make_endpoint(alike, Identity.generate())
        try:
            return await gather(self._facts(prober), timeout)
        finally:
            prober.close(0, _DONE)

    def _facts(self, prober: _core.Endpoint) -> Facts:
        config = self._config
        return Facts(
            me=self._me,
            mode=self._mode,
            switches=Switches(
                direct=config.direct,
                punch=config.punch,
                birthday=config.birthday,
                relay=config.relay_fallback,
            ),
            local=self._local,
            nat=self._local.nat,
            known=self._known.states,
            cores=self._cores,
            reserved=self._reserved,
            reachability=lambda: self._relaying.reachability,
            mapping=lambda: self._mapper.report,
            joined=self._joined,
            check=CarrierProber(
                prober,
                self._wait,
                mode=self._mode,
                proxies=proxies(config),
                ca_file=None if config.ca_file is None else str(config.ca_file),
                allow_tls_inspection=config.allow_tls_inspection,
            ).check,
        )

    def _reserved(self, relay: PeerId) -> tuple[SocketAddress, ...]:
        tunnel = self._tunnels.find(relay)
        return tunnel.public if tunnel is not None and tunnel.up else ()

    async def _joined(self) -> None:
        while await self._known.joining():
            pass
