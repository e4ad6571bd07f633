"""The Rust baselines, programs of ``tests/interop/peers``."""

import os
import tomllib
from pathlib import Path

from .protocol import Contender, Setting

# As many as the runtime of our package has, so that nobody has more of the machine at hand.
THREADS = min(os.cpu_count() or 1, 4)

_LOCK = Path(__file__).parents[2] / "Cargo.lock"


def version(crate: str) -> str:
    """The version in use."""
    packages = tomllib.loads(_LOCK.read_text())["package"]
    return str(next(package["version"] for package in packages if package["name"] == crate))


def contender(engine: str, setting: Setting, *, raw_keys: bool = False) -> Contender:
    """An engine with a certificate of ECDSA P-256, or with the identities of our nodes."""
    program = str(setting.programs / f"{engine}-bench")
    if raw_keys:
        options: tuple[str, ...] = ("--auth", "raw")
        keys = "mutual ML-DSA-65 raw public keys"
    else:
        options = ("--certificate", str(setting.certificate), "--key", str(setting.key))
        keys = "ECDSA P-256 certificate of the server only"
    options += ("--threads", str(THREADS))
    return Contender(
        name=f"{engine}, ML-DSA-65" if raw_keys else engine,
        server=(program, "server", *options),
        client=(program, "client", *options, "--connect"),
        description=f"{engine} {version(engine)} in Rust, tokio with {THREADS} workers; {keys}",
        bulk_bytes=256 << 20,
        handshakes_only=raw_keys,
    )
