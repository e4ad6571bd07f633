"""P2pConfig: defaults, every way to make one, every way to get it wrong."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anyreach._config_builder import P2pConfigBuilder
from anyreach._config_parse import PARSERS
from anyreach.candidates import DefaultCandidatePolicy
from anyreach.config import IpMode, P2pConfig, P2pOptions
from anyreach.errors import AnyreachError, ConfigError
from anyreach.paths import DefaultPathPolicy
from anyreach.peer import KnownPeer, PeerAddress, PeerId, Ticket
from anyreach.proxies import ProxyUrl
from anyreach.relays import DefaultRelayPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

ID = PeerId.from_public_key(b"key")
FIELDS = [field.name for field in dataclasses.fields(P2pConfig)]
MIB = 1024 * 1024


def make(options: dict[str, Any]) -> P2pConfig:
    return P2pConfig(**options)


def change(options: dict[str, Any]) -> P2pConfig:
    return P2pConfig().replace(**options)


def test_defaults() -> None:
    config = P2pConfig()
    assert config.to_dict() == {
        "bind_addr": "[::]:9000",
        "ip_mode": "dual",
        "allow_ipv4_mapped": True,
        "known_peers": [],
        "relay_fallback": True,
        "direct": True,
        "punch": True,
        "birthday": True,
        "birthday_attempts": 4,
        "port_mapping": True,
        "relay_standby": 30.0,
        "serve_relay": True,
        "findable": True,
        "relay_reservations": 2,
        "relay_quota": 4 * MIB,
        "relay_total_quota": 0,
        "relay_allow_targets": [],
        "relay_deny_targets": [],
        "allow_anonymous_relay": False,
        "https_self_signed": False,
        "use_environment_proxy": True,
        "allow_tls_inspection": False,
        "prefer": "direct",
        "connect_timeout": 30.0,
        "handshake_timeout": 10.0,
        "attempt_delay": 0.25,
        "idle_timeout": 50.0,
        "keep_alive_interval": 15.0,
        "stream_receive_window": 2 * MIB,
        "receive_window": 8 * MIB,
        "send_window": 8 * MIB,
        "max_bidi_streams": 1024,
        "max_uni_streams": 1024,
        "datagram_buffer": MIB,
        "socket_buffer": 8 * MIB,
        "max_connections": 1024,
        "key_log": False,
    }
    assert config.identity is None
    assert config.direct_grace is None
    assert config.candidate_policy == DefaultCandidatePolicy()


def test_parsers_options_and_builder_know_every_field() -> None:
    assert list(PARSERS) == FIELDS
    assert list(P2pOptions.__annotations__) == FIELDS
    methods = [n for n in vars(P2pConfigBuilder) if not n.startswith("_") and n != "build"]
    assert methods == FIELDS


def test_every_field_is_documented() -> None:
    source = inspect.getsource(P2pConfig)
    for name in FIELDS:
        declaration = source.index(f"\n    {name}: ")
        following = source[source.index("\n", declaration + 1) :].lstrip()
        assert following.startswith('"""'), name


