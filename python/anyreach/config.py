"""The configuration of a node: one frozen object, every field with its reason.

Pure apart from reading the file given to :meth:`P2pConfig.from_toml`. Values are parsed once,
here; a :class:`P2pConfig` that exists is valid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, cast

from anyreach._config_check import LISTEN, check_together
from anyreach._config_parse import NOT_PLAIN, PARSERS, parse_field, plain
from anyreach.addresses import HostPort, IpMode
from anyreach.candidates import CandidatePolicy, DefaultCandidatePolicy
from anyreach.errors import ConfigError
from anyreach.paths import DefaultPathPolicy, PathPolicy
from anyreach.relays import DefaultRelayPolicy, RelayPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from anyreach._config_builder import P2pConfigBuilder
    from anyreach.identity import Identity
    from anyreach.peer import KnownPeer, PeerAddress
    from anyreach.proxies import ProxyUrl

__all__ = ["IpMode", "P2pConfig", "P2pOptions"]

_MIB: Final = 1024 * 1024

_FILES: Final = ("identity", "cert_file", "key_file", "ca_file")
"""Fields that name files; in a configuration file, relative to its folder."""


class P2pOptions(TypedDict, total=False):
    """What :class:`P2pConfig` can be made from; the same names, in the forms a user writes."""

    bind_addr: str
    ip_mode: IpMode | str
    allow_ipv4_mapped: bool
    known_peers: Iterable[str | PeerAddress]
    identity: Identity | str | os.PathLike[str] | None
    relay_fallback: bool
    direct: bool
    punch: bool
    birthday: bool
    birthday_attempts: int
    port_mapping: bool
    relay_standby: float | str
    serve_relay: bool
    findable: bool
    relay_reservations: int
    relay_quota: int | str | None
    relay_total_quota: int | str | None
    relay_allow_targets: Iterable[str]
    relay_deny_targets: Iterable[str]
    allow_anonymous_relay: bool
    tcp: str | None
    https: str | None
    cert_file: str | os.PathLike[str] | None
    key_file: str | os.PathLike[str] | None
    https_self_signed: bool
    proxy: str | ProxyUrl | None
    use_environment_proxy: bool
    ca_file: str | os.PathLike[str] | None
    allow_tls_inspection: bool
    prefer: Literal["direct", "fast"]
    direct_grace: float | str | None
    connect_timeout: float | str
    handshake_timeout: float | str
    attempt_delay: float | str
    idle_timeout: float | str
    keep_alive_interval: float | str
    stream_receive_window: int | str
    receive_window: int | str
    send_window: int | str
    max_bidi_streams: int
    max_uni_streams: int
    datagram_buffer: int | str
    socket_buffer: int | str
    max_connections: int
    candidate_policy: CandidatePolicy
    path_policy: PathPolicy
    relay_policy: RelayPolicy
    key_log: bool


@dataclass(frozen=True, slots=True, init=False)
class P2pConfig:
    """How a node behaves. All arguments are keywords and have defaults.

    Durations are seconds and sizes bytes; text such as ``"250ms"`` or ``"2 MiB"`` works too.

    Raises:
        ConfigError: a value is not valid, two contradict each other, or there is no such
            field; names the field, the value and what to write instead.
    """

    bind_addr: str = "[::]:9000"
    """Address and UDP port of the one socket; port 0 takes a free one.

    ``[::]`` is every address of every family ``ip_mode`` allows (it becomes ``0.0.0.0`` for
    ``IpMode.IPV4_ONLY``). A fixed default port lets a router rule or a friend find the node.
    """

    ip_mode: IpMode = IpMode.DUAL_STACK
    """Families to use. Dual stack needs no choice: it serves what the system has."""

    allow_ipv4_mapped: bool = True
    """Serve IPv4 through the IPv6 socket (IPV6_V6ONLY=0); off, that socket is IPv6 only.

    On, because one socket for both families means one port, one NAT mapping per family and
    nothing to keep in step.
    """

    known_peers: tuple[KnownPeer, ...] = ()
    """Peers to stay connected to: ``HOST:PORT``, ``ID@HOST:PORT`` or tickets.

    They tell the node its external address and introduce it to others. Names are resolved to
    all their addresses at each attempt. Duplicates are dropped, the order is kept.
    """

    identity: Identity | Path | None = None
    """Key file (made on first use), an :class:`~anyreach.Identity`, or ``None`` for a fresh one.

    Fresh by default: a library must not write to the user's disk unasked.
    """

    relay_fallback: bool = True
    """Let connections go through a relay when no direct path is found."""

    direct: bool = True
    """Look for direct paths. Off, everything goes through relays, to diagnose them.

    Known peers are dialed all the same: they are the relays. A node without direct paths holds
    reservations whether it can be reached or not.
    """

    punch: bool = True
    """Open paths through NATs and firewalls on both sides (hole punching). Off, a direct path is
    one that can be dialed, to diagnose the rest."""

    birthday: bool = True
    """Try many ports at once where a NAT draws them at random and there is no other way: up to 256
    sockets on one side and 1,400 packets from the other, for some seconds."""

    birthday_attempts: int = 4
    """Times an hour that is done for one peer at most, 0 to 60.

    One of them connects 98 pairs in 100; a network that withstood four withstands more of them,
    and its owner may take them for a port scan.
    """

    port_mapping: bool = True
    """Ask routers for a port that leads here (PCP, NAT-PMP, UPnP IGD), and give it back at the end.

    On, because it makes a home reachable without anybody's help; routers that do not allow it say
    so, and nothing else depends on it.
    """

    relay_standby: float = 30.0
    """Seconds all relayed paths of a connection are kept after a direct one is up.

    Young paths die soonest. Afterwards ``path_policy`` decides; the default keeps the best one, so
    that a direct path that dies is replaced without a round trip.
    """

    serve_relay: bool = True
    """Relay for other nodes, within the limits below.

    On, because a network in which everybody only takes has no relays. A relay sees ciphertext.
    """

    findable: bool = True
    """Let connected peers tell others that ask for this PeerId where the node is.

    They tell nobody who does not know the PeerId, but whoever knows it learns the node's addresses.
    Off for visitors that only dial, as most commands of the command line are.
    """

    relay_reservations: int = 2
    """Reservations to hold at relays while the node cannot be reached from outside, 0 to 8.

    Two, in distinct networks, so that losing one is not noticed; more only cost keep-alives.
    """

    relay_quota: int = 4 * _MIB
    """Bytes per second the relay carries for one client; 0 (or ``None``) for no limit.

    Text like ``"10MB/s"`` works. The default carries a video call or a file without letting one
    stranger have the line; what is beyond it is dropped, which the connections inside notice.
    """

    relay_total_quota: int = 0
    """Bytes per second and direction the relay carries for all clients together; 0 (or ``None``)
    for no limit.

    When it does not suffice, the clients that are active get equal parts. No limit by default,
    because only the operator knows the line.
    """

    relay_allow_targets: tuple[str, ...] = ()
    """Prefixes such as ``"10.0.0.0/8"`` that the relay sends to although they are not public.

    Empty, because packets to private, loopback or link-local addresses would let strangers reach
    what is behind the operator's firewall (RFC 9298 7).
    """

    relay_deny_targets: tuple[str, ...] = ()
    """Prefixes the relay never sends to, although they are public or in ``relay_allow_targets``.

    For what the operator's place in the network gives access to: services that trust his
    addresses, or a NAT64 prefix of his own, behind which private IPv4 hides.
    """

    allow_anonymous_relay: bool = False
    """Relay for ordinary HTTP clients without a PeerId on the ``https`` listener, too."""

    tcp: str | None = None
    """Address and port on which relay clients without UDP are served over TCP.

    ``"auto"`` is address and port number of the UDP socket; if another program has that port, the
    node goes without. ``None`` or ``"off"``: none. Off by default, because a library must not open
    ports unasked; ``anyreach node`` takes ``"auto"``.
    """

    https: str | None = None
    """Address and port, UDP and TCP, on which ordinary HTTP clients can use the relay, and nodes
    behind a TLS-inspecting proxy. Needs a certificate."""

    cert_file: Path | None = None
    """PEM file with the X.509 certificate chain of the ``https`` listener."""

    key_file: Path | None = None
    """PEM file with the private key of ``cert_file``."""

    https_self_signed: bool = False
    """Make a certificate for the ``https`` listener at each start, instead of the two files."""

    proxy: ProxyUrl | None = None
    """HTTP proxy through which relays are reached where nothing else works:
    ``http://[USER:PASSWORD@]HOST:PORT``. ``None``: as the environment says.

    ``NO_PROXY`` applies to it, too. The password appears in no log, error or ``repr``, but in
    :meth:`to_dict`.
    """

    use_environment_proxy: bool = True
    """Heed ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``; see :mod:`anyreach.proxies`."""

    ca_file: Path | None = None
    """PEM file with more certificate authorities to trust on the way to proxies and relays with
    X.509 certificates, as companies have that inspect TLS."""

    allow_tls_inspection: bool = False
    """Reach relays through a proxy that ends TLS and shows a certificate of ``ca_file``.

    Only this outer hop loses its post-quantum protection and can be watched; connections
    between nodes inside stay encrypted and authenticated from end to end. Off: such a proxy is
    refused, with an error that names this option.
    """

    prefer: Literal["direct", "fast"] = "direct"
    """``"direct"``: ``connect()`` waits ``direct_grace`` for a direct path once a relayed one is
    usable. ``"fast"``: it returns with the first path. The connection improves either way."""

    direct_grace: float | None = None
    """Seconds that wait lasts. ``None``: four round trips of the relayed path plus 50 ms, at most
    one second, because punching on a clean line needs about three round trips."""

    connect_timeout: float = 30.0
    """Seconds ``connect()`` may take in all, names, races and attempts included.

    Long enough for a dead address, a repeated handshake and a slow line; users who know
    their network set less.
    """

    handshake_timeout: float = 10.0
    """Seconds one attempt has for its handshake.

    Initial packets are repeated after 1, 3 and 7 s (RFC 9002 6.2.4): ten seconds are four
    chances. Separate from ``idle_timeout`` because a peer without post-quantum key exchange
    may just fall silent.
    """

    attempt_delay: float = 0.25
    """Seconds between the starts of attempts to one peer, 0.01 to 2 (RFC 8305 5 and 8).

    Shortened where the round-trip time is known.
    """

    idle_timeout: float = 50.0
    """Seconds of silence after which a connection is lost; the smaller value of both ends counts.

    Three missed keep-alives and their repetitions: 3 x 15 s, plus 5 s.
    """

    keep_alive_interval: float = 15.0
    """Seconds between keep-alives of an idle connection, sent by the dialing side; 0 sends none.

    RFC 8085 3.5 allows no shorter interval on the open Internet, and the shortest UDP mappings
    of common NATs last 30 s: the repetition of a lost keep-alive, about a second later, still
    finds the mapping. One side is enough, since its packet is acknowledged by the other;
    the exchange costs each end about 6 bytes per second.
    """

    stream_receive_window: int = 2 * _MIB
    """Bytes a peer may send on a stream before the application reads them, at most 2,400,000.

    2 MiB fill 160 Mbit/s at 100 ms. More would let a window of small packets behind a lost one
    exceed the 1,024 pieces the engine can hold, which ends the connection.
    """

    receive_window: int = 8 * _MIB
    """Bytes a peer may send on all streams together; what a connection can cost in memory."""

    send_window: int = 8 * _MIB
    """Bytes sent but not acknowledged, on all streams together; more waits in ``write()``."""

    max_bidi_streams: int = 1024
    """Bidirectional streams a peer may have open at once, enough for a request each.

    An open stream costs little: its data counts against ``receive_window``.
    """

    max_uni_streams: int = 1024
    """Unidirectional streams a peer may have open at once."""

    datagram_buffer: int = _MIB
    """Bytes of received and of unsent datagrams kept; the oldest are dropped and counted."""

    socket_buffer: int = 8 * _MIB
    """Bytes asked of the system for SO_RCVBUF and SO_SNDBUF; it may grant less.

    Common defaults of 208 KiB overflow within two milliseconds at 1 Gbit/s.
    """

    max_connections: int = 1024
    """Connections at once; further handshakes are refused."""

    candidate_policy: CandidatePolicy = DefaultCandidatePolicy()  # noqa: RUF009 (frozen)
    """Chooses addresses to offer and pairs to try; see :mod:`anyreach.candidates`."""

    path_policy: PathPolicy = DefaultPathPolicy()  # noqa: RUF009 (frozen)
    """Ranks the paths of a connection and gives up standbys; see :mod:`anyreach.paths`."""

    relay_policy: RelayPolicy = DefaultRelayPolicy()  # noqa: RUF009 (frozen)
    """Chooses relays to hold reservations at; see :mod:`anyreach.relays`."""

    key_log: bool = False
    """Write TLS secrets to the file named by ``SSLKEYLOGFILE``, for packet analysers.

    Whoever has that file can read the connections.
    """

    def __init__(self, **options: Unpack[P2pOptions]) -> None:
        given = cast("dict[str, Any]", options)
        for name in given:
            _check_name(name, given[name])
        for spec in fields(self):
            value = parse_field(spec.name, given.get(spec.name, spec.default))
            object.__setattr__(self, spec.name, value)
        if self.ip_mode is IpMode.IPV4_ONLY:
            for name in LISTEN:
                object.__setattr__(self, name, _wildcard(getattr(self, name), "::", "0.0.0.0"))
        check_together(self)

    @staticmethod
    def builder() -> P2pConfigBuilder:
        """A fluent builder with one method per field and ``build()``."""
        from anyreach._config_builder import P2pConfigBuilder  # noqa: PLC0415 (cycle)

        return P2pConfigBuilder()

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, base: P2pConfig | None = None) -> P2pConfig:
        """From a TOML file whose top-level keys are field names.

        Args:
            path: the file. Files named in it (``identity``, ``cert_file``, ``key_file``,
                ``ca_file``) are relative to its folder.
            base: values for fields the file does not set; the defaults if ``None``.

        Raises:
            ConfigError: the file cannot be read or is not TOML, or its contents are not valid.
        """
        import tomllib  # noqa: PLC0415 (10 ms most programs need not spend)

        file = Path(path)
        try:
            with file.open("rb") as stream:
                table = tomllib.load(stream)
        except (OSError, ValueError) as error:  # ValueError: not TOML, not UTF-8, NUL in the name
            raise ConfigError("config", str(path), f"cannot be read: {error}") from error
        for name in _FILES:
            named = table.get(name)
            if isinstance(named, str) and named.strip() and not named.startswith("~"):
                table[name] = str(file.parent / named)
        return _over(base, table)

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        prefix: str = "ANYREACH_",
        base: P2pConfig | None = None,
    ) -> P2pConfig:
        """From environment variables, such as ``ANYREACH_BIND_ADDR``.

        Empty variables count as unset; ``known_peers`` are separated by commas or spaces.

        Args:
            environ: the variables; those of the process if ``None``.
            prefix: how the variables meant for us start.
            base: values for fields no variable sets; the defaults if ``None``.

        Raises:
            ConfigError: a variable with the prefix names no field, or its value is not valid.
        """
        variables = os.environ if environ is None else environ
        table: dict[str, Any] = {}
        for variable, value in variables.items():
            if variable.startswith(prefix) and value.strip():
                name = variable.removeprefix(prefix).lower()
                _check_name(name, value, shown=lambda field: prefix + field.upper())
                table[name] = value
        return _over(base, table)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON and TOML can hold.

        ``P2pConfig(**config.to_dict())`` is an equal configuration, except that fields without
        a plain form are left out: an in-memory identity, a policy, and (for TOML's sake)
        whatever is ``None``.
        """
        values = {spec.name: plain(getattr(self, spec.name)) for spec in fields(self)}
        return {k: v for k, v in values.items() if v is not None and v is not NOT_PLAIN}

    def replace(self, **changes: Unpack[P2pOptions]) -> P2pConfig:
        """A copy with some fields changed.

        Raises:
            ConfigError: as for the constructor.
        """
        return _over(self, cast("dict[str, Any]", changes))


