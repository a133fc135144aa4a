"""The loop: with the controller running, the machine follows the file, and comes back from what happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from tests.e2e.conftest import manifest
from tests.e2e.stage import Stage
from tests.support.processes import alive, kill9, wait_until


def client(stage: Stage) -> OpenAI:
    return OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0, timeout=60)


def reply(stage: Stage, model: str = "chat") -> str:
    with client(stage) as openai:
        answer = openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=40
        )
    return answer.choices[0].message.content or ""


@pytest.mark.engines
def test_apply_serves_the_model_and_a_second_apply_has_nothing_to_do(hello: Stage) -> None:
    assert reply(hello) == "Hello from a tiny model."
    before = hello.servers()
    again = hello.run("apply")
    assert "nothing to do" in again.stdout
    assert hello.servers() == before
    assert hello.run("plan").stdout.strip() == "nothing to do"


class Stream(threading.Thread):
    """A long answer being streamed in the background."""

    def __init__(self, stage: Stage, model: str, tokens: int) -> None:
        super().__init__()
        self.stage, self.model, self.tokens = stage, model, tokens
        self.chunks, self.finish, self.error = 0, "", ""
        self.started_streaming = threading.Event()

    def run(self) -> None:
        try:
            with client(self.stage) as openai:
                stream = openai.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": "hi"}],
                    max_tokens=self.tokens,
                    stream=True,
                )
                for chunk in stream:
                    self.chunks += 1
                    self.started_streaming.set()
                    self.finish = chunk.choices[0].finish_reason or self.finish
        except Exception as error:  # noqa: BLE001  whatever cuts the stream is what the test is about
            self.error = repr(error)
        self.started_streaming.set()


@pytest.mark.engines
def test_a_changed_context_is_make_before_break_and_cuts_no_stream(stage: Stage) -> None:
    # One thread each: two engines that wait for each other's threads on two busy cores hardly move.
    entry = 'chat: {{source: "file:models/endless.gguf", engine: real, context: {}, options: {{threads: 1}}}}'
    stage.write(manifest(stage, entry.format("16k")))
    stage.run("apply")
    (old,) = stage.servers()
    stream = Stream(stage, "chat", 6000)
    stream.start()
    assert stream.started_streaming.wait(30)
    stage.write(manifest(stage, entry.format("8k")))
    wait_until(lambda: stage.get("/v1/models/chat")["context_length"] == 8192, 20, "the routes did not follow")
    assert alive(old), "the old server must live as long as its stream"
    assert stream.is_alive(), "the stream ended before the switch: nothing was tested"
    other = reply(stage)  # served by the new one meanwhile
    stream.join(60)
    assert (stream.error, stream.finish) == ("", "length")
    assert other
    wait_until(lambda: not alive(old), 20, "the old server was not stopped after its stream")
    stage.until_ready()
    assert len(stage.servers()) == 1
    assert not stage.strays()


@pytest.mark.engines
def test_removing_a_model_drains_and_stops_it(stage: Stage) -> None:
    both = (
        'chat: {source: "file:models/hello.gguf", engine: real, context: 1k}\n'
        'embed: {source: "file:models/embed.gguf", engine: real, context: 512, task: embedding}'
    )
    stage.write(manifest(stage, both))
    stage.run("apply")
    with client(stage) as openai:
        vectors = openai.embeddings.create(model="embed", input=["a cat", "a tax"]).data
    assert len(vectors) == 2
    assert any(vectors[0].embedding)
    assert len(stage.servers()) == 2
    stage.write(manifest(stage))
    wait_until(lambda: len(stage.servers()) == 1, 20, "the server of the removed model still runs")
    stage.until_ready()
    assert [r["ref"] for r in stage.status()["resources"]] == [
        "engine/real",
        "gateway/main",
        "model/chat",
        "server/chat",
    ]
    with client(stage) as openai, pytest.raises(NotFoundError):
        openai.embeddings.create(model="embed", input="x")
    assert reply(stage)


def test_renaming_an_alias_only_rewrites_routes(hello: Stage) -> None:
    before = (hello.servers(), hello.gateway(), hello.controller)
    hello.write(manifest(hello, 'chat: {source: "file:models/hello.gguf", engine: real, context: 1k, aliases: [fast]}'))
    wait_until(lambda: "fast" in [m["id"] for m in hello.get("/v1/models")["data"]], 10, "no route for the alias")
    assert reply(hello, "fast") == "Hello from a tiny model."
    hello.until_ready()
    assert (hello.servers(), hello.gateway(), hello.controller) == before


def test_a_broken_edit_keeps_the_last_good_generation_and_says_so(hello: Stage) -> None:
    before = hello.servers()
    hello.write(manifest(hello).replace("context: 1k", "contxt: 2k"))
    wait_until(lambda: hello.status()["manifest"]["faults"], 10, "the fault is not in the status")
    text = hello.run("status").stdout
    assert "the last good one stays" in text
    assert "unknown key 'contxt'" in text
    assert "did you mean 'context'" in text
    assert reply(hello)
    assert hello.servers() == before
    kill9(hello.controller)  # a controller that starts with the broken file has the last good one, too
    hello.run("apply", code=1)
    watch = hello.start("watch")
    wait_until(lambda: hello.status()["controller"] is not None, 15, "no controller")
    assert hello.condition("server/chat")["status"] == "True"
    assert hello.servers() == before
    hello.write(manifest(hello))
    wait_until(lambda: not hello.status()["manifest"]["faults"], 10, "the mended file was not taken")
    watch.send_signal(signal.SIGTERM)
    watch.communicate(timeout=20)
    assert hello.servers() == before


def test_a_deleted_manifest_keeps_everything_running_and_says_so(hello: Stage) -> None:
    before = hello.servers()
    hello.manifest.unlink()
    wait_until(lambda: "the manifest is gone" in hello.run("status").stdout, 10, "status says nothing")
    assert hello.servers() == before
    assert reply(hello)
    hello.write(manifest(hello))
    wait_until(lambda: not hello.status()["manifest"]["faults"], 10, "the returned file was not taken")
    assert hello.servers() == before


def test_an_emptied_manifest_is_refused_while_watching_and_by_apply(hello: Stage) -> None:
    before = hello.servers()
    hello.write(f"version: 1\nmodels: {{}}\ngateway: {{port: {hello.port}}}\n")
    wait_until(lambda: "--allow-empty" in hello.run("status").stdout, 10, "the emptied manifest was not refused")
    assert "--allow-empty" in hello.run("apply", code=1).stderr
    assert hello.servers() == before
    hello.run("apply", "--allow-empty")
    wait_until(lambda: not hello.servers(), 20, "it was allowed, but not done")


@pytest.mark.engines
def test_a_killed_server_comes_back_with_backoff(hello: Stage) -> None:
    (old,) = hello.servers()
    kill9(old)

    def refusal() -> tuple[int, str, bool] | None:
        try:
            hello.ask()
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["code"], "Retry-After" in error.headers
        return None

    # Who asks before its death is noticed learns `upstream_restarting`.
    wait_until(lambda: refusal() == (503, "model_not_ready", True), 5, "its death went unnoticed")
    assert hello.happened("server/chat", "Exited") == ["the process was ended by signal 9 (SIGKILL)"]
    hello.until_ready()
    assert reply(hello)
    (second,) = hello.servers()
    first_wait = time.monotonic()
    kill9(second)
    hello.until_ready()
    assert second not in hello.servers()
    # The second death in a row waits about twice the first one's second; without backoff it is back in a tenth.
    assert time.monotonic() - first_wait > 1.2


@pytest.mark.engines
def test_a_killed_controller_leaves_everything_serving_and_the_next_one_adopts(hello: Stage) -> None:
    before = (hello.servers(), hello.gateway())
    kill9(hello.controller)
    assert reply(hello) == "Hello from a tiny model."
    done = hello.run("apply")
    assert "nothing to do" in done.stdout
    assert (hello.servers(), hello.gateway()) == before
    assert not hello.strays()
    kill9(before[0][0])  # and it supervises what it adopted
    wait_until(lambda: hello.servers() not in ([], before[0]), 20, "the adopted server was not restarted")
    hello.until_ready()
    assert reply(hello)


def test_what_was_planned_before_a_request_is_not_done_after_it(fake: Stage) -> None:
    """The first look of the next controller takes a second and knows of no manifest; the request comes during it."""
    engine = fake.folder / "engine"
    first, rest = engine.read_text().split("\n", 1)
    engine.write_text(f'{first}\ncase "$*" in *--help*|*--version*) sleep 0.7;; esac\n{rest}')
    fake.write(manifest(fake))
    fake.run("apply")
    for _ in range(3):
        before = (fake.servers(), fake.gateway())
        kill9(fake.controller)
        assert "nothing to do" in fake.run("apply").stdout
        assert (fake.servers(), fake.gateway()) == before


def test_a_controller_of_another_version_hands_over_to_ours(hello: Stage) -> None:
    before = (hello.servers(), hello.gateway())
    kill9(hello.controller)
    code = "import reconciler; reconciler.__version__ = '0.0.9'; from reconciler.cli import main; main()"
    old = subprocess.Popen([sys.executable, "-c", code, "watch"], cwd=hello.folder, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: hello.status()["controller"] is not None, 15, "the old controller does not come up")
        assert "nothing to do" in hello.run("apply").stdout
        assert old.wait(20) == 0
    finally:
        old.kill()
        old.wait()
    assert hello.controller != old.pid
    assert (hello.servers(), hello.gateway()) == before


def test_a_stopped_controller_leaves_everything_serving(hello: Stage) -> None:
    before = (hello.servers(), hello.gateway())
    os.kill(hello.controller, signal.SIGTERM)
    wait_until(lambda: hello.status()["controller"] is None, 10, "the controller does not stop")
    assert reply(hello)
    assert (hello.servers(), hello.gateway()) == before


@pytest.mark.engines
def test_a_killed_gateway_comes_back(hello: Stage) -> None:
    old, server = hello.gateway(), hello.servers()
    kill9(old)
    wait_until(lambda: hello.workloads() and len(hello.workloads()) == 2, 15, "no gateway")
    hello.until_ready()
    assert hello.gateway() != old
    assert hello.servers() == server
    assert reply(hello)


def test_a_hung_server_is_replaced(stage: Stage) -> None:
    from tests.support.engines import wrapper

    wrapper(stage.folder / "engine", {"FAKE_ENGINE": "hang-after=2"})
    stage.write(manifest(stage))
    stage.run("apply")
    (old,) = stage.servers()
    wrapper(stage.folder / "engine", {})
    wait_until(lambda: stage.servers() != [old] and not alive(old), 60, "the hung server stays")
    stage.until_ready()
    assert reply(stage)


@pytest.mark.engines
@pytest.mark.parametrize("harm", ["truncate", "alter", "delete"])
def test_a_harmed_file_is_noticed_fetched_again_and_the_server_restarted(hello: Stage, harm: str) -> None:
    (old,) = hello.servers()
    (blob,) = [p for p in (hello.root / "artifacts" / "sha256").rglob("*") if p.is_file()]
    good = blob.read_bytes()
    assert blob.stat().st_mode & 0o777 == 0o444
    if harm == "delete":
        blob.unlink()
    else:
        blob.chmod(0o644)
        with blob.open("r+b") as data:
            if harm == "truncate":
                data.truncate(1000)
            else:
                data.seek(len(good) // 2)
                data.write(b"\xff" * 64)
    wait_until(lambda: blob.exists() and blob.read_bytes() == good, 15, "the file was not brought back")
    wait_until(lambda: hello.servers() not in ([], [old]) and not alive(old), 20, "the server runs on the bad file")
    hello.until_ready()
    assert reply(hello) == "Hello from a tiny model."
    kept = list((hello.root / "artifacts" / "quarantine").glob("*")) if harm != "delete" else []
    assert len(kept) == (harm != "delete")


def test_a_touched_but_unharmed_file_is_only_proved_again(hello: Stage) -> None:
    (blob,) = [p for p in (hello.root / "artifacts" / "sha256").rglob("*") if p.is_file()]
    os.utime(blob)
    wait_until(lambda: "verify" in hello.log(), 10, "the change went unnoticed")
    hello.until_ready()
    assert not (hello.root / "artifacts" / "quarantine").exists()
    assert reply(hello)


def test_a_gateway_on_the_other_loopback(hello: Stage) -> None:
    hello.write(manifest(hello, gateway=", host: '::1', trusted_hosts: ['::1', localhost]"))
    wait_until(lambda: hello.condition("gateway/main")["message"] == f"http://[::1]:{hello.port}/v1", 15, "no move")
    hello.until_ready()
    with OpenAI(base_url=f"http://[::1]:{hello.port}/v1", api_key="none", max_retries=0) as openai:
        assert "chat" in [m.id for m in openai.models.list()]


def test_another_port_moves_the_gateway(hello: Stage) -> None:
    from tests.support.processes import free_port

    old, server = hello.gateway(), hello.servers()
    hello.port = free_port()
    hello.write(manifest(hello))
    wait_until(lambda: not alive(old), 20, "the old gateway still runs")
    hello.until_ready()
    assert reply(hello)
    assert hello.servers() == server


def test_another_manifest_can_take_over_the_same_data_root(hello: Stage) -> None:
    elsewhere = hello.folder / "elsewhere"
    elsewhere.mkdir()
    other = elsewhere / "other.yaml"
    text = manifest(hello, 'talk: {source: "file:../models/hello.gguf", engine: real, context: 1k}')
    other.write_text(text.replace("./engine", "../engine"))
    gateway = hello.gateway()
    hello.run("apply", "-f", str(other), "--data-root", str(hello.root))
    assert reply(hello, "talk")
    assert hello.gateway() == gateway
    assert len(hello.servers()) == 1
    other.write_text(other.read_text().replace("context: 1k", "context: 1k, aliases: [moved]"))
    wait_until(lambda: "moved" in [m["id"] for m in hello.get("/v1/models")["data"]], 10, "the new file is not watched")
    hello.write(manifest(hello) + "# nobody watches this one any more\n")
    time.sleep(0.5)
    assert reply(hello, "moved")


@pytest.mark.engines
def test_down_stops_everything_keeps_the_downloads_and_apply_brings_it_back(hello: Stage) -> None:
    hello.run("down")
    assert not hello.workloads()
    assert hello.status()["controller"] is None
    blobs = [p for p in (hello.root / "artifacts" / "sha256").rglob("*") if p.is_file()]
    assert len(blobs) == 1
    assert "fetch" not in hello.run("plan", code=2).stdout
    hello.run("apply")
    assert reply(hello)
    hello.run("down", "--purge")
    assert not hello.workloads()
    assert not [p for p in (hello.root / "artifacts").rglob("*") if p.is_file()]
    assert hello.run("down", "--purge").returncode == 0


def test_down_works_without_a_controller(hello: Stage) -> None:
    kill9(hello.controller)
    hello.run("down")
    assert not hello.workloads()


@pytest.mark.engines
def test_logs_of_a_resource_are_shown_and_followed(hello: Stage) -> None:
    assert "listening on" in hello.run("logs", "chat").stdout
    assert "begin ref=server/chat" in hello.run("logs", "controller").stdout
    unknown = hello.run("logs", "nobody", code=1)
    assert "server/chat" in unknown.stderr
    follower = hello.start("logs", "server/chat", "-f", "-n", "1")
    seen: list[str] = []
    assert follower.stdout is not None
    reader = threading.Thread(target=lambda: seen.extend(iter(follower.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    try:
        wait_until(lambda: seen, 10, "nothing shown")
        reply(hello)
        wait_until(lambda: any("print_timing" in line for line in seen), 10, "what was added is not shown")
    finally:
        follower.terminate()
        follower.communicate()
        reader.join()


@pytest.mark.engines
def test_a_client_that_leaves_cancels_the_generation(stage: Stage) -> None:
    stage.write(manifest(stage, 'chat: {source: "file:models/endless.gguf", engine: real, context: 32k}'))
    stage.run("apply")
    with client(stage) as openai:
        stream = openai.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "hi"}], max_tokens=30000, stream=True
        )
        next(iter(stream))
        stream.close()
    log = stage.root / "logs" / "server" / "chat.log"
    wait_until(lambda: "cancel task" in log.read_text() or "stop processing" in log.read_text(), 5, "it goes on")
    text = log.read_text()
    tokens = [int(line.split("n_tokens = ")[1].split(",")[0]) for line in text.splitlines() if "n_tokens = " in line]
    assert max(tokens, default=0) < 30000


def test_manifests_given_by_path_and_data_root_by_environment(stage: Stage, tmp_path: Path) -> None:
    stage.write(manifest(stage))
    elsewhere = tmp_path / ("deep" * 20) / ("deeper" * 12)  # too long for a socket's path
    stage.environment["RECONCILER_DATA_ROOT"] = str(elsewhere)
    try:
        stage.run("-f", str(stage.manifest))
        assert reply(stage)
        assert (elsewhere / "ledger.db").exists()
        assert not stage.root.exists()
        assert "nothing to do" in stage.run("apply").stdout
    finally:
        stage.run("down", "--purge")


@pytest.mark.slow
def test_a_server_too_busy_to_say_that_it_lives_is_left_alone(stage: Stage) -> None:
    """Its /health hangs, but it is working on a request: that is work, not silence."""
    from tests.support.engines import wrapper

    wrapper(stage.folder / "engine", {"FAKE_ENGINE": "hang-after=3,chunk-ms=50,chunks=800"})
    stage.write(manifest(stage))
    stage.run("apply")
    before = stage.servers()
    stream = Stream(stage, "chat", 1000)
    stream.start()
    # Liveness is asked after 5 s, waits 5 s for an answer, and three silences in a row would end the server.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert stage.servers() == before, "a busy server was taken for a hung one"
        time.sleep(0.5)
    assert stream.is_alive(), "the stream ended too early: nothing was tested"
    stream.join(30)
    assert stream.error == ""
    wait_until(lambda: stage.servers() != before, 40, "idle and silent, it was not replaced")
