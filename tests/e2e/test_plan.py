"""What a plan promises: saved, limited to targets, held back by protection, drift and what comes later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.processes import kill9, wait_until


def two(stage: Stage, context: str = "1k", more: str = "") -> str:
    """A manifest with the models a and b; `more` are keys of b."""
    return manifest(stage, f"{entry('a', context=context)}\n{entry('b', 'models/endless.gguf', context, more)}")


# -- saved plans ----------------------------------------------------------------------------------------------------


def test_a_saved_plan_is_carried_out_once(fake: Stage) -> None:
    fake.write(manifest(fake))
    assert "saved: `reconcile apply p.json`" in fake.run("plan", "--out", "p.json", code=2).stdout
    assert not fake.root.exists()
    fake.run("apply", "p.json")
    assert fake.server()
    again = fake.run("apply", "p.json", code=5)
    assert "the saved plan is stale: it was made" in again.stderr
    assert "before anything was applied here" in again.stderr
    assert "`reconcile plan`" in again.stderr


def test_a_saved_plan_is_carried_out_by_the_controller_that_runs(served: Stage) -> None:
    served.write(manifest(served, entry(context="2k")))
    served.until_generation(2)
    served.run("rollback")
    served.run("plan", "--out", "p.json", code=2)
    controller = served.controller
    served.run("apply", "p.json")
    assert served.controller == controller
    assert served.generation() == 3
    assert served.get("/v1/models/chat")["context_length"] == 2048
    assert "is no longer as it was" in served.run("apply", "p.json", code=5).stderr


def test_a_saved_plan_is_stale_once_anything_has_moved(served: Stage) -> None:
    served.end_controller()
    text, lock = manifest(served, entry(context="2k")), served.folder / "stack.lock"
    served.write(text)
    served.run("plan", "--out", "p.json", code=2)

    served.write(text + "# a word\n")
    assert served.run("apply", "p.json", code=5).stderr.startswith("error: the saved plan is stale: the manifest has")
    served.write(text)

    kept = lock.read_text()
    pinned = json.loads(kept)
    pinned["pins"].append({"source": "pypi:elsewhere==1", "sha256": "0" * 64})
    lock.write_text(json.dumps(pinned))
    assert served.run("apply", "p.json", code=5).stderr.startswith("error: the saved plan is stale: the lock has")
    lock.write_text(kept)

    kill9(served.server())
    assert "server/chat is no longer as it was" in served.run("apply", "p.json", code=5).stderr

    served.run("plan", "--out", "p.json", code=2)
    served.blobs()[0].unlink()
    stale = json.loads(served.run("apply", "p.json", "-o", "json", code=5).stdout)
    assert "the saved plan is stale: model/chat is no longer as it was" in [e["summary"] for e in stale["errors"]]
    assert not served.snapshot(), "nobody was started for it"


def test_what_is_no_plan_is_told_apart_from_one_of_a_newer_version(fake: Stage) -> None:
    fake.write(manifest(fake))
    saved = fake.folder / "p.json"
    for text in ("hello", "[]", "{}", '{"format": "1.0", "manifest": "stack.yaml"}'):
        saved.write_text(text)
        assert "p.json is not a saved plan" in fake.run("apply", "p.json", code=1).stderr
    fake.run("plan", "--out", "p.json", code=2)
    newer = {**json.loads(saved.read_text()), "format": "2.0"}
    saved.write_text(json.dumps(newer))
    assert "p.json has format '2.0', which is not known here" in fake.run("apply", "p.json", code=1).stderr
    saved.write_text(json.dumps({**newer, "format": "1.7", "binding": {"lineage": 5}}))
    assert "not a saved plan" in fake.run("apply", "p.json", code=1).stderr
    assert not fake.root.exists()


# -- targets --------------------------------------------------------------------------------------------------------


def test_targets_limit_an_apply_and_status_says_so_until_all_is_applied(fake: Stage) -> None:
    fake.write(two(fake))
    unknown = fake.run("plan", "--target", "server/c", code=1)
    assert "there is no server/c to limit it to" in unknown.stderr
    assert "did you mean 'server/" in unknown.stderr
    done = fake.run("apply", "--target", "server/a")
    assert "only server/a was applied; `reconcile apply` without --target does the rest" in done.stdout
    assert fake.server("a")
    assert not fake.server("b")
    assert "only server/a was applied (2 more changes wait" in fake.run("status").stdout
    assert "server/a only" in fake.run("history").stdout
    fake.run("apply")
    assert fake.server("b")
    assert "only" not in fake.run("status").stdout

    fake.end_controller()
    fake.write(two(fake, "2k"))
    a, b = fake.server("a"), fake.server("b")
    planned = fake.run("plan", "--target", "server/a", code=2).stdout
    assert "server/b" not in planned
    assert "1 outside the targets" in planned
    fake.run("apply", "--target", "server/a")
    assert fake.server("a") not in (0, a)
    assert fake.server("b") == b
    fake.run("apply")
    assert fake.server("b") not in (0, b)


# -- protection -----------------------------------------------------------------------------------------------------


def test_what_is_protected_stays_until_that_is_taken_away_and_applied(fake: Stage) -> None:
    shares = entry("c", "models/endless.gguf")  # the file of b, and is not protected
    guarded = entry("b", "models/endless.gguf", more=", protect: true")
    fake.write(manifest(fake, f"{entry('a')}\n{guarded}\n{shares}"))
    fake.run("apply")
    b, without = fake.server("b"), manifest(fake, entry("a"))
    fake.write(without)
    wait_until(lambda: fake.snapshot()["manifest"]["faults"], 10, "nobody noticed")
    planned = fake.run("plan", code=3).stdout
    assert "✗ server/b  it is protected: it stays until its `protect: true` is taken away" in planned
    assert "server/b: it is protected" in fake.run("apply", code=3).stderr
    assert "it is protected" in fake.run("status").stdout
    assert (fake.server("b"), fake.generation()) == (b, 1)

    purged = fake.run("down", "--purge").stdout
    assert "except what is protected: model/b" in purged
    assert not fake.workloads()
    assert len(fake.blobs()) == 1, "that of b, though c had it, too"
    fake.write(two(fake))
    fake.run("apply")
    fake.write(without)
    fake.until_generation(fake.generation() + 1)
    owned = [o["ref"] for o in json.loads(fake.run("state", "-o", "json").stdout)["owned"]]
    assert owned == ["engine/real", "gateway/main", "model/a", "server/a"]
    assert "protected" not in fake.run("down", "--purge").stdout
    assert not fake.blobs(), "that of b, too, which was released before"


# -- drift ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["warn", "ignore"])
def test_drift_that_is_to_be_left_is_left_and_shown(fake: Stage, mode: str) -> None:
    fake.write(two(fake, more=f", drift: {mode}"))
    fake.run("apply")
    kill9(fake.server("b"))
    wait_until(lambda: fake.told("server/b")["Drifted"]["status"] == "True", 10, "the drift is not told")
    gone = max(fake.blobs(), key=lambda path: path.stat().st_size)  # that of endless.gguf
    gone.unlink()
    wait_until(lambda: fake.told("model/b")["Drifted"]["status"] == "True", 10, "the drift is not told")
    plan = fake.run("plan").stdout
    assert plan.endswith("nothing to do\n")
    assert ("! server/b: has drifted and is left so: its process is gone" in plan) == (mode == "warn")
    assert ("! model/b: has drifted and is left so" in plan) == (mode == "warn")
    every = fake.run("plan", "--all-drift").stdout
    assert "≠ server/b  its process is gone; it is left so" in every
    assert "≠ model/b" in every
    left = [line.split()[:3] for line in fake.run("status").stdout.splitlines() if "left so" in line]
    assert [words[:2] for words in left] == [["model/b", "False"], ["server/b", "False"]]
    assert not gone.exists()
    assert fake.server("a")
    assert not fake.server("b")


def test_a_file_that_is_removed_again_and_again_is_contested_until_a_person_applies(served: Stage) -> None:
    (blob,) = served.blobs()
    for _ in range(3):
        blob.unlink()
        wait_until(blob.exists, 10, "the file was not brought back")
        wait_until(lambda: served.snapshot()["ready"], 15, "not ready again")
    blob.unlink()
    wait_until(lambda: served.told("model/chat")["Ready"]["reason"] == "Contested", 10, "it is not contested")
    told = served.run("status").stdout
    assert "put back 3 times in ten minutes" in told
    assert "its file is gone from the store" in told
    assert "contested: waits" in served.run("plan", code=2).stdout
    assert not blob.exists()
    served.run("apply")
    assert blob.exists()
    assert served.told("model/chat")["Drifted"]["status"] == "False"


def test_a_server_that_is_killed_again_and_again_is_contested(served: Stage) -> None:
    for _ in range(3):
        wait_until(lambda: served.snapshot()["ready"] and served.server(), 20, "it did not come back")
        kill9(served.server())
        wait_until(lambda: not served.snapshot()["ready"], 10, "its death went unnoticed")
    contested = lambda: served.told("server/chat")["Progressing"]["reason"] == "Contested"  # noqa: E731
    wait_until(contested, 10, "it is not contested")
    told = served.run("status").stdout
    assert "ended by signal 9" in told
    assert "put back 3 times in ten minutes" in told
    assert "find what does that, then `reconcile apply`" in told
    assert served.run("status", "--wait", "ready", "--timeout", "6s", code=1)
    assert not served.server(), "not started any more"
    served.run("apply")
    assert served.server()


# -- what comes later -----------------------------------------------------------------------------------------------


def test_what_is_not_built_yet_is_denied_with_its_place(fake: Stage) -> None:
    later = manifest(fake, gateway=", workers: 2")
    fake.write(later)
    assert "valid" in fake.run("validate").stdout
    planned = fake.run("plan", code=3).stdout
    assert "✗ gateway/main  `workers` is not yet supported here  stack.yaml:6:" in planned
    assert json.loads(fake.run("plan", "-o", "json", code=3).stdout)["summary"].count("to deny") == 1
    refused = fake.run("apply", code=3).stderr
    assert refused.startswith("stack.yaml:6:")
    assert "not yet supported here" in refused
    assert not fake.root.exists()

    fake.write(manifest(fake))
    fake.run("apply")
    server = fake.server()
    fake.write(later)
    wait_until(lambda: fake.snapshot()["manifest"]["faults"], 10, "nobody noticed")
    fault: dict[str, Any] = fake.snapshot()["manifest"]["faults"][0]
    assert (Path(fault["where"]["file"]).name, fault["where"]["line"]) == ("stack.yaml", 6)
    fake.run("apply", code=3)
    assert (fake.server(), fake.generation()) == (server, 1)
    shutil.copy(fake.manifest, fake.folder / "other.yaml")
    assert "not yet supported" in fake.run("plan", "-f", "other.yaml", code=3).stdout
