"""The relay a node offers to others: which doors it opens, and what it counts.

The relay itself is the core's. Which peers this node uses as relays is another matter, and that of
:mod:`anyreach._relaying`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from anyreach._local import from_core
from anyreach.errors import BindError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyreach.config import P2pConfig

__all__ = ["MAX_RESERVATIONS", "RelayService"]

logger = logging.getLogger(__name__)

MAX_RESERVATIONS: Final = 128
"""Reservations granted to others at once: a socket and some kilobytes each."""


class Core(Protocol):
    """What is needed of :class:`anyreach._core.Endpoint`."""

    def serve_relay(
        self,
        *,
        tcp: str | None,
        https: str | None,
        certificate: str | None,
        private_key: str | None,
        allow_anonymous: bool,
        allow_targets: Sequence[str],
        deny_targets: Sequence[str],
        bytes_per_second: int,
        total_bytes_per_second: int,
        max_reservations: int,
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Carry packets for others from now on."""
        ...

    def relay_stats(self) -> dict[str, int]:
        """What was carried; empty if nothing is served."""
        ...


class RelayService:
    """Serves relay clients as configured, if at all.

    Args:
        core: the node's endpoint.
        config: what to serve.
        bound: address and port of the node's socket.

    Raises:
        BindError: a TCP address the user named cannot be bound.

    Attributes:
        tcp: the addresses clients without UDP can use.
    """

    def __init__(self, core: Core, config: P2pConfig, bound: str) -> None:
        self._core = core
        self._config = config
        self.tcp = self._serve(bound) if config.serve_relay else ()

    def _serve(self, bound: str) -> tuple[str, ...]:
        automatic = self._config.tcp == "auto"
        try:
            return self._open(bound if automatic else self._config.tcp)
        except BindError as error:
            if not automatic:
                raise
            logger.warning("no TCP for relay clients without UDP: %s", error)
            return self._open(None)

    def _open(self, tcp: str | None) -> tuple[str, ...]:
        config = self._config
        tcp_bound, _ = self._core.serve_relay(
            tcp=tcp,
            https=config.https,
            certificate=None if config.cert_file is None else str(config.cert_file),
            private_key=None if config.key_file is None else str(config.key_file),
            allow_anonymous=config.allow_anonymous_relay,
            allow_targets=config.relay_allow_targets,
            deny_targets=config.relay_deny_targets,
            bytes_per_second=config.relay_quota,
            total_bytes_per_second=config.relay_total_quota,
            max_reservations=MAX_RESERVATIONS,
        )
        return tuple(str(from_core(*address)) for address in tcp_bound)

    def load(self) -> int | None:
        """How busy the relay is, in percent of what it takes on, in steps of ten; ``None`` if this
        node is none."""
        if not self._config.serve_relay:
            return None
        steps = 10 * self.stats().sessions // MAX_RESERVATIONS
        return min(10 * steps, 100)

    def stats(self) -> RelayStats:
        """What was carried so far."""
        return RelayStats(self._core.relay_stats())


class RelayStats:
    """What the relay has carried, and what not.

    Attributes:
        sent: bytes sent to clients through their tunnels.
        received: bytes received from them.
        sessions: tunnels served now.
        rejected: packets dropped and requests refused, by reason.
    """

    __slots__ = ("received", "rejected", "sent", "sessions")

    def __init__(self, stats: Mapping[str, int]) -> None:
        self.sent = stats.get("sent_bytes", 0)
        self.received = stats.get("received_bytes", 0)
        # Those with an address of their own, and those to one target.
        self.sessions = stats.get("sessions", 0) + stats.get("tunnels", 0)
        self.rejected: dict[str, int] = {}
        for name, count in stats.items():
            kind, _, reason = name.partition("_")
            if prefix := _REJECTIONS.get(kind):
                self.rejected[prefix + reason.replace("-", "_")] = count


_REJECTIONS: Final = {"dropped": "relay_", "refused": "relay_request_"}
"""Counters of the core that are about refusals, and what such reasons are called in the metrics."""
