"""What the fields of a configuration must have to do with each other.

Pure. Each field by itself is parsed in :mod:`anyreach._config_parse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anyreach.addresses import HostPort, IpMode, Scope, SocketAddress
from anyreach.errors import ConfigError

if TYPE_CHECKING:
    from anyreach.config import P2pConfig

__all__ = ["LISTEN", "check_together"]

LISTEN: Final = ("bind_addr", "tcp", "https")
"""Fields that are addresses to listen on."""


def check_together(config: P2pConfig) -> None:
    for name in LISTEN:
        _check_listen(name, getattr(config, name), config.ip_mode)
    _check_https(config)
    if not config.direct and not config.relay_fallback:
        raise ConfigError(
            "direct", config.direct, "relay_fallback is off as well: no way would be left"
        )
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


def _check_listen(field: str, text: str | None, mode: IpMode) -> None:
    if text is None or text == "auto":
        return
    bound = SocketAddress.of(HostPort.parse(text, port_zero=True).host, 0)
    if not mode.allows(bound.ip):
        raise ConfigError(field, text, f"ip_mode is {mode.value!r}: use its family")
    if bound.scope in (Scope.MULTICAST, Scope.RESERVED):
        raise ConfigError(field, text, "use an address of this host")


def _check_https(config: P2pConfig) -> None:
    """A listener for X.509 clients has exactly one certificate, and one is for such a listener."""
    named = {
        "cert_file": config.cert_file,
        "key_file": config.key_file,
        "https_self_signed": config.https_self_signed or None,
    }
    given = [name for name, value in named.items() if value is not None]
    if config.https is None:
        if given:
            raise ConfigError(given[0], named[given[0]], "it is for https; set its address, too")
        if config.allow_anonymous_relay:
            raise ConfigError(
                "allow_anonymous_relay", True, "ordinary HTTP clients need https; set its address"
            )
    elif not given:
        raise ConfigError(
            "https", config.https, "it needs cert_file and key_file, or https_self_signed"
        )
    elif "https_self_signed" in given and len(given) > 1:
        raise ConfigError("https_self_signed", True, f"{given[0]} is set; use one of the two")
    elif len(given) == 1 and given[0] != "https_self_signed":
        other = "key_file" if given[0] == "cert_file" else "cert_file"
        raise ConfigError(given[0], str(named[given[0]]), f"set {other} as well")
