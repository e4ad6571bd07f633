"""Lines with delay, jitter, loss and a limited rate.

The kernel here has no netem. The router of the line sends what comes from or goes to it through a
pair of TUN devices, one per direction, and a program between holds the packets back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import middlebox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network, IPv6Network

    from .machine import Machine

__all__ = ["PERFECT", "Emulation", "Quality"]

_FIRST_TABLE: Final = 1000  # routing tables, two per line; 253 to 255 are the kernel's own

# Preferences of the routing rules. A packet passes the upward device of its line first, then the
# downward device of the other line, then it is routed as usual.
_UP: Final = 1000
_PASSED_DOWN: Final = 1500
_DOWN: Final = 2000

_DEFAULT_QUEUE: Final = 0.1  # seconds at the full rate: a moderately bloated buffer


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a line is, the same in both directions.

    Attributes:
        delay: seconds one way.
        jitter: largest further delay in seconds, uniformly distributed; the order is kept.
        loss: share of packets lost, 0 to 1.
        rate: bytes per second, ``None`` for no limit.
        queue: bytes that wait for a limited line before further ones are dropped; by default what
            it carries in 100 ms.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    queue: int | None = None

    def words(self) -> dict[str, object]:
        """As settings of the program."""
        words: dict[str, object] = {
            "delay_us": round(self.delay * 1e6),
            "jitter_us": round(self.jitter * 1e6),
            "loss": self.loss,
            "rate": self.rate or 0,
        }
        if self.rate is not None:
            words["queue"] = self.queue or round(self.rate * _DEFAULT_QUEUE)
        return words


PERFECT: Final = Quality()
"""No delay, no loss, no limit: still through the emulation."""


class Emulation:
    """The detour of one line."""

    def __init__(self, router: Machine, number: int, port: str) -> None:
        self._router = router
        self._up, self._down = f"up{number}", f"down{number}"
        self._up_table = _FIRST_TABLE + 2 * number
        self._down_table = self._up_table + 1
        self._rules: list[tuple[int, str]] = []
        middlebox.add_tun(router, self._up, self._down)
        self._process = middlebox.start(router, "link", up=self._up, down=self._down)
        # A router that translates addresses must see every packet once, between its lines.
        router.nft(
            f"table inet emulation{number} {{\nchain prerouting {{\n"
            "type filter hook prerouting priority raw; policy accept;\n"
            f'iifname {{ "{port}", "{self._down}" }} notrack\n}}\n}}\n'
        )
        for version in (4, 6):
            router.ip(
                f"route replace default dev {self._up} table {self._up_table}",
                f"route replace default dev {self._down} table {self._down_table}",
                f"rule add iif {port} lookup {self._up_table} pref {_UP}",
                version=version,
            )

    def route(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        """Say which networks are at the end of the line."""
        rules: list[tuple[int, str]] = [
            (network.version, rule)
            for network in networks
            for rule in (
                f"to {network} iif {self._down} lookup main pref {_PASSED_DOWN}",
                f"to {network} lookup {self._down_table} pref {_DOWN}",
            )
        ]
        for version, rule in self._rules:
            self._router.ip(f"rule delete {rule}", version=version)
        for version, rule in rules:
            self._router.ip(f"rule add {rule}", version=version)
        self._rules = rules

    def set(self, quality: Quality) -> None:
        """Give packets to come this quality."""
        words = " ".join(f"{key}={value}" for key, value in quality.words().items())
        middlebox.command(self._process, words)
