"""The fluent builder of :class:`anyreach.P2pConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, cast

from anyreach._config_parse import parse_field
from anyreach.config import IpMode, P2pConfig, P2pOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from anyreach.candidates import CandidatePolicy
    from anyreach.identity import Identity
    from anyreach.peer import PeerAddress

__all__ = ["P2pConfigBuilder"]


class P2pConfigBuilder:
    """Collects the fields of a :class:`~anyreach.P2pConfig`, one method each.

    Every method returns the builder and raises :class:`~anyreach.ConfigError` for a bad value
    at once; the meaning, unit and default of a field are documented on ``P2pConfig``.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def build(self) -> P2pConfig:
        """The configuration; the builder can go on and build others.

        Raises:
            ConfigError: two fields contradict each other.
        """
        return P2pConfig(**cast("P2pOptions", self._values))

    def _set(self, field: str, value: object) -> Self:
        self._values[field] = parse_field(field, value)
        return self

    def bind_addr(self, address: str) -> Self:
        """Address and UDP port of the socket, such as ``"[::]:9000"``."""
        return self._set("bind_addr", address)

    def ip_mode(self, mode: IpMode | str) -> Self:
        """Address families to use."""
        return self._set("ip_mode", mode)

    def allow_ipv4_mapped(self, enabled: bool) -> Self:
        """Whether the IPv6 socket serves IPv4 too."""
        return self._set("allow_ipv4_mapped", enabled)

    def known_peers(self, peers: Iterable[str | PeerAddress]) -> Self:
        """Peers to stay connected to; replaces those set before."""
        return self._set("known_peers", peers)

    def identity(self, identity: Identity | str | os.PathLike[str] | None) -> Self:
        """Key file (made on first use), identity, or ``None`` for a fresh one."""
        return self._set("identity", identity)

    def relay_fallback(self, enabled: bool) -> Self:
        """Whether connections may go through a relay."""
        return self._set("relay_fallback", enabled)

    def prefer(self, path: Literal["direct", "fast"]) -> Self:
        """Whether ``connect()`` waits for a direct path or returns with the first."""
        return self._set("prefer", path)

    def direct_grace(self, seconds: float | str | None) -> Self:
        """Seconds to wait for a direct path; ``None`` derives it from the round-trip time."""
        return self._set("direct_grace", seconds)

    def connect_timeout(self, seconds: float | str) -> Self:
        """Seconds ``connect()`` may take in all."""
        return self._set("connect_timeout", seconds)

    def handshake_timeout(self, seconds: float | str) -> Self:
        """Seconds one attempt has for its handshake."""
        return self._set("handshake_timeout", seconds)

    def attempt_delay(self, seconds: float | str) -> Self:
        """Seconds between the starts of attempts to one peer."""
        return self._set("attempt_delay", seconds)

    def idle_timeout(self, seconds: float | str) -> Self:
        """Seconds of silence after which a connection is lost."""
        return self._set("idle_timeout", seconds)

    def keep_alive_interval(self, seconds: float | str) -> Self:
        """Seconds between keep-alives of an idle connection; 0 sends none."""
        return self._set("keep_alive_interval", seconds)

    def stream_receive_window(self, size: int | str) -> Self:
        """Bytes a peer may send on a stream ahead of the reader."""
        return self._set("stream_receive_window", size)

    def receive_window(self, size: int | str) -> Self:
        """Bytes a peer may send on all streams ahead of the readers."""
        return self._set("receive_window", size)

    def send_window(self, size: int | str) -> Self:
        """Bytes sent but not acknowledged, on all streams."""
        return self._set("send_window", size)

    def max_bidi_streams(self, number: int) -> Self:
        """Bidirectional streams a peer may have open."""
        return self._set("max_bidi_streams", number)

    def max_uni_streams(self, number: int) -> Self:
        """Unidirectional streams a peer may have open."""
        return self._set("max_uni_streams", number)

    def datagram_buffer(self, size: int | str) -> Self:
        """Bytes of datagrams kept in each direction."""
        return self._set("datagram_buffer", size)

    def socket_buffer(self, size: int | str) -> Self:
        """Bytes asked of the system for each socket buffer."""
        return self._set("socket_buffer", size)

    def max_connections(self, number: int) -> Self:
        """Connections at once."""
        return self._set("max_connections", number)

    def candidate_policy(self, policy: CandidatePolicy) -> Self:
        """What chooses addresses to offer and pairs to try."""
        return self._set("candidate_policy", policy)

    def key_log(self, enabled: bool) -> Self:
        """Whether TLS secrets go to the file named by ``SSLKEYLOGFILE``."""
        return self._set("key_log", enabled)
