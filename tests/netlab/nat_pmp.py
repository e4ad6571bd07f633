"""A router that lends ports by NAT-PMP (RFC 6886). Runs on the router; standard library only.

Arguments: the address to listen on, the external address, the interface outside. It prints a JSON
line for each mapping it makes or takes back.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time

PORT = 5351
EXTERNAL_ADDRESS, MAP_UDP = 0, 1
ANSWER = 128
OK, UNSUPPORTED_VERSION, UNSUPPORTED_OPCODE = 0, 1, 5
FIRST_PORT = 50_000
"""Of those that are lent: none that the NAT of the lab would take for other flows."""

ADMITTED = 0x1  # kernel_nat.ADMITTED
_PREROUTING = "type nat hook prerouting priority dstnat - 10"
_MARKING = "type filter hook prerouting priority mangle"


def main(listen: str, external: str, outside: str) -> None:
    """Answer until killed."""
    began = time.monotonic()
    lent: dict[tuple[str, int], int] = {}
    _nft("add table ip lent")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((listen, PORT))
        _emit("listening", None, None)
        while True:
            request, sender = sock.recvfrom(1100)
            if len(request) < 2 or request[1] >= ANSWER:
                continue
            opcode = request[1]
            epoch = int(time.monotonic() - began)

            def answer(result: int, rest: bytes = b"") -> None:
                head = struct.pack("!BBHI", 0, ANSWER + opcode, result, epoch)  # noqa: B023 (called at once)
                sock.sendto(head + rest, sender)  # noqa: B023 (called at once)

            if request[0] != 0:
                answer(UNSUPPORTED_VERSION)  # PCP clients go on with NAT-PMP
            elif opcode == EXTERNAL_ADDRESS:
                answer(OK, socket.inet_aton(external))
            elif opcode == MAP_UDP and len(request) >= 12:
                _, internal, _, seconds = struct.unpack("!HHHI", request[2:12])
                port = lent.setdefault((sender[0], internal), FIRST_PORT + len(lent))
                if seconds == 0:
                    del lent[sender[0], internal]
                    port = 0
                _write(lent, outside)
                _emit("lent" if seconds else "returned", sender[0], port)
                answer(OK, struct.pack("!HHI", internal, port, seconds))
            else:
                answer(UNSUPPORTED_OPCODE)


def _write(lent: dict[tuple[str, int], int], outside: str) -> None:
    """Have the kernel know the present mappings and no others."""
    arriving = f'iifname "{outside}" udp dport'
    mapped = [f"{arriving} {port} dnat ip to {host}:{to}" for (host, to), port in lent.items()]
    marked = [f"{arriving} {port} meta mark set {ADMITTED}" for port in lent.values()]
    _nft(
        "delete table ip lent\n"
        "table ip lent {\n"
        f"chain translate {{\n{_PREROUTING};\n" + "\n".join(mapped) + "\n}\n"
        f"chain admit {{\n{_MARKING};\n" + "\n".join(marked) + "\n}\n"
        "}\n"
    )


def _nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def _emit(event: str, host: str | None, port: int | None) -> None:
    print(json.dumps({"event": event, "host": host, "port": port}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
