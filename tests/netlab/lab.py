"""A laboratory of network namespaces that always goes away again.

::

    with Lab() as lab:
        a = lab.host("a", DUAL_STACK)
        b = lab.host("b", V4_ONLY)
        a.run(["ping", "-c1", str(b.v4)])
        home = lab.site("home", PORT_RESTRICTED)
        home.host.run(["ping", "-c1", str(a.v4)])

Removal happens at the end of the ``with`` block, else at interpreter exit, else (SIGKILL) by a
watchdog process. Labs of other processes, threads and the same process do not see each other.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import tempfile
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from . import reaper
from .kinds import Attachment
from .routers import Carrier, Engine, Gateway
from .sites import LanHost, Site, host_kind
from .topology import DUAL_STACK, Host, HostKind, Internet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from .kinds import SiteKind
    from .machine import Machine
    from .policies import NatPolicy
    from .process import Process

__all__ = ["DEFAULT_MTU", "Lab"]

DEFAULT_MTU: Final = 1500
"""Bytes; Ethernet."""

_PUBLIC_LANS: Final = IPv4Network("192.0.2.0/24")
"""Where sites get their public networks from, eight addresses each (RFC 5737)."""

_PRIVATE_LANS: Final = IPv4Network("192.168.0.0/16")
"""Where sites get their private networks from, unless they are given one."""

_counter: Final[Iterator[int]] = itertools.count()
_watched: set[int] = set()  # process ids that have a watchdog; a fork needs its own


class Lab:
    """An internet router and hosts around it, in namespaces of their own."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        if self._owner not in _watched:
            for prefix in reaper.dead_owner_prefixes():
                reaper.remove_prefix(prefix)
            reaper.start_watchdog(self._owner)
            _watched.add(self._owner)
        self.prefix = f"{reaper.owner_prefix(self._owner)}{next(_counter)}-"
        self.scratch = Path(tempfile.gettempdir()) / f"{self.prefix}scratch"
        self.machines: dict[str, Machine] = {}
        self.sites: dict[str, Site] = {}
        self._public_lans = _PUBLIC_LANS.subnets(new_prefix=29)
        self._private_lans = _PRIVATE_LANS.subnets(new_prefix=24)
        next(self._private_lans)  # 192.168.0.0/24, a gateway of which is easily taken for a host
        atexit.register(self.close)
        self.scratch.mkdir(mode=0o700)
        try:
            self.internet = Internet(f"{self.prefix}internet", self.scratch / "internet")
            self.machines["internet"] = self.internet
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def host(self, label: str, kind: HostKind = DUAL_STACK, *, mtu: int = DEFAULT_MTU) -> Host:
        """Attach one more host.

        Args:
            label: its name within this lab, letters, digits and underscores.
            kind: what kind of line it has.
            mtu: of its line, in bytes.

        Raises:
            ValueError: the label is taken or unfit.
        """
        name, home = self._place(label)
        host = Host(name, self.internet, kind, label=label, home=home, mtu=mtu)
        self.machines[label] = host
        return host

    def site(
        self,
        label: str,
        kind: SiteKind,
        *,
        engine: Engine = Engine.KERNEL,
        carrier: Carrier | None = None,
        lan: IPv4Network | None = None,
        mtu: int = DEFAULT_MTU,
    ) -> Site:
        """Build one more site with one host, whose label is the site's.

        Args:
            label: its name within this lab, letters, digits and underscores.
            kind: what it is like.
            engine: what translates addresses.
            carrier: the provider's NAT to put it behind; by default the site gets its own, if its
                kind has one.
            lan: its private network; by default one that no other site has.
            mtu: of its line, in bytes.

        Raises:
            ValueError: the label is taken or unfit.
        """
        upstream = self.internet if carrier is None else carrier.router
        if not kind.has_router:
            site = Site(label, kind, [self.host(label, host_kind(kind), mtu=mtu)])
            self.sites[label] = site
            return site
        if kind.carrier is not None and carrier is None:
            carrier = self.carrier(f"{label}_carrier", kind.carrier, engine=engine)
            upstream = carrier.router
        if kind.v4 is Attachment.TRANSLATED:
            lan = lan or next(self._private_lans)
        elif kind.v4 is not Attachment.NONE:
            lan = next(self._public_lans)
        router = f"{label}_router"
        name, home = self._place(router)
        gateway = Gateway(
            name, upstream, kind, lan, label=router, home=home, mtu=mtu, engine=engine
        )
        self.machines[router] = gateway
        site = Site(label, kind, [], gateway, carrier)
        self.sites[label] = site
        self.add_host(site, label)
        if kind.has_proxy:
            site.start_proxy()
        return site

    def carrier(self, label: str, policy: NatPolicy, *, engine: Engine = Engine.KERNEL) -> Carrier:
        """Attach a provider that translates its subscribers' addresses."""
        name, home = self._place(label)
        carrier = Carrier(
            name, self.internet, policy, label=label, home=home, mtu=DEFAULT_MTU, engine=engine
        )
        self.machines[label] = carrier
        return carrier

    def add_host(self, site: Site, label: str) -> LanHost:
        """Plug one more host in behind the router of a site.

        Raises:
            ValueError: the label is taken or unfit, or the site has no router.
        """
        if site.gateway is None:
            raise ValueError(f"{site.label} ({site.kind}) has no router to plug a host into")
        name, home = self._place(label)
        host = LanHost(name, site.gateway, host_kind(site.kind), label=label, home=home)
        self.machines[label] = host
        site.hosts.append(host)
        if site.proxy is not None:
            host.environment["HTTPS_PROXY"] = site.proxy.url
        return host

    def move(self, host: Host | LanHost, site: Site) -> None:
        """Unplug a host of one site and plug it in behind the router of another.

        Raises:
            ValueError: one of the sites has no router.
        """
        if not isinstance(host, LanHost) or site.gateway is None:
            raise ValueError(f"{host.label} cannot move to {site.label}: it takes two routers")
        (old,) = (other for other in self.sites.values() if host in other.hosts)
        host.move(site.gateway)
        old.hosts.remove(host)
        site.hosts.append(host)

    @contextlib.contextmanager
    def cut(self, a: Site, b: Site) -> Iterator[None]:
        """Drop all packets between two sites within the block; both keep the internet."""
        rules = [
            f"{'ip' if near.version == 4 else 'ip6'} saddr {near} "
            f"{'ip' if far.version == 4 else 'ip6'} daddr {far} drop"
            for one, other in ((a, b), (b, a))
            for near in one.networks
            for far in other.networks
            if near.version == far.version
        ]
        self.internet.filter.add(rules)
        try:
            yield
        finally:
            self.internet.filter.remove(rules)

    def _place(self, label: str) -> tuple[str, Path]:
        """Name and home for a machine of that label."""
        if not label.isidentifier() or label in self.machines:
            raise ValueError(f"label {label!r} is taken or not an identifier")
        return f"{self.prefix}{label}", self.scratch / label

    @property
    def processes(self) -> list[Process]:
        """Every program started in any machine."""
        return [process for machine in self.machines.values() for process in machine.processes]

    def transcripts(self) -> str:
        """What all programs printed, for failure reports."""
        return "\n".join(process.transcript() for process in self.processes)

    def close(self) -> None:
        """End all programs and remove all namespaces. Doing it again does nothing."""
        if os.getpid() != self._owner:
            return  # a forked child must not tear down its parent's lab
        atexit.unregister(self.close)
        for process in self.processes:
            process.close()
        reaper.remove(reaper.namespaces(self.prefix))
        shutil.rmtree(self.scratch, ignore_errors=True)
