"""The decoder of the extension frames, held to vectors made by hand from the drafts."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .extension_frames import (
    AddAddress,
    ExtensionFrame,
    MalformedError,
    ObservedAddress,
    PunchMeNow,
    Reader,
    RemoveAddress,
    decode_concurrency_limit,
    decode_frame,
    decode_observation,
    encode_varint,
)

V4 = IPv4Address("203.0.113.7")
V6 = IPv6Address("2001:db8::9")

# Types are four-byte integers: 10 in the two highest bits of 0x3d7e90 is 0x803d7e90.
VECTORS: list[tuple[str, ExtensionFrame]] = [
    ("803d7e90 05 cb007107 2328", AddAddress(5, V4, 9000)),
    ("803d7e91 4123 20010db8000000000000000000000009 01bb", AddAddress(0x123, V6, 443)),
    ("803d7e92 01 05 cb007107 2328", PunchMeNow(1, 5, V4, 9000)),
    (
        "803d7e93 80010000 7fff 20010db8000000000000000000000009 ffff",
        PunchMeNow(0x10000, 0x3FFF, V6, 65535),
    ),
    ("803d7e94 00", RemoveAddress(0)),
    ("803d7e94 ffffffffffffffff", RemoveAddress(2**62 - 1)),
    ("809f81a6 00 cb007107 2328", ObservedAddress(0, V4, 9000)),
    ("809f81a7 01 20010db8000000000000000000000009 2328", ObservedAddress(1, V6, 9000)),
]


def decoded(data: bytes) -> ExtensionFrame | None:
    reader = Reader(data)
    frame = decode_frame(reader.varint(), reader)
    assert not reader, "something was left"
    return frame


@pytest.mark.parametrize(("text", "frame"), VECTORS, ids=lambda value: str(value)[:40])
def test_vectors(text: str, frame: ExtensionFrame) -> None:
    data = bytes.fromhex(text)
    assert decoded(data) == frame
    assert frame.encode() == data


@pytest.mark.parametrize("text", [text for text, _ in VECTORS], ids=lambda text: text[:20])
def test_what_is_cut_short_is_malformed(text: str) -> None:
    data = bytes.fromhex(text)
    for length in range(1, len(data)):
        with pytest.raises(MalformedError):
            decoded(data[:length])


def test_other_frames_are_none_of_ours() -> None:
    for frame_type in (0x00, 0x1A, 0x3D7E8F, 0x3D7E95, 0x3D7F90, 0x9F81A5, 0x9F81A8):
        assert decode_frame(frame_type, Reader(b"")) is None


@given(st.integers(0, 2**62 - 1))
def test_integers_survive(value: int) -> None:
    reader = Reader(encode_varint(value))
    assert reader.varint() == value
    assert not reader


def test_integers_of_rfc_9000() -> None:
    """Section A.1."""
    for text, value in (
        ("c2197c5eff14e88c", 151288809941952652),
        ("9d7f3e7d", 494878333),
        ("7bbd", 15293),
        ("25", 37),
        ("4025", 37),
    ):
        assert Reader(bytes.fromhex(text)).varint() == value
    with pytest.raises(ValueError, match="62 bits"):
        encode_varint(2**62)


def test_address_discovery() -> None:
    assert decode_observation(b"\x00") == (True, False)
    assert decode_observation(b"\x01") == (False, True)
    assert decode_observation(b"\x02") == (True, True)
    assert decode_observation(b"\x40\x02") == (True, True)
    for value in (b"", b"\x03", b"\x02\x00", b"\x40"):
        with pytest.raises(MalformedError):
            decode_observation(value)


def test_nat_traversal() -> None:
    assert decode_concurrency_limit(b"", from_client=True) is None
    assert decode_concurrency_limit(b"\x20", from_client=False) == 32
    assert decode_concurrency_limit(b"\x7f\xff", from_client=False) == 0x3FFF
    for value, from_client in (
        (b"\x01", True),
        (b"\x00", True),
        (b"", False),
        (b"\x00", False),
        (b"\x40\x00", False),
        (b"\x20\x20", False),
        (b"\x40", False),
    ):
        with pytest.raises(MalformedError):
            decode_concurrency_limit(value, from_client=from_client)
