"""Names to addresses, the way RFC 8305 wants it: both families at once, first come first tried.

Literal addresses (with a zone or without) resolve to themselves at once. The system's
resolver does the rest (``loop.getaddrinfo``), so hosts files, search domains and NSS apply.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyreach.addresses import IpMode, SocketAddress, parse_ip

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyreach.addresses import HostPort, IpAddress

__all__ = ["RESOLUTION_DELAY", "ResolutionError", "resolve"]

RESOLUTION_DELAY = 0.05
"""Seconds to wait for IPv6 addresses after IPv4 ones came first (RFC 8305, 3 and 8)."""


class ResolutionError(Exception):
    """A name has no address of the wanted families; the text is what the system says."""


@dataclass(frozen=True, slots=True)
class _Answer:
    addresses: tuple[IpAddress, ...]
    error: str | None = None


async def resolve(
    host: HostPort, *, mode: IpMode = IpMode.DUAL_STACK, delay: float = RESOLUTION_DELAY
) -> AsyncGenerator[tuple[SocketAddress, ...], None]:
    """Yield batches of addresses of ``host`` as answers arrive; each address appears once.

    IPv6 answers are yielded at once; IPv4 answers wait up to ``delay`` seconds for IPv6 ones,
    so that a slightly slower AAAA answer does not cost IPv6 its place (RFC 8305, 3). A family
    that answers later comes as a batch of its own.

    Args:
        host: a literal address, yielded as it is, or a name.
        mode: for names, only its families are asked for.
        delay: resolution delay in seconds.

    Raises:
        ResolutionError: after the last answer, if there was no address at all.
    """
    if host.address is not None:
        yield (host.address,)
        return
    wanted = ((socket.AF_INET6, mode.ipv6), (socket.AF_INET, mode.ipv4))
    tasks = [
        asyncio.create_task(_lookup(host.host, family), name=f"anyreach-resolve {host.host}")
        for family, on in wanted
        if on
    ]
    seen: set[IpAddress] = set()
    errors: list[str] = []
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first, last = tasks[0], tasks[-1]
        if not first.done() and last.result().addresses:
            await asyncio.wait([first], timeout=delay)
        while tasks:
            answers = [task.result() for task in tasks if task.done()]
            tasks = [task for task in tasks if not task.done()]
            errors.extend(answer.error for answer in answers if answer.error is not None)
            found = dict.fromkeys(ip for answer in answers for ip in answer.addresses)
            fresh = tuple(SocketAddress(ip, host.port) for ip in found if ip not in seen)
            seen.update(found)
            if fresh:
                yield fresh
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if not seen:
        raise ResolutionError("; ".join(dict.fromkeys(errors)) or "the name has no address")


async def _lookup(name: str, family: int) -> _Answer:
    loop = asyncio.get_running_loop()
    try:
        # SOCK_DGRAM: one entry per address instead of one per socket type.
        infos = await loop.getaddrinfo(name, None, family=family, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        return _Answer((), error.strerror or str(error))
    except (OSError, UnicodeError) as error:
        # UnicodeError: a label the IDNA codec refuses.
        return _Answer((), str(error))
    literals = (parse_ip(str(info[4][0])) for info in infos)
    return _Answer(tuple(dict.fromkeys(ip for ip in literals if ip is not None)))
