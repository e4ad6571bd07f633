"""What a user gets: the sdist builds, and its wheel works in a fresh venv without Rust."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# One worker for all: they share what they build.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("wheel"),
]

CONNECT = """
import asyncio
from anyreach import Node, P2pConfig

async def main():
    config = P2pConfig(bind_addr="127.0.0.1:0")
    async with Node(config) as alice, Node(config) as bob:
        connection = await alice.connect(bob.ticket())
        assert connection.peer_id == bob.peer_id
        print(connection.key_exchange_group)

asyncio.run(main())
"""


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fresh_venv(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    manifest = ROOT / "rust" / "bindings" / "Cargo.toml"
    run(sys.executable, "-m", "maturin", "sdist", "--manifest-path", manifest, "--out", out)
    (path,) = out.glob("anyreach-*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as by pip on a platform without a wheel; in the dev profile and with
    the dependencies the test run has compiled already, to save time."""
    out = tmp_path_factory.mktemp("wheel")
    env = os.environ | {
        "MATURIN_PEP517_ARGS": "--profile dev",
        "CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target")),
    }
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, sdist, env=env)
    (path,) = out.glob("anyreach-*.whl")
    return path


def test_the_sdist_is_complete_and_clean(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for needed in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE"):
        assert needed in names
    assert any(name.startswith("rust/quic/src/") for name in names)
    assert "python/anyreach/py.typed" in names
    stray = [n for n in names if re.search(r"\.(so|pyc)$|__pycache__|/target/|\.venv", n)]
    assert stray == []


def test_one_wheel_for_every_python(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "anyreach/py.typed" in names
    assert "anyreach/_core.pyi" in names
    assert any(re.fullmatch(r"anyreach/_core\.abi3\.so", name) for name in names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_wheel_works_without_rust(wheel: Path, tmp_path: Path) -> None:
    python = fresh_venv(tmp_path / "venv")
    run(python, "-m", "pip", "install", "--no-index", wheel)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    version = run(python, "-m", "anyreach", "--version", env=env)
    assert re.fullmatch(r"anyreach \d+\.\d+\.\d+\S*\n", version)
    assert run(python.parent / "anyreach", "--version", env=env) == version
    assert run(python, "-c", CONNECT, env=env) == "X25519MLKEM768\n"
