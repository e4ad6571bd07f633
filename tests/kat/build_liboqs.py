"""Build liboqs for the optional member of the cross matrix.

    python tests/kat/build_liboqs.py FOLDER
    pip install liboqs-python
    OQS_INSTALL_PATH=FOLDER pytest tests/kat

The C sources are those vendored in the crate `oqs-sys`, so that nothing but the package
registries is needed. They are liboqs 0.13 while liboqs-python expects a later one: it looks up
one function at import that 0.13 lacks and that concerns signatures only, and gets a stand-in.
Needs cargo, a C compiler and Python with `venv`; cmake and ninja are taken from PyPI.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

CRATE_VERSION = "0.11.0+liboqs-0.13.0"

MANIFEST = f"""\
[package]
name = "liboqs-source"
version = "0.0.0"
edition = "2021"

[lib]
path = "lib.rs"

[dependencies]
oqs-sys = "={CRATE_VERSION.partition("+")[0]}"

[workspace]
"""

SHIM = """\
#include <stdbool.h>
/* Asked for by liboqs-python at import; no signature scheme here takes a context string. */
bool OQS_SIG_supports_ctx_str(const char *name) { (void)name; return false; }
"""


class BuildError(Exception):
    """A tool is missing, or a step failed; its output is above."""


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run one step, showing its output.

    Raises:
        BuildError: the step failed.
    """
    print("+", *command, flush=True)
    if subprocess.run([str(part) for part in command], cwd=cwd, check=False).returncode:
        raise BuildError(f"failed: {command[0]}")


def require(tool: str) -> str:
    """The path of a tool that must be installed already."""
    path = shutil.which(tool)
    if path is None:
        raise BuildError(f"{tool} is needed and was not found")
    return path


def fetch_sources(work: Path) -> Path:
    """The liboqs tree inside the crate, fetched by cargo."""
    project = work / "source"
    project.mkdir(parents=True, exist_ok=True)
    (project / "Cargo.toml").write_text(MANIFEST)
    (project / "lib.rs").write_text("")
    run(require("cargo"), "vendor", "--quiet", "vendor", cwd=project)
    tree = project / "vendor" / "oqs-sys" / "liboqs"
    if not (tree / "CMakeLists.txt").is_file():
        raise BuildError(f"oqs-sys {CRATE_VERSION} holds no liboqs tree")
    return tree


def install_tools(work: Path) -> Path:
    """cmake and ninja in an environment of their own; the folder of their programs."""
    folder = work / "tools"
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "cmake", "ninja")
    return programs


def compile_library(tree: Path, programs: Path, work: Path) -> Path:
    """The static library with ML-KEM-768 and nothing else that is optional."""
    build = work / "build"
    run(
        programs / "cmake",
        *("-S", tree, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={programs / 'ninja'}"),
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
        "-DOQS_BUILD_ONLY_LIB=ON",
        "-DOQS_MINIMAL_BUILD=KEM_ml_kem_768;SIG_ml_dsa_65",
        "-DOQS_USE_OPENSSL=OFF",
    )
    run(programs / "cmake", "--build", build, "--parallel", str(os.cpu_count() or 1))
    return build / "lib" / "liboqs.a"


def link(archive: Path, work: Path, library: Path) -> None:
    """One shared library of the archive and the stand-in."""
    shim = work / "shim.c"
    shim.write_text(SHIM)
    library.parent.mkdir(parents=True, exist_ok=True)
    run(
        require("cc"),
        *("-shared", "-fPIC", "-O2", "-o", library, shim),
        *("-Wl,--whole-archive", archive, "-Wl,--no-whole-archive", "-lpthread"),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="becomes OQS_INSTALL_PATH")
    folder: Path = parser.parse_args().folder.resolve()
    work = folder / "work"
    try:
        require("cc")
        tree = fetch_sources(work)
        archive = compile_library(tree, install_tools(work), work)
        link(archive, work, folder / "lib" / "liboqs.so")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"export OQS_INSTALL_PATH={folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
