"""The embedded engine's program with flags that change what it does, seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.kinds.engine.io import HOST_PROGRAM
from tests.support.processes import free_port, wait_until
from tests.support.tiny_gguf import tiny_gguf

Start = Callable[..., "Running"]


class Running:
    def __init__(self, model: Path, *argv: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = model.with_name("engine.log")
        words = [sys.executable, str(HOST_PROGRAM), "--model", str(model), "--alias", "a", "--port", str(port), *argv]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def ready(self) -> Running:
        wait_until(self._healthy, 60, f"{self.process.args}: {self.log.read_text()}")
        return self

    def _healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("/health") == (200, {"status": "ok"})
        except urllib.error.URLError:
            return False

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
                return response.status, json.loads(text) if text[:1] in b"{[" else text.decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    tiny_gguf(tmp_path / "m.gguf", reply="Hello from a tiny model.")
    started: list[Running] = []

    def begin(*argv: str) -> Running:
        started.append(Running(tmp_path / "m.gguf", "--ctx-size", "512", *argv))
        return started[-1].ready()

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


def test_slots_are_saved_and_brought_back(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    engine = start("--slot-save-path", str(tmp_path / "slots"), "--slots")
    assert engine.ask("/completion", {"prompt": "hi there", "n_predict": 4, "id_slot": 0})[0] == 200
    code, saved = engine.ask("/slots/0?action=save", {"filename": "a.bin"})
    assert (code, saved["n_saved"] > 0) == (200, True)
    assert (tmp_path / "slots" / "a.bin").stat().st_size == saved["n_written"]
    code, back = engine.ask("/slots/0?action=restore", {"filename": "a.bin"})
    assert (code, back["n_restored"]) == (200, saved["n_saved"])
    assert engine.ask("/slots")[1][0]["n_ctx"] == 512


def test_endpoints_are_there_as_asked(start: Start) -> None:
    """/props is always read; `--props` lets it be written."""
    plain = start("--no-slots")
    assert [plain.ask(path)[0] for path in ("/slots", "/metrics")] == [501, 501]
    assert plain.ask("/props", {})[0] == 501
    more = start("--metrics", "--props")
    assert more.ask("/metrics")[0] == 200
    assert "requests" in more.ask("/metrics")[1]
    assert more.ask("/props", {})[0] == 200
    assert more.ask("/slots")[0] == 200


def test_defaults_of_sampling_and_of_prompts(start: Start) -> None:
    engine = start(
        "--temp", "0.25", "--top-k", "3", "--seed", "9", "--n-predict", "2", "--chat-template", "chatml",
        "--reasoning-format", "none", "--repeat-penalty", "1.5", "--samplers", "top_k;temperature",
    )  # fmt: skip
    told = engine.ask("/props")[1]
    params = told["default_generation_settings"]["params"]
    assert (params["temperature"], params["top_k"], params["seed"]) == (0.25, 3, 9)
    assert (params["repeat_penalty"], params["samplers"]) == (1.5, ["top_k", "temperature"])
    assert "<|im_start|>" in told["chat_template"]
    answer = engine.ask("/completion", {"prompt": "hi"})[1]
    assert answer["tokens_predicted"] == 2


def test_settings_of_the_machine(start: Start) -> None:
    """What it computes with shows in its log and in its answers alone: that all of it is taken at once counts here."""
    engine = start(
        "--flash-attn", "on", "--cache-type-k", "bf16", "--cache-type-v", "f32", "--threads", "1", "--threads-batch",
        "2", "--batch-size", "128", "--ubatch-size", "32", "--parallel", "2", "--kv-unified", "--swa-full", "--no-mmap",
        "--mlock", "--rope-scaling", "linear", "--rope-scale", "2", "--rope-freq-base", "10000", "--context-shift",
        "--cache-ram", "8", "--cache-reuse", "4", "--no-warmup", "--numa", "distribute", "--prio", "0", "--poll", "10",
        "--cpu-range", "0-1", "--n-cpu-moe", "1", "--split-mode", "none", "--main-gpu", "0", "--tensor-split", "1,0",
        "--fit", "off", "--check-tensors", "--no-repack", "--op-offload", "--jinja", "--pooling", "none",
        "--verbosity", "4",
    )  # fmt: skip
    assert len(engine.ask("/slots")[1]) == 2
    code, answer = engine.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert (code, bool(answer["choices"])) == (200, True)
    log = engine.log.read_text()
    assert "n_batch" in log
    assert "flash_attn" in log


def test_a_grammar_for_every_answer(start: Start) -> None:
    engine = start("--grammar", 'root ::= "xyz"')
    assert engine.ask("/completion", {"prompt": "hi", "n_predict": 8})[1]["content"] == "xyz"
