"""Captures of the packets at a machine, as pcap files that the usual tools open."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .topology import UPLINK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .machine import Machine

__all__ = ["Capture", "capture"]

_SCRIPT: Final = str(Path(__file__).with_name("packet_recorder.py"))
_FILE_HEADER: Final = 24
_RECORD_HEADER: Final = 16


@dataclass(frozen=True, slots=True)
class Capture:
    """A finished or running capture.

    Attributes:
        path: the pcap file, complete when the capture has ended.
    """

    path: Path

    def packets(self) -> Iterator[bytes]:
        """The IP packets in it; of one that is being written, those that are complete."""
        data = self.path.read_bytes()
        at = _FILE_HEADER
        while at + _RECORD_HEADER <= len(data):
            (length,) = struct.unpack_from("=I", data, at + 8)
            at += _RECORD_HEADER + length
            if at <= len(data):
                yield data[at - length : at]

    def __contains__(self, needle: bytes) -> bool:
        """Whether any packet contains these bytes."""
        return any(needle in packet for packet in self.packets())


@contextlib.contextmanager
def capture(machine: Machine, path: Path, *, interface: str = UPLINK) -> Iterator[Capture]:
    """Capture what passes an interface within the block.

    Raises:
        AssertionError: packets came faster than they could be recorded.
    """
    process = machine.spawn_python("-I", "-S", _SCRIPT, interface, str(path))
    process.wait_event("recording")
    try:
        yield Capture(path)
    finally:
        process.end_input()
        recorded = process.wait_event("recorded")
    assert recorded["dropped"] == 0, "the capture is not complete"
