"""What goes and what stays, by what is known of it; removal asks again what is needed by then."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from reconciler.controller.garbage import DAY, Ask, Garbage, Survey, Uses
from reconciler.controller.holdings import pieces
from reconciler.core.diagnostics import Fault, Refused
from reconciler.core.ids import Ref, canonical, pin_key
from reconciler.core.state import Declared
from reconciler.host.usage import users
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.spec import EngineSpec
from reconciler.kinds.model.spec import ModelSpec
from tests.controller.conftest import CHAT, ENGINE, Breakable

SOURCE = "file:chat.gguf"
B, C = "b" * 64, "c" * 64


def put(tools: Tools, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    part = tools.layout.partial / digest
    tools.files.write(part, data)
    tools.blobs.take(part, digest)
    return digest


def wants(digest: str = "", locked: str = "") -> dict[Ref, Declared]:
    return {CHAT: Declared(CHAT, ModelSpec(SOURCE, "", digest, locked))}


@pytest.fixture
def garbage(tools: Tools, path: Path) -> Garbage:
    return Garbage(tools, path)


def gone(survey: Survey) -> set[str]:
    return {item.path.name for item in survey.go}


def kept(survey: Survey) -> dict[str, Uses]:
    return {item.path.name: item.uses for item in survey.stay}


def test_what_is_owned_or_wanted_stays(garbage: Garbage, tools: Tools) -> None:
    one, two, three = put(tools, b"1"), put(tools, b"22"), put(tools, b"333")
    tools.ledger.own(CHAT, "d", ModelSpec(SOURCE, "", one))
    survey = garbage.survey(Ask(), wants(two))
    assert gone(survey) == {three}
    assert survey.size == 3
    assert kept(survey) == {one: Uses(("model/chat",)), two: Uses(("model/chat",))}


async def test_what_is_being_renewed_stays(garbage: Garbage, tools: Tools) -> None:
    """Between the arrival of new bytes and the lock's learning of them, both count."""
    old, new = put(tools, b"old"), put(tools, b"newer")
    tools.ledger.own(CHAT, "d", ModelSpec(SOURCE, "", "", old))
    tools.ledger.pin(pin_key(SOURCE), {"sha256": new})
    assert gone(garbage.survey(Ask(), wants(locked=old))) == set()


async def test_what_came_to_be_needed_since_the_look_stays(garbage: Garbage, tools: Tools) -> None:
    one, two = put(tools, b"1"), put(tools, b"22")
    survey = garbage.survey(Ask(), {})
    assert gone(survey) == {one, two}
    assert await garbage.clear(survey, wants(one)) == 2
    assert tools.blobs.digests() == [one]
    assert [a.digest for a in tools.ledger.artifacts()] == [one]
    assert await garbage.clear(survey, wants(one)) == 0, "it is gone already"


async def test_a_disk_that_fails_half_way(garbage: Garbage, tools: Tools, effects: Breakable) -> None:
    digests = sorted([put(tools, b"1"), put(tools, b"22")])
    survey = garbage.survey(Ask(), {})
    aside = f"gone-{hashlib.sha256(os.fsencode(tools.layout.blob(digests[1]))).hexdigest()[:32]}"
    effects.broken[f"move {aside}"] = 30  # read-only from here on
    with pytest.raises(Fault) as caught:
        await garbage.clear(survey, {})
    assert caught.value.code == "NOT_WRITABLE"
    assert tools.blobs.digests() == digests[1:]
    assert list(tools.layout.partial.iterdir()) == []
    effects.broken.clear()
    assert await garbage.clear(garbage.survey(Ask(), {}), {}) > 0
    assert tools.blobs.digests() == []


async def test_a_full_disk_is_freed_though_nothing_can_be_noted(
    garbage: Garbage, tools: Tools, effects: Breakable
) -> None:
    digest = put(tools, b"1")
    survey = garbage.survey(Ask(), {})
    effects.broken["artifact-forget ledger"] = 28
    with pytest.raises(Fault, match="no room"):
        await garbage.clear(survey, {})
    assert tools.blobs.digests() == []
    assert list(tools.layout.partial.iterdir()) == []
    effects.broken.clear()
    assert not tools.blobs.holds(digest)