def test_frozen_slotted_hashable() -> None:
    config = P2pConfig(known_peers=["a.example:1"])
    assert not hasattr(config, "__dict__")
    assert config == P2pConfig(known_peers=("a.example:1",))
    assert hash(config) == hash(P2pConfig(known_peers=("a.example:1",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.prefer = "fast"  # type: ignore[misc]


def test_the_builder_of_the_documentation() -> None:
    config = (
        P2pConfig.builder()
        .bind_addr("[::]:9000")
        .ip_mode(IpMode.DUAL_STACK)
        .allow_ipv4_mapped(True)
        .known_peers([f"{ID}@203.0.113.10:9000", "relay.example.org:9000"])
        .relay_fallback(True)
        .build()
    )
    assert config == P2pConfig(known_peers=[f"{ID}@203.0.113.10:9000", "relay.example.org:9000"])
    assert config.known_peers == (
        KnownPeer.parse(f"{ID}@203.0.113.10:9000"),
        KnownPeer.parse("relay.example.org:9000"),
    )


SAMPLES: dict[str, Any] = {
    "bind_addr": "127.0.0.1:0",
    "ip_mode": IpMode.IPV4_ONLY,
    "allow_ipv4_mapped": False,
    "known_peers": (KnownPeer.parse("a.example:1"),),
    "identity": Path("key.pem"),
    "relay_fallback": False,
    "direct": False,
    "punch": False,
    "birthday": False,
    "birthday_attempts": 1,
    "port_mapping": False,
    "relay_standby": 5.0,
    "serve_relay": False,
    "findable": False,
    "relay_reservations": 3,
    "relay_quota": 10_000_000,
    "relay_total_quota": 100_000_000,
    "relay_allow_targets": ("10.0.0.0/8", "fd00::/8"),
    "relay_deny_targets": ("10.1.0.0/16",),
    "allow_anonymous_relay": True,
    "tcp": "auto",
    "https": "127.0.0.1:443",
    "cert_file": Path("cert.pem"),
    "key_file": Path("key.pem"),
    "https_self_signed": True,
    "proxy": ProxyUrl.parse("http://me:secret@proxy.example:3128"),
    "use_environment_proxy": False,
    "ca_file": Path("ca.pem"),
    "allow_tls_inspection": True,
    "prefer": "fast",
    "direct_grace": 0.5,
    "connect_timeout": 5.0,
    "handshake_timeout": 3.0,
    "attempt_delay": 0.1,
    "idle_timeout": 90.0,
    "keep_alive_interval": 25.0,
    "stream_receive_window": 65536,
    "receive_window": 4 * MIB,
    "send_window": 4 * MIB,
    "max_bidi_streams": 7,
    "max_uni_streams": 0,
    "datagram_buffer": 65536,
    "socket_buffer": MIB,
    "max_connections": 9,
    "candidate_policy": DefaultCandidatePolicy(),
    "path_policy": DefaultPathPolicy(gain=0.01),
    "relay_policy": DefaultRelayPolicy(dwell=1.0),
    "key_log": True,
}

# Fields that make sense only together with others.
WITH: dict[str, dict[str, Any]] = {
    "allow_anonymous_relay": {"https": "[::]:443", "https_self_signed": True},
    "https": {"https_self_signed": True},
    "cert_file": {"https": "[::]:443", "key_file": Path("key.pem")},
    "key_file": {"https": "[::]:443", "cert_file": Path("cert.pem")},
    "https_self_signed": {"https": "[::]:443"},
}


@pytest.mark.parametrize("field", FIELDS)
def test_keyword_builder_and_replace_agree(field: str) -> None:
    values = WITH.get(field, {}) | {field: SAMPLES[field]}
    config = make(values)
    assert getattr(config, field) == SAMPLES[field]
    builder = P2pConfig.builder()
    for name, value in values.items():
        assert getattr(builder, name)(value) is builder
    assert builder.build() == config
    assert change(values) == config
    assert dataclasses.replace(P2pConfig(), **values) == config


def test_plain_form_round_trips_through_json() -> None:
    together = SAMPLES | {
        "known_peers": [str(ID) + "@[2001:db8::1]:9", "a.example:1"],
        "direct": True,
        "https_self_signed": False,
        "path_policy": DefaultPathPolicy(),
        "relay_policy": DefaultRelayPolicy(),
    }
    config = P2pConfig(**together)
    again = P2pConfig(**json.loads(json.dumps(config.to_dict())))
    assert again == config


def test_plain_form_leaves_out_what_has_none() -> None:
    class Policy(DefaultCandidatePolicy):
        pass

    values = P2pConfig(candidate_policy=Policy()).to_dict()
    assert "candidate_policy" not in values
    assert "relay_policy" not in values
    assert "identity" not in values


BAD: list[tuple[str, object, str]] = [
    ("bind_addr", 9000, '"[::]:9000"'),
    ("bind_addr", "", "add the port"),
    ("bind_addr", "::", "brackets"),
    ("bind_addr", "localhost:9000", "not a name"),
    ("bind_addr", "[::]:70000", "65535"),
    ("bind_addr", "224.0.0.1:9000", "address of this host"),
    ("ip_mode", "ipv4", "'dual', 'v4', 'v6'"),
    ("ip_mode", 4, "'dual', 'v4', 'v6'"),
    ("ip_mode", None, "'dual', 'v4', 'v6'"),
    ("allow_ipv4_mapped", "maybe", "true or false"),
    ("allow_ipv4_mapped", 1, "true or false"),
    ("allow_ipv4_mapped", None, "true or false"),
    ("known_peers", None, "list of"),
    ("known_peers", 5, "list of"),
    ("known_peers", b"a.example:1", "list of"),
    ("known_peers", {"a.example:1": 2}, "list of"),
    ("known_peers", [5], '"HOST:PORT"'),
    ("known_peers", ["example.org"], "add the port"),
    ("known_peers", [str(ID)], "needs an address"),
    ("known_peers", [PeerAddress(ID)], "needs an address"),
    ("known_peers", ["nonsense@a.example:1"], "a PeerId has 52 characters"),
    ("identity", "", "path of a key file"),
    ("identity", "a\0b", "path of a key file"),
    ("identity", b"key.pem", "path of a key file"),
    ("relay_fallback", "", "true or false"),
    ("direct", 0, "true or false"),
    ("serve_relay", "si", "true or false"),
    ("findable", 1, "true or false"),
    ("relay_reservations", -1, "from 0 to 8"),
    ("relay_reservations", 9, "from 0 to 8"),
    ("relay_quota", 16383, "bytes per second from 16384"),
    ("relay_quota", -1, "0 for no limit"),
    ("relay_quota", "10Mbit/s", "10MB/s"),
    ("relay_quota", "fast", "10MB/s"),
    ("relay_quota", True, "10MB/s"),
    ("relay_quota", "9" * 15 + "GB", "0 for no limit"),
    ("relay_total_quota", 16383, "bytes per second from 16384"),
    ("relay_allow_targets", None, "list of prefixes"),
    ("relay_deny_targets", ["10.0.0.1/8"], "bits beyond the length"),
    ("relay_allow_targets", 10, "list of prefixes"),
    ("relay_allow_targets", ["10.0.0.1/8"], "bits beyond the length"),
    ("relay_allow_targets", "10.0.0.0/33", "10.0.0.0/8"),
    ("relay_allow_targets", [10], "10.0.0.0/8"),
    ("relay_allow_targets", "lan", "10.0.0.0/8"),
    ("allow_anonymous_relay", "x", "true or false"),
    ("allow_anonymous_relay", True, "need https"),
    ("tcp", 443, "'auto'"),
    ("tcp", True, "'auto'"),
    ("tcp", "on", "add the port"),
    ("tcp", "example.org:443", "not a name"),
    ("tcp", "224.0.0.1:443", "address of this host"),
    ("https", "auto", "add the port"),
    ("https", 443, '"off"'),
    ("https", "[::]:443", "cert_file and key_file"),
    ("cert_file", "", "PEM file"),
    ("cert_file", "cert.pem", "is for https"),
    ("key_file", 1, "PEM file"),
    ("key_file", "key.pem", "is for https"),
    ("https_self_signed", 1, "true or false"),
    ("https_self_signed", True, "is for https"),
    ("proxy", 3128, "http://"),
    ("proxy", "", "http://"),
    ("proxy", "socks5://localhost:1080", "SOCKS proxies are not supported"),
    ("use_environment_proxy", None, "true or false"),
    ("ca_file", "a\0b", "PEM file"),
    ("allow_tls_inspection", "-", "true or false"),
    ("prefer", "slow", "'direct', 'fast'"),
    ("prefer", None, "'direct', 'fast'"),
    ("direct_grace", -0.1, "from 0 to 10"),
    ("direct_grace", "soon", "from 0 to 10"),
    ("connect_timeout", 0, "seconds from"),
    ("connect_timeout", float("nan"), "seconds from"),
    ("connect_timeout", float("inf"), "seconds from"),
    ("connect_timeout", None, "seconds from"),
    ("connect_timeout", True, "seconds from"),
    ("connect_timeout", "-5", "seconds from"),
    ("connect_timeout", "5 parsecs", "seconds from"),
    ("handshake_timeout", 301, "to 300"),
    ("attempt_delay", 0.009, "from 0.01 to 2"),
    ("attempt_delay", 2.1, "from 0.01 to 2"),
    ("idle_timeout", 0, "seconds from"),
    ("idle_timeout", 15, "more than keep_alive_interval"),
    ("keep_alive_interval", -1, "or 0 to send none"),
    ("stream_receive_window", 2_400_001, "2400000"),
    ("stream_receive_window", "3 MiB", "2400000"),
    ("receive_window", 1, "bytes from"),
    ("receive_window", MIB, "at least stream_receive_window"),
    ("send_window", "lots", "bytes from"),
    ("send_window", 8.5 * 1024**2 + 0.5, "bytes from"),
    ("send_window", [1], "bytes from"),
    ("send_window", float("nan"), "bytes from"),
    ("send_window", float("inf"), "bytes from"),
    ("send_window", "9" * 400, "bytes from"),
    ("send_window", 10**400, "bytes from"),
    ("max_bidi_streams", -1, "a number from 0"),
    ("max_bidi_streams", "1 KiB", "a number from 0"),
    ("max_uni_streams", 1 << 17, "a number from 0"),
    ("datagram_buffer", 0, "bytes from"),
    ("socket_buffer", 0, "bytes from"),
    ("max_connections", 0, "a number from 1"),
    ("candidate_policy", None, "gather, offer and pair"),
    ("candidate_policy", DefaultCandidatePolicy, "gather, offer and pair"),
    ("birthday_attempts", 61, "a number from 0 to 60"),
    ("relay_standby", -1, "seconds from 0"),
    ("path_policy", None, "decide method"),
    ("path_policy", DefaultPathPolicy, "decide method"),
    ("relay_policy", None, "decide method"),
    ("relay_policy", DefaultRelayPolicy, "decide method"),
    ("key_log", "perhaps", "true or false"),
]


@pytest.mark.parametrize(("field", "value", "remedy"), BAD)
def test_bad_values(field: str, value: object, remedy: str) -> None:
    makers: list[Callable[[], object]] = [
        lambda: make({field: value}),
        lambda: change({field: value}),
        lambda: getattr(P2pConfig.builder(), field)(value).build(),
    ]
    for maker in makers:
        with pytest.raises(ConfigError) as caught:
            maker()
        assert caught.value.field == field
        assert remedy in caught.value.remedy
        assert str(caught.value).startswith(f"{field}=")
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, AnyreachError)


def test_the_builder_complains_where_the_mistake_is() -> None:
    with pytest.raises(ConfigError):
        P2pConfig.builder().attempt_delay(5)


def test_a_builder_can_be_used_again() -> None:
    builder = P2pConfig.builder().prefer("fast")
    first = builder.build()
    assert builder.key_log(True).build() == first.replace(key_log=True)
    assert not first.key_log


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("bindaddr", "bind_addr"), ("known_peer", "known_peers"), ("idle", "idle_timeout")],
)
def test_unknown_names_are_corrected(name: str, nearest: str, tmp_path: Path) -> None:
    for maker in (make, change):
        with pytest.raises(ConfigError, match=f"did you mean {nearest}") as caught:
            maker({name: 1})
        assert caught.value.field == name
    file = tmp_path / "anyreach.toml"
    file.write_text(f"{name} = 1\n")
    with pytest.raises(ConfigError, match=f"did you mean {nearest}"):
        P2pConfig.from_toml(file)
    with pytest.raises(ConfigError, match=f"did you mean ANYREACH_{nearest.upper()}"):
        P2pConfig.from_env({f"ANYREACH_{name.upper()}": "1"})


