"""Running one command: event loop, signals, errors turned into messages and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from anyreach.errors import AnyreachError, ConfigError, ConnectError
from anyreach.transfer.errors import TransferError

from .output import Output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

__all__ = ["FAILED", "OK", "USAGE", "Context", "UsageError", "run"]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2

#: Added to the number of a signal that ended a command, as shells do.
_SIGNALLED: Final = 128

#: What asks a command to end.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

#: Seconds within which a second signal is an echo of the first: ``timeout`` signals its child and
#: then the whole process group, and so do terminals and supervisors.
_ECHO_SECONDS: Final = 0.5

#: What a shell reports for a program ended by SIGPIPE.
_BROKEN_PIPE: Final = _SIGNALLED + 13


class UsageError(Exception):
    """The command line asks for something that makes no sense; exit code 2."""


@dataclass(slots=True)
class Context:
    """What a command gets.

    Attributes:
        args: the parsed command line.
        output: where to tell what happens.
        signalled: number of the signal that asked the command to end, 0 if none did.
    """

    args: argparse.Namespace
    output: Output
    signalled: int = 0


def run(
    command: Callable[[Context], Awaitable[int]], args: argparse.Namespace, *, service: bool
) -> int:
    """Runs ``command`` to its end and returns the exit code.

    SIGINT and SIGTERM cancel it, so that everything is closed properly; another one, later than
    an echo of the first, ends the process at once.

    Args:
        service: the command runs until it is told to stop: a signal is success.
    """
    context = Context(args, Output(json_lines=args.json))
    try:
        code = asyncio.run(_supervise(command, context))
    except asyncio.CancelledError:
        if context.output.broken:
            return _BROKEN_PIPE
        code = OK if service else _SIGNALLED + context.signalled
    except UsageError as error:
        context.output.error(str(error))
        code = USAGE
    except ConfigError as error:
        context.output.error(str(error), field=error.field)
        code = USAGE
    except (AnyreachError, OSError) as error:
        context.output.error(_sentence(error), **_details(error))
        code = FAILED
    if context.signalled:
        # What is left takes no time, and has no handlers: an echo must not change the exit code.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return _BROKEN_PIPE if context.output.broken else code


async def _supervise(command: Callable[[Context], Awaitable[int]], context: Context) -> int:
    task = asyncio.current_task()
    assert task is not None
    context.output.on_broken = task.cancel
    echo_until = 0.0

    def stop(number: int) -> None:
        nonlocal echo_until
        if not context.signalled:
            context.signalled = number
            echo_until = time.monotonic() + _ECHO_SECONDS
            task.cancel()
        elif time.monotonic() > echo_until:
            os._exit(_SIGNALLED + number)

    with _signals(stop, lambda: context.signalled != 0), _watched_output(context.output):
        return await command(context)


@contextlib.contextmanager
def _signals(stop: Callable[[int], None], stopped: Callable[[], bool]) -> Iterator[None]:
    """Calls ``stop`` in the event loop when the process is asked to end.

    Once it was called, it goes on being called afterwards, while the process ends.
    """
    loop = asyncio.get_running_loop()

    def from_handler(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop, number)

    def at_the_end(number: int, _: FrameType | None) -> None:
        stop(number)

    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop, number)
    except NotImplementedError:  # Windows
        for number in _SIGNALS:
            signal.signal(number, from_handler)
    try:
        yield
    finally:
        with _held_back():
            for number in _SIGNALS:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
                signal.signal(number, at_the_end if stopped() else previous[number])


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Signals that come meanwhile are delivered afterwards, where the system can do that.

    A loop that removes a handler leaves the default action in place, which is to die.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _watched_output(output: Output) -> Iterator[None]:
    """Notices that a pipe lost its reader also while there is nothing to print."""
    try:
        descriptor = sys.stdout.fileno()
        piped = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (AttributeError, OSError, ValueError):  # no standard output, or a replaced one
        piped = False
    loop = asyncio.get_running_loop()
    if piped:
        try:
            # A pipe we write to never becomes readable: an event on it is its end.
            loop.add_reader(descriptor, output.reader_gone)
        except (NotImplementedError, OSError):
            piped = False
    try:
        yield
    finally:
        if piped:
            loop.remove_reader(descriptor)


def _details(error: Exception) -> dict[str, object]:
    """What programs want to know besides the sentence."""
    details: dict[str, object] = {"kind": type(error).__name__}
    if isinstance(error, ConnectError):
        details["attempts"] = [asdict(attempt) for attempt in error.attempts]
    if isinstance(error, TransferError):
        details["code"] = str(error.code)
    return details


def _sentence(error: Exception) -> str:
    if isinstance(error, ConnectError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, AnyreachError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename is not None else reason
    return str(error) or type(error).__name__


def flush_standard_streams() -> None:
    """Flushes what was printed; a reader that went away is not an error of ours."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