async def test_what_an_earlier_removal_left_goes(garbage: Garbage, tools: Tools) -> None:
    left = tools.layout.partial / "gone-1"
    (left / "inside").mkdir(parents=True)
    os.utime(left, (1, 1))
    survey = garbage.survey(Ask(), {})
    assert gone(survey) == {"gone-1"}
    await garbage.clear(survey, {})
    assert not left.exists()


def test_parts_stay_with_who_may_go_on_with_them(garbage: Garbage, tools: Tools) -> None:
    tools.ledger.own(ENGINE, "d", EngineSpec("llama.cpp", path="/x"))
    mine = hashlib.sha256(pin_key(SOURCE).encode()).hexdigest()[:32]
    names = {mine, f"{mine}.json", f"{mine}.seg1", "other", "other.json"}
    tools.layout.partial.mkdir(parents=True)
    for name in names:
        (tools.layout.partial / name).write_bytes(b"x")
    other = {"other", "other.json"}
    assert gone(garbage.survey(Ask(), {})) == names
    assert gone(garbage.survey(Ask(), wants(B))) == set(), "young ones may be its, too"
    for name in names:
        os.utime(tools.layout.partial / name, (1, 1))
    assert gone(garbage.survey(Ask(), wants(B))) == other
    here = wants(put(tools, b"here"))
    assert gone(garbage.survey(Ask(), here)) == names
    assert gone(garbage.survey(Ask(), here, working=[CHAT])) == other
    (tools.layout.partial / mine).rename(tools.layout.partial / f"{mine}-2")
    assert gone(garbage.survey(Ask(), here, working=[CHAT])) == other
    names = {*names - {mine}, f"{mine}-2"}
    with (tools.layout.partial / "other").open("rb"):
        assert gone(garbage.survey(Ask(), here)) == names - other


def test_quarantine_stays_for_a_while(garbage: Garbage, tools: Tools) -> None:
    tools.layout.quarantine.mkdir(parents=True)
    now = int(time.time())
    young, old, odd = f"{B}.{now}", f"{B}.{now - 8 * int(DAY)}.1", "a person's note"
    for name in (young, old, odd):
        (tools.layout.quarantine / name).write_bytes(b"x")
    assert gone(garbage.survey(Ask(), {})) == {old}
    assert gone(garbage.survey(Ask(older=0), {})) == {young, old, odd}


def test_engines_that_nothing_uses(garbage: Garbage, tools: Tools) -> None:
    spec = EngineSpec("embedded", "1.0", python="cp311")
    tools.ledger.own(ENGINE, "d", spec)
    for name in (spec.folder, "embedded-0.9-cp311", "embedded-0.8-cp311"):
        (tools.layout.engines / name).mkdir(parents=True)
        (tools.layout.engines / name / "x.so").write_bytes(b"12345")
    with (
        (tools.layout.engines / "embedded-0.8-cp311" / "x.so").open("rb") as used,
        subprocess.Popen(["sleep", "30"], stdin=used) as user,
    ):
        survey = garbage.survey(Ask(), {})
        user.kill()
    assert gone(survey) == {"embedded-0.9-cp311"}
    assert survey.size == 5


def test_files_of_a_model_that_is_still_coming_stay(garbage: Garbage, tools: Tools) -> None:
    """Its first parts are in the store before its last ones, and no pin names them yet."""
    first = put(tools, b"the first part")
    assert gone(garbage.survey(Ask(), wants(B))) == set()
    assert gone(garbage.survey(Ask(older=0), wants(B))) == {first}
    here = wants(put(tools, b"here"))
    assert gone(garbage.survey(Ask(), here, working=[CHAT])) == set()
    assert gone(garbage.survey(Ask(), here)) == {first}


