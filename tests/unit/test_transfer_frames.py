"""Frames and messages: round trips, and bytes of strangers never raise anything untyped."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyreach.transfer.errors import FrameError, TransferError, TransferErrorCode
from anyreach.transfer.frames import (
    LENGTH_BYTES,
    MAX_FRAME,
    decode_body,
    decode_length,
    encode_frame,
)
from anyreach.transfer.messages import (
    MAX_SIZE,
    Done,
    Offer,
    Prefix,
    Resume,
    Trailer,
    parse_reply,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

hex32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
hex16 = st.binary(min_size=16, max_size=16).map(bytes.hex)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def split(frame: bytes) -> bytes:
    length = decode_length(frame[:LENGTH_BYTES])
    assert length == len(frame) - LENGTH_BYTES
    return frame[LENGTH_BYTES:]


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_frames_round_trip(body: dict[str, object]) -> None:
    try:
        frame = encode_frame(body)
    except FrameError:
        assert len(json.dumps(body, separators=(",", ":"))) > MAX_FRAME
        return
    assert decode_body(split(frame)) == body


@given(st.binary(max_size=200))
@example(b"[" * 4096)
@example(b'{"a":' * 800)
@example(b"NaN")
@example(b'{"a":Infinity}')
@example(b"\xff\xfe{}")
@example(b'{"a":' + b"9" * 4090 + b"}")
def test_any_bytes_decode_or_raise_frame_error(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(decode_body(data), dict)


@given(st.binary(min_size=2, max_size=2))
def test_lengths_are_bounded(prefix: bytes) -> None:
    value = int.from_bytes(prefix, "big")
    if 2 <= value <= MAX_FRAME:
        assert decode_length(prefix) == value
    else:
        with pytest.raises(FrameError):
            decode_length(prefix)


@given(st.text(max_size=255), st.integers(0, MAX_SIZE), hex16)
def test_offer_round_trips(name: str, size: int, content_id: str) -> None:
    offer = Offer(name, size, content_id)
    assert Offer.from_body(decode_body(split(encode_frame(offer.to_body())))) == offer


@given(st.integers(0, MAX_SIZE), hex32, hex32, st.text(max_size=255), st.booleans())
def test_answers_round_trip(
    offset: int, prefix: str, trailer: str, name: str, existing: bool
) -> None:
    assert Resume.from_body(Resume(offset).to_body(), MAX_SIZE) == Resume(offset)
    assert Prefix.from_body(Prefix(prefix).to_body()) == Prefix(prefix)
    assert Trailer.from_body(Trailer(trailer).to_body()) == Trailer(trailer)
    assert Done.from_body(Done(name, existing).to_body()) == Done(name, existing)


@given(st.dictionaries(
    st.sampled_from(["name", "size", "id", "ok", "offset", "sha256", "prefix_sha256", "code",
                     "message", "existing"]),
    json_values,
))  # fmt: skip
def test_any_object_parses_or_raises_transfer_error(body: dict[str, object]) -> None:
    parsers: list[Callable[[dict[str, object]], object]] = [
        Offer.from_body,
        Prefix.from_body,
        Trailer.from_body,
        Done.from_body,
        parse_reply,
        lambda b: Resume.from_body(b, 10),
    ]
    for parser in parsers:
        with contextlib.suppress(TransferError):
            parser(body)


@pytest.mark.parametrize("offset", [-1, 11, True, 1.0, "1", None, 2**70])
def test_offsets_outside_the_file_are_refused(offset: object) -> None:
    with pytest.raises(FrameError):
        Resume.from_body({"ok": True, "offset": offset}, 10)


@pytest.mark.parametrize("code", list(TransferErrorCode))
def test_refusals_keep_their_code(code: TransferErrorCode) -> None:
    with pytest.raises(TransferError) as caught:
        parse_reply(refusal(TransferError(code, "because")))
    assert caught.value.code is code
    assert caught.value.remote
    assert str(caught.value) == "because"


def test_a_code_of_the_future_is_still_a_refusal() -> None:
    with pytest.raises(TransferError) as caught:
        parse_reply({"ok": False, "code": "quota-2031", "message": "\x1b[2Jboo"})
    assert caught.value.code is TransferErrorCode.OTHER
    assert "\x1b" not in str(caught.value)