class TestFamilies:
    def test_the_wildcard_follows_the_mode(self) -> None:
        config = P2pConfig(ip_mode="v4")
        assert config.bind_addr == "0.0.0.0:9000"
        assert config.replace(key_log=True).bind_addr == "0.0.0.0:9000"
        assert config.replace(ip_mode=IpMode.DUAL_STACK) == P2pConfig()
        assert config.replace(ip_mode="v6").bind_addr == "[::]:9000"
        assert P2pConfig(ip_mode="v4", bind_addr="[::]:0").bind_addr == "0.0.0.0:0"
        explicit = P2pConfig(ip_mode="v4", bind_addr="10.0.0.0:9000")
        assert explicit.replace(ip_mode="dual").bind_addr == "10.0.0.0:9000"

    @pytest.mark.parametrize(
        ("mode", "bind_addr"),
        [
            ("v6", "0.0.0.0:9000"),
            ("v6", "127.0.0.1:0"),
            ("v6", "[::ffff:127.0.0.1]:0"),
            ("v4", "[::1]:0"),
            ("v4", "[2001:db8::1]:9000"),
        ],
    )
    def test_contradictions(self, mode: str, bind_addr: str) -> None:
        with pytest.raises(ConfigError, match="use its family") as caught:
            P2pConfig(ip_mode=mode, bind_addr=bind_addr)
        assert caught.value.field == "bind_addr"

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:0", "[::1]:0"),
            (" 0.0.0.0:9000 ", "0.0.0.0:9000"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
            ("[0:0::0]:1", "[::]:1"),
            ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
        ],
    )
    def test_bind_addresses(self, text: str, canonical: str) -> None:
        assert P2pConfig(bind_addr=text).bind_addr == canonical


