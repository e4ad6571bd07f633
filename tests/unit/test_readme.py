"""The Python in the README and the guide runs as printed; the tables of the guide are right."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from anyreach import (
    DefaultPathPolicy,
    DefaultRelayPolicy,
    P2pConfig,
    PathPolicy,
    PathSituation,
    PathView,
    RelayCandidate,
    RelayPolicy,
    RelaySituation,
)
from anyreach.identity import Identity
from anyreach.metrics import Recorder, exposition

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

FIELD_ROW = re.compile(r"^\| (`[a-z_`, ]+`) \| `(.*?)` \| .* \|$", re.MULTILINE)
METRIC_ROW = re.compile(r"^\| (`[a-z_`, ]+`) \| ([a-z`, ]*)\| .*\|$", re.MULTILINE)


def guide() -> str:
    return (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    _, _, rest = guide().partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def names(cell: str) -> list[str]:
    return re.findall(r"`([a-z_]+)`", cell)


def programs() -> list[object]:
    found: list[object] = []
    for page in (ROOT / "README.md", ROOT / "docs" / "guide.md"):
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        found += [
            pytest.param(code, id=f"{page.name}-{number}")
            for number, code in enumerate(blocks)
            if "asyncio.run(" in code
        ]
    return found


@pytest.mark.parametrize("code", programs())
def test_programs_run_as_printed(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_first_example_says_what_it_should() -> None:
    (code, *_rest) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "b'hello, whoever you are on the network' from True\n"


@pytest.mark.parametrize(
    ("title", "topics"),
    [
        ("Fields of the configuration that concern relays", ("relay", "proxy")),
        ("Through NATs", ("punch", "birthday", "port_mapping")),
    ],
)
def test_the_tables_of_fields_have_the_defaults(title: str, topics: tuple[str, ...]) -> None:
    rows = FIELD_ROW.findall(section(title))
    defaults = {spec.name: spec.default for spec in fields(P2pConfig)}
    told = {name: default for cell, default in rows for name in names(cell)}
    assert len(told) > 4
    for name, default in told.items():
        policy = f"{type(defaults[name]).__name__}()" if name.endswith("_policy") else None
        assert default == (policy or repr(defaults[name])), name
    assert {name for name in defaults if any(topic in name for topic in topics)} <= told.keys()


def test_the_table_of_metrics_has_names_and_labels_there_are() -> None:
    recorder = Recorder()
    recorder.reservation("h3", "reserved")
    recorder.path_switched("relayed", "direct", "better")
    text = exposition(recorder.snapshot(connections={}, rejected={"relay_target": 1}))
    rows = METRIC_ROW.findall(section("Finding out why"))
    assert len(rows) > 8
    for cell, labels in rows:
        for name in names(cell):
            samples = re.findall(rf"^anyreach_{name}(?:_count)?(?:{{(.*)}})? ", text, re.MULTILINE)
            assert samples, name
            assert set(re.findall(r"([a-z]+)=", samples[0])) == set(names(labels)), name


def test_the_path_policy_of_the_guide_keeps_its_rule() -> None:
    (code,) = [code for code in BLOCK.findall(guide()) if "class PreferIpv6" in code]
    scope: dict[str, Any] = {"__name__": "guide"}
    exec(code.replace("asyncio.run(main())", ""), scope)
    policy = scope["PreferIpv6"]()
    assert isinstance(policy, PathPolicy)
    near = PathView(1, "direct", 4, rtt=0.001, age=9.0)
    far = PathView(2, "punched", 6, rtt=0.1, age=9.0)
    situation = PathSituation((near, far), current=1)
    assert policy.decide(situation).ranking == ((2, 0), (1, 1))
    assert DefaultPathPolicy().decide(situation).ranking == ((1, 0), (2, 1))


def test_the_relay_policy_of_the_guide_keeps_its_rule() -> None:
    (code,) = [code for code in BLOCK.findall(guide()) if "class OnlyKnown" in code]
    scope: dict[str, Any] = {"__name__": "guide"}
    exec(code.replace("asyncio.run(main())", ""), scope)
    policy = scope["OnlyKnown"]()
    assert isinstance(policy, RelayPolicy)
    me, near, named = (Identity.generate().peer_id for _ in range(3))
    candidates = (RelayCandidate(near, rtt=0.001), RelayCandidate(named, rtt=0.1, known=True))
    situation = RelaySituation(me, candidates, (), now=0.0)
    assert policy.decide(situation).reserve == (named,)
    assert DefaultRelayPolicy().decide(situation).reserve == (near, named)
