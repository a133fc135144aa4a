"""A saved plan holds exactly as long as what it was made from, and says which part of it has moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.app import tools_for
from reconciler.controller.binding import Planned, from_json, planned
from reconciler.controller.turn import wanted_of
from reconciler.core.diagnostics import Exit, Refused
from reconciler.core.ids import Ref
from reconciler.core.state import Absent, Found, Unknown, fingerprint
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.gateway.rules import GatewayState, Process
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.registry import KINDS
from reconciler.kinds.server.rules import Instance, ServerState
from reconciler.manifest.lock import Lock, beside
from reconciler.manifest.reading import reading
from reconciler.store.ledger import Ledger
from reconciler.supervise.machine import Phase as Life
from tests.controller.conftest import CHAT, ENGINE, ONE, A, B

KEY = '["file:chat.gguf","",""]'


def now(path: Path, tools: Tools, *targets: Ref) -> Planned:
    made = reading(path)
    return planned(made, wanted_of(made, tools.layout, frozenset(targets)), tools, KINDS)


def saved(path: Path, tools: Tools, *targets: Ref) -> Any:
    """A plan as it comes back from a file."""
    return json.loads(json.dumps(now(path, tools, *targets).to_json()))["binding"]


def lock(path: Path, sha256: str) -> None:
    beside(path).write_text(Lock({KEY: {"sha256": sha256}}).text())


def bring(tools: Tools, data: bytes = b"GGUF") -> None:
    """Put a model's bytes into the store, and pin the source of `chat` to them."""
    path = tools.layout.blob(A)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    tools.blobs.record(A)
    tools.ledger.pin(KEY, {"sha256": A, "size": len(data)})


def test_a_plan_holds_while_nothing_moves(path: Path, tools: Tools) -> None:
    lock(path, A)
    binding = saved(path, tools)
    now(path, tools).refuse_stale(binding)
    tools.ledger.event("model/chat", "Looked", "an event is nothing that was planned from")
    tools.ledger.note_restored(CHAT, "nor is this")
    now(path, tools).refuse_stale(binding)


def test_a_saved_plan_is_the_published_one_with_its_binding(path: Path, tools: Tools) -> None:
    made = now(path, tools, CHAT)
    document = made.to_json()
    assert document["targets"] == ["model/chat"]
    assert document["manifest"] == str(path)
    assert document["format"] == "1.0"
    assert from_json(json.loads(json.dumps(document["binding"]))) == made.binding
    assert made.binding.lineage == tools.ledger.lineage


def own_something(path: Path, tools: Tools) -> None:
    tools.ledger.own(Ref("engine", "other"), "d", {"type": "llama.cpp", "path": "/x"})


MOVES: dict[str, tuple[Callable[[Path, Tools], object], list[str]]] = {
    "the manifest": (lambda path, tools: path.write_text(ONE + "# a comment\n"), ["the manifest has changed"]),
    "a lock that appears": (
        lambda path, tools: lock(path, A),
        ["the lock has changed", "model/chat is no longer as it was"],  # which bytes are meant is known now
    ),
    "what is observed": (lambda path, tools: bring(tools), ["model/chat is no longer as it was"]),
    "what is owned": (
        own_something,
        ["what is owned has changed since (serial 0 → 1)", "engine/other is no longer as it was"],
    ),
}


@pytest.mark.parametrize("what", MOVES)
def test_a_plan_is_stale_when_a_part_has_moved_and_says_which(path: Path, tools: Tools, what: str) -> None:
    move, expected = MOVES[what]
    binding = saved(path, tools)
    move(path, tools)
    with pytest.raises(Refused) as caught:
        now(path, tools).refuse_stale(binding)
    assert caught.value.exit_code is Exit.STALE == 5
    assert [d.summary for d in caught.value.diagnostics] == [f"the saved plan is stale: {part}" for part in expected]
    assert all("`reconcile plan`" in d.hint for d in caught.value.diagnostics)


def test_another_pin_or_an_included_file_makes_it_stale(path: Path, tools: Tools) -> None:
    lock(path, A)
    path.write_text(ONE + "include: [more.yaml]\n")
    more = path.with_name("more.yaml")
    more.write_text("{}\n")
    binding = saved(path, tools)
    lock(path, B)
    more.write_text("name: other\n")
    assert from_json(binding).moved(now(path, tools).binding)[:2] == [
        "the manifest has changed",
        "the lock has changed",
    ]


