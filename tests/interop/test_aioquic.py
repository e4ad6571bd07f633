"""The ML-KEM plug-in of aioquic: held to itself, to quinn and to qh3's own ML-KEM.

Different QUIC, TLS and ML-KEM code on each side, so that what the benchmarks and refusal tests
lean on is known to speak the groups it claims.
"""

import os
import ssl
from pathlib import Path

import pytest
import qh3.asyncio.client
import qh3.quic.configuration

from . import aioquic_mlkem
from .aioquic_mlkem import Group, mlkem
from .aioquic_peer import ALPN, HOST, client, echo_server, refusal
from .conftest import CertificateFiles
from .programs import program

GROUPS = pytest.mark.parametrize("group", list(Group), ids=lambda group: group.name.lower())

# RFC 9001 section 4.8: 0x100 and the TLS alert.
CRYPTO_HANDSHAKE_FAILURE = 0x100 + 40


@GROUPS
async def test_aioquic_with_itself(group: Group, certificate: CertificateFiles) -> None:
    with mlkem(group):
        async with echo_server(certificate) as port, client(port) as quic:
            await quic.check_echo(os.urandom(100_000))


@GROUPS
async def test_aioquic_client_with_quinn(
    group: Group, certificate: CertificateFiles, peers: Path
) -> None:
    del peers
    options = {"certificate": certificate.certificate, "key": certificate.key}
    async with program(
        "quinn-peer",
        "server",
        **options,
        auth="x509",
        alpn=ALPN,
        hello="false",
        group=group.name.lower(),
    ) as server:
        port = (await server.event("listening"))["port"]
        with mlkem(group):
            async with client(port) as quic:
                await quic.check_echo(os.urandom(300_000))


@GROUPS
async def test_quinn_client_with_aioquic(
    group: Group, certificate: CertificateFiles, peers: Path
) -> None:
    del peers
    with mlkem(Group.X25519MLKEM768):
        async with (
            echo_server(certificate) as port,
            program(
                "quinn-peer",
                "client",
                connect=f"{HOST}:{port}",
                auth="x509",
                alpn=ALPN,
                hello="false",
                group=group.name.lower(),
                bytes=100_000,
                streams=3,
            ) as quinn,
        ):
            assert await quinn.event("echoed", "error") == {
                "event": "echoed",
                "bytes": 100_000,
                "streams": 3,
            }
            assert await quinn.exit() == 0


async def test_qh3_with_quinn(certificate: CertificateFiles, peers: Path) -> None:
    """qh3 needs no plug-in: a second independent X25519MLKEM768."""
    del peers
    options = {"certificate": certificate.certificate, "key": certificate.key}
    async with program(
        "quinn-peer", "server", **options, auth="x509", alpn=ALPN, hello="false"
    ) as server:
        port = (await server.event("listening"))["port"]
        configuration = qh3.quic.configuration.QuicConfiguration(
            alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE, server_name="localhost"
        )
        async with qh3.asyncio.client.connect(HOST, port, configuration=configuration) as quic:
            reader, writer = await quic.create_stream()
            data = os.urandom(100_000)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data


async def test_classical_quinn_is_refused(certificate: CertificateFiles, peers: Path) -> None:
    del peers
    with mlkem(Group.X25519MLKEM768):
        async with (
            echo_server(certificate) as port,
            program(
                "quinn-peer",
                "client",
                connect=f"{HOST}:{port}",
                auth="x509",
                alpn=ALPN,
                hello="false",
                group="x25519",
            ) as quinn,
        ):
            error = await quinn.event("error", "echoed")
            assert "No supported key share" in error["error"], error


async def test_quinn_refuses_classical_aioquic(certificate: CertificateFiles, peers: Path) -> None:
    del peers
    options = {"certificate": certificate.certificate, "key": certificate.key}
    async with program(
        "quinn-peer", "server", **options, auth="x509", alpn=ALPN, hello="false"
    ) as server:
        terminated = await refusal((await server.event("listening"))["port"])
        assert terminated is not None
        assert terminated.error_code == CRYPTO_HANDSHAKE_FAILURE
        await server.event("failed")


def test_another_version_of_aioquic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioquic_mlkem, "AIOQUIC_VERSION", "0.0.0")
    with pytest.raises(RuntimeError, match="plug-in is for aioquic"), mlkem(Group.MLKEM768):
        pass
