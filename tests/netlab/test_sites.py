"""Sites that let little out, their proxies, and what can happen to them; by plain sockets."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

import pytest

from . import kinds
from .behaviour import Server
from .capture import capture
from .probe import ask, start_echo
from .routers import Engine
from .sites import PROXY_PASSWORD, PROXY_USER
from .traffic import Counters

if TYPE_CHECKING:
    from .kinds import SiteKind
    from .lab import Lab
    from .machine import Machine
    from .process import Process

_TCP_SERVER: Final = """
import json, socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(json.dumps(self.client_address[:2]).encode())
        while data := self.request.recv(4096):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    address_family = socketserver.socket.AF_INET6
    allow_reuse_address = True
server = Server(("::", int(sys.argv[1])), Handler)
print('{"event": "listening"}', flush=True)
server.serve_forever()
"""

_TCP_CLIENT: Final = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as s:
        print(s.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""

_REQUEST: Final = """
import socket, sys
host, port, request = sys.argv[1:]
with socket.create_connection((host, int(port)), timeout=5) as s:
    s.sendall(request.encode().decode("unicode_escape").encode())
    text = b""
    while b"\\r\\n\\r\\n" not in text:
        text += s.recv(4096)
    head, _, rest = text.partition(b"\\r\\n\\r\\n")
    if b" 200 " in head.split(b"\\r\\n")[0]:
        s.sendall(b"over the proxy")
        while not rest.endswith(b"over the proxy"):
            rest += s.recv(4096)
    print((head + b"\\r\\n\\r\\n" + rest).decode())
