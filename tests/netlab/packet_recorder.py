"""Records the IP packets of an interface into a pcap file. Standard library only; a script.

Usage: ``packet_recorder.py INTERFACE FILE``. Prints ``recording`` when it does and records until
standard input ends, then prints ``{"event": "recorded", "packets", "dropped"}``.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from typing import BinaryIO

_ETH_P_ALL = 0x0003
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_LINKTYPE_RAW = 101
_BUFFER = 64 << 20  # bytes; this interpreter may not get to run for a while
_SNAP = 65535


def record(interface: str, file: BinaryIO) -> None:
    """Record until standard input ends."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((interface, _ETH_P_ALL))
        sock.setblocking(False)
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _SNAP, _LINKTYPE_RAW))
        print(json.dumps({"event": "recording"}), flush=True)
        packets = 0
        ended = False
        while not ended:
            ready, _, _ = select.select([sock, sys.stdin], [], [])
            ended = sys.stdin in ready
            packets += _drain(sock, file)
            file.flush()  # for whoever reads what is there so far
        _, dropped = struct.unpack("=II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        file.flush()
    print(json.dumps({"event": "recorded", "packets": packets, "dropped": dropped}), flush=True)


def _drain(sock: socket.socket, file: BinaryIO) -> int:
    count = 0
    while True:
        try:
            packet, (_, protocol, *_) = sock.recvfrom(_SNAP)
        except BlockingIOError:
            return count
        if protocol not in (_ETH_P_IP, _ETH_P_IPV6):
            continue
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        length = len(packet)
        file.write(struct.pack("=IIII", seconds, nanoseconds // 1000, length, length))
        file.write(packet)
        count += 1


if __name__ == "__main__":
    with open(sys.argv[2], "wb") as output:  # noqa: PTH123
        record(sys.argv[1], output)
