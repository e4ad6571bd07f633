"""File names from strangers: what is accepted stays inside one folder on every system."""

from __future__ import annotations

import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyreach.transfer.errors import TransferError, TransferErrorCode
from anyreach.transfer.names import (
    MAX_NAME_BYTES,
    check_name,
    numbered_name,
    partial_name,
    printable,
)

CONTENT_ID = "0123456789abcdef" * 2


def accepted(name: str) -> bool:
    try:
        check_name(name)
    except TransferError:
        return False
    return True


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../up",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..\\up",
        "C:\\boot.ini",
        "nul",
        "NUL.txt",
        "con",
        "Com1.log",
        "lpt9",
        "AUX ",
        "CONIN$",
        "with\0nul",
        "line\nbreak",
        "escape\x1b[2J",
        "tab\there",
        "\x85next-line",
        "exe.\u202egpj",
        "\ud800lone",
        ".bashrc",
        ".name.0123456789abcdef.part",
        "trailing.",
        "trailing ",
        "x" * 256,
        "ä" * 128,
    ],
)
def test_refused(name: str) -> None:
    with pytest.raises(TransferError) as caught:
        check_name(name)
    assert caught.value.code is TransferErrorCode.BAD_NAME
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["C:evil", "a:stream", "what?.txt", 'quo"te', "pipe|", "a<b>", "*"]
)
def test_refused_on_windows_only(name: str) -> None:
    assert check_name(name) == name
    with pytest.raises(TransferError):
        check_name(name, windows=True)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "photo.jpg",
        "no extension",
        "Bericht März.pdf",
        "日本語.txt",
        "👩\u200d🚀.png",
        "a..b",
        "x" * 255,
        "console.txt",
        "com10",
        "nullable",
        "-rf",
        "~",
        "$(id)",
    ],
)
def test_accepted(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=300))
@example("..")
@example("nul .txt")
def test_accepted_names_are_one_component(name: str) -> None:
    try:
        check_name(name, windows=True)
    except TransferError:
        return
    assert os.path.normpath(name) == name
    assert PurePosixPath("/inbox", name).parent == PurePosixPath("/inbox")
    windows = PureWindowsPath("D:/inbox", name)
    assert windows.parent == PureWindowsPath("D:/inbox")
    assert not PureWindowsPath(name).is_reserved()
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert not any(unicodedata.category(c) == "Cc" for c in name)


@given(st.text(min_size=1, max_size=300).filter(accepted), st.integers(0, 999))
def test_derived_names_fit(name: str, number: int) -> None:
    partial = partial_name(name, CONTENT_ID)
    assert len(partial.encode()) <= MAX_NAME_BYTES
    assert partial.startswith(".")
    assert not accepted(partial)
    numbered = numbered_name(name, number)
    assert len(numbered.encode()) <= MAX_NAME_BYTES
    assert "/" not in numbered
    assert (numbered == name) == (number == 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.txt", "a (1).txt"), ("a", "a (1)"), ("a.tar.gz", "a.tar (1).gz"),
     ("x." + "y" * 30, "x." + "y" * 30 + " (1)")],
)  # fmt: skip
def test_numbered(name: str, expected: str) -> None:
    assert numbered_name(name, 1) == expected
    assert numbered_name(name, 0) == name


@given(st.text(max_size=500))
def test_printable_never_controls_a_terminal(name: str) -> None:
    shown = printable(name)
    assert len(shown) <= 80
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown)
