"""What the command line prints: JSON lines for programs, short lines for people.

With ``--json`` standard output carries one JSON object per line and nothing else. Without it,
results go to standard output and everything said in passing to standard error. Colours appear
on terminals unless ``NO_COLOR`` is set (https://no-color.org).
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO

from anyreach.transfer.names import printable

from .words import describe

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Output", "Style"]

_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Style:
    """Puts colours around text, or does nothing."""

    def __init__(self, enabled: bool) -> None:
        self.enabled: Final = enabled

    @classmethod
    def of(cls, stream: TextIO | None) -> Style:
        """Colours if ``stream`` is a terminal that shows them and the user wants them."""
        return cls(
            stream is not None
            and stream.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )

    def __call__(self, name: str, text: str) -> str:
        return f"\x1b[{_CODES[name]}m{text}\x1b[0m" if self.enabled else text


class Output:
    """Where a command tells what happens.

    Args:
        json_lines: print JSON instead of sentences.
        on_broken: called once when nobody reads standard output any more.
    """

    def __init__(self, *, json_lines: bool, on_broken: Callable[[], object] | None = None) -> None:
        self.json_lines: Final = json_lines
        self.on_broken = on_broken
        self.broken = False
        self.style: Final = Style.of(sys.stdout)
        self.error_style: Final = Style.of(sys.stderr)
        #: Called before a line goes to standard error, so that a progress bar can step aside.
        self.before_note: Callable[[], object] = lambda: None

    def event(self, event: dict[str, object]) -> None:
        """Tells one event, in the words of DESIGN's command-line contract."""
        if self.json_lines:
            self._line(json.dumps(_rounded(event), separators=(",", ":")))
            return
        text = describe(event, self.style)
        if text is not None:
            self.before_note()
            self._line(text)

    def note(self, text: str) -> None:
        """Says something to people, on standard error."""
        self._error_line("", text)

    def warning(self, text: str) -> None:
        """Warns people, on standard error."""
        self._error_line(self.error_style("yellow", "warning: "), text)

    def error(self, text: str, **details: object) -> None:
        """Reports a failure: a sentence for people, and an ``error`` event with ``--json``."""
        if self.json_lines:
            self.event({"event": "error", "message": text, **details})
        self.complain(text)

    def complain(self, text: str) -> None:
        """Reports a failure to people only: an event told it to programs already."""
        self._error_line(self.error_style("red", "error: "), text)

    def _line(self, text: str) -> None:
        if self.broken or sys.stdout is None:
            return
        try:
            sys.stdout.write(_encodable(text, sys.stdout) + "\n")
            sys.stdout.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.reader_gone()

    def _error_line(self, prefix: str, text: str) -> None:
        if sys.stderr is None:
            return
        self.before_note()
        # The text may quote a peer; it must not control the terminal.
        safe = "\n".join(printable(line, 2000) for line in text.split("\n"))
        try:
            sys.stderr.write(_encodable(prefix + safe, sys.stderr) + "\n")
            sys.stderr.flush()
        except OSError:
            return

    def reader_gone(self) -> None:
        """Nobody reads any more: stay quiet, also when the interpreter flushes at its end."""
        if self.broken:
            return
        self.broken = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        if self.on_broken is not None:
            self.on_broken()


def _rounded(value: object) -> object:
    """Times and rates to three decimals: nanoseconds and micro-bytes mean nothing here."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _encodable(text: str, stream: TextIO) -> str:
    """``text`` in what the stream's encoding can say; a C locale must not end the program."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
