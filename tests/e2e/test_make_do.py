"""A server that had too little memory makes do with less, where it may: real processes that end as llama.cpp does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from openai import APIStatusError

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.e2e.test_residency import ask
from tests.support.processes import wait_until

# By the estimate 16k tokens in one slot with quantized caches take 71 MiB beside the weights, 32k take 104 MiB.
ROOM = "memory: {shrink: true}, limits: {memory: 100MiB}"
LESS = "context 32768 → 16384, parallel 2 → 1, cache_type.k f16 → q8_0, cache_type.v f16 → q8_0"


def model(fault: str = "oom-above=16384", more: str = ROOM, start: str = "") -> str:
    return entry(
        source="models/endless.gguf",
        context="32k",
        more=f", parallel: 2, {more}{start}, env: {{FAKE_ENGINE: '{fault}'}}",
    )


def argv(stage: Stage) -> str:
    return Path(f"/proc/{stage.server()}/cmdline").read_text().replace("\0", " ")


@pytest.fixture
def less(fake: Stage) -> Stage:
    """A stage whose model runs with less than its manifest says."""
    fake.write(manifest(fake, model()))
    fake.run("apply")
    return fake


def test_one_retry_with_less_is_told_everywhere(less: Stage) -> None:
    assert "--ctx-size 16384 --parallel 1" in argv(less)
    assert "--cache-type-k q8_0 --cache-type-v q8_0" in argv(less)
    (failed,) = less.happened("server/chat", "Failed")
    assert "OUT_OF_MEMORY" in failed
    assert f"next with {LESS}" in failed
    assert [LESS in said for said in less.happened("server/chat", "Reduced")] == [True]
    told = less.told("server/chat")
    assert told["Ready"]["status"] == "True"
    assert (told["Reduced"]["status"], told["Reduced"]["reason"]) == ("True", "OutOfMemory")
    assert LESS in told["Reduced"]["message"]
    assert (told["Drifted"]["status"], told["Drifted"]["reason"]) == ("True", "LeftSo")
    assert "Reduced" in less.run("status", "server/chat").stdout
    planned = less.run("plan").stdout
    assert "≠ server/chat" in planned
    assert "nothing to do" in planned
    assert less.get("/v1/models/chat")["context_length"] == 16384
    assert "nothing to do" in less.run("apply").stdout


def test_it_stays_so_over_controllers_and_deaths_until_its_entry_changes(less: Stage) -> None:
    pid = less.server()
    less.end_controller()
    assert "≠ server/chat" in less.run("plan").stdout, "the ledger knows it without a controller"
    less.run("apply")
    assert less.server() == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: less.server() not in (0, pid), 20, "it is not started again")
    less.until_ready()
    assert "--ctx-size 16384" in argv(less), "what is free now still does not do for its own settings"
    assert len(less.happened("server/chat", "Failed")) == 1, "so they were not tried"
    less.write(manifest(less, model(fault="")))
    less.run("apply")
    assert "--ctx-size 65536 --parallel 2" in argv(less)
    assert "Reduced" not in less.told("server/chat")
    assert "≠" not in less.run("plan").stdout


def test_a_lost_ledger_takes_over_what_runs_with_less(less: Stage) -> None:
    pid = less.server()
    less.end_controller()
    for path in less.root.glob("ledger.db*"):
        path.unlink()
    less.run("apply")
    assert less.server() == pid
    assert "Reduced" in less.told("server/chat")
    assert less.get("/v1/models/chat")["context_length"] == 16384


def test_a_person_has_its_own_settings_tried_again_and_it_serves_on_meanwhile(less: Stage) -> None:
    pid = less.server()
    assert "is loaded" in less.run("load", "chat").stdout
    assert len(less.happened("server/chat", "Failed")) == 2, "they were tried"
    assert ask(less) == "w0 w1 w2 w3 w4 "
    less.until_ready()
    assert "Reduced" in less.told("server/chat")
    assert less.server(), "one process, with less again"
    assert "--ctx-size 16384" in argv(less)
    less.write(manifest(less, model(more="limits: {memory: 100MiB}")))
    wait_until(lambda: less.server() != pid, 20, "what must be as its manifest says is not left with less")
    assert less.snapshot()["manifest"]["faults"] == []


def test_who_asks_waits_for_both_tries(fake: Stage) -> None:
    fake.write(manifest(fake, model(start=", start: on_demand, idle_timeout: 1h")))
    fake.run("apply")
    assert ask(fake) == "w0 w1 w2 w3 w4 "
    assert len(fake.happened("server/chat", "Failed")) == 1
    fake.run("load", "chat")
    fake.run("unload", "chat")
    assert fake.servers() == []
    failed = len(fake.happened("server/chat", "Failed"))
    assert ask(fake) == "w0 w1 w2 w3 w4 "
    assert len(fake.happened("server/chat", "Failed")) == failed, "a later load needs no failure to know"
    assert "--ctx-size 16384" in argv(fake)


def test_both_tries_are_told_where_neither_does(fake: Stage) -> None:
    fake.write(manifest(fake, model("oom-above=100")))
    fake.run("apply", code=None)
    wait_until(lambda: len(fake.happened("server/chat", "Failed")) >= 2, 30, "it was not tried twice")
    told = fake.told("server/chat")["Ready"]
    assert told["reason"] == "OutOfMemory"
    assert "it ended so with its own settings, and again with context 32768 → 16384" in told["message"]
    assert "shrink" not in told["message"], "what is in force already is no remedy"
    assert "choose a smaller quant" in told["message"]
    assert fake.servers() == []
    fake.write(manifest(fake, model("", more="memory: {shrink: true}")))
    fake.run("apply")
    assert "--ctx-size 65536" in argv(fake)


def test_one_that_runs_out_of_memory_later_makes_do_with_less_too(fake: Stage) -> None:
    fake.write(manifest(fake, model("oom-above=16384,oom-later=3")))
    fake.run("apply")
    assert "--ctx-size 65536" in argv(fake)
    wait_until(lambda: "Reduced" in fake.told("server/chat"), 40, "it is not started with less")
    assert "--ctx-size 16384" in argv(fake)
    (said,) = fake.happened("server/chat", "Exited")
    assert "failed to allocate" in said
    assert fake.happened("server/chat", "Failed") == [], "it was started once with each"


def test_without_leave_what_the_manifest_says_is_what_runs(fake: Stage) -> None:
    start = ", start: on_demand, idle_timeout: 1h"
    fake.write(manifest(fake, model(more="limits: {memory: 100MiB}", start=start)))
    fake.run("apply")
    for _ in range(2):
        with pytest.raises(APIStatusError):
            ask(fake)
    told = fake.told("server/chat")["Ready"]
    assert told["reason"] == "OutOfMemory"
    assert "memory: {shrink: true}" in told["message"]
    assert fake.happened("server/chat", "Reduced") == []


def test_a_real_engine_makes_do_with_quantized_caches(stage: Stage) -> None:
    """By the kernel's own limit: its cache of f16 takes 128 MiB of some 260, that of q8_0 takes 68."""
    more = ", parallel: 2, memory: {shrink: true}, limits: {memory: 230MiB}"
    threads = ", options: {threads: 1, threads_batch: 1, threads_http: 2}"
    stage.write(manifest(stage, entry(source="models/endless.gguf", context="32k", more=more + threads)))
    stage.run("apply")
    assert "--ctx-size 65536 --parallel 2" in argv(stage)
    assert "--cache-type-k q8_0 --cache-type-v q8_0" in argv(stage)
    (failed,) = stage.happened("server/chat", "Failed")
    assert "its limit of 241 MB was reached" in failed
    assert stage.ask(max_tokens=4)["usage"]["completion_tokens"] == 4
    assert stage.get("/v1/models/chat")["context_length"] == 32768
