"""A dialer that looks for ways, on a scripted core and a clock that jumps: for tests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._proving import Contacts
from anyreach._tunnels import Tunnels
from anyreach._ways import Ways
from anyreach.address_book import AddressBook
from anyreach.addresses import HostPort, IpMode, SocketAddress
from anyreach.candidates import DefaultCandidatePolicy, InterfaceAddress, LocalNetwork
from anyreach.dialer import Dialer
from anyreach.errors import ConnectError
from anyreach.metrics import Recorder
from anyreach.peer import PeerAddress, PeerId
from anyreach.proxies import ProxySettings

from .fake_core import FakeConnection, FakeDial, FakeEndpoint, FakePath

if TYPE_CHECKING:
    from anyreach import _core
    from anyreach._tunnels import Tunnel
    from anyreach.addresses import IpAddress
    from anyreach.candidates import Candidate

ME, PEER, RELAY, RELAY2 = (PeerId(bytes([i]) * 32) for i in (1, 2, 3, 4))
DIRECT, DIRECT6 = ("192.0.2.9", 9000), ("2001:db8::9", 9000)
BOUND, BOUND6 = ("198.51.100.1", 5000), ("2001:db8:1::1", 5000)
DELAY = 0.25


@dataclass
class Around:
    """What the node knows about itself."""

    external: frozenset[IpAddress] = frozenset()
    interfaces: tuple[InterfaceAddress, ...] = ()
    usable: frozenset[int] = frozenset((4, 6))


class Joining:
    """Known peers on their first attempt."""

    def __init__(self) -> None:
        self.expected = False
        self._waiting: list[asyncio.Future[bool]] = []

    def __call__(self) -> asyncio.Future[bool]:
        future = asyncio.get_running_loop().create_future()
        if self.expected:
            self._waiting.append(future)
        else:
            future.set_result(False)
        return future

    def tell(self, more: bool) -> None:
        self.expected = more
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(more)


@dataclass
class Rig:
    """A dialer that knows ways, on a fake endpoint, with an interface of each family."""

    direct: bool = True
    relayed: bool = True
    mode: IpMode = IpMode.DUAL_STACK
    proxy: str | None = None
    endpoint: FakeEndpoint = field(default_factory=FakeEndpoint)
    around: Around = field(default_factory=Around)
    joining: Joining = field(default_factory=Joining)
    policy: DefaultCandidatePolicy = field(default_factory=DefaultCandidatePolicy)
    used: set[Tunnel] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tunnels = Tunnels(
            self.endpoint,
            self.endpoint.wait,
            mode=self.mode,
            proxies=ProxySettings.of(self.proxy),
            ca_file=None,
            allow_tls_inspection=False,
            network=frozenset,
            used=lambda tunnel: tunnel in self.used,
            changed=lambda _: None,
            contacts=Contacts(),
            recorder=Recorder(),
        )
        self.dialer = Dialer(
            ME,
            self.endpoint,
            self.endpoint.wait,
            book=AddressBook(),
            policy=self.policy,
            local=self._local,
            direct=self.direct,
            attempt_delay=DELAY,
            handshake_timeout=10.0,
            won=lambda *_: None,
            recorder=Recorder(),
            ways=Ways(
                ME,
                self.endpoint,
                self.endpoint.wait,
                tunnels=self.tunnels,
                mode=self.mode,
                around=self.around,
                joining=self.joining,
                direct=self.direct,
                relayed=self.relayed,
                delay=DELAY,
            ),
        )

    def _local(self) -> tuple[Candidate, ...]:
        entries = (InterfaceAddress.of("eth0", ip, 24) for ip in ("203.0.113.5", "2001:db8:5::5"))
        known = tuple(entry for entry in entries if entry is not None)
        return self.policy.gather(LocalNetwork((SocketAddress.of("::", 9000),), self.mode, known))

    def call(
        self, *hosts: str, timeout: float = 60.0, search: bool = True
    ) -> asyncio.Task[_core.Connection]:
        address = PeerAddress(PEER, tuple(map(HostPort.parse, hosts)))
        return asyncio.create_task(self.dialer.connect(address, timeout, search=search))

    def peer(self, number: int, **fields: Any) -> FakeConnection:
        """A connected peer, each number another one."""
        route = [FakePath(remote=(f"192.0.2.{100 + number}", 9000))]
        defaults: dict[str, Any] = {
            "route": route,
            "capabilities": ("relay",),
            "peer_id": bytes([100 + number]) * 32,
        }
        connection = FakeConnection(id=100 + number, **(defaults | fields))
        return self.endpoint.meet(connection)

    def dialed(self) -> list[str]:
        """Where was dialed, how, in order."""
        return [described(dial) for dial in self.endpoint.dials]

    async def end(self) -> None:
        await self.dialer.close()
        await self.tunnels.end()


def described(dial: FakeDial) -> str:
    how = " bound" if dial.relayed else ""
    return dial.address + how + (" by tunnel" if dial.via is not None else "")


def bound_at(
    *addresses: tuple[str, int], relay: PeerId = RELAY
) -> list[tuple[bytes, list[tuple[str, int]]]]:
    return [(bytes(relay), list(addresses))]


async def failed(call: asyncio.Task[Any]) -> list[tuple[str, str, str]]:
    """The attempts of a call that must fail."""
    with pytest.raises(ConnectError) as caught:
        await call
    return [(a.address, a.reason, a.detail) for a in caught.value.attempts]


def now() -> float:
    return asyncio.get_running_loop().time()
