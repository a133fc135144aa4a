"""kill -9 before and after every effect; whoever comes next must converge, leaking and losing nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.host.fetch import SYNC_EVERY
from tests.crash.harness import Run, Tally, judge, settle
from tests.e2e.stage import CHECKOUT, Stage
from tests.support.engines import wrapper
from tests.support.fileserver import FileServer
from tests.support.tiny_gguf import tiny_gguf

SHARDS = 4
PADDING = 20 << 20  # bytes after the model's tensors, so that its download has several syncs
BUFFERED = 8 << 20  # bytes that the server may count as sent while they wait in the kernel


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    model = tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()
    with FileServer({"/big.gguf": model + bytes(PADDING), "/small.gguf": model}) as server:
        yield server


def prepare(folder: Path, server: FileServer, entry: str = "") -> Stage:
    folder.mkdir()
    stage = Stage(folder)
    wrapper(folder / "engine", {})
    entry = entry or f'chat: {{source: "{server.url("/big.gguf")}", engine: fake}}'
    stage.write(text(stage, entry))
    return stage


def text(stage: Stage, entry: str) -> str:
    return (
        "version: 1\nengines: {fake: {type: llama.cpp, path: ./engine}}\n"
        f"models:\n  {entry}\ngateway: {{port: {stage.port}}}\n"
    )


@pytest.mark.timeout(800)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_first_apply(tmp_path: Path, server: FileServer, shard: int, record_property) -> None:
    tally = Tally()
    total = count_effects(tmp_path / "count", server)
    for number in range(1 + shard, total + 1, SHARDS):
        for when in ("before", "after"):
            folder = tmp_path / f"{number}-{when}"
            stage = prepare(folder, server)
            sent = server.sent["/big.gguf"]
            try:
                crash_and_converge(stage, number, when, tally)
                fetched = server.sent["/big.gguf"] - sent
                assert fetched <= PADDING + SYNC_EVERY + BUFFERED, f"{number} {when}: fetched {fetched} bytes"
            finally:
                stage.close()
            shutil.rmtree(folder)
    record_property("crash:first apply", tally.to_json())
    assert tally.points > total * 2 // SHARDS * 0.8, "hardly any crash point was reached"


@pytest.mark.timeout(800)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_edit_that_replaces_a_server(tmp_path: Path, server: FileServer, shard: int, record_property) -> None:
    tally = Tally()
    template = f'chat: {{{{source: "{server.url("/small.gguf")}", engine: fake, context: {{}}}}}}'
    total = 0
    number = 1 + shard
    while not total or number <= total:
        for when in ("before", "after"):
            folder = tmp_path / f"{number}-{when}"
            stage = prepare(folder, server, template.format("1k"))
            try:
                with Run(stage) as first:
                    settle(first)
                stage.write(text(stage, template.format("2k")))
                crash_and_converge(stage, number, when, tally)
                total = total or count_edit_effects(tmp_path / "count", server, template)
            finally:
                stage.close()
            shutil.rmtree(folder)
        number += SHARDS
    record_property("crash:edit", tally.to_json())
    assert tally.points


@pytest.mark.timeout(600)
@pytest.mark.parametrize("effect", ["venv", "pip-install", "extract"])
def test_first_apply_of_the_quickstart_itself(tmp_path: Path, effect: str, record_property) -> None:
    """The effects that only the real engine and the real model have."""
    tally = Tally()
    example = (CHECKOUT / "examples" / "quickstart" / "stack.yaml").read_text()
    for when in ("before", "after"):
        stage = Stage(tmp_path / when)
        stage.folder.mkdir()
        stage.write(example.replace("1337", str(stage.port)).replace("../../state", "state"))
        try:
            crash_and_converge(stage, effect, when, tally, patience=200)
        finally:
            stage.close()
        shutil.rmtree(stage.folder)
    record_property("crash:quickstart", tally.to_json())
    assert tally.points == 2


def crash_and_converge(stage: Stage, at: int | str, when: str, tally: Tally, patience: float = 30) -> None:
    where = f"effect {at} ({when})"
    with Run(stage, str(at), when) as victim:
        if victim.until_ready_or_dead(patience):
            tally.unreached += 1  # effects run side by side, so that a run may have one less than the one counted
        else:
            assert victim.process.wait() == -9, f"{where}: it ended by itself"
            tally.points += 1
            name = at if isinstance(at, str) else victim.effects()[at - 1].split()[1]
            where += f" {name}"
            tally.by_effect[name] = tally.by_effect.get(name, 0) + 1
    with Run(stage) as heir:
        settle(heir, patience)
        judge(stage, 1, tally, where)
        answer = stage.ask()
        assert answer["choices"], where


def count_effects(folder: Path, server: FileServer) -> int:
    stage = prepare(folder, server)
    try:
        with Run(stage) as run:
            settle(run)
            return len(run.effects())
    finally:
        stage.close()


def count_edit_effects(folder: Path, server: FileServer, template: str) -> int:
    stage = prepare(folder, server, template.format("1k"))
    try:
        with Run(stage) as first:
            settle(first)
        stage.write(text(stage, template.format("2k")))
        with Run(stage) as second:
            settle(second)
            return len(second.effects())
    finally:
        stage.close()
