"""Whether this machine can hold the lab, and what happens to the tests when it cannot."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from . import no_af_inet6

__all__ = ["REQUIRE_VARIABLE", "missing", "netlab_required"]

REQUIRE_VARIABLE = "REQUIRE_NETLAB"
"""Set to 1 where the lab must work (continuous integration): a skip becomes a failure."""


@functools.cache
def missing() -> str | None:
    """Why the lab cannot run here, or ``None`` if it can."""
    if os.name != "posix" or not os.path.exists("/proc/self/ns/net"):  # noqa: PTH110
        return "no Linux network namespaces"
    if os.geteuid() != 0:
        return "not root"
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            return f"no {tool} command (package {package})"
    if not no_af_inet6.supported():
        return "seccomp filter not written for this architecture"
    # Root in a container may lack the capabilities; only trying tells.
    attempt = subprocess.run(
        ["unshare", "--net", "nft", "add table inet probe"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if attempt.returncode != 0:
        return f"cannot create a namespace with nftables: {attempt.stderr.strip()}"
    return None


def netlab_required() -> None:
    """Skip the calling test, saying why, unless the lab can run here.

    With ``REQUIRE_NETLAB=1`` in the environment it fails instead.
    """
    reason = missing()
    if reason is None:
        return
    import pytest  # noqa: PLC0415 (the demonstration runs without it)

    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"network lab required but not available: {reason}", pytrace=False)
    pytest.skip(f"network lab not available: {reason}")
