"""The options all commands share, and the node configuration they make."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anyreach.addresses import HostPort
from anyreach.config import P2pConfig
from anyreach.errors import ConfigError
from anyreach.identity import default_identity_path

if TYPE_CHECKING:
    from anyreach.config import P2pOptions

    from .output import Output

__all__ = [
    "CLIENT_BIND",
    "NODE_BIND",
    "Parser",
    "add_common_options",
    "add_json_option",
    "add_peer_argument",
    "add_progress_option",
    "add_timeout_option",
    "config_from",
    "count",
    "listen_address",
    "rate",
    "seconds",
    "seconds_or_zero",
    "set_up_logging",
    "size",
]

#: Turns the text of an option into its value, or raises ``argparse.ArgumentTypeError``.
Parser = Callable[[str], object]

#: Where ``anyreach node`` listens by default: a port people can remember, forward in a router,
#: and put in known_peers.
NODE_BIND: Final = "[::]:9000"

#: Where every other command listens: any free port.
CLIENT_BIND: Final = "[::]:0"

_LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_UNITS: Final = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_common_options(parser: argparse.ArgumentParser, *, bind: str) -> None:
    """Adds what every command that runs a node understands."""
    group = parser.add_argument_group("node options")
    group.add_argument(
        "--bind",
        metavar="ADDR",
        help=f"address and UDP port to listen on (default {bind}; port 0 is a free one)",
    )
    group.add_argument(
        "--ip-mode", choices=("dual", "v4", "v6"), help="address families to use (default dual)"
    )
    identity = group.add_mutually_exclusive_group()
    identity.add_argument(
        "--identity", metavar="FILE", help="key file, created on first use (default: yours)"
    )
    identity.add_argument(
        "--ephemeral", action="store_true", help="a new identity, forgotten at the end"
    )
    group.add_argument(
        "--known-peer",
        action="append",
        default=[],
        metavar="[ID@]HOST:PORT",
        help="a peer to stay connected to; may be repeated",
    )
    group.add_argument("--no-relay-fallback", action="store_true", help="never go through a relay")
    group.add_argument("--config", metavar="FILE", help="TOML file; options override it")
    group.add_argument(
        "--metrics",
        type=listen_address,
        metavar="ADDR",
        help="serve Prometheus metrics at http://ADDR/metrics",
    )
    group.add_argument(
        "--log-level",
        choices=_LOG_LEVELS,
        default="warning",
        help="least severe log messages to show (default warning)",
    )
    add_json_option(group)


def add_json_option(parser: argparse._ActionsContainer) -> None:
    """Adds ``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line on standard output"
    )


def add_peer_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the PEER argument."""
    parser.add_argument("peer", metavar="PEER", help="ID@HOST:PORT, a ticket, or a PeerId")


def add_timeout_option(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds ``--timeout``, the time allowed to reach the peer."""
    parser.add_argument("--timeout", type=seconds, metavar="S", help=text)


def add_progress_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--progress``."""
    parser.add_argument(
        "--progress",
        action="store_true",
        help="show progress on standard error even if that is no terminal",
    )


def seconds(text: str) -> float:
    """A positive duration in seconds, for argparse."""
    value = _number(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def seconds_or_zero(text: str) -> float:
    """A duration in seconds, possibly 0, for argparse."""
    value = _number(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def count(text: str) -> int:
    """A positive whole number, for argparse."""
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 10 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def rate(text: str) -> float:
    """Bytes per second with an optional k, M or G, for argparse."""
    value = _quantity(text)
    if not 1000 <= value < 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate like 500k or 10M (bytes/s)")
    return value


def size(text: str) -> int:
    """Bytes with an optional k, M, G or T, for argparse."""
    value = _quantity(text)
    if not 0 <= value < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500M")
    return int(value)


def listen_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` for a TCP listener, for argparse."""
    try:
        parsed = HostPort.parse(text, port_zero=True)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.remedy) from None
    return parsed.host, parsed.port


def _quantity(text: str) -> float:
    number, unit = (text[:-1], text[-1].lower()) if text and text[-1].isalpha() else (text, "")
    return _number(number) * _UNITS.get(unit, math.nan)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def config_from(
    args: argparse.Namespace,
    output: Output,
    *,
    bind: str,
    defaults: P2pOptions | None = None,
    options: P2pOptions | None = None,
) -> P2pConfig:
    """The configuration: the command's defaults, then the file, then the options.

    Args:
        bind: where this command listens unless told otherwise.
        defaults: what else the command prefers.
        options: fields set by options of the command itself.

    Raises:
        ConfigError: a value is not valid, or the file cannot be read.
    """
    config = P2pConfig(bind_addr=bind, identity=default_identity_path())
    if defaults:
        config = config.replace(**defaults)
    if args.config is not None:
        config = P2pConfig.from_toml(args.config, base=config)
    changes: P2pOptions = {**(options or {})}
    if args.bind is not None:
        changes["bind_addr"] = args.bind
    if args.ip_mode is not None:
        changes["ip_mode"] = args.ip_mode
    if args.ephemeral:
        changes["identity"] = None
    elif args.identity is not None:
        changes["identity"] = Path(args.identity)
    if args.known_peer:
        changes["known_peers"] = [*config.known_peers, *args.known_peer]
    if args.no_relay_fallback:
        changes["relay_fallback"] = False
    if key_file := os.environ.get("SSLKEYLOGFILE"):
        output.warning(
            f"SSLKEYLOGFILE is set: the secrets of all connections go to {key_file}, and whoever "
            "has that file can read the traffic"
        )
        changes["key_log"] = True
    return config.replace(**changes) if changes else config


def set_up_logging(level: str) -> None:
    """Sends the log messages of the package to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("anyreach")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
