"""The machine and the tools a report was made with; nothing that names the machine."""

import os
import platform
import shutil
import subprocess
from pathlib import Path


def describe(profile: str) -> dict[str, str]:
    """Facts for the head of the report, in order."""
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores visible",
        "System": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Rust": f"{_rustc()}, {profile} profile",
        "Socket buffers": _socket_buffers(),
    }


def load() -> str:
    """The load averages of 1, 5 and 15 minutes."""
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _rustc() -> str:
    rustc = shutil.which("rustc")
    if rustc is None:
        return "unknown"
    words = subprocess.run([rustc, "--version"], capture_output=True, text=True, check=True)
    return " ".join(words.stdout.split()[:2])


def _socket_buffers() -> str:
    limits = [Path(f"/proc/sys/net/core/{name}_max") for name in ("rmem", "wmem")]
    if not all(path.exists() for path in limits):
        return "8 MiB asked for"
    granted = [int(path.read_text()) // 1024 for path in limits]
    return f"8 MiB asked for; the system grants at most {granted[0]} and {granted[1]} KiB"