class TestRelaying:
    @pytest.mark.parametrize(
        ("value", "quota"),
        [
            ("10MB/s", 10_000_000),
            ("1 MiB/s", MIB),
            ("512k", 512_000),
            (65536, 65536),
            (0, 0),
            ("0", 0),
            (None, 0),
            ("unlimited", 0),
        ],
    )
    def test_quotas(self, value: int | str | None, quota: int) -> None:
        assert P2pConfig(relay_quota=value).relay_quota == quota

    def test_targets(self) -> None:
        config = P2pConfig(relay_allow_targets="10.0.0.0/8, FD00::/8 10.0.0.0/8 192.0.2.1")
        assert config.relay_allow_targets == ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")

    def test_no_way_at_all(self) -> None:
        with pytest.raises(ConfigError, match="no way would be left"):
            P2pConfig(direct=False, relay_fallback=False)

    @pytest.mark.parametrize("text", ["off", " OFF ", None])
    def test_no_listener(self, text: str | None) -> None:
        config = P2pConfig(tcp=text, https=text)
        assert (config.tcp, config.https) == (None, None)

    def test_listeners_follow_the_mode(self) -> None:
        config = P2pConfig(ip_mode="v4", tcp="[::]:443", https="[::]:8443", https_self_signed=True)
        assert (config.tcp, config.https) == ("0.0.0.0:443", "0.0.0.0:8443")
        assert config.replace(ip_mode="dual").tcp == "[::]:443"
        assert P2pConfig(tcp="Auto", ip_mode="v4").replace(ip_mode="v6").tcp == "auto"
        with pytest.raises(ConfigError, match="use its family") as caught:
            P2pConfig(ip_mode="v6", tcp="127.0.0.1:443")
        assert caught.value.field == "tcp"

    @pytest.mark.parametrize(
        ("options", "field", "remedy"),
        [
            ({"cert_file": "c"}, "cert_file", "set key_file as well"),
            ({"key_file": "k"}, "key_file", "set cert_file as well"),
            ({"cert_file": "c", "key_file": "k", "https_self_signed": True},
             "https_self_signed", "use one of the two"),
        ],
    )  # fmt: skip
    def test_one_certificate(self, options: dict[str, Any], field: str, remedy: str) -> None:
        with pytest.raises(ConfigError, match=remedy) as caught:
            make({"https": "[::]:443"} | options)
        assert caught.value.field == field

    def test_the_password_of_a_proxy_stays_secret(self) -> None:
        config = P2pConfig(proxy="http://me:s3cret@proxy.example:3128")
        assert "s3cret" not in repr(config)
        assert "s3cret" not in str(config)
        assert config.to_dict()["proxy"] == "http://me:s3cret@proxy.example:3128"
        with pytest.raises(ConfigError) as caught:
            P2pConfig(proxy="ftp://me:s3cret@proxy.example:3128")
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in repr(caught.value.value)


