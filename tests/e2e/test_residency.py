"""Models that load when they are asked for: real processes, real clients, a real gateway."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.processes import alive, wait_until

QUICK = ", start: on_demand, idle_timeout: 2s"
LONG = ", start: on_demand, idle_timeout: 1h"


def faulty(what: str) -> str:
    return f", env: {{FAKE_ENGINE: '{what}'}}"


def ask(stage: Stage, model: str = "chat", timeout: float = 60) -> str:
    """The text of an answer; raises APIStatusError."""
    with OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0, timeout=timeout) as client:
        done = client.chat.completions.create(model=model, max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    return done.choices[0].message.content or ""


def at_once(calls: int, call: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(calls) as pool:
        return [f.result() for f in [pool.submit(call) for _ in range(calls)]]


@pytest.fixture
def idle(fake: Stage) -> Stage:
    """A stage with one model that loads on demand, not loaded."""
    fake.write(manifest(fake, entry(more=LONG)))
    fake.run("apply")
    return fake


def test_nothing_runs_until_it_is_asked_for_and_one_load_serves_all(idle: Stage) -> None:
    assert idle.servers() == []
    assert idle.told("server/chat")["Ready"]["reason"] == "OnDemand"
    assert idle.snapshot()["ready"]
    assert at_once(12, lambda: ask(idle)) == ["w0 w1 w2 w3 w4 "] * 12
    assert len(idle.happened("server/chat", "Start")) == 1
    assert len(idle.servers()) == 1
    assert idle.told("server/chat")["Ready"]["reason"] == "Answers"
    assert "nothing to do" in idle.run("plan").stdout


def test_it_is_unloaded_when_it_was_quiet_for_long_enough_and_loaded_again(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=QUICK)))
    fake.run("apply")
    for times in (1, 2):
        ask(fake)
        assert len(fake.happened("server/chat", "Start")) == times
        wait_until(lambda: not fake.servers(), 20, "it is not unloaded")
        assert fake.snapshot()["ready"] or not fake.servers()
    assert any("nobody has asked for it" in reason for reason in reasons(fake, "stop"))
    assert not fake.strays()


def reasons(stage: Stage, verb: str, name: str = "chat") -> list[str]:
    told = json.loads(stage.run("why", f"server/{name}", "-o", "json").stdout)
    return [json.dumps(step) for step in told["chain"]] if "chain" in told else [json.dumps(told)]


def test_a_stream_is_kept_alive_while_its_model_loads(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=LONG + faulty("slow-ready=6"))))
    fake.run("apply")
    body: dict[str, Any] = {
        "model": "chat",
        "stream": True,
        "max_tokens": 3,
        "messages": [{"role": "user", "content": "hi"}],
    }
    request = urllib.request.Request(
        f"{fake.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        lines = answer.read().decode().splitlines()
    assert lines[0] == ": loading chat, 5 s"
    assert lines[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in lines
    with OpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as client:  # comments are no trouble to it
        fake.run("unload", "chat")
        chunks = list(client.chat.completions.create(**body))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "w0 w1 w2 "


def test_a_load_that_fails_is_told_at_once_and_not_hammered(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=LONG + faulty("oom"))))
    fake.run("apply")
    with pytest.raises(APIStatusError) as failed:
        ask(fake)
    assert failed.value.status_code == 503
    assert failed.value.code == "model_not_loaded"
    assert "OUT_OF_MEMORY" in failed.value.message
    assert int(failed.value.response.headers["Retry-After"]) >= 1
    begun = len(fake.happened("server/chat", "Failed"))
    before = time.monotonic()
    for _ in range(20):
        with pytest.raises(APIStatusError):
            ask(fake)
    assert len(fake.happened("server/chat", "Failed")) <= begun + 1 + (time.monotonic() - before) / 4
    assert fake.told("server/chat")["Ready"]["reason"] == "OutOfMemory"
    assert not fake.servers()
    fake.write(manifest(fake, entry(more=LONG)))
    fake.run("apply")
    assert ask(fake) == "w0 w1 w2 w3 w4 "


def test_a_client_that_does_not_wait_leaves_nothing_waiting(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=QUICK + faulty("slow-ready=3"))))
    fake.run("apply")
    with pytest.raises(Exception, match="timed out"):
        ask(fake, timeout=1)
    wait_until(lambda: len(fake.happened("server/chat", "Start")) == 1, 20, "what was begun is brought to its end")
    wait_until(lambda: not fake.servers(), 20, "and unloaded, since nobody wants it")


def test_by_hand_only(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=", start: manual")))
    fake.run("apply")
    with pytest.raises(APIStatusError, match="reconcile load chat"):
        ask(fake)
    assert "is loaded" in fake.run("load", "chat").stdout
    assert ask(fake) == "w0 w1 w2 w3 w4 "
    pid = fake.server()
    fake.end_controller()
    fake.run("apply")
    assert fake.server() == pid, "what a person has loaded stays over restarts of the controller"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fake.server() not in (0, pid), 20, "and is started again when it dies")
    fake.until_ready()
    fake.run("down")
    assert fake.servers() == []
    assert "no controller" in fake.run("load", "chat", code=1).stderr.lower()
    fake.run("apply")
    assert fake.server(), "and over taking everything down"
    assert "is unloaded" in fake.run("unload", "chat").stdout
    assert fake.servers() == []
    assert json.loads(fake.run("load", "chat", "-o", "json").stdout)["ready"]


def test_what_always_runs_is_not_unloaded(served: Stage) -> None:
    for verb in ("load", "unload"):
        assert "start: on_demand" in served.run(verb, "chat", code=1).stderr
    assert "models are: chat" in served.run("load", "nope", code=1).stderr
    assert len(served.servers()) == 1


def test_the_controller_dies_while_clients_wait(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=LONG + faulty("slow-ready=4"))))
    fake.run("apply")
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, fake) for _ in range(3)]
        wait_until(lambda: fake.servers(), 20, "it is being loaded")
        pid = fake.controller
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), 10, "killed")
        fake.start("watch")
        assert [a.result() for a in answers] == ["w0 w1 w2 w3 w4 "] * 3
    assert len(fake.servers()) == 1
    assert not fake.strays()


def test_without_a_controller_what_is_loaded_serves_and_the_rest_says_so(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=LONG) + "\n" + entry("other", more=LONG)))
    fake.run("apply")
    ask(fake)
    fake.end_controller()
    assert ask(fake) == "w0 w1 w2 w3 w4 "
    with pytest.raises(APIStatusError, match="no controller runs"):
        ask(fake, "other")


@pytest.fixture
def crowded(fake: Stage) -> Stage:
    """Two models of which memory has room for one."""
    fake.write(
        manifest(fake, f"{entry('one', more=LONG)}\n{entry('two', more=LONG)}", more="limits: {memory: 40MiB}\n")
    )
    fake.run("apply")
    return fake


def test_one_makes_room_for_the_other(crowded: Stage) -> None:
    for name in ("one", "two", "one"):
        assert ask(crowded, name) == "w0 w1 w2 w3 w4 "
        assert len(crowded.servers()) == 1
        assert crowded.server(name)
    assert not crowded.strays()


def test_too_large_for_all_the_memory_is_refused_when_it_is_declared(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=LONG), more="limits: {memory: 1MiB}\n"))
    refused = fake.run("apply", code=3)
    assert "all servers together may take 1.0 MB of memory (limits.memory)" in refused.stderr
    fake.write(manifest(fake, entry(more=LONG + ", force: true"), more="limits: {memory: 1MiB}\n"))
    fake.run("apply")
    with pytest.raises(APIStatusError, match="all servers together may take"):
        ask(fake)


def test_an_idle_one_that_grows_beyond_the_memory_is_let_go_though_nobody_asks_for_room(fake: Stage) -> None:
    leaky = entry("leaky", more=LONG + faulty("leaks-memory=10000000"))
    still = entry("still", more=LONG + ", priority: 1")
    fake.write(manifest(fake, f"{leaky}\n{still}", more="limits: {memory: 100MiB}\n"))
    fake.run("apply")
    assert ask(fake, "leaky") == ask(fake, "still") == "w0 w1 w2 w3 w4 "
    pid = fake.server("still")
    wait_until(lambda: not fake.server("leaky"), 60, "it is not let go")
    assert any("have taken more than there is" in reason for reason in reasons(fake, "stop", "leaky"))
    assert fake.server("still") == pid, "what takes little stays"
    assert ask(fake, "leaky") == "w0 w1 w2 w3 w4 ", "and who asks again is served"
    assert not fake.strays()


def test_what_always_runs_and_grows_beyond_the_memory_is_told_once_and_not_stopped(fake: Stage) -> None:
    bound = "limits: {memory: 60MiB}\n"
    fake.write(manifest(fake, entry(more=faulty("leaks-memory=20000000")), more=bound))
    fake.run("apply")
    pid = fake.server()
    wait_until(lambda: "MemoryPressure" in fake.told("server/chat"), 30, "nobody says that memory is short")
    assert ask(fake) == "w0 w1 w2 w3 w4 "
    assert "memory: server/chat takes" in fake.run("status").stdout
    assert fake.server() == pid
    assert [said.split(" takes ")[0] for said in fake.happened("memory", "MemoryPressure")] == ["server/chat"]
    fake.end_controller()
    fake.run("apply")  # the next controller knows that it was told
    assert len(fake.happened("memory", "MemoryPressure")) == 1
    fake.write(manifest(fake, more=bound))
    fake.run("apply")
    wait_until(lambda: len(fake.happened("memory", "MemoryRelieved")) == 1, 30, "nobody says that it is over")
    assert "MemoryPressure" not in fake.told("server/chat")
    assert "memory:" not in fake.run("status").stdout


def test_what_has_no_room_together_is_refused_before_anything_is_done(fake: Stage) -> None:
    """Judged from the models' headers: at first nothing is known of them, and each is small enough."""
    many = [entry(f"m{at}", source="models/endless.gguf", context="32k") for at in range(3)]
    fake.write(manifest(fake, many[0], more="limits: {memory: 350MiB}\n"))
    fake.run("apply")
    fake.write(manifest(fake, "\n".join(many), more="limits: {memory: 350MiB}\n"))
    refused = fake.run("apply", code=3)
    assert "server/m2: server/m0 and server/m1 always run, and together they need" in refused.stderr
    assert "(limits.memory)" in refused.stderr
    assert len(fake.servers()) == 1
    lazy = [entry(f"m{at}", source="models/endless.gguf", context="32k", more=LONG) for at in range(1, 3)]
    fake.write(manifest(fake, "\n".join([many[0], *lazy]), more="limits: {memory: 350MiB}\n"))
    fake.run("apply")
    assert ask(fake, "m1") == ask(fake, "m2") == "w0 w1 w2 w3 w4 "
    assert len(fake.servers()) == 2, "there is room for one beside what always runs"


def test_a_queue_has_an_end(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=LONG + faulty("slow-ready=8"))))
    fake.run("apply")

    def told() -> tuple[int, str, str]:
        try:
            fake.post("/v1/chat/completions", {"model": "chat", "max_tokens": 1, "messages": []})
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["code"], error.headers["Retry-After"]
        return 200, "", ""

    found = at_once(136, told)
    assert found.count((200, "", "")) == 128
    assert found.count((503, "queue_full", "10")) == 8
    assert len(fake.happened("server/chat", "Start")) == 1
