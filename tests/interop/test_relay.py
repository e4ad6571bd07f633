"""What our relay does beyond what every proxy must: policy, limits, and answers to hostile clients.

With the independent clients of `test_masque`, over each version of HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from ipaddress import IPv6Address

import pytest

from .aioquic_mlkem import Group, mlkem
from .conftest import CertificateFiles
from .masque.client import BoundTunnel, RefusedError, Tunnel, repeat, request
from .masque.streams import Carrier, Response, StreamEnded
from .masque.udp import UdpSocket, echo
from .masque.wire import (
    Capsule,
    CapsuleType,
    Remote,
    assign,
    datagram,
    encode_remote,
    encode_varint,
    remote,
    split_context,
)
from .proxies import WAYS, Way, relay

# As many compressed contexts as a tunnel may have open.
MAX_CONTEXTS = 128

# What no relay sends to, whatever is allowed besides.
FORBIDDEN = [
    "10.0.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "100.64.0.1",
    "::",
    "::1",
    "fe80::1",
    "fd00::1",
    "ff02::1",
    "::ffff:10.0.0.1",
]


@pytest.fixture(autouse=True)
def _post_quantum() -> Iterator[None]:
    with mlkem(Group.X25519MLKEM768):
        yield


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
async def carrier(way: Way, certificate: CertificateFiles) -> AsyncIterator[Carrier]:
    """A connection to a relay of ours."""
    async with (
        relay(certificate) as port,
        way.client(port, certificate=certificate.certificate) as carrier,
    ):
        yield carrier


async def refusal(carrier: Carrier, host: str, port: int) -> Response:
    with pytest.raises(RefusedError) as refused:
        await Tunnel.open(carrier, host, port)
    return refused.value.response


class TestPolicy:
    """RFC 9298, section 7: no way into the operator's network."""

    @pytest.mark.parametrize("host", FORBIDDEN)
    async def test_targets_that_are_not_public_are_refused(
        self, carrier: Carrier, host: str
    ) -> None:
        response = await refusal(carrier, host, 53)
        assert "error=destination_ip_prohibited" in (response.field("proxy-status") or "")

    async def test_names_are_resolved_first(self, carrier: Carrier) -> None:
        """Section 3.1: the proxy MUST resolve before it replies."""
        async with echo() as target:
            await (await Tunnel.open(carrier, "localhost", target.port)).echo(b"payload")
        response = await refusal(carrier, "no-such-name.invalid", 53)
        assert "error=dns_" in (response.field("proxy-status") or ""), response

    @pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "a_/b", "a..b", "::1%1"])
    async def test_hosts_that_are_none(self, carrier: Carrier, host: str) -> None:
        assert (await refusal(carrier, host, 53)).status == 400

    @pytest.mark.parametrize("host", FORBIDDEN)
    async def test_contexts_for_such_targets_are_rejected(
        self, carrier: Carrier, host: str
    ) -> None:
        """The bind draft, security considerations."""
        async with BoundTunnel.open(carrier) as tunnel:
            assert await tunnel.assign(remote(host, 53)) is None
            async with echo() as target:
                assert await tunnel.assign(target) is not None

    async def test_uncompressed_datagrams_to_such_targets_are_dropped(
        self, carrier: Carrier
    ) -> None:
        """The bind draft, security considerations: checked for each datagram."""
        # Loopback, but not of the range that is allowed; mapped, it is.
        with UdpSocket("::1") as forbidden:
            async with echo() as target, BoundTunnel.open(carrier) as tunnel:
                await tunnel.assign(None)
                tunnel.send(forbidden.address, b"forbidden")
                mapped = Remote(IPv6Address(f"::ffff:{target.ip}"), target.port)
                tunnel.send(mapped, b"mapped")
                assert await tunnel.receive() == (target, b"mapped")
                for host in FORBIDDEN:
                    tunnel.send(remote(host, 53), b"forbidden")
                await tunnel.echo(target, b"payload")
                # Nor is a packet from there taken: it could be answered.
                assert tunnel.heard == {target}

    async def test_anonymous_clients_are_refused_by_default(
        self, way: Way, certificate: CertificateFiles
    ) -> None:
        async with (
            relay(certificate, allow_anonymous_relay=False) as port,
            way.client(port, certificate=certificate.certificate) as carrier,
        ):
            response = await refusal(carrier, "127.0.0.1", 53)
            assert response.status in {401, 403, 407}
            with pytest.raises(RefusedError):
                async with BoundTunnel.open(carrier):
                    pass


