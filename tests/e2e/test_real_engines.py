"""What only a real engine can show: loading when asked, making room, options as its help has them, its own last words.

Each runs on the embedded engine, and on a real llama-server where there is one.
"""

from __future__ import annotations

import os
import signal
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from openai import APIError, OpenAI

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.processes import wait_until

pytestmark = pytest.mark.engines
LONG = ", start: on_demand, idle_timeout: 1h"
REPLY = "Hello from a tiny model."


def reply(stage: Stage, model: str = "chat") -> str:
    with OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        done = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=40, temperature=0
        )
    return done.choices[0].message.content or ""


def test_one_load_serves_all_who_wait_and_it_is_unloaded_when_it_was_quiet(stage: Stage) -> None:
    stage.write(manifest(stage, entry(more=", start: on_demand, idle_timeout: 2s")))
    stage.run("apply")
    for times in (1, 2):
        assert stage.servers() == []
        with ThreadPoolExecutor(4) as pool:
            assert [a.result() for a in [pool.submit(reply, stage) for _ in range(4)]] == [REPLY] * 4
        assert len(stage.happened("server/chat", "Start")) == times
        wait_until(lambda: not stage.servers(), 30, "it is not unloaded")
    assert stage.happened("server/chat", "Exited") == [], "it ended because it was asked to"
    assert not stage.strays()


def test_one_makes_room_for_the_other(stage: Stage) -> None:
    models = f"{entry('one', more=LONG)}\n{entry('two', more=LONG)}"
    stage.write(manifest(stage, models, more="limits: {memory: 64MiB}\n"))
    stage.run("apply")
    for name in ("one", "two", "one"):
        assert reply(stage, name) == REPLY
        assert len(stage.servers()) == 1
        assert stage.server(name)
    assert not stage.strays()


def test_options_are_held_against_its_own_help_and_passed(stage: Stage, engine: str) -> None:
    stage.write(manifest(stage, entry(more=", options: {flash_atn: on, threads: 1}")))
    refused = stage.run("apply", code=1).stderr
    assert "has no --flash-atn; nearest: --flash-attn" in refused
    assert not stage.workloads()
    stage.write(manifest(stage, entry(more=", options: {flash_attn: on, threads: 1, no_warmup: true, temp: 0.5}")))
    stage.run("apply")
    process = psutil.Process(stage.server())
    assert (Path(process.exe()).name == "llama-server") == (engine == "llama-server")
    argv = process.cmdline()
    assert argv[argv.index("--flash-attn") + 1] == "on"
    assert argv[argv.index("--threads") + 1] == "1"
    assert "--no-warmup" in argv
    assert reply(stage) == REPLY
    assert "nothing to do" in stage.run("plan").stdout


def test_a_model_that_it_does_not_know_is_told_as_such_and_not_tried_again(stage: Stage, models: Path) -> None:
    strange = (models / "hello.gguf").read_bytes().replace(b"llama", b"lhama")
    (stage.folder / "strange.gguf").write_bytes(strange)
    stage.write(manifest(stage, entry(source="strange.gguf")))
    done = stage.run("apply", code=1)
    assert "lhama" in done.stderr
    assert stage.condition("server/chat")["reason"] == "ModelArchNotSupported"
    begun = len(stage.happened("server/chat", "Failed"))
    stage.write(manifest(stage, f"{entry(source='strange.gguf')}\n{entry('other')}"))
    wait_until(lambda: stage.told("server/other").get("Ready", {}).get("status") == "True", 30, "the other one")
    assert len(stage.happened("server/chat", "Failed")) == begun
    assert reply(stage, "other") == REPLY


def test_a_stream_whose_server_is_killed_says_so_and_the_next_request_is_answered(stage: Stage) -> None:
    stage.write(manifest(stage, entry(source="models/endless.gguf", context="32k")))
    stage.run("apply")
    with OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        stream = client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "hi"}], max_tokens=30000, stream=True
        )
        next(iter(stream))
        os.kill(stage.server(), signal.SIGKILL)
        with pytest.raises(APIError, match="broke off"):
            list(stream)
    wait_until(lambda: stage.happened("server/chat", "Exited"), 20, "nobody noticed")
    stage.until_ready()
    try:
        assert stage.ask(max_tokens=2)["choices"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error
