"""Commands beside a running node of the same user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .program import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .program import Program


def test_commands_work_beside_the_users_own_node(
    start: Callable[..., Program], node: Program
) -> None:
    own = start("node", "--bind", "127.0.0.1:0")
    mine = own.wait_for("ready")["peer_id"]
    connect = start("connect", node.events[0]["ticket"])
    connect.finish()
    ready = connect.events[0]
    assert ready["event"] == "ready"
    assert ready["peer_id"] != mine
    assert "ephemeral" in connect.stderr
    # People may even try their own node out.
    start("ping", own.events[0]["ticket"], "-c", "1").finish()
    assert own.process.poll() is None


def test_a_second_node_says_what_to_do(start: Callable[..., Program], tmp_path: Path) -> None:
    start("node", "--bind", "127.0.0.1:0").wait_for("ready")
    done = run("node", "--bind", "127.0.0.1:0", home=tmp_path, expected=1)
    assert "identity.pem" in done.stderr
    assert "another running node uses this key" in done.stderr


def test_a_key_that_was_asked_for_is_not_replaced(
    start: Callable[..., Program], node: Program, tmp_path: Path
) -> None:
    key = tmp_path / "mine.pem"
    start("node", "--bind", "127.0.0.1:0", "--identity", key).wait_for("ready")
    second = start("connect", node.events[0]["ticket"], "--identity", key)
    (error,) = second.finish(expected=1)
    assert error["event"] == "error"
    assert str(key) in error["message"]
