"""The fake engine behaves like llama-server, and each switch spoils what it says."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import FAKE_ENGINE, wrapper
from tests.support.processes import children_with_env, free_port, kill9, listeners, wait_until

KEY = "secret"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


class Engine:
    def __init__(self, path: Path, switches: str, *arguments: str) -> None:
        self.port, self.mark = free_port(), uuid.uuid4().hex
        self.log_path = path.with_suffix(".log")
        env = {"PATH": os.environ["PATH"], "LLAMA_API_KEY": KEY, "MARK": self.mark}
        argv = [str(wrapper(path, {"FAKE_ENGINE": switches})), "--alias", "me", "--port", str(self.port), *arguments]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        for process in children_with_env("MARK", self.mark):
            kill9(process.pid)
        self.process.wait(5)

    @contextlib.contextmanager
    def send(
        self, path: str, body: object = None, key: str = KEY, timeout: float = 10
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
            connection.request("GET" if body is None else "POST", path, data, headers)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def ask(self, path: str, body: object = None, key: str = KEY, timeout: float = 10) -> tuple[int, Any]:
        with self.send(path, body, key, timeout) as response:
            return response.status, json.loads(response.read())

    def health(self) -> int | None:
        try:
            return self.ask("/health", key="")[0]
        except OSError:
            return None

    def wait_ready(self) -> None:
        wait_until(lambda: self.health() == 200, 10, "the engine is ready")

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        with self.send(path, {**body, "stream": True}) as response:
            assert response.headers.get_content_type() == "text/event-stream"
            lines = [line for line in response.read().decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Start:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Engine] = []

    def __call__(self, switches: str = "", *arguments: str) -> Engine:
        engine = Engine(self.folder / f"engine{len(self.started)}", switches, *arguments)
        self.started.append(engine)
        return engine


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path)
    yield start
    for engine in start.started:
        engine.close()


def test_version_and_help(tmp_path: Path) -> None:
    version = subprocess.run([FAKE_ENGINE, "--version"], capture_output=True, text=True, timeout=10)
    assert (version.returncode, version.stderr.splitlines()[0]) == (0, "version: 11434 (fake)")
    usage = subprocess.run([wrapper(tmp_path / "e"), "--help"], capture_output=True, text=True, timeout=10)
    assert usage.returncode == 0
    assert {"--ctx-size", "--gpu-layers", "--api-key-file"} <= set(usage.stdout.split())


def test_endpoints(start: Start) -> None:
    flags = ["-ctk", "q8_0", "--ctx-size", "512", "--parallel", "2", "--gpu-layers", "-1", "--new-flag", "x", "--jinja"]
    engine = start("chunks=3", *flags)
    engine.wait_ready()
    assert engine.ask("/v1/models")[1]["data"][0]["id"] == "me"
    props = engine.ask("/props")[1]
    assert (props["total_slots"], props["model_alias"]) == (2, "me")
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert [slot["is_processing"] for slot in engine.ask("/slots")[1]] == [False, False]

    answer = engine.ask("/v1/chat/completions", CHAT)[1]
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("me", "w0 w1 w2")
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 3)
    answer = engine.ask("/v1/completions", {"prompt": "hi", "max_tokens": 2})[1]
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("w0 w1", "length")
    vectors = [entry["embedding"] for entry in engine.ask("/v1/embeddings", {"input": ["a", "a", "b"]})[1]["data"]]
    assert vectors[0] == vectors[1] != vectors[2]

    events = engine.events("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    assert [event["choices"][0]["delta"].get("content") for event in events[:-1]] == [None, "w0 ", "w1 ", "w2 ", None]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"]) == ([], 3)
    events = engine.events("/v1/completions", {"prompt": "hi"})
    assert [event["choices"][0]["text"] for event in events] == ["w0 ", "w1 ", "w2 ", ""]

    assert engine.ask("/v1/chat/completions", {})[0] == 400
    assert engine.ask("/nowhere")[0] == 404
    assert engine.ask("/v1/models", key="wrong")[0] == 401
    assert engine.ask("/v1/chat/completions", CHAT, key="")[1]["error"]["type"] == "authentication_error"


def test_sigterm_ends_it_with_zero_even_in_the_middle_of_a_stream(start: Start) -> None:
    engine = start("chunk-ms=50,chunks=100,flood-log")
    engine.wait_ready()
    with engine.send("/v1/chat/completions", {**CHAT, "stream": True}) as response:
        assert b"assistant" in response.readline()
        assert [slot["is_processing"] for slot in engine.ask("/slots")[1]] == [True]
        engine.process.terminate()
        assert engine.process.wait(5) == 0
    assert len(engine.log) > 10_000


def test_a_client_that_goes_away_frees_the_slot(start: Start) -> None:
    engine = start("chunk-ms=20,chunks=1000")
    engine.wait_ready()
    with engine.send("/v1/chat/completions", {**CHAT, "stream": True}) as response:
        response.readline()
    wait_until(lambda: not engine.ask("/slots")[1][0]["is_processing"], 5, "the slot is free")
    assert "cancel task" in engine.log


def test_slow_ready(start: Start) -> None:
    engine = start("slow-ready=0.4")
    wait_until(lambda: engine.health() == 503, 5, "loading")
    expected = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    assert engine.ask("/v1/chat/completions", CHAT) == (503, expected)
    engine.wait_ready()


def test_ignore_sigterm_and_grandchildren(start: Start) -> None:
    engine = start("ignore-sigterm,fork-grandchildren,never-ready")
    wait_until(lambda: engine.health() == 503, 5, "loading")
    members = wait_until(lambda: _three(children_with_env("MARK", engine.mark)), 5, "two grandchildren")
    assert {os.getpgid(process.pid) for process in members} == {engine.process.pid}
    os.killpg(engine.process.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert len(children_with_env("MARK", engine.mark)) == 3
    os.killpg(engine.process.pid, signal.SIGKILL)
    wait_until(lambda: not children_with_env("MARK", engine.mark), 5, "all are dead")


def _three(found: list[Any]) -> list[Any]:
    return found if len(found) == 3 else []


@pytest.mark.parametrize(
    ("switches", "arguments", "code", "text"),
    [
        ("exit-at-once=3", [], 3, ""),
        ("oom", [], 1, "failed to allocate"),
        ("crash-after=0.1", [], -signal.SIGABRT, "GGML_ASSERT"),
        ("", ["--model", "/absent.gguf"], 1, "failed to open GGUF file '/absent.gguf'"),
        ("typo", [], 1, "unknown FAKE_ENGINE switch: typo"),
    ],
)
def test_ends(start: Start, switches: str, arguments: list[str], code: int, text: str) -> None:
    engine = start(switches, *arguments)
    assert engine.process.wait(5) == code
    assert text in engine.log


def test_hang_after(start: Start) -> None:
    engine = start("hang-after=0.3")
    engine.wait_ready()
    time.sleep(0.3)
    with pytest.raises(TimeoutError):
        engine.ask("/health", timeout=0.2)
    assert listeners(engine.port) == [engine.process.pid]


def test_hang_accepting_never_answers(start: Start) -> None:
    engine = start("hang-accepting")
    wait_until(lambda: listeners(engine.port), 5, "it listens")
    with pytest.raises(TimeoutError):
        engine.ask("/health", timeout=0.2)


def test_wrong_owner_leaves_the_port_alone(start: Start) -> None:
    engine = start("wrong-owner")
    wait_until(lambda: "wrong-owner" in engine.log, 5, "it runs")
    assert listeners(engine.port) == []
    assert engine.process.poll() is None


def test_a_taken_port_ends_it(start: Start) -> None:
    first = start()
    first.wait_ready()
    second = start("", "--port", str(first.port))
    assert second.process.wait(5) == 1
    assert "couldn't bind" in second.log
