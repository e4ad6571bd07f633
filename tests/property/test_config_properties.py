"""Any value for any field gives a valid configuration or ConfigError, nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from anyreach.config import P2pConfig
from anyreach.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(P2pConfig)]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=10)
)
values = scalars | st.lists(scalars, max_size=4) | st.dictionaries(st.text(), scalars, max_size=2)
plausible = st.from_regex(
    r"[0-9]{1,7}(\.[0-9]{1,3})? ?(ms|s|min|h|KiB|MiB|kb|b|GB|MB/s)?"
    r"|(http://)?(me(:pw)?@)?(a\.example|\[::1\]|10\.0\.0\.1)(:80)?(/8)?|auto|off",
    fullmatch=True,
)


def check(config: P2pConfig) -> None:
    again = P2pConfig(**config.to_dict())
    assert again == config
    assert config.replace() == config
    assert config.keep_alive_interval < config.idle_timeout
    assert config.stream_receive_window <= config.receive_window


def attempt(options: dict[str, Any]) -> P2pConfig | ConfigError:
    try:
        return P2pConfig(**options)
    except ConfigError as error:
        return error


@given(st.dictionaries(st.sampled_from(FIELDS), values | plausible, max_size=3))
def test_any_values(options: dict[str, Any]) -> None:
    result = attempt(options)
    if isinstance(result, ConfigError):
        assert result.field in FIELDS
    else:
        check(result)


@given(st.dictionaries(st.text(max_size=20), scalars, min_size=1, max_size=3))
def test_any_names(options: dict[str, Any]) -> None:
    result = attempt(options)
    if isinstance(result, ConfigError):
        assert result.field in options
    else:
        assert set(options) <= set(FIELDS)


@given(
    st.dictionaries(
        st.sampled_from(FIELDS).map(lambda name: "ANYREACH_" + name.upper())
        | st.text(max_size=20).map(lambda name: "ANYREACH_" + name),
        st.text(max_size=20) | plausible,
        max_size=3,
    )
)
def test_any_environment(environ: dict[str, str]) -> None:
    try:
        config = P2pConfig.from_env(environ)
    except ConfigError:
        return
    check(config)