"""


def _serve(machine: Machine, port: int) -> Process:
    process = machine.spawn_python("-c", _TCP_SERVER, str(port))
    process.wait_event("listening")
    return process


def _connect(near: Machine, far: Machine, port: int, version: int = 4) -> str:
    """What the far end sees us as, or the name of the error."""
    return near.python("-c", _TCP_CLIENT, str(far.address(version)), str(port)).stdout.strip()


@pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)
@pytest.mark.parametrize(
    ("kind", "udp", "ports"),
    [
        (kinds.PORT_RESTRICTED, 1, {443, 8080}),
        (kinds.UDP_BLOCKED, 0, {443, 8080}),
        (kinds.TCP_443_ONLY, 0, {443}),
        (kinds.PROXY_ONLY, 0, set()),
        (kinds.CGNAT_SYMMETRIC, 1, {443, 8080}),
        (kinds.FIREWALLED, 1, {443, 8080}),
    ],
    ids=str,
)
def test_only_what_may_leaves(
    lab: Lab, engine: Engine, kind: SiteKind, udp: int, ports: set[int]
) -> None:
    pub = lab.host("pub")
    start_echo(pub)
    site = lab.site("site", kind, engine=engine)
    assert ask(site.host, pub.address(4), tries=1).received == udp
    for port in (443, 8080):
        _serve(pub, port)
        seen = _connect(site.host, pub, port)
        expected = str(site.external(4)) if port in ports else "TimeoutError"
        assert expected in seen


def test_names_are_not_resolved_where_only_the_proxy_resolves(lab: Lab) -> None:
    site, pub = lab.site("site", kinds.PROXY_ONLY), lab.host("pub")
    _serve(pub, 443)
    site.resolve({"pub.example": [pub.address(4)]})
    local = site.host.python("-c", "import socket; socket.getaddrinfo('pub.example', 1)")
    assert "gaierror" in local.stderr
    assert " 200 " in _ask_proxy(site.host, "CONNECT pub.example:443 HTTP/1.1\\r\\n\\r\\n")


def _ask_proxy(client: Machine, request: str) -> str:
    address, _, port = client.environment["HTTPS_PROXY"].rpartition("@")[2].rpartition(":")
    done = client.python("-c", _REQUEST, address.removeprefix("http://"), port, request)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_proxy_connects_and_carries_both_ways(lab: Lab) -> None:
    site, pub = lab.site("site", kinds.PROXY_ONLY), lab.host("pub")
    _serve(pub, 443)
    answer = _ask_proxy(site.host, f"CONNECT {pub.v4}:443 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert answer.startswith("HTTP/1.1 200 ")
    assert f'["{site.external(4)}"' in answer.replace("::ffff:", "")
    assert answer.rstrip().endswith("over the proxy")
    assert site.proxy is not None
    assert site.proxy.tunnels == 1
    assert site.proxy.process.wait_event("closed")["sent"] == len("over the proxy")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET http://example/ HTTP/1.1", 405),
        ("POST / HTTP/1.1", 405),
        ("CONNECT 198.51.100.10 HTTP/1.1", 400),
        ("CONNECT 198.51.100.10:0 HTTP/1.1", 400),
        ("CONNECT", 400),
        ("CONNECT 198.51.100.10:9 HTTP/1.1", 502),
        ("CONNECT nowhere.example:443 HTTP/1.1", 502),
    ],
)
def test_the_proxy_refuses_what_is_no_connect_or_cannot_be_done(
    lab: Lab, request_line: str, status: int
) -> None:
    site = lab.site("site", kinds.PROXY_ONLY)
    lab.host("pub")
    assert f" {status} " in _ask_proxy(site.host, f"{request_line}\\r\\n\\r\\n").splitlines()[0]
    assert site.proxy is not None
    assert site.proxy.tunnels == 0


def test_the_proxy_wants_credentials_and_says_so(lab: Lab) -> None:
    site, pub = lab.site("site", kinds.PROXY_AUTH), lab.host("pub")
    _serve(pub, 443)

    def ask_with(credentials: str | None) -> str:
        header = ""
        if credentials is not None:
            token = base64.b64encode(credentials.encode()).decode()
            header = f"Proxy-Authorization: Basic {token}\\r\\n"
        return _ask_proxy(site.host, f"CONNECT {pub.v4}:443 HTTP/1.1\\r\\n{header}\\r\\n")

    for wrong in (None, "user:wrong", ""):
        refused = ask_with(wrong)
        assert refused.startswith("HTTP/1.1 407 ")
        assert "Proxy-Authenticate: Basic" in refused
    assert ask_with(f"{PROXY_USER}:{PROXY_PASSWORD}").startswith("HTTP/1.1 200 ")
    assert site.host.environment["HTTPS_PROXY"].startswith("http://user:correct%20horse@192.168.")


def test_a_proxy_can_be_held_to_some_ports(lab: Lab) -> None:
    site, pub = lab.site("site", kinds.PROXY_ONLY), lab.host("pub")
    assert site.proxy is not None
    site.proxy.process.close()
    site.start_proxy(ports=[443])
    for port, status in ((443, 200), (8443, 403)):
        _serve(pub, port)
        answer = _ask_proxy(site.host, f"CONNECT {pub.v4}:{port} HTTP/1.1\\r\\n\\r\\n")
        assert f" {status} " in answer.splitlines()[0]


def test_udp_can_be_blocked_while_it_is_used(lab: Lab) -> None:
    server = Server(lab)
    for kind in (kinds.PUBLIC, kinds.PORT_RESTRICTED):
        site = lab.site(kind.name.replace("-", "_"), kind)
        watch = server.watch(site.host)
        assert watch.look() is not None
        site.block_udp()
        assert watch.look() is None
        site.allow_udp()
        assert watch.look() is not None


def test_a_cut_between_two_sites_leaves_both_the_internet(lab: Lab) -> None:
    pub = lab.host("pub")
    a, b = lab.site("a", kinds.CGNAT_PORT_RESTRICTED), lab.site("b", kinds.PUBLIC)
    start_echo(pub)
    start_echo(b.host)
    assert ask(a.host, b.host.address(4)).received == 1
    with lab.cut(a, b):
        assert ask(a.host, b.host.address(4), tries=1).received == 0
        assert ask(a.host, pub.address(4)).received == 1
        assert ask(b.host, pub.address(6)).received == 1
    assert ask(a.host, b.host.address(4)).received == 1


def test_an_outage_ends(lab: Lab) -> None:
    server = Server(lab)
    site = lab.site("site", kinds.HOME)
    watches = [server.watch(site.host, version) for version in (4, 6)]
    before = [watch.look() for watch in watches]
    assert None not in before
    with site.outage():
        assert [watch.look() for watch in watches] == [None, None]
    assert [watch.look() for watch in watches] == before


def test_a_host_moves_to_another_lan(lab: Lab) -> None:
    pub = lab.host("pub")
    start_echo(pub)
    old, new = lab.site("old", kinds.HOME), lab.site("new", kinds.HOME)
    assert new.gateway is not None
    host = old.hosts[0]
    before = host.v4, host.v6
    lab.move(host, new)
    assert (host.v4, host.v6) != before
    for version in (4, 6):
        answer = ask(host, pub.address(version))
        assert answer.observed is not None
        expected = new.external(4) if version == 4 else host.address(6)
        assert answer.observed[0] == str(expected)
    assert host in new.hosts
    assert host not in old.hosts


@pytest.mark.parametrize("version", [4, 6])
def test_traffic_is_counted_per_pair_and_protocol(lab: Lab, version: int) -> None:
    counters = Counters(lab.internet)
    a, b = lab.site("a", kinds.HOME), lab.site("b", kinds.PUBLIC)
    third = lab.site("third", kinds.PUBLIC)
    start_echo(b.host)
    _serve(b.host, 443)
    before = counters.read()
    ask(a.host, b.host.address(version), size=1000)
    headers = 28 if version == 4 else 48
    traffic = counters.read() - before
    assert traffic.sent(a, b, "udp").packets == 1
    assert traffic.sent(a, b, "udp").bytes == 1000 + headers
    assert traffic.between(a, b).bytes == 2 * (1000 + headers)
    assert traffic.between(a, third).packets == traffic.between(a, b, "tcp").packets == 0
    _connect(a.host, b.host, 443, version)
    assert (counters.read() - before).between(a, b, "tcp").packets > 5


def test_a_capture_holds_what_passed_and_ends_complete(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    start_echo(b)
    with capture(b, lab.scratch / "b.pcap") as seen:
        source = f"import socket; s = socket.socket(type=2); s.sendto(b'marker', ('{b.v4}', 7777))"
        a.python("-c", source)
        ask(a, b.address(6), size=900)
    sizes = sorted(map(len, seen.packets()))
    assert b"marker" in seen
    assert b"another" not in seen
    assert sizes.count(948) == 2
    assert seen.path.read_bytes()[:4] == bytes.fromhex("d4c3b2a1")
