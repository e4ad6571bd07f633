"""ML-KEM-768 implementations behind one small interface, so that any can be held to any.

They share no code: the extension module of this package (AWS-LC), ``cryptography`` (OpenSSL),
``kyber-py`` (pure Python), and optionally liboqs, built by ``build_liboqs.py``.
"""

import importlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from kyber_py.ml_kem import ML_KEM_768

from anyreach import _core

from .vectors import Record


class Kem(Protocol):
    """A KEM whose private keys are opaque: not every library exports the expanded form."""

    def generate(self) -> tuple[Any, bytes]:
        """A new (private key, encapsulation key)."""
        ...

    def load(self, record: Record) -> Any:
        """The private key of a record, in whatever form the library takes."""
        ...

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        """(ciphertext, shared secret)."""
        ...

    def decapsulate(self, private: Any, ciphertext: bytes) -> bytes:
        """The shared secret, or the one of implicit rejection."""
        ...


class Anyreach:
    """The library the handshakes of this package use."""

    def generate(self) -> tuple[bytes, bytes]:
        return _core.mlkem768_generate()

    def load(self, record: Record) -> bytes:
        return record.sk

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        return _core.mlkem768_encapsulate(public)

    def decapsulate(self, private: bytes, ciphertext: bytes) -> bytes:
        return _core.mlkem768_decapsulate(private, ciphertext)


class Cryptography:
    """OpenSSL through pyca/cryptography; private keys are seeds."""

    def generate(self) -> tuple[MLKEM768PrivateKey, bytes]:
        private = MLKEM768PrivateKey.generate()
        return private, private.public_key().public_bytes_raw()

    def load(self, record: Record) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(record.d + record.z)

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(public).encapsulate()
        return ciphertext, secret

    def decapsulate(self, private: MLKEM768PrivateKey, ciphertext: bytes) -> bytes:
        return private.decapsulate(ciphertext)


class KyberPy:
    """Pure Python, written from FIPS 203; also the deterministic oracle."""

    def generate(self) -> tuple[bytes, bytes]:
        public, private = ML_KEM_768.keygen()
        return private, public

    def load(self, record: Record) -> bytes:
        return record.sk

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        secret, ciphertext = ML_KEM_768.encaps(public)
        return ciphertext, secret

    def decapsulate(self, private: bytes, ciphertext: bytes) -> bytes:
        secret: bytes = ML_KEM_768.decaps(private, ciphertext)
        return secret

    def keygen_from(self, d: bytes, z: bytes) -> tuple[bytes, bytes]:
        """ML-KEM.KeyGen_internal: (encapsulation key, decapsulation key)."""
        public, private = ML_KEM_768._keygen_internal(d, z)
        return public, private

    def encapsulate_from(self, public: bytes, msg: bytes) -> tuple[bytes, bytes]:
        """ML-KEM.Encaps_internal: (ciphertext, shared secret)."""
        secret, ciphertext = ML_KEM_768._encaps_internal(public, msg)
        return ciphertext, secret


class Liboqs:
    """liboqs through liboqs-python. Make one only after `liboqs_missing` returned None."""

    def __init__(self) -> None:
        self._oqs = importlib.import_module("oqs")

    def _kem(self, private: bytes | None = None) -> Any:
        return self._oqs.KeyEncapsulation("ML-KEM-768", private)

    def generate(self) -> tuple[bytes, bytes]:
        with self._kem() as kem:
            public = bytes(kem.generate_keypair())
            return bytes(kem.export_secret_key()), public

    def load(self, record: Record) -> bytes:
        return record.sk

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        with self._kem() as kem:
            ciphertext, secret = kem.encap_secret(public)
            return bytes(ciphertext), bytes(secret)

    def decapsulate(self, private: bytes, ciphertext: bytes) -> bytes:
        with self._kem(private) as kem:
            return bytes(kem.decap_secret(ciphertext))


def liboqs_missing() -> str | None:
    """Why liboqs cannot take part, or None.

    Decided without importing ``oqs``: without its library liboqs-python fetches and builds one
    from the network at import time, and another distribution uses the same import name.
    """
    folder = os.environ.get("OQS_INSTALL_PATH")
    if not folder:
        return "OQS_INSTALL_PATH is not set; tests/kat/build_liboqs.py builds one"
    if not (Path(folder) / "lib" / "liboqs.so").is_file():
        return f"no lib/liboqs.so in OQS_INSTALL_PATH={folder}"
    try:
        importlib.metadata.version("liboqs-python")
    except importlib.metadata.PackageNotFoundError:
        return "liboqs-python is not installed"
    return None
