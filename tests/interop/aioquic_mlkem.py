"""ML-KEM-768 key exchange for aioquic, as a plug-in: X25519MLKEM768 and MLKEM768.

aioquic 1.7.2 knows classical groups only. Its handshake code treats a key exchange as an X25519
private key that is generated, exchanged with the peer's public key, and encoded. The plug-in puts
stand-ins with that shape in the place of X25519, so that none of aioquic's handshake code is
copied. It leans on private names, so it refuses any other version.

While installed, every connection of the process offers and accepts ML-KEM groups only:

    with mlkem(Group.X25519MLKEM768):
        async with aioquic.asyncio.connect(...): ...

Layouts: draft-ietf-tls-ecdhe-mlkem section 4 (ML-KEM first), draft-ietf-tls-mlkem. aioquic cannot
answer a HelloRetryRequest, so the client must offer a group the server takes.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

AIOQUIC_VERSION = "1.7.2"

ENCAPSULATION_KEY_BYTES = 1184
CIPHERTEXT_BYTES = 1088
X25519_BYTES = 32


class Group(IntEnum):
    """Code points of the IANA registry "TLS Supported Groups"."""

    MLKEM768 = 0x0201
    X25519MLKEM768 = 0x11EC


@dataclass(frozen=True, slots=True)
class Share:
    """A key share as it came from the peer; stands in for an X25519 public key."""

    group: Group
    data: bytes


class Exchange:
    """One side of a key exchange; stands in for an X25519 private key.

    Encoded before the exchange it is the client's: it makes an encapsulation key. Encoded after,
    it is the server's: the exchange encapsulates and keeps the answer.
    """

    offered = Group.X25519MLKEM768

    def __init__(self) -> None:
        self._kem: MLKEM768PrivateKey | None = None
        self._x25519 = X25519PrivateKey.generate()
        self._answer: tuple[int, bytes] | None = None

    @classmethod
    def generate(cls) -> "Exchange":
        return cls()

    def public_key(self) -> "Exchange":
        return self

    def encode(self) -> tuple[int, bytes]:
        """The key share to send: (group, bytes)."""
        if self._answer is None:
            self._kem = MLKEM768PrivateKey.generate()
            share = self._kem.public_key().public_bytes_raw()
            return self.offered, share + self._classical_share(self.offered)
        return self._answer

    def exchange(self, peer: Share) -> bytes:
        """The shared secret with the peer's share.

        Raises:
            ValueError: the share has the wrong group or length, or is not a valid key.
        """
        hybrid = peer.group is Group.X25519MLKEM768
        kem_bytes = ENCAPSULATION_KEY_BYTES if self._kem is None else CIPHERTEXT_BYTES
        if len(peer.data) != kem_bytes + (X25519_BYTES if hybrid else 0):
            raise ValueError(f"a share of {len(peer.data)} bytes for {peer.group.name}")
        kem_part, classical_part = peer.data[:kem_bytes], peer.data[kem_bytes:]
        if self._kem is None:
            secret, answer = MLKEM768PublicKey.from_public_bytes(kem_part).encapsulate()
            self._answer = peer.group, answer + self._classical_share(peer.group)
        elif peer.group is not self.offered:
            raise ValueError(f"{peer.group.name} was not offered")
        else:
            secret = self._kem.decapsulate(kem_part)
        if hybrid:
            secret += self._x25519.exchange(X25519PublicKey.from_public_bytes(classical_part))
        return secret

    def _classical_share(self, group: Group) -> bytes:
        if group is Group.MLKEM768:
            return b""
        return self._x25519.public_key().public_bytes_raw()


class Context(tls.Context):
    """A TLS session that takes part in ML-KEM groups only."""

    def __init__(self, is_client: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__(is_client, *args, **kwargs)
        # The client loops over these and makes a key for each it knows, the server compares
        # them with the groups of the shares it was sent.
        self._supported_groups = [tls.Group.X25519] if is_client else list(Group)


def _decode_public_key(key_share: tuple[int, bytes]) -> Share | None:
    group, data = key_share
    return Share(Group(group), data) if group in list(Group) else None


def _push_client_hello(buf: Any, hello: Any) -> None:
    hello.supported_groups = [group for group, _ in hello.key_share]
    _original_push_client_hello(buf, hello)


_original_push_client_hello = tls.push_client_hello

_REPLACED = {
    "Context": Context,
    "decode_public_key": _decode_public_key,
    "encode_public_key": Exchange.encode,
    "push_client_hello": _push_client_hello,
    "x25519": SimpleNamespace(X25519PrivateKey=Exchange, X25519PublicKey=Share),
}


@contextmanager
def mlkem(offered: Group) -> Iterator[None]:
    """Make aioquic speak ML-KEM groups; clients offer `offered`, servers take either.

    Process-wide, so not to be nested or used for two groups at once.

    Raises:
        RuntimeError: another version of aioquic is installed, or the plug-in is in use already.
    """
    version = importlib.metadata.version("aioquic")
    if version != AIOQUIC_VERSION:
        raise RuntimeError(f"the plug-in is for aioquic {AIOQUIC_VERSION}, not {version}")
    if tls.Context is Context:
        raise RuntimeError("the plug-in is installed already")
    originals = {name: getattr(tls, name) for name in _REPLACED}
    Exchange.offered = offered
    for name, replacement in _REPLACED.items():
        setattr(tls, name, replacement)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(tls, name, original)
