"""Raw public keys (RFC 7250) with ML-DSA-65 for aioquic, in both directions, as a plug-in.

aioquic 1.7.2 knows X.509 only. Its handshake code asks a certificate for its encoding and its
public key, and a private key for signatures: stand-ins with that shape carry a bare key through it.
It leans on private names; :func:`.aioquic_mlkem.mlkem`, inside which it is used, refuses any other
version.

    with mlkem(Group.X25519MLKEM768), raw_keys({0x1234: b""}):
        async with aioquic.asyncio.connect(..., configuration=configuration(...)): ...

Also adds transport parameters, and keeps those of the peer, which aioquic skips if it does not know
them.
"""

from __future__ import annotations

import hashlib
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from anyreach import PeerId

from . import aioquic_mlkem
from .extension_frames import encode_varint
from .tls_messages import transport_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["RawKey", "RawKeyContext", "configuration", "raw_keys"]

_CLIENT_CERTIFICATE_TYPE = 19
_SERVER_CERTIFICATE_TYPE = 20
_RAW_PUBLIC_KEY = 2

_ML_DSA_65 = 0x0905
"""Code point of the IANA registry "TLS SignatureScheme"."""


class RawKey:
    """A public key in the place of a certificate."""

    def __init__(self, key: MLDSA65PublicKey) -> None:
        self._key = key

    @property
    def peer_id(self) -> PeerId:
        """As nodes name the owner: the SHA-256 of the SubjectPublicKeyInfo."""
        return PeerId(hashlib.sha256(self.public_bytes(Encoding.DER)).digest())

    def public_bytes(self, encoding: Encoding) -> bytes:
        """What the Certificate message carries."""
        return self._key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)

    def public_key(self) -> MLDSA65PublicKey:
        """The key itself."""
        return self._key


class RawKeyContext(aioquic_mlkem.Context):
    """A TLS session in which both ends prove raw ML-DSA-65 keys."""

    parameters: Mapping[int, bytes] = {}

    def __init__(self, is_client: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__(is_client, *args, **kwargs)
        self._signature_algorithms: list[Any] = [_ML_DSA_65]
        self._request_client_certificate = not is_client

    @property
    def handshake_extensions(self) -> list[tuple[int, bytes]]:
        """What goes into the ClientHello or the EncryptedExtensions."""
        # The client offers a list of one, the server picks it.
        choice = bytes([1, _RAW_PUBLIC_KEY] if self._is_client else [_RAW_PUBLIC_KEY])
        more = b"".join(
            encode_varint(parameter) + encode_varint(len(value)) + value
            for parameter, value in self.parameters.items()
        )
        return [
            (_CLIENT_CERTIFICATE_TYPE, choice),
            (_SERVER_CERTIFICATE_TYPE, choice),
            *(
                (kind, data + more if kind == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS else data)
                for kind, data in self._extensions
            ),
        ]

    @handshake_extensions.setter
    def handshake_extensions(self, extensions: list[tuple[int, bytes]]) -> None:
        self._extensions = extensions

    @property
    def peer_parameters(self) -> dict[int, bytes]:
        """The transport parameters of the peer, undecoded."""
        for kind, data in self.received_extensions or []:
            if kind == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS:
                return transport_parameters(data)
        return {}

    @property
    def peer_key(self) -> RawKey:
        """The key the peer has proved."""
        assert isinstance(self._peer_certificate, RawKey)
        return self._peer_certificate

    def _signature_algorithms_for_private_key(self) -> list[Any]:
        return [_ML_DSA_65]

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        ((encoded, _),) = certificate.certificates
        key = load_der_public_key(encoded)
        if not isinstance(key, MLDSA65PublicKey):
            raise tls.AlertUnsupportedCertificate(f"a key of type {type(key).__name__}")
        self._peer_certificate: Any = RawKey(key)

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        if verify.algorithm != _ML_DSA_65:
            raise tls.AlertIllegalParameter(f"signature algorithm {verify.algorithm:#x}")
        assert self.key_schedule is not None
        context = tls.SERVER_CONTEXT_STRING if self._is_client else tls.CLIENT_CONTEXT_STRING
        signed = self.key_schedule.certificate_verify_data(context)
        try:
            self.peer_key.public_key().verify(verify.signature, signed)
        except InvalidSignature:
            raise tls.AlertDecryptError from None


def configuration(*, is_client: bool, alpn: str = "anyreach/1") -> QuicConfiguration:
    """Of a peer with a fresh key."""
    private = MLDSA65PrivateKey.generate()
    made = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[alpn],
        verify_mode=ssl.CERT_NONE,
        # An IP address, so that no name is sent.
        server_name="127.0.0.1",
        max_datagram_frame_size=65535,
    )
    made.certificate = RawKey(private.public_key())
    made.private_key = private
    return made


@contextmanager
def raw_keys(parameters: Mapping[int, bytes]) -> Iterator[None]:
    """Make aioquic speak raw keys, and send these transport parameters besides its own."""
    replaced = {
        "Context": type("Context", (RawKeyContext,), {"parameters": dict(parameters)}),
        "signature_algorithm_params": lambda _: (),
    }
    originals = {name: getattr(tls, name) for name in replaced}
    for name, replacement in replaced.items():
        setattr(tls, name, replacement)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(tls, name, original)
