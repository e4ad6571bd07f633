"""What a configuration means to the core: the endpoint of a node, and its HTTP proxies."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from anyreach import _core
from anyreach.proxies import ProxySettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyreach.config import P2pConfig
    from anyreach.identity import Identity

__all__ = ["make_endpoint", "proxies", "rejected"]

logger = logging.getLogger(__name__)


def make_endpoint(config: P2pConfig, identity: Identity) -> _core.Endpoint:
    """The endpoint, bound.

    Raises:
        BindError: the socket cannot be bound.
    """
    return _core.Endpoint(
        identity.core,
        bind_addr=config.bind_addr,
        ip_mode=config.ip_mode.value,
        allow_ipv4_mapped=config.allow_ipv4_mapped,
        idle_timeout=config.idle_timeout,
        keep_alive_interval=config.keep_alive_interval,
        handshake_timeout=config.handshake_timeout,
        stream_receive_window=config.stream_receive_window,
        receive_window=config.receive_window,
        send_window=config.send_window,
        max_bidi_streams=config.max_bidi_streams,
        max_uni_streams=config.max_uni_streams,
        datagram_buffer=config.datagram_buffer,
        socket_buffer=config.socket_buffer,
        max_connections=config.max_connections,
        key_log=config.key_log,
        serve_relay=config.serve_relay,
        nat_traversal=config.direct and config.punch,
        capabilities=("relay",) if config.serve_relay else (),
    )


def proxies(config: P2pConfig) -> ProxySettings:
    """The HTTP proxies to use: those configured, else those of the environment."""
    settings = ProxySettings.of(config.proxy, os.environ if config.use_environment_proxy else None)
    for problem in settings.ignored:
        logger.warning("%s; ignored", problem)
    return settings


def rejected(counters: Mapping[str, int]) -> dict[str, int]:
    """The refusals among the core's counters: handshakes by reason, datagrams by what they were."""
    reasons = {
        name.removeprefix("rejected_"): count
        for name, count in counters.items()
        if name.startswith(("rejected_", "junk_"))
    }
    return reasons | {"synthetic_source": counters.get("recv_synthetic_source", 0)}
