"""A machine that cannot hold the lab skips, and fails where the lab was promised."""

from __future__ import annotations

import pytest

from . import requirements


def _lab_is_missing(monkeypatch: pytest.MonkeyPatch, reason: str | None, required: str) -> None:
    monkeypatch.setattr(requirements, "missing", lambda: reason)
    monkeypatch.setenv(requirements.REQUIRE_VARIABLE, required)


def test_elsewhere_it_skips_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    _lab_is_missing(monkeypatch, "not root", "")
    with pytest.raises(pytest.skip.Exception, match="not root"):
        requirements.netlab_required()


def test_where_required_it_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    _lab_is_missing(monkeypatch, "not root", "1")
    with pytest.raises(pytest.fail.Exception, match="not root"):
        requirements.netlab_required()


@pytest.mark.parametrize("required", ["", "1"])
def test_where_available_it_does_nothing(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    _lab_is_missing(monkeypatch, None, required)
    requirements.netlab_required()
