"""Which doors a relay opens, and what its counters are called."""

from __future__ import annotations

from typing import Any

import pytest

from anyreach import P2pConfig
from anyreach._relay_service import MAX_RESERVATIONS, RelayService
from anyreach.errors import BindError

BOUND = "127.0.0.1:9000"


class FakeCore:
    """Binds what it is told to, but for addresses that are taken."""

    def __init__(self, *taken: str) -> None:
        self.taken = taken
        self.calls: list[dict[str, Any]] = []
        self.stats: dict[str, int] = {}

    def serve_relay(self, **options: Any) -> Any:
        self.calls.append(options)
        if options["tcp"] in self.taken:
            raise BindError(f"{options['tcp']} is in use")
        tcp = [("127.0.0.1", 9000)] if options["tcp"] is not None else []
        return tcp, [("127.0.0.1", 8443)] if options["https"] is not None else []

    def relay_stats(self) -> dict[str, int]:
        return self.stats


def test_no_relay_opens_nothing() -> None:
    core = FakeCore()
    service = RelayService(core, P2pConfig(serve_relay=False, tcp="auto"), BOUND)
    assert (service.tcp, core.calls) == ((), [])
    assert (service.stats().sessions, service.stats().rejected) == (0, {})


def test_automatic_tcp_is_where_the_socket_is() -> None:
    core = FakeCore()
    assert RelayService(core, P2pConfig(tcp="auto"), BOUND).tcp == (BOUND,)
    assert core.calls[0]["tcp"] == BOUND
    assert core.calls[0]["max_reservations"] == MAX_RESERVATIONS


def test_rates_and_targets_are_those_of_the_configuration() -> None:
    core = FakeCore()
    config = P2pConfig(
        relay_quota=1_000_000,
        relay_total_quota=10_000_000,
        relay_allow_targets=["10.0.0.0/8"],
        relay_deny_targets=["10.1.0.0/16"],
    )
    RelayService(core, config, BOUND)
    (call,) = core.calls
    assert (call["bytes_per_second"], call["total_bytes_per_second"]) == (1_000_000, 10_000_000)
    assert (call["allow_targets"], call["deny_targets"]) == (("10.0.0.0/8",), ("10.1.0.0/16",))


def test_without_tcp_none_is_opened() -> None:
    core = FakeCore()
    assert RelayService(core, P2pConfig(), BOUND).tcp == ()
    assert core.calls[0]["tcp"] is None


def test_a_taken_port_is_done_without_unless_it_was_named() -> None:
    core = FakeCore(BOUND)
    assert RelayService(core, P2pConfig(tcp="auto"), BOUND).tcp == ()
    assert [call["tcp"] for call in core.calls] == [BOUND, None]
    with pytest.raises(BindError):
        RelayService(FakeCore(BOUND), P2pConfig(tcp=BOUND), BOUND)


def test_the_counters_have_names_for_metrics() -> None:
    core = FakeCore()
    core.stats = {
        "sessions": 2,
        "tunnels": 3,
        "sent_bytes": 10,
        "received_bytes": 20,
        "accepted": 7,
        "dropped_client-quota": 4,
        "dropped_target": 5,
        "refused_target": 6,
        "refused_relay-limit": 0,
    }
    stats = RelayService(core, P2pConfig(), BOUND).stats()
    assert (stats.sent, stats.received, stats.sessions) == (10, 20, 5)
    assert stats.rejected == {
        "relay_client_quota": 4,
        "relay_target": 5,
        "relay_request_target": 6,
        "relay_request_relay_limit": 0,
    }
