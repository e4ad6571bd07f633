"""How to send to an address of a peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anyreach import _core
    from anyreach.addresses import SocketAddress
    from anyreach.carriers import Carrier
    from anyreach.peer import PeerId

__all__ = ["MAX_RELAYED_WAYS", "Way"]

MAX_RELAYED_WAYS: Final = 8
"""Relayed ways tried for one peer: both families at two relays, seen from two own tunnels."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to send to an address of a peer.

    Attributes:
        address: of the peer, or where a relay takes packets for it.
        relay: whose address that is; ``None`` if it is the peer's own.
        tunnel: the tunnel of this node to send through; ``None`` for its own socket.
        carrier: what that tunnel runs over.
    """

    address: SocketAddress
    relay: PeerId | None = None
    tunnel: _core.Tunnel | None = None
    carrier: Carrier | None = None

    @property
    def method(self) -> str:
        """``"direct"`` or ``"relayed"``."""
        return "direct" if self.relay is None and self.tunnel is None else "relayed"

    def __str__(self) -> str:
        text = str(self.address)
        if self.relay is not None:
            text += f" at relay {str(self.relay)[:8]}"
        if self.tunnel is not None:
            text += f" through {self.carrier or 'a tunnel'}"
        return text