def test_keep_alive_can_be_off() -> None:
    assert P2pConfig(keep_alive_interval=0, idle_timeout=1).keep_alive_interval == 0


def test_units() -> None:
    config = P2pConfig(
        send_window="4 MiB",
        datagram_buffer="64kb",
        attempt_delay="100ms",
        connect_timeout="1.5 min",
        direct_grace="auto",
    )
    assert config.send_window == 4 * MIB
    assert config.datagram_buffer == 64_000
    assert config.attempt_delay == pytest.approx(0.1)
    assert config.connect_timeout == 90.0
    assert config.direct_grace is None


def test_known_peers_in_every_form() -> None:
    ticket = Ticket.of(ID, KnownPeer.parse("203.0.113.10:9000").addresses)
    config = P2pConfig(
        known_peers=[
            "a.example:1",
            " a.example:1 ",
            KnownPeer.parse("b.example:2"),
            PeerAddress(ID, KnownPeer.parse("c.example:3").addresses),
            str(ticket),
        ]
    )
    assert [str(peer) for peer in config.known_peers] == [
        "a.example:1",
        "b.example:2",
        f"{ID}@c.example:3",
        f"{ID}@203.0.113.10:9000",
    ]
    assert P2pConfig(known_peers=(p for p in ["a.example:1"])).known_peers
    assert P2pConfig(known_peers="a.example:1").known_peers == config.known_peers[:1]


