"""The pure parts of the command line: headers, sentences, the progress bar, option values."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyreach import P2pConfig, PeerId, events
from anyreach.cli import bench, build_parser, connect, options, ping, send
from anyreach.cli.echo import ANSWER, REQUEST, decode_ping, encode_ping
from anyreach.cli.header import (
    HeaderError,
    decode_varint,
    encode_header,
    encode_varint,
    read_header,
)
from anyreach.cli.output import Output, Style
from anyreach.cli.progress import RateMeter, bar_line
from anyreach.cli.runner import UsageError
from anyreach.cli.session import Session
from anyreach.cli.words import bytes_text, describe, duration_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

RELAY = PeerId.from_public_key(b"relay")


class Bytes:
    """A stream that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def readexactly(self, n: int, /) -> bytes:
        if len(self.data) < n:
            raise asyncio.IncompleteReadError(self.data, n)
        taken, self.data = self.data[:n], self.data[n:]
        return taken


@given(
    st.from_regex(r"\A[a-z][a-z0-9-]{0,31}\Z"),
    st.dictionaries(st.text(min_size=1, max_size=20), st.integers() | st.text(max_size=50)),
)
def test_headers_round_trip(service: str, parameters: dict[str, object]) -> None:
    parameters.pop("service", None)
    request = asyncio.run(read_header(Bytes(encode_header(service, **parameters) + b"rest")))
    assert request.service == service
    assert request.body == {"service": service, **parameters}


@given(st.binary(max_size=100))
def test_any_bytes_are_a_header_or_not(data: bytes) -> None:
    try:
        asyncio.run(read_header(Bytes(data)))
    except (HeaderError, EOFError):
        return


@given(st.integers(0, 2**62 - 1), st.binary(max_size=10))
def test_varints_round_trip(value: int, rest: bytes) -> None:
    data = encode_varint(value)
    assert len(data) in (1, 2, 4, 8)
    assert decode_varint(data + rest) == (value, len(data))
    assert decode_varint(data[:-1]) is None or len(data) == 1


@pytest.mark.parametrize("value", [-1, 2**62, 2**70])
def test_varints_have_62_bits(value: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        encode_varint(value)


@given(st.binary(max_size=8))
def test_pings_decode_or_not(data: bytes) -> None:
    ping = decode_ping(data)
    if ping is not None:
        assert encode_ping(*ping) == data
        assert ping[0] in (REQUEST, ANSWER)


@given(
    st.text(max_size=300),
    st.integers(0, 2**50),
    st.integers(0, 2**50),
    st.floats(0, 1e12),
    st.integers(0, 300),
)
def test_the_bar_fits_its_line(name: str, done: int, total: int, rate: float, columns: int) -> None:
    line = bar_line(name, min(done, total), total, rate, columns)
    assert len(line) <= max(columns - 1, 0)


def test_sentences_do_not_control_the_terminal() -> None:
    sent = {"name": "a\x1b[2J\u202eb", "bytes": 1, "resumed_at": 0, "existing": False}
    failed = {"state": "failed", "address": "x", "error": "no\x07\n  answer\x9b", "peer_id": None}
    for name, event in (("file_sent", sent), ("known_peer", failed)):
        text = describe({"event": name, **event}, Style(enabled=False))
        assert text is not None
        assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            events.Relay(RELAY, "203.0.113.1:5000", "h3", "reserved"),
            f"reachable as 203.0.113.1:5000 through relay {RELAY.short}… over HTTP/3",
        ),
        (
            events.Relay(RELAY, "[2001:db8::1]:5000", "h2-proxy", "lost"),
            f"lost [2001:db8::1]:5000 at relay {RELAY.short}… over HTTP/2 and an HTTP proxy",
        ),
        (
            events.Relay(None, "203.0.113.1:5000", "h2", "reserved"),
            "reachable as 203.0.113.1:5000 through relay ? over HTTP/2",
        ),
    ],
)
def test_relays_in_words(event: events.Relay, text: str) -> None:
    assert describe(event.to_dict(), Style(enabled=False)) == text
    assert set(event.to_dict()) == {"event", "peer_id", "address", "carrier", "state"}
    assert event.to_dict()["event"] == "relay"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            events.Connected(RELAY, "out", "relayed", "192.0.2.1:5", 9.0, 1.0, "MLKEM768", RELAY),
            f"relayed through relay {RELAY.short}…, 9.0 ms",
        ),
        (
            events.Connected(RELAY, "in", "relayed", "192.0.2.1:5", 9.0, 1.0, "MLKEM768"),
            "192.0.2.1:5: relayed, 9.0 ms",
        ),
        (
            events.PathChanged(RELAY, "relayed", "192.0.2.1:5", 1.0, "failover", RELAY),
            f"is now relayed through relay {RELAY.short}… 192.0.2.1:5",
        ),
        (
            events.PathChanged(RELAY, "direct", "192.0.2.1:5", 1.0, "better"),
            "is now direct 192.0.2.1:5",
        ),
    ],
)
def test_the_relay_of_a_path_in_words(event: events.Event, text: str) -> None:
    assert text in str(describe(event.to_dict(), Style(enabled=False)))


