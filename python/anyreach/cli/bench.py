"""``anyreach bench PEER``: how much data a connection carries, and what it costs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyreach.peer import parse_peer
from anyreach.transfer.frames import encode_frame, get_int, read_frame
from anyreach.transfer.messages import parse_reply

from . import options
from .bench_service import CHUNK, MAX_DATAGRAM, MAX_SECONDS, send_datagrams_until
from .flows import DatagramFlows
from .header import encode_header
from .runner import OK, UsageError
from .session import open_service, running_node

if TYPE_CHECKING:
    import argparse

    from anyreach import Connection, Stream

    from .runner import Context

SERVICE = False
HELP = "measure throughput to a peer"

_MAX_STREAMS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    options.add_peer_argument(parser)
    parser.add_argument(
        "--seconds", type=options.seconds, default=5.0, metavar="S", help="duration (default 5)"
    )
    parser.add_argument(
        "--streams", type=options.count, default=1, metavar="K", help="streams (default 1)"
    )
    parser.add_argument("--reverse", action="store_true", help="the peer sends, this side receives")
    parser.add_argument("--datagrams", action="store_true", help="datagrams instead of streams")
    parser.add_argument(
        "--size", type=options.count, default=1000, metavar="B", help="bytes per datagram (1000)"
    )
    options.add_timeout_option(parser, "seconds allowed to reach the peer (default 30)")
    options.add_common_options(parser, bind="a free port")


@dataclass(frozen=True, slots=True)
class _Result:
    """What one run carried, in how long."""

    octets: int
    seconds: float
    datagrams: int | None = None
    offered: int | None = None


async def run(context: Context) -> int:
    """Runs the command."""
    args = context.args
    peer = parse_peer(args.peer)
    if args.seconds > MAX_SECONDS or args.streams > _MAX_STREAMS or args.size > MAX_DATAGRAM:
        raise UsageError(
            f"at most {MAX_SECONDS} seconds, {_MAX_STREAMS} streams, {MAX_DATAGRAM} bytes"
        )
    async with running_node(
        context,
        bind=options.CLIENT_BIND,
        defaults=options.VISITOR,
        options={} if args.timeout is None else {"connect_timeout": args.timeout},
    ) as session:
        connection = await session.dial(peer)
        if args.datagrams:
            largest = connection.max_datagram_size
            if largest is None or args.size > largest:
                raise UsageError(f"the largest datagram on this path has {largest or 0} bytes")
        control, _ = await open_service(
            connection,
            "bench",
            direction="down" if args.reverse else "up",
            ms=round(args.seconds * 1000),
            datagrams=args.datagrams,
            size=args.size,
        )
        cpu = time.process_time()
        measure = _datagrams if args.datagrams else _streams
        result, peer_report = await measure(connection, control, args)
        cpu = time.process_time() - cpu
        path = connection.path
        gigabytes = max(result.octets, 1) / 1e9
        offered, arrived = result.offered, result.datagrams
        session.conclude(
            {
                "event": "bench",
                "mb_per_s": result.octets / 1e6 / max(result.seconds, 1e-9),
                "datagrams_per_s": None if arrived is None else arrived / max(result.seconds, 1e-9),
                "cpu_s_per_gb": cpu / gigabytes,
                "method": path.method if path else None,
                "relay": path.relay if path else None,
                "direction": "down" if args.reverse else "up",
                "bytes": result.octets,
                "seconds": result.seconds,
                "streams": None if args.datagrams else args.streams,
                "lost_percent": None
                if offered is None or arrived is None
                else 100 * (1 - arrived / max(offered, arrived, 1)),
                "peer_cpu_s_per_gb": peer_report["cpu_ms"] / 1000 / gigabytes,
                "remote": path.remote if path else None,
                "rtt_ms": path.rtt * 1000 if path else None,
                "group": connection.key_exchange_group,
            }
        )
    return OK


async def _end(control: Stream) -> dict[str, int]:
    """Ends the run; the peer's figures."""
    await control.write(encode_frame({"end": True}))
    reply = parse_reply(await read_frame(control))
    keys = ("bytes", "datagrams", "datagram_ms", "cpu_ms")
    return {key: get_int(reply, key, 0, 2**62) for key in keys}


async def _streams(
    connection: Connection, control: Stream, args: argparse.Namespace
) -> tuple[_Result, dict[str, int]]:
    started = time.perf_counter()
    deadline = time.monotonic() + args.seconds
    one = _download if args.reverse else _upload
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(connection, control.id, deadline)) for _ in range(args.streams)
        ]
    seconds = time.perf_counter() - started
    return _Result(sum(task.result() for task in tasks), seconds), await _end(control)


async def _upload(connection: Connection, run_id: int, deadline: float) -> int:
    """Writes until the deadline; bytes the peer says it read."""
    stream = await connection.open_stream()
    await stream.write(encode_header("bench-data", run=run_id))
    chunk = bytes(CHUNK)
    while time.monotonic() < deadline:
        await stream.write(chunk)
    await stream.finish()
    return get_int(parse_reply(await read_frame(stream)), "bytes", 0, 2**62)


async def _download(connection: Connection, run_id: int, deadline: float) -> int:
    """Reads until the deadline; bytes read."""
    stream = await connection.open_stream()
    await stream.write(encode_header("bench-data", run=run_id))
    parse_reply(await read_frame(stream))
    buffer = memoryview(bytearray(1 << 20))
    total = 0
    while time.monotonic() < deadline and (count := await stream.readinto(buffer)):
        total += count
    stream.stop()
    await stream.finish()
    return total


async def _datagrams(
    connection: Connection, control: Stream, args: argparse.Namespace
) -> tuple[_Result, dict[str, int]]:
    deadline = time.monotonic() + args.seconds
    if not args.reverse:
        prefix = DatagramFlows.prefix(control.id)
        offered = await send_datagrams_until(connection, prefix, args.size, deadline)
        report = await _end(control)
        seconds = max(report["datagram_ms"] / 1000, 1e-3)
        return _Result(report["bytes"], seconds, report["datagrams"], offered), report
    octets = datagrams = 0
    started = time.perf_counter()

    def count(batch: list[bytes], _: int) -> None:
        nonlocal octets, datagrams
        octets += sum(map(len, batch))
        datagrams += len(batch)

    with DatagramFlows(connection).open(control.id, count):
        await asyncio.sleep(args.seconds)
        seconds = time.perf_counter() - started
        return _Result(octets, seconds, datagrams), await _end(control)
