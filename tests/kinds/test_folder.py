"""Folders of weights: what belongs to one, whether its files are whole, and which engines load one."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref, canonical
from reconciler.core.plan import Op
from reconciler.core.state import Found, World
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.engine.template import Template
from reconciler.kinds.model.folder import MOST_HEADER, judge_weights
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.model.spec import Piece
from reconciler.kinds.registry import KINDS
from reconciler.manifest.resolve import resolve
from reconciler.sources import Brought
from reconciler.sources.names import of_folder
from tests.manifest.helper import read_text
from tests.support.weights import KEPT, folder_of_weights, safetensors


def test_what_belongs_to_it_is_data_with_plain_names_the_weights_first() -> None:
    every = folder_of_weights()
    assert tuple(of_folder([*every, "../x.json", "sub/y.json", ".hidden.json", "x\n.json", "a b.txt"])) == KEPT


@pytest.mark.parametrize("names", [[], ["config.json"], ["m.safetensors"], ["m.gguf", "config.json"]])
def test_without_weights_or_their_settings_it_is_none(names: list[str]) -> None:
    assert of_folder(names) == []


WHOLE = safetensors()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("m.safetensors", WHOLE, ""),
        ("m.safetensors", safetensors(0), ""),
        ("m.safetensors", WHOLE[:-1], "its header describes"),
        ("m.safetensors", b"", "no sensible length"),
        ("m.safetensors", b"<!doctype html>" * 90, "no sensible length"),
        ("m.safetensors", (5).to_bytes(8, "little") + b"[1,2]", "its header is none"),
        ("m.safetensors", (2).to_bytes(8, "little") + b"\xff\xfe", "its header is none"),
        ("m.safetensors", (7).to_bytes(8, "little") + b'{"a":1}', "its header is none"),
        ("config.json", b'{"a": 1}', ""),
        ("config.json", b'{"a": ', "is not JSON"),
        ("config.json", b"\xff", "is not JSON"),
        ("tokenizer.model", b"\xff", ""),
    ],
)
def test_a_file_of_it_is_whole_or_named(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / "part"
    path.write_bytes(data)
    brought = Brought("0" * 64, len(data), name)
    if not problem:
        judge_weights(path, brought, "model")
        return
    with pytest.raises(Fault, match=problem) as caught:
        judge_weights(path, brought, "model")
    assert caught.value.code == "BROKEN_WEIGHTS"


def test_settings_that_would_fill_the_memory_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with path.open("wb") as data:
        data.truncate(MOST_HEADER + 1)
    with pytest.raises(Fault, match="no model needs so much"):
        judge_weights(path, Brought("0" * 64, MOST_HEADER + 1, "config.json"), "model")


ENGINES = {
    "own": "{type: command, argv: [serve, '{port}']}",
    "mac": "{type: mlx}",
    "llama": "{type: llama.cpp, path: /s}",
}
GGUF = (Piece("model", "m.gguf", 7, "a" * 64),)
FOLDER = (Piece("model", "m.safetensors", 7, "a" * 64), Piece("file", "config.json", 2, "b" * 64))


@pytest.mark.parametrize("start", ["always", "on_demand"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "looked ahead"])
@pytest.mark.parametrize(
    ("engine", "pieces", "why"),
    [
        ("own", GGUF, ""),
        ("own", FOLDER, ""),
        ("mac", FOLDER, ""),
        ("llama", GGUF, ""),
        ("mac", GGUF, "model/a is a GGUF file, and mlx-lm loads folders of weights"),
        ("llama", FOLDER, "model/a is a folder of weights, and llama loads GGUF files"),
    ],
)
def test_an_engine_is_given_only_what_it_loads(
    engine: str, pieces: tuple[Piece, ...], why: str, known: bool, start: str
) -> None:
    text = f"version: 1\nengines: {{{engine}: {ENGINES[engine]}}}\n"
    desired = resolve(
        read_text(f"{text}models: {{a: {{source: file:x, engine: {engine}, start: {start}}}}}\n"), "cp311"
    )
    first, *others = ({"role": p.role, "name": p.name, "size": p.size} for p in pieces)
    ahead = "" if known else canonical({**first, "also": others})
    state = ModelState("a" * 64 if known else "", 9, known, pieces=pieces if known else (), found=known, ahead=ahead)
    template = Template(("s",)) if engine != "llama" else None
    observed = {
        Ref("engine", engine): Found(EngineState(("s",), "s", template=template)),
        Ref("model", "a"): Found(state),
    }
    ref = Ref("server", "a")
    change = KINDS["server"].rules.change(ref, World(desired, observed))
    if why:
        assert change is not None
        assert (change.op, change.wrong) == (Op.DENIED, True)
        assert change.reason.startswith(why)
    else:
        assert change is None or change.op is not Op.DENIED


def test_what_is_looked_for_follows_from_the_engine() -> None:
    text = "version: 1\nengines:\n" + "".join(f"  {name}: {said}\n" for name, said in ENGINES.items()) + "models:\n"
    text += "".join(f"  m-{name}: {{source: 'hf:o/n', engine: {name}}}\n" for name in ENGINES)
    found = resolve(read_text(text), "cp311")
    told = {name: found[Ref("model", f"m-{name}")].spec.folders for name in ENGINES}
    assert told == {"own": "may", "mac": "only", "llama": ""}
    assert len({found[Ref("model", f"m-{name}")].digest for name in ("own", "mac")}) == 1, "no part of what it is"