async def test_views_go_with_what_they_lead_to(garbage: Garbage, tools: Tools) -> None:
    one, two = put(tools, b"1"), put(tools, b"22")
    for name, digests in (("stays", [one]), ("goes", [one, two])):
        (tools.layout.root / "views" / name).mkdir(parents=True)
        for digest in digests:
            (tools.layout.root / "views" / name / digest[:5]).symlink_to(tools.layout.blob(digest))
    survey = garbage.survey(Ask(), wants(one))
    assert gone(survey) == {two, "goes"}
    await garbage.clear(survey, wants(one))
    assert [p.name for p in (tools.layout.root / "views").iterdir()] == ["stays"]
    assert tools.blobs.digests() == [one]


def test_what_another_tool_has_too_frees_nothing(garbage: Garbage, tools: Tools) -> None:
    one = put(tools, b"1")
    (tools.layout.root / "theirs").hardlink_to(tools.layout.blob(one))
    assert garbage.survey(Ask(), {}).size == 0


def test_without_a_ledger_nothing_is_garbage(tmp_path: Path, garbage: Garbage, tools: Tools) -> None:
    with tools.ledger.change("test") as db:
        db.execute("DELETE FROM meta WHERE key = 'lineage'")
    with pytest.raises(Refused, match="no ledger"):
        garbage.survey(Ask(), {})


def test_who_uses_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "alias").symlink_to(root)
    for name in ("open", "mapped one", "idle"):
        (root / name).write_bytes(b"x" * 5000)
    code = "import mmap, sys; f = open('mapped one', 'rb'); m = mmap.mmap(f.fileno(), 0, access=1); f.close()"
    code += "; print(1, flush=True); sys.stdin.read()"
    with (
        (root / "open").open("rb"),
        subprocess.Popen(["python3", "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        found = users(tmp_path / "alias")
        process.communicate(b"")
    alias = tmp_path / "alias"
    assert found[alias / "open"] >= {os.getpid()}
    assert found[alias / "mapped one"] == {process.pid}
    assert alias / "idle" not in found


def test_the_files_of_a_model() -> None:
    spec = {"source": SOURCE, "file": "", "sha256": "", "locked": "", "resolved": "", "size": 0}
    assert [p.digest for p in pieces(spec, {})] == [""]
    pin = {"sha256": B, "name": "x.gguf", "size": 5, "licence": "mit", "resolved": "r"}
    (one,) = pieces(spec, {pin_key(SOURCE): pin, pin_key("file:other.gguf"): {"sha256": C}})
    assert (one.digest, one.name, one.size, one.licence, one.resolved) == (B, "x.gguf", 5, "mit", "r")
    assert [p.digest for p in pieces({**spec, "file": "*q4*"}, {pin_key(SOURCE): pin})] == [""]
    locked = {**spec, "locked": C}
    assert [p.digest for p in pieces(locked, {pin_key(SOURCE): pin})] == [C]
    assert {p.digest for p in pieces(locked, {pin_key(SOURCE): pin}, generous=True)} == {B, C}
    shards = {**pin, "also": [{"name": "x-2.gguf", "sha256": C, "size": 7}]}
    assert [(p.name, p.digest, p.licence) for p in pieces(spec, {pin_key(SOURCE): shards})] == [
        ("x-2.gguf", C, "mit"),
        ("x.gguf", B, "mit"),
    ]
    asked = {**spec, "quant": "Q4_K_M", "role": "model", "pieces": [{"role": "model", "name": "a", "sha256": B}]}
    assert [(p.digest, p.name) for p in pieces(asked, {})] == [(B, "a")]
    by_quant = {canonical([SOURCE, "", "", "Q4_K_M"]): {**pin, "sha256": B}, pin_key(SOURCE): {"sha256": C}}
    assert [p.digest for p in pieces({**asked, "pieces": []}, by_quant)] == [B]
    nested = {**spec, "mmproj": {"source": "file:p.gguf", "sha256": C}}
    assert C in {p.digest for p in pieces(nested, {})}
