"""The laboratory itself, measured with plain UDP sockets before anything relies on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import reaper
from .lab import Lab
from .probe import ask, ask_in_background, socket_support, start_echo
from .process import NoEventError
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
    from collections.abc import Callable

_KINDS = [DUAL_STACK, V4_ONLY, V4_LINK_LOCAL_V6, NO_AF_INET6, V6_ONLY]


def _wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def _names(kind: HostKind) -> str:
    return kind.name


@pytest.mark.parametrize("far", _KINDS, ids=_names)
@pytest.mark.parametrize("near", _KINDS, ids=_names)
def test_hosts_reach_each_other_in_the_families_both_have(
    lab: Lab, near: HostKind, far: HostKind
) -> None:
    a, b = lab.host("a", near), lab.host("b", far)
    start_echo(b)
    for own, other in ((a.v4, b.v4), (a.v6, b.v6)):
        if other is None:
            continue
        answer = ask(a, other, tries=3 if own else 1)
        if own is None:
            assert answer.received == 0
        else:
            assert answer.observed is not None
            assert answer.observed[0] == str(own)
            assert not answer.errors


def test_all_hosts_are_in_distinct_prefixes(lab: Lab) -> None:
    hosts = [lab.host(name) for name in ("a", "b", "c", "d")]
    assert len({host.v4 for host in hosts}) == 4
    assert len({host.v6_prefix for host in hosts}) == 4
    assert hosts[0].v4 is not None
    assert str(hosts[0].v4).startswith("203.0.113.")
    assert str(hosts[1].v4).startswith("198.51.100.")
    interfaces = hosts[0].ip_json("address", "show", "dev", "eth0")
    assert interfaces[0]["mtu"] == 1500


def test_sockets_of_a_dual_stack_host(lab: Lab) -> None:
    support = socket_support(lab.host("a", DUAL_STACK))
    assert (support.inet, support.inet6, support.inet6_loopback, support.dual) == (None,) * 4


def test_sockets_where_ipv6_is_disabled(lab: Lab) -> None:
    host = lab.host("a", V4_ONLY)
    support = socket_support(host)
    assert support.inet is None
    assert support.inet6_loopback == "EADDRNOTAVAIL"
    assert not [
        address
        for interface in host.ip_json("address", "show")
        for address in interface["addr_info"]
        if address["family"] == "inet6"
    ]


def test_sockets_without_af_inet6(lab: Lab) -> None:
    support = socket_support(lab.host("a", NO_AF_INET6))
    assert support.inet is None
    assert support.inet6 == support.dual == support.inet6_loopback == "EAFNOSUPPORT"


@pytest.mark.parametrize(
    ("kind", "loopback"), [(V6_ONLY, ["127.0.0.1"]), (NO_V4, [])], ids=["v6-only", "no-v4"]
)
def test_a_v6_only_host_has_no_ipv4_but_loopback(
    lab: Lab, kind: HostKind, loopback: list[str]
) -> None:
    host = lab.host("a", kind)
    addresses = [
        address["local"]
        for interface in host.ip_json("address", "show")
        for address in interface["addr_info"]
        if address["family"] == "inet"
    ]
    assert addresses == loopback
    peer = lab.host("b", V4_ONLY)
    assert peer.v4 is not None
    assert ask(host, peer.v4, tries=1).errors == {"ENETUNREACH"}


@pytest.mark.parametrize("version", [4, 6])
def test_large_packets_vanish_in_both_directions(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(a)
    start_echo(b)
    headers = 28 if version == 4 else 48
    b.line.drop_larger_than(1300)
    for near, far in ((a, b), (b, a)):
        target = far.address(version)
        assert ask(near, target, size=1300 - headers).received == 1
        too_large = ask(near, target, size=1301 - headers, tries=1)
        assert too_large.received == 0
        assert not too_large.errors, "nothing tells the sender"
    b.line.drop_larger_than(None)
    assert ask(a, b.address(version), size=1301 - headers).received == 1


@pytest.mark.parametrize("version", [4, 6])
def test_the_size_limit_sees_datagrams_not_segmentation_bursts(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(b)
    b.line.drop_larger_than(1300)
    target = b.address(version)
    assert ask(a, target, size=1200, segments=10).received == 10
    assert ask(a, target, size=1290, segments=10, tries=1).received == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_smaller_mtu_is_told_to_the_sender(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b", mtu=1280)
    start_echo(b)
    target = b.address(version)
    headers = 28 if version == 4 else 48
    assert ask(a, target, size=1280 - headers).received == 1
    refused = ask(a, target, size=1400, tries=3)
    assert refused.received == 0
    assert "EMSGSIZE" in refused.errors, "the router's ICMP reached the sender's route"


@pytest.mark.parametrize("version", [4, 6])
def test_a_line_unplugged_and_plugged_again_carries_on(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(b)
    target = b.address(version)
    assert ask(a, target).received == 1
    b.line.unplug()
    assert ask(a, target, tries=1).received == 0
    asking = ask_in_background(a, target, tries=100, timeout=0.1)
    b.line.plug()
    assert asking().received == 1


@pytest.mark.parametrize("version", [4, 6])
def test_an_interface_switched_off_makes_sends_fail(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(b)
    a.interface_down()
    assert ask(a, b.address(version), tries=1).errors == {"ENETUNREACH"}
    a.interface_up()
    assert ask(a, b.address(version), tries=20).received == 1


@pytest.mark.parametrize("version", [4, 6])
def test_an_unreachable_route_gives_ehostunreach(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.unreachable(b.address(version))
    assert ask(a, b.address(version), tries=1).errors == {"EHOSTUNREACH"}


@pytest.mark.parametrize("version", [4, 6])
def test_a_black_hole_is_silent_and_can_be_lifted(lab: Lab, version: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(b)
    target = b.address(version)
    rules = lab.internet.black_hole(target)
    silent = ask(a, target, tries=1)
    assert (silent.received, silent.errors) == (0, frozenset())
    lab.internet.filter.remove(rules)
    assert ask(a, target).received == 1


def test_names_resolve_inside_the_host_only_to_what_was_said(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    assert b.v4 is not None
    assert b.v6 is not None
    a.resolve({"b.example": [b.v6, b.v4]})
    source = "import socket; print({x[4][0] for x in socket.getaddrinfo('b.example', 1)})"
    assert eval(a.python("-c", source).stdout) == {str(b.v4), str(b.v6)}
    unknown = a.python("-c", "import socket; socket.getaddrinfo('c.example', 1)")
    assert "gaierror" in unknown.stderr


def test_events_are_awaited_with_a_condition_and_a_bound(lab: Lab) -> None:
    a = lab.host("a")
    source = (
        "import sys\n"
        'print(\'noise\'); print(\'{"event": "n", "value": 1}\')\n'
        "sys.stdin.readline()\n"
        'print(\'{"event": "n", "value": 2}\'); print(\'woe\', file=sys.stderr)\n'
    )
    process = a.spawn_python("-c", source)
    assert process.wait_event("n")["value"] == 1
    with pytest.raises(NoEventError, match="noise"):
        process.wait_event("n", lambda event: event["value"] == 2, timeout=0.05)
    process.send({"go": True})
    assert process.wait_event("n", since=1)["value"] == 2
    assert process.wait() == 0
    with pytest.raises(NoEventError, match="woe"):
        process.wait_event("never")
    assert process.named("n") == process.events


def test_hosts_do_not_see_the_testers_home_or_proxies(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    done = lab.host("a").run(["env"])
    assert "HTTPS_PROXY" not in done.stdout
    assert f"HOME={lab.scratch}/a" in done.stdout


def test_labs_beside_each_other_use_the_same_addresses(lab: Lab) -> None:
    with Lab() as other:
        pairs = [(x.host("a"), x.host("b")) for x in (lab, other)]
        assert pairs[0][1].v4 == pairs[1][1].v4
        start_echo(pairs[0][1])
        target = pairs[0][1].address(4)
        assert ask(pairs[0][0], target).received == 1
        assert ask(pairs[1][0], target, tries=1).received == 0, "another lab's server answered"


def test_labs_can_be_made_in_threads(netlab: None) -> None:  # noqa: ARG001
    received: list[int] = []

    def work() -> None:
        with Lab() as lab:
            a, b = lab.host("a"), lab.host("b")
            start_echo(b)
            received.append(ask(a, b.address(6)).received)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert received == [1, 1, 1]


def test_nothing_is_left_after_the_block_and_its_programs_are_dead(netlab: None) -> None:  # noqa: ARG001
    with Lab() as lab:
        process = start_echo(lab.host("a"))
        assert len(reaper.namespaces(lab.prefix)) == 2
    assert reaper.namespaces(lab.prefix) == []
    assert process.returncode == -signal.SIGKILL
    assert not lab.scratch.exists()
    assert not list(reaper.NETNS_CONFIG.glob(f"{lab.prefix}*"))
    lab.close()


def test_an_exception_in_the_block_still_removes_everything(netlab: None) -> None:  # noqa: ARG001
    made: list[str] = []

    def fail() -> None:
        with Lab() as lab:
            lab.host("a")
            made.extend(reaper.namespaces(lab.prefix))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(made) == 2
    assert not set(made) & set(reaper.namespaces())


def test_a_label_cannot_be_used_twice(lab: Lab) -> None:
    lab.host("a")
    for label in ("a", "internet", "no spaces", ""):
        with pytest.raises(ValueError, match="label"):
            lab.host(label)


_OWNER = """
import sys
import tempfile
sys.path.insert(0, {root!r})
from netlab.lab import Lab
from netlab.probe import start_echo
lab = Lab()
echo = start_echo(lab.host("a"))
print(lab.prefix, echo.pid, flush=True)
sys.stdin.read()
"""


def _start_owner() -> tuple[subprocess.Popen[str], str, int]:
    source = _OWNER.format(root=str(Path(__file__).parent.parent))
    owner = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    prefix, pid = owner.stdout.readline().split()
    assert len(reaper.namespaces(prefix)) == 2
    return owner, prefix, int(pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["exit", "SIGKILL"])
def test_an_owner_that_forgets_or_is_killed_leaves_nothing(netlab: None, how: str) -> None:  # noqa: ARG001
    owner, prefix, echo = _start_owner()
    with owner:
        if how == "SIGKILL":
            owner.kill()
        else:
            owner.communicate(timeout=20)
    _wait_until(lambda: not reaper.namespaces(prefix))
    _wait_until(lambda: not _is_running(echo))
    _wait_until(lambda: not list(Path(tempfile.gettempdir()).glob(f"{prefix}*")))


def test_clean_removes_what_a_dead_owner_left_and_spares_the_living(lab: Lab) -> None:
    with subprocess.Popen(["true"]) as gone:
        leftover = f"{reaper.owner_prefix(gone.pid)}0-left"
    subprocess.run(["ip", "netns", "add", leftover], check=True)
    lab.host("a")
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-m", "tests.netlab", "clean"], cwd=root, check=True)
    assert leftover not in reaper.namespaces()
    assert len(reaper.namespaces(lab.prefix)) == 2
