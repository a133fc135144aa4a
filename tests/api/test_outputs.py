"""What is printed as JSON is what the schemas say, down to the last key, whatever state things are in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from reconciler.client import Client
from reconciler.host.layout import Layout
from tests.api.conftest import ONE, manifest
from tests.api.schemas import FOLDER, NAMES, check, document, validator
from tests.e2e.stage import Stage
from tests.support.fileserver import FileServer
from tests.support.processes import kill9, wait_until


def said(stage: Stage, *words: str, code: int | None = 0) -> Any:
    return json.loads(stage.run(*words, "-o", "json", code=code).stdout)


def shown(stage: Stage, verb: str, *words: str, code: int | None = 0) -> Any:
    """What a verb prints, once the schema agrees."""
    pointer = verb if verb in NAMES else f"output#/$defs/{verb}"
    return check(pointer, said(stage, *verb.split("_")[:1], *words, code=code))


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_tells_of_every_key(name: str) -> None:
    text = document(name)
    Draft202012Validator.check_schema(text)
    assert text["$id"] == f"urn:reconciler:schema:{name}:1"
    assert not [where for where, node in _properties(text, name) if not _described(node)]


def _properties(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, inner in node.get("properties", {}).items():
            yield f"{where}.{key}", inner
        for key, inner in node.items():
            yield from _properties(inner, f"{where}/{key}")
    elif isinstance(node, list):
        for inner in node:
            yield from _properties(inner, where)


def _described(node: Any) -> bool:
    return bool(node.get("description") or node.get("$ref"))


def test_every_reference_between_schemas_leads_somewhere() -> None:
    for name in NAMES:
        for reference in _references(document(name)):
            target, _, pointer = reference.partition("#")
            found = document(target.split(":")[3] if target else name)
            for step in pointer.split("/")[1:]:
                assert step in found, reference
                found = found[step]


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from _references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _references(inner)


def test_a_key_that_no_schema_tells_of_is_noticed(up: Stage) -> None:
    """Of the tests themselves: the schemas that they check with are closed."""
    status = said(up, "status")
    for spoil in (status, status["manifest"], status["resources"][0], status["resources"][0]["conditions"][0]):
        assert validator("status").is_valid(status)
        spoil["more"] = 1
        assert not validator("status").is_valid(status)
        del spoil["more"]


def test_schema_prints_each(up: Stage) -> None:
    for name in ("stack", *NAMES):
        assert up.run("schema", name).stdout == (FOLDER / f"{name}.schema.json").read_text()
    assert up.run("schema").stdout == up.run("schema", "stack").stdout


def test_before_anything_was_applied(stage: Stage) -> None:
    plan = shown(stage, "plan", code=2)
    assert {c["op"] for c in plan["changes"]} >= {"create"}
    assert plan["binding"]["lineage"] == ""
    assert shown(stage, "status")["controller"] is None
    assert shown(stage, "events")["events"] == []
    assert shown(stage, "history") == {"format": "1.0", "current": 0, "generations": []}
    assert shown(stage, "state", "show")["lineage"] == ""
    check("output#/$defs/state_export", said(stage, "state", "export"))
    assert check("output#/$defs/lock_check", said(stage, "lock", "--check", code=2))["missing"]
    assert shown(stage, "why", "chat")["chain"] == []
    assert shown(stage, "validate")["valid"]
    shown(stage, "fmt", "--check", code=None)
    assert shown(stage, "explain", "models.chat.context")["set_by"]
    shown(stage, "explain", "gateway")
    assert shown(stage, "explain", "models.chat.options")["engine"]
    shown(stage, "init", "-f", str(stage.folder / "new.yaml"))
    check("output#/$defs/errors", said(stage, "diff", code=1))
    stage.write("version: 1\nmodels: {chat: {contxt: 1}}\n")
    assert len(check("output#/$defs/errors", said(stage, "plan", code=1))["errors"]) > 1
    status = shown(stage, "status")
    assert status["manifest"]["faults"][0]["where"]["line"] == 2


def test_while_all_is_well(up: Stage) -> None:
    plan = shown(up, "plan")
    assert (plan["changes"], plan["drift"], len(plan["same"])) == ([], [], 4)
    status = shown(up, "status")
    assert status["ready"]
    assert status["controller"]["pid"] == up.controller
    assert shown(up, "status_one", "server/chat")["ref"] == "server/chat"
    events = shown(up, "events")["events"]
    assert events
    assert shown(up, "history")["generations"][0]["state"] == "ready"
    assert shown(up, "why", "server/chat")["chain"]
    state = shown(up, "state", "show")
    assert [p["ready"] for p in state["processes"]] == [True, True]
    assert state["pins"]
    export = check("output#/$defs/state_export", said(up, "state", "export"))
    assert len(export["owned"]) == 4
    assert check("output#/$defs/lock_check", said(up, "lock", "--check"))["complete"]
    lock = shown(up, "lock", "--upgrade", "model/chat")
    assert (lock["changed"], lock["faults"]) == ([], [])
    assert shown(up, "diff")["fields"] == []
    applied = shown(up, "apply")
    assert applied["status"]["ready"]
    follower = up.start("events", "-f", "-o", "json")
    assert follower.stdout is not None
    try:
        assert check("output#/$defs/event", json.loads(follower.stdout.readline()))["seq"] == events[0]["seq"]
    finally:
        follower.terminate()
        follower.communicate()


def test_a_plan_with_changes_saved_and_carried_out(stage: Stage) -> None:
    stage.run("apply")
    other = stage.folder / "other.yaml"
    other.write_text(manifest(stage, ONE.replace("1k", "2k"), ONE.replace("chat:", "more:").replace("fast", "slow")))
    saved = stage.folder / "saved.json"
    printed = check("plan", said(stage, "plan", "-f", str(other), "--out", str(saved), code=2))
    kept = check("plan", json.loads(saved.read_text()))
    assert {k: v for k, v in kept.items() if k != "data_root"} == printed
    assert {c["op"] for c in printed["changes"]} == {"adopt", "create", "replace", "update"}
    (replaced,) = [c for c in printed["changes"] if c["op"] == "replace"]
    assert replaced["fields"][0] == {"path": "models.chat.context", "before": 1024, "after": 2048}
    assert [f["path"] for f in check("output#/$defs/diff", said(stage, "diff", "-f", str(other), code=2))["fields"]]
    applied = check("output#/$defs/apply", said(stage, "apply", str(saved), "--no-wait"))
    assert applied["status"]["turn"] >= 1
    assert len(check("output#/$defs/errors", said(stage, "apply", str(saved), code=5))["errors"]) >= 1
    limited = check("plan", said(stage, "plan", "-f", str(other), "--target", "model/more", code=None))
    assert limited["targets"] == ["model/more"]


def test_a_denied_plan(stage: Stage) -> None:
    stage.write(manifest(stage, ONE.replace("fake,", "fake, protect: true,")))
    stage.run("apply")
    stage.write(manifest(stage, ONE.replace("chat:", "other:")))
    plan = shown(stage, "plan", code=3)
    assert "denied" in [c["op"] for c in plan["changes"]]
    assert check("output#/$defs/errors", said(stage, "apply", code=3))["errors"]
    wait_until(lambda: shown(stage, "status")["manifest"]["faults"], 10, "the denial is not in the status")


def test_drift_that_is_left_so(stage: Stage) -> None:
    stage.write(manifest(stage, ONE.replace("fake,", "fake, drift: warn,")))
    stage.run("apply")
    (server,) = stage.servers()
    kill9(server)
    plan = wait_until(lambda: _drifted(stage), 15, "no drift")
    assert plan["drift"][0]["drift"]
    assert plan["warnings"]
    reasons = {c["reason"] for r in shown(stage, "status")["resources"] for c in r["conditions"]}
    assert "LeftSo" in reasons
    shown(stage, "why", "server/chat")


def _drifted(stage: Stage) -> Any:
    plan = shown(stage, "plan", code=None)
    return plan if plan["drift"] else None


def test_while_something_is_fetched(stage: Stage) -> None:
    gguf = (stage.folder / "hello.gguf").read_bytes()
    with FileServer({"/m.gguf": gguf}) as server:
        server.slow(len(gguf) // 3)
        stage.write(manifest(stage, ONE.replace("file:hello.gguf", server.url("/m.gguf"))))
        stage.run("apply", "--no-wait")
        seen = []
        with Client(Layout(stage.root)) as client:
            for message in client.follow():
                seen.append(check("control#/$defs/follow.message", message))
                if message["type"] == "status" and message["ready"]:
                    break
    progress = [p for m in seen if m["type"] == "status" for p in m["progress"].values()]
    assert [p for p in progress if p["total"] == len(gguf) and 0 < p["done"] < len(gguf)]
    assert [m for m in seen if m["type"] == "status" and m["working"]]
    assert [p for p in progress if p["rate"] and p["eta_seconds"] is not None]
    assert [m for m in seen if m["type"] == "event"]


def test_what_is_held(stage: Stage) -> None:
    stage.run("apply")
    hold = "output#/$defs/hold"
    assert check(hold, said(stage, "pause", "chat"))["changed"] == ["model/chat"]
    assert check(hold, said(stage, "pause"))["suspended"]
    status = shown(stage, "status")
    assert (list(status["paused"]), status["suspended"] is None) == (["model/chat"], False)
    stage.write(manifest(stage, ONE.replace("1k", "2k"), ONE.replace("chat:", "more:").replace("fast", "slow")))
    plan = shown(stage, "plan", code=2)
    assert {c["halt"] for c in plan["changes"]} == {None}, "what an apply of it would do"
    assert [w["path"] for w in plan["warnings"]] == ["controller"]
    assert check("output#/$defs/errors", said(stage, "apply", code=1))["errors"][0]["hint"]
    assert check("output#/$defs/errors", said(stage, "pause", "nobody", code=1))["errors"]
    with Client(Layout(stage.root)) as client:
        assert check("control#/$defs/resume.answer", client.resume())["changed"] == ["controller"]
        assert check("control#/$defs/pause.answer", client.pause(["server/more"]))["changed"] == ["server/more"]
        assert check("control#/$defs/resume.answer", client.resume(["chat", "more"]))["paused"] == {}
    stage.until_ready(20)
    kill9(stage.controller)
    assert check(hold, said(stage, "pause", "chat"))["changed"] == ["model/chat"]
    assert list(shown(stage, "status")["paused"]) == ["model/chat"]
    shown(stage, "why", "model/chat")


def test_what_failed(stage: Stage) -> None:
    whole = (stage.folder / "hello.gguf").read_bytes()
    (stage.folder / "hello.gguf").write_bytes(b"no model")
    assert "not a GGUF" in str(check("output#/$defs/errors", said(stage, "apply", code=1)))
    (stage.folder / "hello.gguf").write_bytes(whole[:-5000])
    applied = check("output#/$defs/apply", said(stage, "apply", code=None))
    assert not applied["status"]["ready"]
    shown(stage, "status")
    assert "its header describes" in shown(stage, "why", "model/chat")["conditions"][0]["message"]
    (stage.folder / "hello.gguf").unlink()
    assert check("output#/$defs/lock", said(stage, "lock", "--upgrade", code=1))["faults"]


def test_generations_come_and_go(stage: Stage) -> None:
    stage.run("apply")
    other = stage.folder / "other.yaml"  # the controller would take over the one that it watches as it is saved
    other.write_text(manifest(stage, ONE.replace("fast", "faster")))
    stage.run("apply", "-f", str(other), "--confirm-within", "10m")
    status = shown(stage, "status")
    assert status["manifest"]["generation"] == 2
    assert 0 < status["manifest"]["confirm_by"] - time.time() <= 600
    assert shown(stage, "confirm") == {"confirmed": 2}
    assert check("output#/$defs/errors", said(stage, "confirm", code=1))
    assert check("output#/$defs/diff", said(stage, "diff", "1", "2", code=2))["fields"]
    assert shown(stage, "rollback")["manifest"]["held_back"]
    assert shown(stage, "status")["manifest"]["held_back"]
    assert shown(stage, "history")["current"] == 1
    other.write_text("version: 1\nmodels: [\n")
    wait_until(lambda: shown(stage, "status")["manifest"]["faults"], 10, "the fault is not in the status")
    kill9(stage.controller)
    status = shown(stage, "status", "-f", str(other))
    assert (status["controller"], status["ready"]) == (None, False)
    shown(stage, "down")
    assert shown(stage, "state", "show")["processes"] == []
    check("output#/$defs/state_rebuild", said(stage, "state", "rebuild"))
