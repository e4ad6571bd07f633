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
    from anyreach.paths import PathPolicy
    from anyreach.peer import PeerAddress
    from anyreach.proxies import ProxyUrl
    from anyreach.relays import RelayPolicy

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

    def direct(self, enabled: bool) -> Self:
        """Whether direct paths are looked for."""
        return self._set("direct", enabled)

    def punch(self, enabled: bool) -> Self:
        """Whether paths are opened through NATs and firewalls on both sides."""
        return self._set("punch", enabled)

    def birthday(self, enabled: bool) -> Self:
        """Whether many ports are tried at once where a NAT draws them at random."""
        return self._set("birthday", enabled)

    def birthday_attempts(self, number: int) -> Self:
        """Times an hour that is done for one peer at most."""
        return self._set("birthday_attempts", number)

    def port_mapping(self, enabled: bool) -> Self:
        """Whether routers are asked for a port that leads here."""
        return self._set("port_mapping", enabled)

    def relay_standby(self, seconds: float | str) -> Self:
        """Seconds all relayed paths are kept after a direct one is up."""
        return self._set("relay_standby", seconds)

    def serve_relay(self, enabled: bool) -> Self:
        """Whether the node relays for others."""
        return self._set("serve_relay", enabled)

    def findable(self, enabled: bool) -> Self:
        """Whether connected peers may tell others where the node is."""
        return self._set("findable", enabled)

    def relay_reservations(self, number: int) -> Self:
        """Reservations to hold at relays while the node cannot be reached from outside."""
        return self._set("relay_reservations", number)

    def relay_quota(self, bytes_per_second: int | str | None) -> Self:
        """Bytes per second the relay carries for one client; 0 or ``None`` for no limit."""
        return self._set("relay_quota", bytes_per_second)

    def relay_total_quota(self, bytes_per_second: int | str | None) -> Self:
        """Bytes per second the relay carries for all together; 0 or ``None`` for no limit."""
        return self._set("relay_total_quota", bytes_per_second)

    def relay_allow_targets(self, prefixes: Iterable[str]) -> Self:
        """Prefixes the relay sends to although they are not public; replaces those before."""
        return self._set("relay_allow_targets", prefixes)

    def relay_deny_targets(self, prefixes: Iterable[str]) -> Self:
        """Prefixes the relay never sends to; replaces those before."""
        return self._set("relay_deny_targets", prefixes)

    def allow_anonymous_relay(self, enabled: bool) -> Self:
        """Whether ordinary HTTP clients may use the relay."""
        return self._set("allow_anonymous_relay", enabled)

    def tcp(self, address: str | None) -> Self:
        """Where relay clients without UDP are served: an address, ``"auto"`` or ``None``."""
        return self._set("tcp", address)

    def https(self, address: str | None) -> Self:
        """Where ordinary HTTP clients can use the relay; needs a certificate."""
        return self._set("https", address)

    def cert_file(self, path: str | os.PathLike[str] | None) -> Self:
        """PEM file with the certificate chain of the ``https`` listener."""
        return self._set("cert_file", path)

    def key_file(self, path: str | os.PathLike[str] | None) -> Self:
        """PEM file with the private key of the certificate."""
        return self._set("key_file", path)

    def https_self_signed(self, enabled: bool) -> Self:
        """Whether the ``https`` listener makes its own certificate."""
        return self._set("https_self_signed", enabled)

    def proxy(self, url: str | ProxyUrl | None) -> Self:
        """HTTP proxy to reach relays through; ``None`` for that of the environment."""
        return self._set("proxy", url)

    def use_environment_proxy(self, enabled: bool) -> Self:
        """Whether ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` count."""
        return self._set("use_environment_proxy", enabled)

    def ca_file(self, path: str | os.PathLike[str] | None) -> Self:
        """PEM file with more certificate authorities to trust."""
        return self._set("ca_file", path)

    def allow_tls_inspection(self, enabled: bool) -> Self:
        """Whether a proxy may end the TLS of the outer hop to a relay."""
        return self._set("allow_tls_inspection", enabled)

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

    def path_policy(self, policy: PathPolicy) -> Self:
        """What ranks the paths of a connection."""
        return self._set("path_policy", policy)

    def relay_policy(self, policy: RelayPolicy) -> Self:
        """What chooses relays to hold reservations at."""
        return self._set("relay_policy", policy)

    def key_log(self, enabled: bool) -> Self:
        """Whether TLS secrets go to the file named by ``SSLKEYLOGFILE``."""
        return self._set("key_log", enabled)