def _over(base: P2pConfig | None, changes: Mapping[str, Any]) -> P2pConfig:
    values = {} if base is None else {f.name: getattr(base, f.name) for f in fields(base)}
    # The wildcard follows the mode, also back from 0.0.0.0, or a node once IPv4 stays it.
    if base is not None and base.ip_mode is IpMode.IPV4_ONLY and "ip_mode" in changes:
        values |= {name: _wildcard(values[name], "0.0.0.0", "::") for name in LISTEN}
    return P2pConfig(**cast("P2pOptions", {**values, **changes}))


def _check_name(name: str, value: object, shown: Callable[[str], str] = str) -> None:
    if name not in PARSERS:
        import difflib  # noqa: PLC0415 (10 ms only mistakes need)

        related = [field for field in PARSERS if name and (name in field or field in name)]
        (nearest,) = difflib.get_close_matches(name, related or PARSERS, n=1, cutoff=0.0)
        raise ConfigError(shown(name), value, f"no such field; did you mean {shown(nearest)}?")


def _wildcard(listen: str | None, old: str, new: str) -> str | None:
    """``listen``, on the wildcard ``new`` if it was on the wildcard ``old``."""
    if listen is None or listen == "auto":
        return listen
    bound = HostPort.parse(listen, port_zero=True)
    return str(HostPort(new, bound.port)) if bound.host == old else listen