def test_the_relay_of_a_result_in_words() -> None:
    path: dict[str, object] = {"method": "relayed", "remote": "192.0.2.1:5", "relay": str(RELAY)}
    numbers = dict.fromkeys(
        ("ms", "rtt_ms", "seq", "files", "carried_bytes", "bytes", "mb_per_s"), 1
    )
    numbers |= dict.fromkeys(("datagrams_per_s", "lost_percent", "cpu_s_per_gb"), 0)
    rest = {"ok": True, "peer_id": "p", "group": "g", "direction": "up"}
    for name in ("result", "pong", "sent", "bench"):
        event = {"event": name, **path, **numbers, **rest}
        text = describe(event, Style(enabled=False))
        assert f"relayed through relay {RELAY.short}…" in str(text)
        for relay in (None, ""):
            assert "through relay" not in str(
                describe(event | {"relay": relay}, Style(enabled=False))
            )


def test_tcp_is_shown_where_there_is_any() -> None:
    ready: dict[str, object] = {"event": "ready", "peer_id": "a", "udp": ["[::]:1"], "ticket": "t"}
    assert "TCP" not in str(describe(ready | {"tcp": []}, Style(enabled=False)))
    shown = describe(ready | {"tcp": ["[::]:1", "0.0.0.0:1"]}, Style(enabled=False))
    assert "TCP      [::]:1, 0.0.0.0:1" in str(shown)


def configured(*arguments: str) -> P2pConfig:
    """What a command line makes of the configuration."""
    args = build_parser().parse_args([*arguments, "--ephemeral"])
    node = args.command == "node"
    return options.config_from(
        args,
        Output(json_lines=True),
        bind=options.NODE_BIND if node else options.CLIENT_BIND,
        defaults={"tcp": options.NODE_TCP} if node else None,
    )


