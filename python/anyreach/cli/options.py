"""The options all commands share, and the node configuration they make."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

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
    "NODE_TCP",
    "VISITOR",
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

#: Where ``anyreach node`` serves relay clients without UDP: on the address and port of its socket.
NODE_TCP: Final = "auto"

#: Where every other command listens: any free port.
CLIENT_BIND: Final = "[::]:0"

#: What commands prefer that dial a peer and end: nobody is to find or use them meanwhile.
VISITOR: Final[P2pOptions] = {"serve_relay": False, "relay_reservations": 0, "findable": False}

_LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_UNITS: Final = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_common_options(parser: argparse.ArgumentParser, *, bind: str, tcp: str = "off") -> None:
    """Adds what every command that runs a node understands.

    Args:
        bind, tcp: where the command listens unless told otherwise, for the help text.
    """
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
    _add_relay_options(parser.add_argument_group("relay options"), tcp)


def _add_relay_options(group: argparse._ArgumentGroup, tcp: str) -> None:
    """Adds what concerns relays: being one, and reaching them."""
    group.add_argument("--no-relay-fallback", action="store_true", help="never go through a relay")
    group.add_argument(
        "--no-direct", action="store_true", help="go through relays only, to diagnose them"
    )
    group.add_argument(
        "--no-punch", action="store_true", help="dial only, open no paths through NATs"
    )
    group.add_argument(
        "--no-port-mapping", action="store_true", help="do not ask routers for a port"
    )
    group.add_argument(
        "--proxy",
        metavar="URL",
        help="HTTP proxy to reach relays through, http://[USER:PASSWORD@]HOST:PORT"
        " (default: HTTPS_PROXY or ALL_PROXY, and NO_PROXY)",
    )
    group.add_argument(
        "--ca-file",
        metavar="FILE",
        help="PEM file of more certificate authorities to trust on the way to a relay",
    )
    group.add_argument(
        "--allow-tls-inspection",
        action="store_true",
        help="go through a proxy that reads the outer TLS (with --ca-file); what is inside stays"
        " end-to-end encrypted",
    )
    group.add_argument("--no-serve-relay", action="store_true", help="do not relay for other nodes")
    group.add_argument(
        "--relay-quota",
        metavar="RATE",
        help="bytes per second to carry for each client of the relay, like 10MB/s; 0 for no limit"
        " (default 4MiB/s)",
    )
    group.add_argument(
        "--relay-total-quota",
        metavar="RATE",
        help="bytes per second to carry for all clients of the relay together (default: no limit)",
    )
    group.add_argument(
        "--relay-allow",
        action="append",
        default=[],
        metavar="PREFIX",
        help="let the relay send to a prefix that is not public, like 10.0.0.0/8; may be repeated",
    )
    group.add_argument(
        "--relay-deny",
        action="append",
        default=[],
        metavar="PREFIX",
        help="never let the relay send to a prefix; may be repeated",
    )
    group.add_argument(
        "--tcp",
        metavar="ADDR|off",
        help="serve relay clients that have no UDP on this address and TCP port; auto is that of"
        f" --bind (default {tcp})",
    )
    group.add_argument(
        "--https",
        metavar="ADDR",
        help="let ordinary HTTP clients and TLS-inspecting proxies reach the relay on this address,"
        " UDP and TCP",
    )
    group.add_argument("--cert", metavar="FILE", help="PEM certificate chain for --https")
    group.add_argument("--key", metavar="FILE", help="PEM private key of --cert")
    group.add_argument(
        "--https-self-signed",
        action="store_true",
        help="make a certificate for --https, instead of --cert and --key",
    )
    group.add_argument(
        "--allow-anonymous-relay",
        action="store_true",
        help="relay for clients of --https that have no PeerId",
    )


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
    changes.update(_relay_changes(args, config))
    if key_file := os.environ.get("SSLKEYLOGFILE"):
        output.warning(
            f"SSLKEYLOGFILE is set: the secrets of all connections go to {key_file}, and whoever "
            "has that file can read the traffic"
        )
        changes["key_log"] = True
    return config.replace(**changes) if changes else config


def _relay_changes(args: argparse.Namespace, config: P2pConfig) -> P2pOptions:
    """The fields set by the options of :func:`_add_relay_options`."""
    switches: P2pOptions = {}
    if args.no_relay_fallback:
        switches["relay_fallback"] = False
    if args.no_direct:
        switches["direct"] = False
    if args.no_punch:
        switches["punch"] = False
    if args.no_port_mapping:
        switches["port_mapping"] = False
    if args.no_serve_relay:
        switches["serve_relay"] = False
    elif args.tcp is not None or args.https is not None:
        switches["serve_relay"] = True  # what else would they be for
    if args.allow_tls_inspection:
        switches["allow_tls_inspection"] = True
    if args.https_self_signed:
        switches["https_self_signed"] = True
    if args.allow_anonymous_relay:
        switches["allow_anonymous_relay"] = True
    if args.relay_allow:
        switches["relay_allow_targets"] = [*config.relay_allow_targets, *args.relay_allow]
    if args.relay_deny:
        switches["relay_deny_targets"] = [*config.relay_deny_targets, *args.relay_deny]
    values = {
        "proxy": args.proxy,
        "ca_file": args.ca_file,
        "relay_quota": args.relay_quota,
        "relay_total_quota": args.relay_total_quota,
        "tcp": args.tcp,
        "https": args.https,
        "cert_file": args.cert,
        "key_file": args.key,
    }
    given = {field: value for field, value in values.items() if value is not None}
    return cast("P2pOptions", {**switches, **given})


def set_up_logging(level: str) -> None:
    """Sends the log messages of the package to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("anyreach")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
