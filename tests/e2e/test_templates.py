"""Engines of type `command`: a real program with manners of its own, started, asked, watched and stopped like any."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import psutil
import pytest

from reconciler.host.layout import Layout
from reconciler.host.probes import unix_request
from tests.e2e.stage import Stage
from tests.support.processes import alive, kill9, wait_until

CANARY = "canary-7d793037a0"
PLACES = "--at, '{host}:{port}', --weights, '{model_path}', --served, '{model_name}'"


def manifest(stage: Stage, flags: str = "", engine: str = "", model: str = "", places: str = PLACES) -> str:
    """One model on an engine of the program: `flags` are further words of argv, `engine` and `model` further keys."""
    ready = "" if "ready:" in engine else ", ready: {http: /up, timeout: 20s}"
    return (
        "version: 1\n"
        f"engines: {{own: {{type: command, argv: [./own, {places}{flags}]{ready}{engine}}}}}\n"
        f"models: {{chat: {{source: 'file:models/hello.gguf', engine: own{model}}}}}\n"
        f"gateway: {{port: {stage.port}}}\n"
    )


def up(stage: Stage, *arguments: str, **more: str) -> Stage:
    stage.write(manifest(stage, *arguments, **more))
    stage.run("apply")
    return stage


def running(stage: Stage) -> bool:
    """Whether a request is under way."""
    state = unix_request(Layout(stage.root).gateway_socket, "GET", "/state")
    return bool(state and state["inflight"])


def told(stage: Stage, name: str = "chat") -> dict[str, Any]:
    """What the server was told, by its own answer."""
    answer: dict[str, Any] = json.loads(stage.ask(name)["choices"][0]["message"]["content"])
    return answer


def test_it_is_started_as_it_wants_and_asked_by_the_name_that_it_knows(own: Stage) -> None:
    up(own, ", --window, '{context}'", model=", context: 2k, aliases: [default]")
    for name in ("chat", "default"):
        answer = told(own, name)
        assert answer["weights"].startswith(str(own.root / "artifacts"))
        assert (answer["window"], answer["folder"], answer["keys"]) == ("2048", str(own.folder), 1)
    process = psutil.Process(own.server())
    assert process.net_connections("tcp")[0].laddr.ip == "127.0.0.1"
    assert process.cmdline()[1] == str(own.folder / "own"), "resolved against the manifest's folder"
    assert "nothing to do" in own.run("plan").stdout
    listed = {one["id"]: one for one in own.get("/v1/models")["data"]}
    assert listed["default"]["context_length"] == 2048
    own.run("down")
    assert not own.servers()


def test_one_that_is_told_no_name_knows_its_model_by_the_path(own: Stage) -> None:
    up(own, places="--at, '{host}:{port}', --weights, '{model_path}'")
    assert told(own)["weights"].startswith(str(own.root / "artifacts"))
    assert own.get("/v1/models")["data"][0]["context_length"] is None, "nobody told it of one"
    own.write(manifest(own, ", --served, lab/m", ", calls: lab/m", places="--at, '{host}:{port}'"))
    own.until_generation(2)
    assert told(own)["weights"] == ""


def test_a_stream_is_passed_on_as_it_comes(own: Stage) -> None:
    up(own)
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with socket.create_connection(("127.0.0.1", own.port), timeout=20) as client:
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        client.sendall(f"{head}Connection: close\r\n\r\n".encode() + data)
        whole = b"".join(iter(lambda: client.recv(65536), b""))
    assert whole.count(b"chat.completion.chunk") > 3
    assert b"[DONE]" in whole


def test_its_secret_reaches_it_and_nothing_else(own: Stage) -> None:
    own.environment["MY_TOKEN"] = CANARY
    up(own, "", ", env: {TOKEN: 'env:MY_TOKEN', PLAIN: text}", model=", env: {PLAIN: more}")
    answer = told(own)
    assert answer["token"] == hashlib.sha256(CANARY.encode()).hexdigest()
    assert answer["plain"] == "more", "the model's own word wins"
    process = psutil.Process(own.server())
    assert process.environ()["TOKEN"] == CANARY
    assert CANARY not in " ".join(process.cmdline())
    kill9(process.pid)
    wait_until(lambda: own.happened("server/chat", "Exited"), 20, "its end went unnoticed")
    own.until_ready()
    printed = [own.run(*words.split(), code=None) for words in ("plan --all", "status", "events -n 0", "state export")]
    for done in printed:
        assert CANARY not in done.stdout + done.stderr
    for path in own.root.rglob("*"):
        if path.is_file() and not path.is_socket():
            assert CANARY.encode() not in path.read_bytes(), path


def test_what_it_says_last_is_told_without_its_secret(own: Stage) -> None:
    own.environment["MY_TOKEN"] = CANARY
    own.write(manifest(own, ", --dies, '4'", ", env: {TOKEN: 'env:MY_TOKEN'}"))
    done = own.run("apply", "--timeout", "20s", code=None)
    assert done.returncode in (1, 6)
    assert "exited with code 4; its last words: own: cannot go on with …" in done.stderr + own.log()
    text = "".join((done.stdout, done.stderr, own.log(), str(own.snapshot()), *own.happened("server/chat", "Failed")))
    assert CANARY not in text


def test_nor_when_it_ends_after_it_was_ready(own: Stage) -> None:
    own.environment["MY_TOKEN"] = CANARY
    up(own, ", --dies-later, '3'", ", env: {TOKEN: 'env:MY_TOKEN'}")
    os.kill(own.server(), signal.SIGUSR1)
    wait_until(lambda: own.happened("server/chat", "Exited"), 20, "its end went unnoticed")
    (said,) = own.happened("server/chat", "Exited")
    assert said.startswith("the process exited with code 3")
    assert "own: cannot go on with …" in said
    assert CANARY not in own.log() + str(own.snapshot())


def test_a_secret_that_is_missing_is_named_by_its_reference(own: Stage) -> None:
    own.write(manifest(own, "", ", env: {TOKEN: 'env:NOBODY_SET_THIS'}"))
    done = own.run("apply", "--timeout", "6s", code=None)
    assert done.returncode in (1, 6)
    assert "env:NOBODY_SET_THIS is not set in the controller's environment" in done.stderr
    assert own.servers() == []


@pytest.mark.parametrize("flags", [", --slow, '3'", ", --heavy, '3'"], ids=["late port", "late health"])
def test_one_that_is_slow_is_waited_for(own: Stage, flags: str) -> None:
    up(own, flags)
    assert told(own)["keys"] == 1


def test_a_health_path_that_wants_the_key_is_asked_with_it(own: Stage) -> None:
    up(own, ", --guarded")
    assert told(own)["keys"] == 1
    pid = own.server()
    own.end_controller()
    own.run("apply")  # the next controller watches it the same way
    assert own.server() == pid


def test_a_wrong_health_path_is_told_with_its_answer(own: Stage) -> None:
    own.write(manifest(own, "", ", ready: {http: /healthz, timeout: 2s}"))
    done = own.run("apply", "--timeout", "8s", code=None)
    assert done.returncode in (1, 6)
    assert "not ready after 2 s: GET /healthz answers 404" in done.stderr
    assert "`ready.http`" in done.stderr
    assert not own.strays()
    own.write(manifest(own))
    own.run("apply")
    assert told(own)["keys"] == 1


def test_one_that_dies_at_once_again_and_again_is_in_a_crash_loop(own: Stage) -> None:
    own.write(manifest(own, ", --dies, '7'"))
    done = own.run("apply", "--timeout", "25s", code=None)
    assert done.returncode in (1, 6)

    def looping() -> bool:
        return "times in a row, each time with code 7" in own.told("server/chat").get("Ready", {}).get("message", "")

    wait_until(looping, 30, f"no loop is told: {own.told('server/chat')}")
    assert "always before it was ready" in own.told("server/chat")["Ready"]["message"]
    assert "cannot go on" in own.run("logs", "chat").stdout


class Stranger:
    """Takes the port that a server was to have, and answers 200 on it, as long as it is told which."""

    def __init__(self) -> None:
        self.line = socket.create_server(("127.0.0.1", 0))
        self.at = f"127.0.0.1:{self.line.getsockname()[1]}"
        self.asked: list[str | None] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        asked = self.asked

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.headers.get("Authorization"))
                self.send_response(200 if len(asked) % 2 else 401)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        while True:
            try:
                connection, _ = self.line.accept()
            except OSError:
                return
            with connection:
                port = int(connection.makefile().read())
            threading.Thread(target=HTTPServer(("127.0.0.1", port), Answer).serve_forever, daemon=True).start()


@contextmanager
def stranger() -> Iterator[Stranger]:
    there = Stranger()
    try:
        yield there
    finally:
        there.line.close()


def test_who_else_has_its_port_is_not_taken_for_it_and_learns_no_key(own: Stage) -> None:
    with stranger() as there:
        own.write(manifest(own, f", --tells, '{there.at}'"))
        done = own.run("apply", "--timeout", "8s", code=None)
        assert done.returncode in (1, 6)
        assert f"is answered by pid {os.getpid()}" in done.stderr
        assert "not by our process" in done.stderr
        assert there.asked
        assert set(there.asked) == {None}


def test_a_change_of_program_or_template_replaces_its_servers_one_ready_before_the_other_goes(own: Stage) -> None:
    up(own)
    first = own.server()
    stop, seen = threading.Event(), list[str]()

    def ask() -> None:
        while not stop.is_set():
            seen.append(told(own)["plain"])

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        own.write(manifest(own, "", ", env: {PLAIN: second}"))
        wait_until(lambda: "second" in seen and own.server() not in (0, first), 30, f"not replaced\n{own.log()}")
        second = own.server()
        program = own.folder / "own"
        copy = program.with_name("new")
        shutil.copy(program, copy)
        copy.write_text(copy.read_text() + "# another build\n")
        copy.rename(program)
        wait_until(lambda: own.server() not in (0, second), 40, f"not replaced\n{own.log()}")
        stop.set()
        asking.result()  # nobody was turned away meanwhile
    assert sorted(set(seen), key=seen.index) == ["", "second"]
    assert not own.strays()


def test_it_is_loaded_when_asked_for_and_unloaded_when_quiet(own: Stage) -> None:
    up(own, model=", start: on_demand, idle_timeout: 2s")
    assert own.servers() == []
    with ThreadPoolExecutor(6) as pool:
        answers = [a.result()["keys"] for a in [pool.submit(told, own) for _ in range(6)]]
    assert answers == [1] * 6
    assert len(own.happened("server/chat", "Start")) == 1
    wait_until(lambda: not own.servers(), 20, "it is not unloaded")
    assert told(own)["keys"] == 1


def test_it_is_adopted_restarted_and_drained(own: Stage) -> None:
    up(own, ", --pace, '2'")
    pid = own.server()
    kill9(own.controller)
    own.run("apply")
    assert own.server() == pid, "the next controller takes it over"
    kill9(pid)
    wait_until(lambda: own.server() not in (0, pid), 20, "it is not restarted")
    own.until_ready()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(told, own)
        wait_until(lambda: running(own), 20, "it is not asked")
        own.write(manifest(own, ", --pace, '2'", ", env: {PLAIN: later}"))
        own.until_generation(2, 30)
        assert answer.result()["plain"] == ""
    assert told(own)["plain"] == "later"


def test_a_ledger_that_is_lost_is_made_again_with_what_it_needs_to_know(own: Stage) -> None:
    up(own, ", --guarded", places="--at, '{host}:{port}', --weights, '{model_path}'")
    pid = own.server()
    kill9(own.controller)
    for part in own.root.glob("ledger.db*"):
        part.unlink()
    own.run("apply")
    assert own.server() == pid
    assert told(own)["keys"] == 1, "its own name for its model is known again, too"


def test_mlx_is_denied_on_this_machine_and_nothing_is_touched(stage: Stage) -> None:
    engines = "engines: {mac: {type: mlx}}\nmodels: {chat: {source: 'hf:lab/m', engine: mac}}\n"
    stage.write(f"version: 1\n{engines}gateway: {{port: {stage.port}}}\n")
    for words in (("plan", "--all"), ("apply",)):
        done = stage.run(*words, code=1)
        assert "mlx runs on Macs with Apple silicon only, and this is linux/" in done.stdout + done.stderr
    assert not stage.blobs()
    assert not (stage.root / "engines").exists() or not list((stage.root / "engines").iterdir())


def test_a_program_that_goes_while_it_serves_is_told_and_what_serves_goes_on(own: Stage) -> None:
    up(own)
    pid = own.server()
    (own.folder / "own").rename(own.folder / "gone")
    wait_until(lambda: own.told("engine/own")["Ready"]["reason"] == "Denied", 30, "nobody noticed")
    assert "is no program" in own.told("engine/own")["Ready"]["message"]
    assert told(own)["keys"] == 1
    assert own.server() == pid
    (own.folder / "gone").rename(own.folder / "own")
    own.until_ready()
    assert told(own)["keys"] == 1


def test_a_program_that_is_not_here_is_told_by_the_plan(own: Stage) -> None:
    cases = [
        ("./own", "./gone", "gone is no program", "correct the first word of `argv`"),
        ("./own", "surely-not-installed", "there is no surely-not-installed in PATH", "install it"),
    ]
    for old, new, problem, remedy in cases:
        own.write(manifest(own).replace(old, new))
        done = own.run("plan", code=1)
        assert problem in done.stdout
        assert remedy in done.stdout
        assert problem in own.run("apply", code=1).stderr
    (own.folder / "own").chmod(0o644)
    own.write(manifest(own))
    assert "chmod +x" in own.run("plan", code=1).stdout
    assert not own.root.exists() or own.servers() == []


def test_one_that_listens_to_the_whole_network_is_told_of(own: Stage) -> None:
    up(own, places="--at, '0.0.0.0:{port}', --weights, '{model_path}', --served, '{model_name}'")
    (said,) = own.happened("server/chat", "Exposed")
    assert "0.0.0.0" in said
    assert "{host}" in said
    assert alive(own.server())
