"""One parser per configuration field: any value in, a normalised value or ConfigError out.

Pure. Text forms (``"2 MiB"``, ``"250ms"``, ``"yes"``) are accepted everywhere, because
environment variables have no other and a configuration file may as well.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from anyreach.addresses import HostPort, IpMode
from anyreach.candidates import CandidatePolicy
from anyreach.errors import ConfigError
from anyreach.paths import PathPolicy
from anyreach.peer import KnownPeer, PeerAddress, Ticket
from anyreach.proxies import ProxyUrl
from anyreach.relays import RelayPolicy

if TYPE_CHECKING:
    from anyreach.identity import Identity

__all__ = ["PARSERS", "parse_field"]

_Parser: TypeAlias = Callable[[str, Any], Any]

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_UNITS: Final = {"": 1, "b": 1, "kib": _KIB, "mib": _MIB, "gib": 1024 * _MIB}
_UNITS_DECIMAL: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
_RATES: Final = _UNITS | _UNITS_DECIMAL | {"k": 10**3, "m": 10**6, "g": 10**9}
_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_LEAST_QUOTA: Final = 16 * _KIB
"""Less than that is no relay: a handshake alone would take seconds."""
_MOST_QUOTA: Final = 1 << 40
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def parse_field(field: str, value: Any) -> Any:
    """The normalised value of ``field``.

    Raises:
        ConfigError: the value is not valid; names field, value and remedy.
    """
    return PARSERS[field](field, value)


def _bind_addr(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(field, value, 'use text like "[::]:9000" or "127.0.0.1:0"')
    parsed = HostPort.parse(value.strip(), field=field, port_zero=True)
    if parsed.address is None:
        raise ConfigError(field, value, "use an IP address of this host, not a name")
    return str(parsed)


def _ip_mode(field: str, value: Any) -> IpMode:
    try:
        return IpMode(value.strip().lower() if isinstance(value, str) else value)
    except ValueError:
        modes = ", ".join(repr(mode.value) for mode in IpMode)
        raise ConfigError(field, value, f"use one of {modes}, or an IpMode") from None


def _known_peers(field: str, value: Any) -> tuple[KnownPeer, ...]:
    if isinstance(value, PeerAddress):
        value = (value,)
    elif isinstance(value, str):
        value = value.replace(",", " ").split()
    elif isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(field, value, 'use a list of "HOST:PORT" or "ID@HOST:PORT"')
    return tuple(dict.fromkeys(_known_peer(field, peer) for peer in value))


def _known_peer(field: str, value: Any) -> KnownPeer:
    if isinstance(value, KnownPeer):
        return value
    if isinstance(value, PeerAddress):
        return KnownPeer(value.peer_id, value.addresses)
    if isinstance(value, Ticket):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(field, value, 'use "HOST:PORT", "ID@HOST:PORT" or a ticket')
    try:
        return KnownPeer.parse(value)
    except ConfigError as error:
        raise ConfigError(field, value, error.remedy) from None


def _identity(field: str, value: Any) -> Identity | Path | None:
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and path.strip() and "\0" not in path:
            return Path(path)
    else:
        from anyreach.identity import Identity  # noqa: PLC0415 (pure: no Rust core needed)

        if isinstance(value, Identity):
            return value
    raise ConfigError(field, value, "use the path of a key file, an Identity, or None")


def _file(field: str, value: Any) -> Path | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(path, str) and path.strip() and "\0" not in path:
        return Path(path)
    raise ConfigError(field, value, "use the path of a PEM file, or None")


def _listen(*words: str) -> _Parser:
    """Parser for an address to listen on, for ``None`` and ``"off"``, and for ``words``."""
    shown = "".join(f"{word!r}, " for word in words)

    def parse(field: str, value: Any) -> str | None:
        word = value.strip().lower() if isinstance(value, str) else value
        if word is None or word == "off":
            return None
        if not isinstance(word, str):
            raise ConfigError(field, value, f'use text like "[::]:443", {shown}or "off"')
        return word if word in words else _bind_addr(field, value)

    return parse


def _quota(field: str, value: Any) -> int:
    text = value.strip().lower() if isinstance(value, str) else None
    if value is None or text in ("unlimited", "none"):
        return 0
    number = _number(value if text is None else text.removesuffix("/s"), _RATES)
    if number is None or not (number == 0 or _LEAST_QUOTA <= number <= _MOST_QUOTA):
        raise ConfigError(
            field, value, 'use bytes per second from 16384, like "10MB/s", or 0 for no limit'
        )
    return int(number)


def _prefixes(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    elif isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(field, value, 'use a list of prefixes like "10.0.0.0/8"')
    return tuple(dict.fromkeys(_prefix(field, entry) for entry in value))


def _prefix(field: str, value: Any) -> str:
    try:
        if isinstance(value, str):
            return str(ip_network(value.strip()))
    except ValueError:
        pass
    raise ConfigError(
        field, value, 'use prefixes like "10.0.0.0/8" or "fd00::/8", without bits beyond the length'
    )


def _proxy(field: str, value: Any) -> ProxyUrl | None:
    if value is None or isinstance(value, ProxyUrl):
        return value
    if not isinstance(value, str):
        raise ConfigError(field, value, "use http://[USER:PASSWORD@]HOST:PORT, or None")
    return ProxyUrl.parse(value, name=field)


def _path_policy(field: str, value: Any) -> PathPolicy:
    if isinstance(value, type) or not isinstance(value, PathPolicy):
        raise ConfigError(field, value, "use an object with a decide method")
    return value


def _relay_policy(field: str, value: Any) -> RelayPolicy:
    if isinstance(value, type) or not isinstance(value, RelayPolicy):
        raise ConfigError(field, value, "use an object with a decide method")
    return value


def _candidate_policy(field: str, value: Any) -> CandidatePolicy:
    if isinstance(value, type) or not isinstance(value, CandidatePolicy):
        raise ConfigError(field, value, "use an object with gather, offer and pair methods")
    return value


def _bool(field: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ConfigError(field, value, "use true or false")


def _seconds(least: float, most: float, *, zero: str = "") -> _Parser:
    """Parser for a duration; ``zero`` says what 0 means where that is allowed."""

    def parse(field: str, value: Any) -> float:
        remedy = f"use seconds from {least:g} to {most:g}" + (f", or 0 {zero}" if zero else "")
        seconds = _number(value, _SECONDS)
        if seconds is None or not (least <= seconds <= most or (zero and seconds == 0)):
            raise ConfigError(field, value, remedy)
        return float(seconds)

    return parse


def _integer(least: int, most: int, what: str) -> _Parser:
    """Parser for a whole number, with size units if it counts bytes."""
    units: Mapping[str, float] = _UNITS | _UNITS_DECIMAL if what == "bytes" else {"": 1}

    def parse(field: str, value: Any) -> int:
        number = _number(value, units)
        if number is None or number != int(number) or not least <= number <= most:
            raise ConfigError(field, value, f"use {what} from {least} to {most}")
        return int(number)

    return parse


def _number(value: Any, units: Mapping[str, float]) -> float | int | None:
    """A finite number, or a text of number and unit; ``None`` if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    match = _QUANTITY.fullmatch(value.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        return None
    # Sizes beyond 2^53 must not be rounded into range; ten digits say enough.
    return float(match[1]) * unit if len(match[1]) <= 15 else None


def _optional(parser: _Parser) -> _Parser:
    def parse(field: str, value: Any) -> Any:
        unset = value is None or (isinstance(value, str) and value.strip().lower() == "auto")
        return None if unset else parser(field, value)

    return parse


def _choice(*values: str) -> _Parser:
    def parse(field: str, value: Any) -> str:
        text = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(text, str) or text not in values:
            raise ConfigError(field, value, f"use one of {', '.join(map(repr, values))}")
        return text

    return parse


PARSERS: Final[Mapping[str, _Parser]] = {
    "bind_addr": _bind_addr,
    "ip_mode": _ip_mode,
    "allow_ipv4_mapped": _bool,
    "known_peers": _known_peers,
    "identity": _identity,
    "relay_fallback": _bool,
    "direct": _bool,
    "punch": _bool,
    "birthday": _bool,
    "birthday_attempts": _integer(0, 60, "a number"),
    "port_mapping": _bool,
    "relay_standby": _seconds(0.0, 86400.0),
    "serve_relay": _bool,
    "findable": _bool,
    "relay_reservations": _integer(0, 8, "a number"),
    "relay_quota": _quota,
    "relay_total_quota": _quota,
    "relay_allow_targets": _prefixes,
    "relay_deny_targets": _prefixes,
    "allow_anonymous_relay": _bool,
    "tcp": _listen("auto"),
    "https": _listen(),
    "cert_file": _file,
    "key_file": _file,
    "https_self_signed": _bool,
    "proxy": _proxy,
    "use_environment_proxy": _bool,
    "ca_file": _file,
    "allow_tls_inspection": _bool,
    "prefer": _choice("direct", "fast"),
    "direct_grace": _optional(_seconds(0.0, 10.0)),
    "connect_timeout": _seconds(0.05, 3600.0),
    "handshake_timeout": _seconds(0.05, 300.0),
    # RFC 8305 8: never below 10 ms, at most 2 s.
    "attempt_delay": _seconds(0.01, 2.0),
    "idle_timeout": _seconds(0.1, 86400.0),
    "keep_alive_interval": _seconds(0.1, 3600.0, zero="to send none"),
    # The engine's reassembler holds 1,024 pieces of a stream; above 2.4 MB a full window of
    # small packets with a gap at its start overflows it, which ends the connection.
    "stream_receive_window": _integer(16 * _KIB, 2_400_000, "bytes"),
    "receive_window": _integer(16 * _KIB, 1024 * _MIB, "bytes"),
    "send_window": _integer(16 * _KIB, 1024 * _MIB, "bytes"),
    "max_bidi_streams": _integer(0, 65536, "a number"),
    "max_uni_streams": _integer(0, 65536, "a number"),
    "datagram_buffer": _integer(2 * _KIB, 256 * _MIB, "bytes"),
    "socket_buffer": _integer(64 * _KIB, 1024 * _MIB, "bytes"),
    "max_connections": _integer(1, 65536, "a number"),
    "candidate_policy": _candidate_policy,
    "path_policy": _path_policy,
    "relay_policy": _relay_policy,
    "key_log": _bool,
}
"""The parser of every field of :class:`anyreach.P2pConfig`, in the order of its fields."""


def plain(value: Any) -> Any:
    """``value`` as JSON and TOML can hold it; :data:`NOT_PLAIN` if there is no such form."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, ProxyUrl):
        return value.url
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else NOT_PLAIN


NOT_PLAIN: Final = object()