class TestToml:
    def test_all_fields(self, tmp_path: Path) -> None:
        file = tmp_path / "anyreach.toml"
        file.write_text(
            'bind_addr = "127.0.0.1:0"\nip_mode = "v4"\nknown_peers = ["a.example:1"]\n'
            'identity = "keys/me.pem"\nidle_timeout = 60\nsend_window = "4 MiB"\nkey_log = true\n'
        )
        assert P2pConfig.from_toml(file) == P2pConfig(
            bind_addr="127.0.0.1:0",
            ip_mode=IpMode.IPV4_ONLY,
            known_peers=["a.example:1"],
            identity=tmp_path / "keys" / "me.pem",
            idle_timeout=60,
            send_window=4 * MIB,
            key_log=True,
        )

    def test_identity_paths(self, tmp_path: Path) -> None:
        file = tmp_path / "anyreach.toml"
        for text, path in [("/abs/key", "/abs/key"), ("~/key", "~/key")]:
            file.write_text(f'identity = "{text}"')
            assert P2pConfig.from_toml(file).identity == Path(path)

    def test_files_are_next_to_it(self, tmp_path: Path) -> None:
        file = tmp_path / "anyreach.toml"
        file.write_text(
            'https = "[::]:443"\ncert_file = "c.pem"\nkey_file = "/abs/k.pem"\nca_file = "ca.pem"'
        )
        config = P2pConfig.from_toml(file)
        assert config.cert_file == tmp_path / "c.pem"
        assert config.key_file == Path("/abs/k.pem")
        assert config.ca_file == tmp_path / "ca.pem"

    def test_base(self, tmp_path: Path) -> None:
        file = tmp_path / "anyreach.toml"
        file.write_text('prefer = "fast"')
        base = P2pConfig(key_log=True, prefer="direct")
        assert P2pConfig.from_toml(file, base=base) == base.replace(prefer="fast")

    @pytest.mark.parametrize("content", [b"prefer = ", b"\xff\xfe", b"a = 1\na = 2\n"])
    def test_damaged(self, content: bytes, tmp_path: Path) -> None:
        file = tmp_path / "anyreach.toml"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            P2pConfig.from_toml(file)

    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing.toml", tmp_path, "a\0b"):
            with pytest.raises(ConfigError, match="cannot be read"):
                P2pConfig.from_toml(path)

    def test_tables_are_no_values(self, tmp_path: Path) -> None:
        file = tmp_path / "anyreach.toml"
        file.write_text("[known_peers]\na = 1\n")
        with pytest.raises(ConfigError, match="list of"):
            P2pConfig.from_toml(file)


class TestEnv:
    def test_fields(self) -> None:
        config = P2pConfig.from_env(
            {
                "PATH": "/bin",
                "ANYREACH_BIND_ADDR": "127.0.0.1:0",
                "ANYREACH_KNOWN_PEERS": "a.example:1, b.example:2 c.example:3",
                "ANYREACH_RELAY_FALLBACK": "no",
                "ANYREACH_IDLE_TIMEOUT": "90 s",
                "ANYREACH_PREFER": "",
            }
        )
        assert config == P2pConfig(
            bind_addr="127.0.0.1:0",
            known_peers=["a.example:1", "b.example:2", "c.example:3"],
            relay_fallback=False,
            idle_timeout=90,
        )

    def test_process_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANYREACH_PREFER", "fast")
        assert P2pConfig.from_env().prefer == "fast"

    def test_prefix_and_base(self) -> None:
        base = P2pConfig(key_log=True)
        config = P2pConfig.from_env({"X_PREFER": "fast"}, prefix="X_", base=base)
        assert config == base.replace(prefer="fast")

    def test_policies_have_no_text(self) -> None:
        with pytest.raises(ConfigError, match="gather, offer and pair"):
            P2pConfig.from_env({"ANYREACH_CANDIDATE_POLICY": "default"})
