"""The sentence a person reads for each event. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from anyreach.transfer.names import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["bytes_text", "describe", "duration_text", "rate_text"]


class _Style(Protocol):
    def __call__(self, name: str, text: str, /) -> str: ...


def bytes_text(count: float) -> str:
    """``1.2 MB``: decimal units, as disks and lines are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            digits = 0 if unit == "B" or count >= 99.95 else 1
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    raise AssertionError  # the last unit always returns


def rate_text(bytes_per_second: float) -> str:
    """``118 MB/s``."""
    return f"{bytes_text(bytes_per_second)}/s"


def duration_text(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(event: Mapping[str, object], style: _Style) -> str | None:
    """What to print for ``event``; ``None`` for nothing."""
    words = _WORDS.get(str(event.get("event")))
    if words is None:
        return None
    # Some values come from peers; none of them may control the terminal.
    return words({key: _clean(value) for key, value in event.items()}, style)


def _clean(value: object) -> object:
    if not isinstance(value, str):
        return value
    return "\n".join(printable(line, 2000) for line in value.split("\n"))


def _short(peer_id: object) -> str:
    return f"{str(peer_id)[:10]}…" if peer_id else "?"


def _ms(value: object) -> str:
    return f"{value:.1f} ms" if isinstance(value, int | float) else "?"


def _method(event: Mapping[str, object]) -> str:
    """``direct``, or ``relayed through relay 2f6kqzvm3a…``."""
    relay = event.get("relay")
    return f"{event['method']} through relay {_short(relay)}" if relay else str(event["method"])


def _ready(event: Mapping[str, object], style: _Style) -> str:
    lines = [
        f"PeerId   {style('bold', str(event['peer_id']))}",
        f"UDP      {_listed(event, 'udp')}",
    ]
    if event.get("tcp"):
        lines.append(f"TCP      {_listed(event, 'tcp')}")
    lines.append(f"Ticket   {style('cyan', str(event['ticket']))}")
    return "\n".join(lines)


def _listed(event: Mapping[str, object], key: str) -> str:
    values = event.get(key)
    return ", ".join(map(str, values)) if isinstance(values, list) else ""


def _known_peer(event: Mapping[str, object], style: _Style) -> str:
    if event["state"] == "connected":
        return f"{style('green', 'joined')} {event['address']} ({_short(event['peer_id'])})"
    return f"{style('yellow', 'cannot join')} {event['address']}: {event['error']}"


def _external_address(event: Mapping[str, object], style: _Style) -> str:
    seen = f"seen by {event['observers']} peer{'s' if event['observers'] != 1 else ''}"
    return f"{style('green', 'reachable as')} {event['address']} ({seen})"


def _nat(event: Mapping[str, object], _: _Style) -> str:
    return f"NAT: mapping {event['mapping']}, filtering {event['filtering']}"


def _relay(event: Mapping[str, object], style: _Style) -> str:
    who = f"relay {_short(event['peer_id'])} over {_CARRIERS.get(str(event['carrier']), '?')}"
    if event["state"] == "reserved":
        return f"{style('green', 'reachable as')} {event['address']} through {who}"
    return f"{style('yellow', 'lost')} {event['address']} at {who}"


_CARRIERS = {
    "h3": "HTTP/3",
    "h2": "HTTP/2",
    "h2-proxy": "HTTP/2 and an HTTP proxy",
}


def _connected(event: Mapping[str, object], style: _Style) -> str:
    way = "to" if event["direction"] == "out" else "from"
    return (
        f"{style('green', 'connected')} {way} {_short(event['peer_id'])} at {event['remote']}: "
        f"{_method(event)}, {_ms(event['ms'])}, RTT {_ms(event['rtt_ms'])}, {event['group']}"
    )


def _path(event: Mapping[str, object], style: _Style) -> str:
    return (
        f"{style('cyan', 'path')} to {_short(event['peer_id'])} is now {_method(event)} "
        f"{event['remote']}, RTT {_ms(event['rtt_ms'])} ({event['reason']})"
    )


def _disconnected(event: Mapping[str, object], style: _Style) -> str:
    return f"{style('dim', 'disconnected')} from {_short(event['peer_id'])}: {event['reason']}"


def _result(event: Mapping[str, object], style: _Style) -> str | None:
    if not event["ok"]:
        return None  # said on standard error
    return (
        f"{style('green', 'ok')} {event['peer_id']} at {event['remote']}\n"
        f"   {_method(event)} in {_ms(event['ms'])}, RTT {_ms(event['rtt_ms'])}, "
        f"key exchange {event['group']}"
    )


def _pong(event: Mapping[str, object], _: _Style) -> str:
    return f"{event['remote']}: seq={event['seq']} time={_ms(event['rtt_ms'])} {_method(event)}"


def _lost(event: Mapping[str, object], style: _Style) -> str:
    return style("yellow", f"no answer to seq={event['seq']}")


def _summary(event: Mapping[str, object], _: _Style) -> str:
    text = f"{event['sent']} sent, {event['received']} received, {event['lost']} lost"
    if event.get("min_ms") is None:
        return text
    times = "/".join(_ms(event[key]).removesuffix(" ms") for key in _SUMMARY_TIMES)
    return f"{text}\nrtt min/avg/p50/max = {times} ms"


_SUMMARY_TIMES = ("min_ms", "avg_ms", "p50_ms", "max_ms")


def _bench(event: Mapping[str, object], style: _Style) -> str:
    speed = style("bold", f"{_number(event['mb_per_s']):.1f} MB/s")
    parts = [f"{speed} {event['direction']}", _method(event)]
    if event["datagrams_per_s"] is not None:
        parts.append(f"{_number(event['datagrams_per_s']):.0f} datagrams/s")
    if event["lost_percent"] is not None:
        parts.append(f"{_number(event['lost_percent']):.1f} % lost")
    parts.append(f"{_number(event['cpu_s_per_gb']):.2f} CPU-s per GB here")
    return ", ".join(parts)


def _file_sent(event: Mapping[str, object], style: _Style) -> str:
    name = event["name"]
    if event["existing"]:
        return f"{style('green', 'there already')} {name} ({bytes_text(_number(event['bytes']))})"
    resumed = _number(event["resumed_at"])
    note = f", resumed at {bytes_text(resumed)}" if resumed else ""
    return f"{style('green', 'sent')} {name} ({bytes_text(_number(event['bytes']))}{note})"


def _sent(event: Mapping[str, object], _: _Style) -> str:
    files, carried = event["files"], _number(event["carried_bytes"])
    noun = "file" if files == 1 else "files"
    rate = rate_text(_number(event["mb_per_s"]) * 1e6) if carried else "nothing to carry"
    size = bytes_text(_number(event["bytes"]))
    return f"{files} {noun}, {size}, {rate}, {_method(event)}, SHA-256 verified"


def _received(event: Mapping[str, object], style: _Style) -> str:
    rate = rate_text(_number(event["mb_per_s"]) * 1e6)
    detail = "had it already" if event["existing"] else rate
    return (
        f"{style('green', 'received')} {event['name']} ({bytes_text(_number(event['bytes']))}, "
        f"{detail}) from {_short(event['peer_id'])}"
    )


def _interrupted(event: Mapping[str, object], style: _Style) -> str:
    return (
        f"{style('yellow', 'interrupted')} {event['name']} after "
        f"{bytes_text(_number(event['bytes']))}: {event['reason']}"
    )


def _text(event: Mapping[str, object], _: _Style) -> str:
    return str(event["text"])


def _id(event: Mapping[str, object], _: _Style) -> str:
    return str(event["peer_id"])


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


_WORDS: dict[str, Callable[[Mapping[str, object], _Style], str | None]] = {
    "ready": _ready,
    "known_peer": _known_peer,
    "external_address": _external_address,
    "nat": _nat,
    "relay": _relay,
    "connected": _connected,
    "path": _path,
    "disconnected": _disconnected,
    "result": _result,
    "pong": _pong,
    "lost": _lost,
    "summary": _summary,
    "bench": _bench,
    "file_sent": _file_sent,
    "sent": _sent,
    "received": _received,
    "interrupted": _interrupted,
    "id": _id,
    "netcheck": _text,
    "explanation": _text,
}
