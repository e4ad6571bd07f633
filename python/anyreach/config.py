"""The configuration of a node: one frozen object, every field with its reason.

Pure apart from reading the file given to :meth:`P2pConfig.from_toml`. Values are parsed once,
here; a :class:`P2pConfig` that exists is valid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, cast

from anyreach._config_parse import NOT_PLAIN, PARSERS, parse_field, plain
from anyreach.addresses import HostPort, IpMode, Scope, SocketAddress
from anyreach.candidates import CandidatePolicy, DefaultCandidatePolicy
from anyreach.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from anyreach._config_builder import P2pConfigBuilder
    from anyreach.identity import Identity
    from anyreach.peer import KnownPeer, PeerAddress

__all__ = ["IpMode", "P2pConfig", "P2pOptions"]

_MIB: Final = 1024 * 1024


class P2pOptions(TypedDict, total=False):
    """What :class:`P2pConfig` can be made from; the same names, in the forms a user writes."""

    bind_addr: str
    ip_mode: IpMode | str
    allow_ipv4_mapped: bool
    known_peers: Iterable[str | PeerAddress]
    identity: Identity | str | os.PathLike[str] | None
    relay_fallback: bool
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
            object.__setattr__(self, "bind_addr", _wildcard(self.bind_addr, "::", "0.0.0.0"))
        _check_together(self)

    @staticmethod
    def builder() -> P2pConfigBuilder:
        """A fluent builder with one method per field and ``build()``."""
        from anyreach._config_builder import P2pConfigBuilder  # noqa: PLC0415 (cycle)

        return P2pConfigBuilder()

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, base: P2pConfig | None = None) -> P2pConfig:
        """From a TOML file whose top-level keys are field names.

        Args:
            path: the file. A relative ``identity`` in it is relative to its folder.
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
        identity = table.get("identity")
        if isinstance(identity, str) and identity.strip() and not identity.startswith("~"):
            table["identity"] = str(file.parent / identity)
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
        values["bind_addr"] = _wildcard(base.bind_addr, "0.0.0.0", "::")
    return P2pConfig(**cast("P2pOptions", {**values, **changes}))


def _check_name(name: str, value: object, shown: Callable[[str], str] = str) -> None:
    if name not in PARSERS:
        import difflib  # noqa: PLC0415 (10 ms only mistakes need)

        related = [field for field in PARSERS if name and (name in field or field in name)]
        (nearest,) = difflib.get_close_matches(name, related or PARSERS, n=1, cutoff=0.0)
        raise ConfigError(shown(name), value, f"no such field; did you mean {shown(nearest)}?")


def _wildcard(bind_addr: str, old: str, new: str) -> str:
    """``bind_addr``, on the wildcard ``new`` if it was on the wildcard ``old``."""
    bound = HostPort.parse(bind_addr, port_zero=True)
    return str(HostPort(new, bound.port)) if bound.host == old else bind_addr


def _check_together(config: P2pConfig) -> None:
    bound = SocketAddress.of(HostPort.parse(config.bind_addr, port_zero=True).host, 0)
    if not config.ip_mode.allows(bound.ip):
        raise ConfigError(
            "bind_addr", config.bind_addr, f"ip_mode is {config.ip_mode.value!r}: use its family"
        )
    if bound.scope in (Scope.MULTICAST, Scope.RESERVED):
        raise ConfigError("bind_addr", config.bind_addr, "use an address of this host")
    if config.idle_timeout <= config.keep_alive_interval:
        raise ConfigError(
            "idle_timeout",
            config.idle_timeout,
            f"use more than keep_alive_interval ({config.keep_alive_interval:g} s), best three"
            " times as much",
        )
    if config.stream_receive_window > config.receive_window:
        raise ConfigError(
            "receive_window",
            config.receive_window,
            f"use at least stream_receive_window ({config.stream_receive_window})",
        )
