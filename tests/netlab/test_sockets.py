"""What a node binds where a family is missing: it takes what there is and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import nodes
from .topology import (
    DUAL_STACK,
    NO_AF_INET6,
    NO_V4,
    V4_LINK_LOCAL_V6,
    V4_ONLY,
    V6_ONLY,
    HostKind,
)

if TYPE_CHECKING:
    from .lab import Lab


def _name(value: object) -> str:
    return value.name if isinstance(value, HostKind) else str(value)


@pytest.mark.parametrize(
    ("kind", "ip_mode"),
    [
        (DUAL_STACK, "dual"),
        (V4_LINK_LOCAL_V6, "dual"),
        (V4_ONLY, "v4"),
        (NO_AF_INET6, "v4"),
        # 127.0.0.1 is still there and still works through the socket.
        (V6_ONLY, "dual"),
        (NO_V4, "v6"),
    ],
    ids=_name,
)
def test_default_bind_takes_the_families_there_are(lab: Lab, kind: HostKind, ip_mode: str) -> None:
    host = lab.host("a", kind)
    node = nodes.start(host)
    assert node.ready["ip_mode"] == ip_mode
    own = [nodes.endpoint(address) for address in (host.v4, host.v6) if address is not None]
    assert set(own) <= set(node.ready["udp"])
    assert not any("::ffff:" in address for address in node.ready["udp"]), "mapped form leaked"


@pytest.mark.parametrize("ip_mode", ["v4", "v6"])
def test_a_dual_stack_host_can_be_held_to_one_family(lab: Lab, ip_mode: str) -> None:
    a, b = lab.host("a"), lab.host("b")
    node = nodes.start(a, "--ip-mode", ip_mode)
    assert node.ready["ip_mode"] == ip_mode
    wanted, other = (4, 6) if ip_mode == "v4" else (6, 4)
    assert nodes.run(b, "connect", node.at(wanted)).code == 0
    refused = nodes.run(b, "connect", node.at(other), "--timeout", "2")
    assert refused.code == 1
    assert refused.last("result")["attempts"]


@pytest.mark.parametrize(
    ("kind", "bind"),
    [(DUAL_STACK, "{v4}:0"), (DUAL_STACK, "[{v6}]:0"), (DUAL_STACK, "0.0.0.0:0")],
    ids=["own-v4", "own-v6", "any-v4"],
)
def test_an_explicit_bind_address_is_honoured(lab: Lab, kind: HostKind, bind: str) -> None:
    host = lab.host("a", kind)
    node = nodes.start(host, "--bind", bind.format(v4=host.v4, v6=host.v6))
    assert node.ready["ip_mode"] == ("v6" if "[" in bind else "v4")


@pytest.mark.parametrize("kind", [NO_AF_INET6, V4_ONLY], ids=_name)
def test_asking_for_a_family_the_host_lacks_is_a_clear_error(lab: Lab, kind: HostKind) -> None:
    outcome = nodes.run(lab.host("a", kind), "node", "--ip-mode", "v6")
    assert outcome.code in {1, 2}
    assert "IPv6" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_port_in_use_is_a_clear_error(lab: Lab) -> None:
    host = lab.host("a")
    nodes.start(host)
    outcome = nodes.run(host, "node")
    assert outcome.code in {1, 2}
    assert "in use" in outcome.stderr
    assert str(nodes.PORT) in outcome.stderr
    assert "Traceback" not in outcome.stderr