def test_a_plan_of_another_data_root_is_stale_and_nothing_is_said_of_its_serial(
    path: Path, tools: Tools, tmp_path: Path
) -> None:
    own_something(path, tools)
    binding = saved(path, tools)
    layout = Layout(tmp_path / "other")
    layout.root.mkdir()
    with Ledger.write(layout.ledger, Effects()) as ledger:
        other = tools_for(layout, path.parent, Effects(), ledger, KINDS)
        moved = from_json(binding).moved(now(path, other).binding)
    assert moved == [
        "it was made for another data root, or before anything was applied here",
        "engine/other is no longer as it was",
    ]


def test_a_plan_of_targets_is_bound_to_what_they_need_and_to_nothing_else(path: Path, tools: Tools) -> None:
    path.write_text(ONE + "  other: {source: file:other.gguf}\n")
    assert set(now(path, tools, CHAT).binding.observed) == {"model/chat"}
    chat = now(path, tools, Ref("server", "chat")).binding
    assert set(chat.observed) == {"model/chat", "engine/embedded", "server/chat", "gateway/main"}
    assert "model/other" in now(path, tools).binding.observed
    binding = saved(path, tools, CHAT)
    tools.ledger.pin('["file:other.gguf","",""]', {"sha256": B})
    now(path, tools, CHAT).refuse_stale(binding)
    with pytest.raises(Refused, match="engine/embedded is no longer"):
        now(path, tools).refuse_stale(binding)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"lineage": "", "serial": "x"}, {"observed": []}])
def test_what_is_no_binding_is_refused(path: Path, tools: Tools, value: Any) -> None:
    with pytest.raises(Refused, match="not a saved plan") as caught:
        now(path, tools).refuse_stale(value)
    assert "--out" in caught.value.diagnostics[0].hint


def test_gaps_of_the_lock_are_refused_with_their_places(path: Path, tools: Tools) -> None:
    with pytest.raises(Refused) as caught:
        now(path, tools).refuse_gaps()
    assert [d.path for d in caught.value.diagnostics] == [str(ENGINE), str(CHAT)]
    assert [d.where and d.where.line for d in caught.value.diagnostics] == [None, 3]
    path.write_text("version: 1\n")
    now(path, tools).refuse_gaps()


# -- fingerprints -----------------------------------------------------------------------------------------------------

INSTANCE = Instance("n1", "d", Life.READY, "127.0.0.1", 1, {"model": "t", "b": "c"}, 1.0)
ROUTED = GatewayState((Process("g", "l", Life.READY),), "d", frozenset({"n1", "n2"}), {"n1": 1}, (("k", A),))


def test_what_moves_all_the_time_does_not_count() -> None:
    same = [
        (ROUTED, replace(ROUTED, inflight={"n1": 9, "n2": 1})),
        (ROUTED, replace(ROUTED, routed=frozenset({"n2", "n1"}))),
        (ServerState((INSTANCE,)), ServerState((replace(INSTANCE, silent=True),))),
        (ServerState((INSTANCE,)), ServerState((replace(INSTANCE, inputs={"b": "c", "model": "t"}),))),
    ]
    for one, other in same:
        assert fingerprint(Found(one)) == fingerprint(Found(other))


def test_everything_else_counts() -> None:
    states = [
        ModelState(),
        ModelState(A, 5, True, "", "", "1:5:1"),
        ModelState(A, 5, True, "", "", "1:5:2"),
        ModelState(A, 5, True, "its file changed"),
        ModelState(A, 5, lost="gone"),
        EngineState(("a",), "t"),
        EngineState(("a",), "t", owned=False),
        EngineState(("a", "b"), "t"),
        ServerState(),
        ServerState((INSTANCE,)),
        ServerState((replace(INSTANCE, nonce="n2"),)),
        ServerState((replace(INSTANCE, life=Life.UNRESPONSIVE),)),
        ServerState((replace(INSTANCE, inputs={}),)),
        ServerState((replace(INSTANCE, ready=None),)),
        ServerState((replace(INSTANCE, retiring=2.0),)),
        GatewayState(),
        ROUTED,
        replace(ROUTED, digest="e"),
        replace(ROUTED, routed=frozenset({"n1"})),
        replace(ROUTED, keys=(("k", B),)),
        replace(ROUTED, problem="no key"),
        replace(ROUTED, holder="pid 1"),
    ]
    found = [Found(state) for state in states]
    prints = [fingerprint(seen) for seen in (*found, Absent(), Absent("why"), Unknown("busy"), None)]
    assert len(set(prints)) == len(prints)
    assert prints == [fingerprint(seen) for seen in (*found, Absent(), Absent("why"), Unknown("busy"), None)]