class TestLimits:
    async def test_contexts_beyond_the_limit_are_rejected(self, carrier: Carrier) -> None:
        """The bind draft, security considerations: endpoints MUST place a limit."""
        async with BoundTunnel.open(carrier) as tunnel:
            targets = [remote("127.0.0.1", 20_000 + n) for n in range(MAX_CONTEXTS + 20)]
            accepted = [await tunnel.assign(target) for target in targets]
            assert None not in accepted[:MAX_CONTEXTS]
            assert accepted[MAX_CONTEXTS:] == [None] * 20
            # The uncompressed one is beside them.
            context = await tunnel.assign(None)
            assert context is not None
            async with echo() as target:
                await tunnel.echo(target, b"payload")

    async def test_a_flood_of_strangers_leaves_the_tunnel_alone(self, carrier: Carrier) -> None:
        """New remotes faster than capsules are answered: no queue of capsules overflows."""
        async with echo() as friend, AsyncExitStack() as stack:
            tunnel = await stack.enter_async_context(BoundTunnel.open(carrier))
            await tunnel.assign(None)
            await tunnel.assign(friend)
            strangers = [stack.enter_context(UdpSocket("127.0.0.1")) for _ in range(400)]
            for stranger in strangers:
                stranger.send(b"flood", tunnel.public[0])
            await tunnel.echo(friend, b"payload")
            assert len(tunnel.contexts) <= MAX_CONTEXTS + 1

    async def test_datagrams_too_large_for_udp_are_skipped(self, carrier: Carrier) -> None:
        """RFC 9297, section 3.5: discarded without keeping them, and the next capsule read."""
        async with echo() as target, BoundTunnel.open(carrier) as tunnel:
            context = await tunnel.assign(target)
            assert context is not None
            too_large = datagram(context, bytes(70_000))
            tunnel.stream.send_capsule(Capsule(CapsuleType.DATAGRAM, too_large))
            next_one = datagram(context, b"next")
            tunnel.stream.send_capsule(Capsule(CapsuleType.DATAGRAM, next_one))
            assert await tunnel.receive() == (target, b"next")

    async def test_a_payload_too_large_in_context_0_aborts(
        self, way: Way, carrier: Carrier
    ) -> None:
        """RFC 9298, section 5."""
        async with echo() as target:
            tunnel = await Tunnel.open(carrier, str(target.ip), target.port)
            too_large = Capsule(CapsuleType.DATAGRAM, datagram(0, bytes(65_528)))
            tunnel.stream.send_capsule(too_large)
            with pytest.raises(StreamEnded) as ended:
                async with asyncio.timeout(10):
                    await tunnel.stream.next()
            assert ended.value.code in way.aborted

    async def test_an_endless_capsule_costs_nothing(self, carrier: Carrier) -> None:
        """RFC 9297, section 3.2: of an unknown type, up to 2^62 - 1 bytes; here the first MB."""
        async with echo() as target:
            tunnel = await Tunnel.open(carrier, str(target.ip), target.port)
            head = encode_varint(0x17) + encode_varint((1 << 62) - 1)
            tunnel.stream.send_data(head + bytes(1 << 20))
            # Datagrams of HTTP/3 pass beside it; those of HTTP/2 are inside of it now.
            other = await Tunnel.open(carrier, str(target.ip), target.port)
            await other.echo(b"payload")


class TestLifetime:
    async def test_the_public_address_ends_with_the_tunnel(self, carrier: Carrier) -> None:
        """The bind draft, section 6: until the tunnel is closed."""
        async with BoundTunnel.open(carrier) as tunnel:
            public = tunnel.public[0]
            tunnel.stream.end()
            with UdpSocket("127.0.0.1", public) as outside:

                async def refused() -> None:
                    while True:
                        outside.send(b"anyone there?")
                        await asyncio.sleep(0.01)

                # The system says so once the port is closed.
                sending = asyncio.create_task(refused())
                try:
                    async with asyncio.timeout(10):
                        with pytest.raises(OSError, match="refused"):
                            await outside.receive()
                finally:
                    sending.cancel()

    async def test_a_target_can_come_back(self, carrier: Carrier) -> None:
        """Errors the system reports for single packets end neither tunnel nor socket."""
        with UdpSocket("127.0.0.1") as target:
            port = target.address.port
            tunnel = await Tunnel.open(carrier, "127.0.0.1", port)
            tunnel.send(b"hello")
            async with asyncio.timeout(10):
                source, _ = await target.receive()
        for _ in range(20):
            tunnel.send(b"anyone there?")
        with UdpSocket("127.0.0.1", port=port) as target:

            async def arrives() -> None:
                while await target.receive() != (source, b"back"):
                    pass

            await repeat(lambda: tunnel.send(b"back"), arrives)

    async def test_packets_of_others_than_the_target_are_dropped(self, carrier: Carrier) -> None:
        """RFC 9298, section 3.1: source address and port MUST be those of the target."""
        with UdpSocket("127.0.0.1") as target, UdpSocket("127.0.0.1") as other:
            tunnel = await Tunnel.open(carrier, "127.0.0.1", target.address.port)
            tunnel.send(b"hello")
            async with asyncio.timeout(10):
                source, _ = await target.receive()
                other.send(b"other", source)
                target.send(b"answer", source)
                assert await tunnel.receive() == b"answer"


async def test_capsules_after_capsules_in_one_piece(carrier: Carrier) -> None:
    """However they are packed into frames of HTTP."""
    async with echo() as target:
        fields = request("*", "*", bind=True, authority="localhost")
        stream = await carrier.start(fields)
        assert (await stream.response()).status == 200
        bound = encode_remote(target)
        stream.send_data(
            assign(2, None).encode()
            + Capsule(0x17, b"unknown").encode()
            + Capsule(CapsuleType.DATAGRAM, datagram(2, bound + b"one")).encode()
            + assign(4, target).encode()
            + Capsule(CapsuleType.DATAGRAM, datagram(4, b"two")).encode()
        )
        acknowledged: list[int] = []
        payloads: list[bytes] = []
        async with asyncio.timeout(10):
            while len(acknowledged) < 2 or len(payloads) < 2:
                capsule = await stream.next()
                if capsule.type == CapsuleType.COMPRESSION_ACK:
                    acknowledged.append(split_context(capsule.value))
                elif capsule.type == CapsuleType.DATAGRAM:
                    payloads.append(capsule.value[-3:])
        assert acknowledged == [2, 4]
        assert sorted(payloads) == [b"one", b"two"]
