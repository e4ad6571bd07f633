"""One network namespace, by way of ``ip`` and ``nft``. Knows nothing of topologies."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

from . import reaper

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["CommandError", "Filter", "Namespace"]

_COMMAND_TIMEOUT: Final = 30.0  # seconds; ip and nft answer in milliseconds


class CommandError(RuntimeError):
    """A configuration command failed."""


def _command(argv: Sequence[str], text: str = "") -> str:
    done = subprocess.run(
        argv, input=text, text=True, capture_output=True, check=False, timeout=_COMMAND_TIMEOUT
    )
    if done.returncode != 0:
        raise CommandError(f"{' '.join(argv)}: {done.stderr.strip()}\n{text}")
    return done.stdout


class Namespace:
    """A named network namespace with its loopback interface up."""

    def __init__(self, name: str) -> None:
        self.name = name
        _command(["ip", "netns", "add", name])

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` in here; it becomes ``argv`` (same process id)."""
        return ["ip", "netns", "exec", self.name, *argv]

    def ip(self, *lines: str, version: int | None = None) -> None:
        """Run several ``ip`` commands (without the leading ``ip``), stopping at an error.

        Args:
            lines: the commands.
            version: of IP, for commands that do not show it by an address.
        """
        family = [] if version is None else [f"-{version}"]
        argv = ["ip", *family, "-n", self.name, "-batch", "-"]
        _command(argv, "".join(f"{line}\n" for line in lines))

    def ip_json(self, *argv: str) -> Any:
        """The answer of one ``ip`` query as JSON."""
        return json.loads(_command(["ip", "-n", self.name, "-json", *argv]) or "[]")

    def sysctl(self, settings: Mapping[str, int]) -> None:
        """Write settings under ``/proc/sys/net``, keys as ``ipv6/conf/all/forwarding``."""
        lines = [f"echo {value} > /proc/sys/net/{key}\n" for key, value in settings.items()]
        _command(self.enter(["sh", "-e", "-s"]), "".join(lines))

    def nft(self, script: str) -> None:
        """Apply an nftables script as one transaction."""
        _command(self.enter(["nft", "-f", "-"]), script)

    def nft_json(self, query: str) -> Any:
        """The answer of one nftables query as JSON."""
        return json.loads(_command(self.enter(["nft", "-j", *query.split()])))

    def etc_files(self, files: Mapping[str, str]) -> None:
        """Give programs started in here from now on their own ``/etc/<name>`` files."""
        folder = reaper.NETNS_CONFIG / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content)

    def veth(self, name: str, peer: Namespace, peer_name: str, *, mtu: int) -> None:
        """A virtual cable from interface ``name`` in here to ``peer_name`` in there, both down.

        The interfaces are created in place, so two labs never meet in a shared namespace.
        """
        _command(
            f"ip link add {name} netns {self.name} mtu {mtu} type veth"
            f" peer name {peer_name} netns {peer.name} mtu {mtu}".split()
        )


class Filter:
    """The packets a router drops. Every change replaces the whole chain in one transaction."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._rules: list[str] = []
        self._apply()

    @property
    def rules(self) -> Sequence[str]:
        """The rules in force."""
        return tuple(self._rules)

    def add(self, rules: Iterable[str]) -> None:
        """Put nftables rules of the forward hook into force, in addition to the present ones."""
        self._rules.extend(rules)
        self._apply()

    def remove(self, rules: Iterable[str]) -> None:
        """Take rules away again."""
        for rule in rules:
            self._rules.remove(rule)
        self._apply()

    def _apply(self) -> None:
        body = "\n".join(self._rules)
        self._namespace.nft(
            "table inet lab {}\n"
            "delete table inet lab\n"
            "table inet lab {\n"
            "chain forward {\n"
            "type filter hook forward priority filter; policy accept;\n"
            f"{body}\n"
            "}\n"
            "}\n"
        )
