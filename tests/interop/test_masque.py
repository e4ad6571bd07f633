"""UDP proxying with independent clients: against a proxy of these tests, and against our relay."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from .aioquic_mlkem import Group, mlkem
from .conftest import CertificateFiles
from .masque.client import BoundTunnel, RefusedError, Tunnel, repeat, request
from .masque.proxy import Behaviour
from .masque.streams import Carrier, RequestStream, StreamEnded
from .masque.udp import UdpSocket, echo
from .masque.wire import (
    Capsule,
    CapsuleType,
    ack,
    assign,
    close,
    datagram,
    encode_varint,
    remote,
)
from .proxies import WAYS, Way, python_proxy, relay


@pytest.fixture(autouse=True)
def _post_quantum() -> Iterator[None]:
    with mlkem(Group.X25519MLKEM768):
        yield


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture(params=["python", "anyreach"])
async def port(
    request: pytest.FixtureRequest, way: Way, certificate: CertificateFiles
) -> AsyncIterator[int]:
    """The port of a proxy."""
    proxy = relay(certificate) if request.param == "anyreach" else python_proxy(way, certificate)
    async with proxy as port:
        yield port


@pytest.fixture
async def carrier(way: Way, port: int, certificate: CertificateFiles) -> AsyncIterator[Carrier]:
    """A connection to the proxy."""
    async with way.client(port, certificate=certificate.certificate) as carrier:
        yield carrier


async def refusal(carrier: Carrier, host: str, port: int | str, *, bind: bool = False) -> int:
    """The status a request is refused with; the proxy says why (RFC 9209)."""
    stream = await carrier.start(request(host, port, bind=bind, authority="localhost"))
    response = await stream.response()
    assert response.field("proxy-status"), response
    return response.status


async def reset_code(stream: RequestStream) -> int | None:
    """How the peer ends the stream, in time."""
    async with asyncio.timeout(10):
        while True:
            try:
                await stream.next()
            except StreamEnded as ended:
                return ended.code


class TestConnectUdp:
    """RFC 9298."""

    async def test_payloads_of_every_size(self, way: Way, carrier: Carrier) -> None:
        async with echo() as target:
            tunnel = await Tunnel.open(carrier, str(target.ip), target.port)
            for size in (1, 0, 63, 64, 1000, way.largest):
                await tunnel.echo(bytes(size))

    async def test_tunnels_beside_each_other(self, carrier: Carrier) -> None:
        async with AsyncExitStack() as targets:
            tunnels = []
            for _ in range(10):
                target = await targets.enter_async_context(echo())
                tunnels.append(await Tunnel.open(carrier, str(target.ip), target.port))
            await asyncio.gather(*(t.echo(f"{n}".encode()) for n, t in enumerate(tunnels)))

    async def test_datagrams_before_the_response(self, carrier: Carrier) -> None:
        """Section 5: a client MAY start sending before it has the response."""
        async with echo() as target:
            fields = request(str(target.ip), target.port, authority="localhost")
            stream = await carrier.start(fields)
            stream.send_datagram(datagram(0, b"early"))
            tunnel = Tunnel(stream, await stream.response())
            await tunnel.echo(b"later")

    async def test_datagrams_in_unknown_contexts_are_dropped(self, carrier: Carrier) -> None:
        """Section 5: a receiver SHALL drop them silently, or buffer them for a moment."""
        async with echo() as target:
            tunnel = await Tunnel.open(carrier, str(target.ip), target.port)
            for context in (1, 2, 77, (1 << 62) - 1):
                tunnel.stream.send_datagram(datagram(context, b"lost"))
            await tunnel.echo(b"payload")

    async def test_unknown_capsules_are_skipped(self, carrier: Carrier) -> None:
        """RFC 9297, section 3.2. Those of bind are unknown where it is not in use."""
        async with echo() as target:
            tunnel = await Tunnel.open(carrier, str(target.ip), target.port)
            tunnel.stream.send_capsule(Capsule(0x29 * 7 + 0x17, bytes(200_000)))
            tunnel.stream.send_capsule(Capsule(0x17, b""))
            tunnel.stream.send_capsule(assign(2, None))
            await tunnel.echo(b"payload")

    async def test_datagrams_may_come_as_capsules(self, carrier: Carrier) -> None:
        """RFC 9297, section 3.5: in any version of HTTP, and in any pieces."""
        async with echo() as target:
            tunnel = await Tunnel.open(carrier, str(target.ip), target.port)
            encoded = Capsule(CapsuleType.DATAGRAM, datagram(0, b"payload")).encode()
            for byte in encoded:
                tunnel.stream.send_data(bytes([byte]))
            async with asyncio.timeout(10):
                assert await tunnel.receive() == b"payload"

    @pytest.mark.parametrize("target_port", [0, 65536, "", "x", "*", "%2A"])
    async def test_ports_that_are_none(self, carrier: Carrier, target_port: str | int) -> None:
        """Section 3, and the bind draft, section 2."""
        assert await refusal(carrier, "127.0.0.1", target_port) == 400
        assert await refusal(carrier, "127.0.0.1", target_port, bind=True) == 400

    async def test_half_an_asterisk(self, carrier: Carrier) -> None:
        """The bind draft, section 2."""
        assert await refusal(carrier, "*", 53, bind=True) == 400
        assert await refusal(carrier, "*", 53) == 400

    async def test_other_paths_are_refused(self, carrier: Carrier) -> None:
        fields = request("127.0.0.1", 53, authority="localhost")
        for path in ("/", "/.well-known/masque/udp/", "/.well-known/masque/ip/*/*/"):
            other = [(name, path if name == ":path" else value) for name, value in fields]
            stream = await carrier.start(other)
            assert (await stream.response()).status in {400, 404}


class TestCapsuleProtocol:
    """RFC 9297, section 3.3, and the MUSTs of the bind draft: violations reset the stream."""

    @pytest.mark.parametrize(
        "capsules",
        [
            [assign(0, None)],
            [assign(1, None)],
            [assign(2, None), assign(4, None)],
            [assign(2, None), assign(2, remote("127.0.0.1", 9))],
            [assign(2, remote("127.0.0.1", 9)), assign(4, remote("127.0.0.1", 9))],
            [assign(2, None), close(2), assign(2, None)],
            [ack(1)],
            [ack(2)],
            [close(0)],
            [close(1)],
            [Capsule(0x11, encode_varint(2))],
            [Capsule(0x11, encode_varint(2) + b"\5" + bytes(6))],
            [Capsule(0x11, assign(2, remote("127.0.0.1", 9)).value + b"\0")],
            [Capsule(0x12, b"\2\0")],
            [Capsule(0x13, b"")],
            [Capsule(CapsuleType.DATAGRAM, datagram(0, b"payload"))],
        ],
        ids=[
            "assign-0",
            "assign-odd",
            "two-uncompressed",
            "assign-twice",
            "same-tuple",
            "reuse",
            "ack-never-assigned",
            "ack-own",
            "close-0",
            "close-never-assigned",
            "assign-cut",
            "ip-version-5",
            "assign-long",
            "ack-long",
            "close-empty",
            "context-0",
        ],
    )
    async def test_violations_abort(
        self, way: Way, carrier: Carrier, capsules: list[Capsule]
    ) -> None:
        stream = await carrier.start(request("*", "*", bind=True, authority="localhost"))
        assert (await stream.response()).status == 200
        for capsule in capsules:
            stream.send_capsule(capsule)
        assert await reset_code(stream) in way.aborted
        # Only the stream is gone.
        async with echo() as target:
            await (await Tunnel.open(carrier, str(target.ip), target.port)).echo(b"payload")

    async def test_a_stream_that_ends_inside_a_capsule(self, way: Way, carrier: Carrier) -> None:
        stream = await carrier.start(request("*", "*", bind=True, authority="localhost"))
        assert (await stream.response()).status == 200
        stream.send_data(assign(2, None).encode()[:-1])
        stream.end()
        assert await reset_code(stream) in way.aborted


class TestBind:
    """The bind draft."""

    async def test_any_remote_uncompressed_then_compressed(self, carrier: Carrier) -> None:
        async with echo() as one, echo() as other, BoundTunnel.open(carrier) as tunnel:
            assert await tunnel.assign(None) == 2
            for target in (one, other):
                await tunnel.echo(target, b"first")
                await tunnel.echo(target, b"")

    async def test_contexts_of_the_client(self, carrier: Carrier) -> None:
        """Section 3.1, and section 3.3: once closed, the uncompressed context can be used."""
        async with echo() as target, BoundTunnel.open(carrier) as tunnel:
            context = await tunnel.assign(target)
            assert context == 2
            await tunnel.echo(target, b"compressed")
            assert await tunnel.assign(None) == 4
            tunnel.close_context(context)
            await tunnel.echo(target, b"uncompressed")

    async def test_contexts_are_used_before_the_answer(self, carrier: Carrier) -> None:
        """Section 3.1: endpoints MAY do so; what comes before the capsule can be lost."""
        async with echo() as target, BoundTunnel.open(carrier) as tunnel:
            tunnel.start_assign(target)
            async with asyncio.timeout(10):
                while tunnel.packets.empty():
                    tunnel.send(target, b"payload")
                    await asyncio.sleep(0.01)

    async def test_strangers_reach_the_public_address(self, carrier: Carrier) -> None:
        async with BoundTunnel.open(carrier) as tunnel:
            await tunnel.assign(None)
            with UdpSocket("127.0.0.1") as stranger:
                await _check_both_ways(tunnel, stranger)

    async def test_without_the_uncompressed_context_strangers_do_not(
        self, carrier: Carrier
    ) -> None:
        """Sections 3.1 and 7.1: the proxy opens no contexts, and acts as a firewall."""
        async with echo() as friend, BoundTunnel.open(carrier) as tunnel:
            context = await tunnel.assign(None)
            assert context is not None
            tunnel.close_context(context)
            # Capsules are in order: when this one is answered, the other has been read.
            await tunnel.assign(friend)
            with UdpSocket("127.0.0.1") as stranger:
                for _ in range(10):
                    stranger.send(b"hello", tunnel.public[0])
                    await tunnel.echo(friend, b"payload")
            assert tunnel.heard == {friend}

    async def test_both_open_a_context_for_the_same_remote(self, carrier: Carrier) -> None:
        """Section 3.1: that of the proxy is closed, and packets flow on."""
        async with BoundTunnel.open(carrier) as tunnel:
            await tunnel.assign(None)
            for _ in range(20):
                with UdpSocket("127.0.0.1") as stranger:
                    stranger.send(b"hello", tunnel.public[0])
                    context = await tunnel.assign(stranger.address)
                    await _check_both_ways(tunnel, stranger)
                    assert tunnel.context_of(stranger.address) == context

    async def test_unreadable_datagrams_are_no_violation(self, carrier: Carrier) -> None:
        async with echo() as target, BoundTunnel.open(carrier) as tunnel:
            assert await tunnel.assign(target) == 2
            closed = await tunnel.assign(remote("127.0.0.1", 1))
            assert closed is not None
            tunnel.close_context(closed)
            for context in (closed, 70, 71, (1 << 62) - 1):
                tunnel.stream.send_datagram(datagram(context, b"lost"))
            await tunnel.echo(target, b"payload")

    async def test_many_remotes(self, carrier: Carrier) -> None:
        async with AsyncExitStack() as stack:
            tunnel = await stack.enter_async_context(BoundTunnel.open(carrier))
            await tunnel.assign(None)
            targets = [await stack.enter_async_context(echo()) for _ in range(200)]
            for target in targets:
                await tunnel.echo(target, str(target).encode())


class TestBehaviour:
    """What a proxy may do: the clients of these tests against it."""

    @asynccontextmanager
    async def _carrier(
        self, way: Way, files: CertificateFiles, behaviour: Behaviour
    ) -> AsyncIterator[Carrier]:
        async with (
            python_proxy(way, files, behaviour) as port,
            way.client(port, certificate=files.certificate) as carrier,
        ):
            yield carrier

    async def _check(self, carrier: Carrier) -> None:
        async with echo() as target, BoundTunnel.open(carrier) as tunnel:
            await tunnel.assign(None)
            await tunnel.assign(remote("127.0.0.1", 9))
            for payload in (b"first", b"second"):
                await tunnel.echo(target, payload)

    @pytest.mark.parametrize(
        "behaviour",
        [Behaviour(compress=False), Behaviour(early=True), Behaviour(reject=True)],
        ids=["uncompressed", "early", "reject"],
    )
    async def test_bind(
        self, way: Way, certificate: CertificateFiles, behaviour: Behaviour
    ) -> None:
        async with self._carrier(way, certificate, behaviour) as carrier:
            await self._check(carrier)

    async def test_without_bind(self, way: Way, certificate: CertificateFiles) -> None:
        """Section 2: without bind, a request with a target is one for that target."""
        async with (
            self._carrier(way, certificate, Behaviour(bind=False)) as carrier,
            echo() as target,
        ):
            fields = request(str(target.ip), target.port, bind=True, authority="localhost")
            stream = await carrier.start(fields)
            tunnel = Tunnel(stream, await stream.response())
            assert tunnel.response.field("connect-udp-bind") is None
            await tunnel.echo(b"payload")
            with pytest.raises(RefusedError):
                async with BoundTunnel.open(carrier):
                    pass


async def _check_both_ways(tunnel: BoundTunnel, outside: UdpSocket) -> None:
    """A packet from outside arrives in the tunnel, and one back from the public address."""
    public = tunnel.public[0]

    async def arrives() -> None:
        while await tunnel.receive() != (outside.address, b"in"):
            pass

    async def returns() -> None:
        assert await outside.receive() == (public, b"out")

    await repeat(lambda: outside.send(b"in", public), arrives)
    await repeat(lambda: tunnel.send(outside.address, b"out"), returns)
