"""The ``ping`` service: round trips of single datagrams, or of frames where there are none.

Datagrams show what the path does: one that is lost stays lost and is reported, and none waits
behind another. On a stream QUIC would repeat it, and a loss would look like a slow answer. A
stream is still opened first: the answering side agrees there, and it is the fallback for peers
that take no datagrams.

A ping datagram is the flow prefix, a kind byte (0 request, 1 answer) and a 4-byte number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anyreach.transfer.frames import encode_frame, get_int, read_frame

if TYPE_CHECKING:
    from anyreach import Connection, Stream

    from .flows import DatagramFlows

__all__ = ["ANSWER", "MAX_NUMBER", "REQUEST", "answer_pings", "decode_ping", "encode_ping"]

REQUEST: Final = 0
ANSWER: Final = 1

#: Pings are numbered up to here.
MAX_NUMBER: Final = 2**32 - 1


def encode_ping(kind: int, number: int) -> bytes:
    """The payload of a ping datagram, behind the flow prefix."""
    return bytes([kind]) + number.to_bytes(4, "big")


def decode_ping(payload: bytes) -> tuple[int, int] | None:
    """Kind and number, or ``None`` if it is no ping."""
    if len(payload) != 5 or payload[0] not in (REQUEST, ANSWER):
        return None
    return payload[0], int.from_bytes(payload[1:], "big")


async def answer_pings(connection: Connection, flows: DatagramFlows, stream: Stream) -> None:
    """Answers until the peer ends the stream."""

    def answer(datagrams: list[bytes], start: int) -> None:
        pings = (decode_ping(datagram[start:]) for datagram in datagrams)
        numbers = [ping[1] for ping in pings if ping is not None and ping[0] == REQUEST]
        connection.send_datagrams([prefix + encode_ping(ANSWER, number) for number in numbers])

    with flows.open(stream.id, answer) as prefix:
        datagrams = connection.max_datagram_size is not None
        await stream.write(encode_frame({"ok": True, "datagrams": datagrams}))
        while True:
            try:
                number = get_int(await read_frame(stream), "seq", 0, MAX_NUMBER)
            except EOFError:
                break
            await stream.write(encode_frame({"ok": True, "seq": number}))
    await stream.finish()
