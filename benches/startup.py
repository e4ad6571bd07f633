"""What it takes to import the package and to start a node, each in fresh processes."""

import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_IMPORT = """
import time
start = time.perf_counter()
import anyreach
print(time.perf_counter() - start)
"""

_NODE = """
import asyncio, time
from anyreach import Node, P2pConfig
async def main():
    start = time.perf_counter()
    async with Node(P2pConfig(bind_addr="127.0.0.1:0")):
        print(time.perf_counter() - start)
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Startup:
    """Milliseconds, minimum and median of the repetitions."""

    import_ms: tuple[float, float]
    node_ms: tuple[float, float]


def measure(repetitions: int = 7) -> Startup:
    """Import the package and start a node so many times."""
    return Startup(_times(_IMPORT, repetitions), _times(_NODE, repetitions))


def _times(program: str, repetitions: int) -> tuple[float, float]:
    times = []
    for _ in range(repetitions):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,
            capture_output=True,
            check=True,
            timeout=60,
        )
        times.append(float(done.stdout) * 1e3)
    return min(times), statistics.median(times)
