"""``anyreach send PEER FILE...``: send files, resuming as often as it takes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anyreach.errors import ConnectError, PeerIdMismatch, StreamClosed, StreamReset
from anyreach.peer import parse_peer
from anyreach.transfer import (
    Outgoing,
    Pacer,
    Sent,
    TransferError,
    TransferErrorCode,
    send_file,
)

from . import options
from .header import encode_header
from .progress import ProgressBar
from .runner import FAILED, OK
from .session import Session, read_acceptance, running_node

if TYPE_CHECKING:
    import argparse

    from anyreach import Connection
    from anyreach.config import P2pOptions
    from anyreach.peer import PeerAddress

    from .runner import Context

SERVICE = False
HELP = "send files to a peer, checked by SHA-256 and resumed after a break"

#: Seconds without progress until sending is given up: a router restarts, a laptop changes
#: networks and a receiver is started again in less.
_GIVE_UP_SECONDS: Final = 120.0

#: Seconds before the first repetition; doubled each time up to the second value.
_BACKOFF: Final = (0.25, 5.0)

#: A transfer notices a dead connection sooner than the default of 50 s: its data is repeated
#: all the time anyway, so silence for 12 s means that nobody is there.
_NODE_DEFAULTS: Final[P2pOptions] = {
    **options.VISITOR,
    "idle_timeout": 12.0,
    "keep_alive_interval": 4.0,
}

#: Refusals that concern the peer rather than one file: the others are not even tried.
_HOPELESS: Final = frozenset({TransferErrorCode.REFUSED, TransferErrorCode.UNSUPPORTED})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the command line."""
    options.add_peer_argument(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="what to send")
    parser.add_argument(
        "--limit-rate",
        type=options.rate,
        metavar="RATE",
        help="at most so many bytes per second, such as 500k or 10M",
    )
    options.add_progress_option(parser)
    options.add_timeout_option(
        parser,
        f"seconds without progress until it is given up (default {_GIVE_UP_SECONDS:.0f}; "
        "30 to reach the peer for the first time)",
    )
    options.add_common_options(parser, bind="a free port")


async def run(context: Context) -> int:
    """Runs the command."""
    args = context.args
    peer = parse_peer(args.peer)
    for name in args.files:
        # Found out now, not after the first gigabytes.
        await asyncio.to_thread(Outgoing.look_at, Path(name))
    async with running_node(
        context,
        bind=options.CLIENT_BIND,
        defaults=_NODE_DEFAULTS,
        options={} if args.timeout is None else {"connect_timeout": min(args.timeout, 3600)},
    ) as session:
        delivery = _Delivery(context, session, peer)
        await delivery.connect()
        for name in args.files:
            if not await delivery.send(Path(name)):
                break
        return delivery.finish()


@dataclass(slots=True)
class _Totals:
    files: int = 0
    octets: int = 0
    carried: int = 0
    failed: int = 0
    started: float = field(default_factory=time.perf_counter)


class _Delivery:
    """Sends files one after the other over connections that may break."""

    def __init__(self, context: Context, session: Session, peer: PeerAddress) -> None:
        args = context.args
        self._output = context.output
        self._session = session
        self._peer = peer
        self._connection: Connection | None = None
        self._method: str | None = None
        self._relay: str | None = None
        self._patience = _GIVE_UP_SECONDS if args.timeout is None else args.timeout
        self._pacer = Pacer(args.limit_rate) if args.limit_rate is not None else None
        self._bar = ProgressBar(forced=args.progress)
        self._output.before_note = self._bar.clear
        self._totals = _Totals()

    async def connect(self) -> Connection:
        """The connection, made anew if the last one ended.

        Raises:
            ConnectError: not reached.
        """
        if self._connection is None or self._connection.closed:
            self._connection = await self._session.dial(self._peer)
        self._note_path()
        return self._connection

    def _note_path(self) -> None:
        path = None if self._connection is None else self._connection.path
        if path is not None:
            self._method, self._relay = path.method, path.relay

    async def send(self, path: Path) -> bool:
        """Sends one file; false if there is no point in trying others.

        Raises:
            ConnectError: the peer could not be reached again in time.
            OSError: the file cannot be read.
        """
        attempt = _Attempts(self._patience)
        while True:
            try:
                sent = await self._send_once(path, attempt)
            except TransferError as error:
                if not error.retryable or not attempt.failed():
                    return self._tell_failure(path, error)
                problem: Exception = error
            except PeerIdMismatch:
                raise
            except (ConnectionError, StreamClosed, EOFError, TimeoutError) as error:
                if not attempt.failed():
                    raise
                problem = error
            else:
                self._note_path()
                self._tell_sent(sent)
                return True
            delay = attempt.next_delay()
            reason = str(problem).partition("\n")[0]
            self._output.note(f"{path.name}: {reason}; trying again in {delay:.1f} s")
            await asyncio.sleep(delay)

    async def _send_once(self, path: Path, attempt: _Attempts) -> Sent:
        # Looked at again each time: a file that changed since is a new file.
        outgoing = await asyncio.to_thread(Outgoing.look_at, path)
        connection = await self.connect()
        stream = await connection.open_stream()
        started_at: int | None = None

        def progress(done: int) -> None:
            nonlocal started_at
            if started_at is None:
                started_at = done
                self._bar.start(outgoing.name, done, outgoing.size)
            else:
                attempt.progressed()
            self._bar.update(done)
            self._carried = done - started_at

        self._carried = 0
        try:
            await stream.write(encode_header("send"))
            sent = await send_file(
                stream,
                outgoing,
                accepted=lambda: read_acceptance(stream, "send"),
                progress=progress,
                pacer=self._pacer,
            )
        except (StreamReset, ConnectError):
            raise
        except ConnectionError:
            self._connection = None
            raise
        else:
            self._bar.finish()
            return sent
        finally:
            self._totals.carried += self._carried
            self._bar.clear()

    def _tell_sent(self, sent: Sent) -> None:
        self._totals.files += 1
        self._totals.octets += sent.size
        self._output.event(
            {
                "event": "file_sent",
                "name": sent.name,
                "bytes": sent.size,
                "sha256": sent.sha256,
                "resumed_at": sent.resumed_at,
                "existing": sent.existing,
            }
        )

    def _tell_failure(self, path: Path, error: TransferError) -> bool:
        self._totals.failed += 1
        self._output.error(f"{path.name}: {error}", file=str(path), code=str(error.code))
        return error.code not in _HOPELESS

    def finish(self) -> int:
        """Tells the totals; the exit code."""
        totals = self._totals
        if totals.failed:
            return FAILED
        seconds = max(time.perf_counter() - totals.started, 1e-6)
        self._session.conclude(
            {
                "event": "sent",
                "files": totals.files,
                "bytes": totals.octets,
                "mb_per_s": totals.carried / 1e6 / seconds,
                "method": self._method,
                "relay": self._relay,
                "carried_bytes": totals.carried,
                "seconds": seconds,
            }
        )
        return OK


class _Attempts:
    """Whether to go on after a break, and how long to wait before that."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._failing_since: float | None = None
        self._delay = _BACKOFF[0]

    def progressed(self) -> None:
        """Bytes moved: patience and backoff start anew."""
        self._failing_since = None
        self._delay = _BACKOFF[0]

    def failed(self) -> bool:
        """Notes a break; whether there is time left for another attempt."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since < self._patience

    def next_delay(self) -> float:
        """Seconds to wait; grows with each call without progress."""
        delay, self._delay = self._delay, min(2 * self._delay, _BACKOFF[1])
        return delay