class TestRelayOptions:
    def test_a_node_serves_tcp_and_other_commands_do_not(self, tmp_path: Path) -> None:
        assert configured("node").tcp == "auto"
        assert configured("node", "--tcp", "off").tcp is None
        assert configured("node", "--tcp", "[::1]:443").tcp == "[::1]:443"
        assert configured("connect", str(RELAY)).tcp is None
        assert configured("connect", str(RELAY), "--tcp", "127.0.0.1:0").tcp == "127.0.0.1:0"
        file = tmp_path / "node.toml"
        file.write_text('tcp = "off"\nrelay_allow_targets = ["10.0.0.0/8"]\n')
        assert configured("node", "--config", str(file)).tcp is None
        config = configured("node", "--config", str(file), "--relay-allow", "fd00::/8")
        assert config.relay_allow_targets == ("10.0.0.0/8", "fd00::/8")
        file.write_text('relay_deny_targets = ["192.0.2.0/24"]\n')
        config = configured("node", "--config", str(file), "--relay-deny", "198.51.100.0/24")
        assert config.relay_deny_targets == ("192.0.2.0/24", "198.51.100.0/24")

    def test_every_option_sets_its_field(self) -> None:
        config = configured(
            "node", "--https", "127.0.0.1:443", "--cert", "c.pem", "--key", "k.pem",
            "--proxy", "http://u:p@127.0.0.1:3128", "--ca-file", "ca.pem",
            "--relay-quota", "10MB/s", "--relay-total-quota", "1GB/s",
            "--no-direct", "--no-serve-relay",
            "--no-punch", "--no-port-mapping",
            "--allow-tls-inspection", "--allow-anonymous-relay",
        )  # fmt: skip
        assert (config.https, config.cert_file, config.key_file) == (
            "127.0.0.1:443",
            Path("c.pem"),
            Path("k.pem"),
        )
        assert str(config.proxy) == "http://u:***@127.0.0.1:3128"
        assert config.ca_file == Path("ca.pem")
        assert config.relay_quota == 10_000_000
        assert config.relay_total_quota == 1_000_000_000
        assert not config.direct
        assert not config.punch
        assert not config.port_mapping
        assert not config.serve_relay
        assert config.allow_tls_inspection
        assert config.allow_anonymous_relay
        assert configured("node", "--https", "[::]:0", "--https-self-signed").https_self_signed
        assert not configured("node", "--no-relay-fallback").relay_fallback

    @pytest.mark.parametrize("module", [connect, ping, send, bench])
    def test_visitors_are_not_found_and_serve_nobody(
        self, module: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[P2pConfig] = []

        def running_node(context: Any, **given: Any) -> NoReturn:
            chosen = {key: given[key] for key in ("bind", "defaults", "options") if key in given}
            seen.append(options.config_from(context.args, context.output, **chosen))
            raise UsageError("seen enough")

        monkeypatch.setattr(module, "running_node", running_node)
        name = module.__name__.rpartition(".")[2]
        files = [__file__] if name == "send" else []
        for more, serves in ((), False), (("--tcp", "127.0.0.1:0"), True):
            args = build_parser().parse_args([name, str(RELAY), *files, "--ephemeral", *more])
            context = SimpleNamespace(args=args, output=Output(json_lines=True))
            with pytest.raises(UsageError):
                asyncio.run(module.run(context))
            assert not seen[-1].findable
            assert seen[-1].relay_reservations == 0
            assert seen[-1].serve_relay is serves

    def test_nodes_and_receivers_are_found(self) -> None:
        for arguments in (("node",), ("receive", "inbox")):
            config = configured(*arguments)
            assert (config.findable, config.relay_reservations, config.serve_relay) == (
                True,
                2,
                True,
            )

    def test_nothing_is_changed_without_options(self) -> None:
        expected = P2pConfig(bind_addr=options.CLIENT_BIND)
        assert configured("connect", str(RELAY)) == expected


def test_the_bar_says_what_people_want_to_know() -> None:
    line = bar_line("video.mkv", 250_000_000, 1_000_000_000, 50e6, 100)
    for part in ("video.mkv", "25%", "250 MB/1.0 GB", "50.0 MB/s", "eta 0:15"):
        assert part in line
    assert "done" in bar_line("x", 0, 0, 0, 100)


def test_the_rate_looks_back_a_few_seconds() -> None:
    meter = RateMeter(0.0, 0)
    for second in range(1, 10):
        assert meter.update(second, second * 100) == pytest.approx(100)
    for second in range(10, 16):
        rate = meter.update(second, 900)
    assert rate == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (99_960_000, "100 MB"),
     (999_400_000, "999 MB"), (999_600_000, "1.0 GB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.9, "0:07"), (754, "12:34"), (3723, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (options.seconds, "0.5", 0.5),
        (options.seconds_or_zero, "0", 0.0),
        (options.count, "12", 12),
        (options.rate, "500k", 500_000),
        (options.rate, "1.5M", 1_500_000),
        (options.size, "2G", 2_000_000_000),
        (options.size, "0", 0),
        (options.listen_address, "127.0.0.1:9090", ("127.0.0.1", 9090)),
        (options.listen_address, "[::1]:0", ("::1", 0)),
    ],
)
def test_option_values(parse: options.Parser, text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((options.seconds, text) for text in ("", "0", "-1", "nan", "inf", "1e99", "soon")),
        *((options.count, text) for text in ("", "0", "-1", "1.5", "x", "٣", "9" * 20)),
        *((options.rate, text) for text in ("", "0", "k", "1x", "nan", "-5M", "999")),
        *((options.size, text) for text in ("", "-1", "nan", "1e30", "MM")),
        *(
            (options.listen_address, text)
            for text in ("", "9090", "host", "[::1]", "1.2.3.4:99999")
        ),
    ],
)
def test_bad_option_values(parse: options.Parser, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


class TestFirstPath:
    """When a connection was there, which is before ``connect()`` returns if it is relayed."""

    async def test_the_time_is_that_of_the_connected_event(self) -> None:
        async def connected() -> AsyncIterator[events.Event]:
            yield events.Connected(RELAY, "out", "relayed", "192.0.2.1:9", 5.0, 1.0, "MLKEM768")

        output = Output(json_lines=True)
        session = Session(cast("Any", None), output, all_events=True)
        started = time.perf_counter()
        assert session.connected_since(RELAY, started) is None
        await session.tell(connected())
        first = session.connected_since(RELAY, started)
        assert first is not None
        assert 0 < first <= time.perf_counter() - started
        assert session.connected_since(RELAY, time.perf_counter()) is None  # there already

    def test_the_result_has_both_times(self) -> None:
        connection = cast("Any", SimpleNamespace(path=SimpleNamespace(method="relayed")))
        started = time.perf_counter() - 1.0
        watch = connect._Watch(connection, started, 0.4)
        assert (watch.ms_first, watch.ms_direct) == (400.0, None)
        assert watch.ms >= 1000
        again = connect._Watch(connection, started, None)
        assert again.ms_first == again.ms
