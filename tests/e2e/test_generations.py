"""Going back: every manifest that was taken over can be put in force again, by a person or by itself."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINE, entry, manifest
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.processes import alive, kill9, wait_until

TWO_ENGINES = ENGINE.replace("}}", "}, bad: {type: llama.cpp, path: ./bad}}")


def context(stage: Stage) -> int:
    return int(stage.get("/v1/models/chat")["context_length"])


def states(stage: Stage) -> list[str]:
    """The state of each generation, by `history`."""
    return [g["state"] for g in json.loads(stage.run("history", "-o", "json").stdout)["generations"]]


def edited(stage: Stage, to: str, number: int) -> None:
    """Save a chat model with another context, and wait until that generation is ready."""
    stage.write(manifest(stage, entry(context=to)))
    stage.until_generation(number)


def test_history_and_diff_tell_what_was_applied_and_what_differs(served: Stage) -> None:
    edited(served, "2k", 2)
    first, second = served.run("history").stdout.splitlines()[1:]
    assert first.startswith("  1 ")
    assert second.startswith("* 2 ")
    assert [line.split()[-4] for line in (first, second)] == ["ready", "ready"]
    assert served.run("diff", "1", "2", code=2).stdout == "models.chat.context: 1k → 2k\n"
    assert served.run("diff").stdout == "no difference\n"
    (field,) = json.loads(served.run("diff", "2", "1", "-o", "json", code=2).stdout)["fields"]
    assert field == {"path": "models.chat.context", "before": "2k", "after": "1k"}
    assert "generation 9 is not kept here" in served.run("diff", "9", code=1).stderr


def test_a_rollback_needs_no_source_and_holds_over_a_crash_until_the_file_changes(fake: Stage, models: Path) -> None:
    shutil.copy(models / "hello.gguf", fake.folder / "first.gguf")
    fake.write(manifest(fake, entry(source="first.gguf")))
    fake.run("apply")
    fake.write(manifest(fake, entry(source="models/endless.gguf", context="2k")))
    fake.until_generation(2)
    (fake.folder / "first.gguf").unlink()

    back = fake.run("rollback")
    assert "generation 1 is in force" in back.stdout
    assert "ready" in back.stdout
    assert context(fake) == 1024
    assert fake.happened("manifest", "RolledBack") == ["generation 2 → 1: asked for"]
    assert "gone back to generation 1; it stays until the manifest changes" in fake.run("status").stdout

    server = fake.server()
    kill9(fake.controller)
    fake.start("watch")
    wait_until(lambda: fake.snapshot().get("controller", {}).get("turn", 0) > 2, 20, "no controller")
    assert fake.generation() == 1
    assert fake.snapshot()["manifest"]["held_back"]
    assert fake.server() == server

    fake.write(manifest(fake, entry(source="models/endless.gguf", context="3k")))
    fake.until_generation(3)
    assert context(fake) == 3072
    assert not fake.snapshot()["manifest"]["held_back"]


def test_a_rollback_ends_when_an_included_file_or_the_lock_changes(fake: Stage) -> None:
    included, lock = fake.folder / "more.yaml", fake.folder / "stack.lock"
    included.write_text("models: {chat: {source: 'file:models/hello.gguf', engine: real, context: 1k}}\n")
    root = f"version: 1\ninclude: [more.yaml]\n{ENGINE}\ngateway: {{port: {fake.port}}}\n"
    fake.write(root)
    fake.run("apply")
    included.write_text(included.read_text().replace("1k", "2k"))
    fake.until_generation(2)

    fake.run("rollback", "1")
    included.write_text(included.read_text().replace("2k", "3k"))
    fake.until_generation(3)
    assert context(fake) == 3072

    fake.run("rollback", "1")
    pinned = json.loads(lock.read_text())
    pinned["pins"].append({"source": "pypi:elsewhere==1", "platform": "macos-arm64", "sha256": "0" * 64})
    lock.write_text(json.dumps(pinned))
    fake.until_generation(4)
    assert context(fake) == 3072


def test_a_rollback_while_no_controller_runs_and_an_apply_after_it(served: Stage) -> None:
    edited(served, "2k", 2)
    kill9(served.controller)
    assert "generation 1 is in force" in served.run("rollback").stdout
    assert context(served) == 1024
    assert "ready" in served.run("apply").stdout
    assert context(served) == 2048
    assert not served.snapshot()["manifest"]["held_back"]
    assert states(served) == ["ready", "ready", "ready"]


def test_what_cannot_be_gone_back_to_is_refused(fake: Stage) -> None:
    fake.write(manifest(fake))
    none = fake.run("rollback", code=1)
    assert "there is no earlier generation" in none.stderr
    assert "nothing was applied yet" in none.stderr
    assert fake.run("history").stdout == "nothing was applied yet\n"
    assert "no earlier generation to go back to" in fake.run("apply", "--confirm-within", "5s", code=1).stderr

    fake.run("apply")
    server = fake.server()
    assert "generation 1 is in force already" in fake.run("rollback", "1", code=1).stderr
    missing = fake.run("rollback", "7", code=1)
    assert "there is no generation 7" in missing.stderr
    assert "there are: 1" in missing.stderr
    assert "there is no earlier generation" in fake.run("rollback", code=1).stderr
    assert "nothing waits to be confirmed" in fake.run("confirm", code=1).stderr
    assert (fake.generation(), fake.server()) == (1, server)


def test_a_rollback_that_would_remove_a_protected_model_is_refused(served: Stage) -> None:
    served.write(manifest(served, f"{entry()}\n{entry('kept', more=', protect: true')}"))
    served.until_generation(2)
    kept = served.server("kept")
    owned = json.loads(served.run("state", "-o", "json").stdout)["owned"]
    assert [o["ref"] for o in owned if o["protect"]] == ["model/kept", "server/kept"]
    refused = served.run("rollback", code=3)
    assert "server/kept: it is protected" in refused.stderr
    assert (served.generation(), served.server("kept")) == (2, kept)


def test_what_is_not_confirmed_goes_back_by_itself_and_what_is_stays(served: Stage) -> None:
    served.end_controller()
    served.write(manifest(served, entry(context="2k")))
    served.run("apply", "--confirm-within", "3s", "--no-wait")
    assert "not confirmed" in served.run("status").stdout
    served.until_generation(1)
    assert context(served) == 1024
    assert "generation 2 was not confirmed in time" in served.happened("manifest", "RolledBack")[-1]
    assert "nothing waits to be confirmed" in served.run("confirm", code=1).stderr

    done = served.run("apply", "--confirm-within", "5m")
    assert "keep it with `reconcile confirm` within 2" in done.stdout  # 29x s
    assert "generation 3 stays" in served.run("confirm").stdout
    assert served.snapshot()["manifest"]["confirm_by"] is None
    assert context(served) == 2048


def test_a_deadline_that_passes_while_no_controller_runs_is_kept_by_the_next_one(served: Stage) -> None:
    served.end_controller()
    served.write(manifest(served, entry(context="2k")))
    served.run("apply", "--confirm-within", "4s", "--no-wait")
    deadline = served.snapshot()["manifest"]["confirm_by"]
    served.until_generation(2)
    kill9(served.controller)
    assert "not confirmed" in served.run("status").stdout, "without a controller, too, people must know"
    time.sleep(max(0.0, deadline - time.time()))
    assert context(served) == 2048
    served.start("watch")
    served.until_generation(1)
    assert context(served) == 1024


@pytest.mark.parametrize("how", ["for good", "again and again"])
def test_what_does_not_become_ready_goes_back_to_what_was(fake: Stage, how: str) -> None:
    if how == "for good":
        (fake.folder / "bad").write_text('#!/bin/sh\necho "error: invalid argument: --alias" >&2\nexit 1\n')
        (fake.folder / "bad").chmod(0o755)
    else:
        wrapper(fake.folder / "bad", {"FAKE_ENGINE": "exit-at-once=3"})
    text = manifest(fake, more="on_failure: rollback\n").replace(ENGINE, TWO_ENGINES)
    fake.write(text)
    fake.run("apply")
    server = fake.server()
    fake.end_controller()
    fake.write(text.replace("engine: real", "engine: bad"))
    done = fake.run("apply", code=1)
    why = "the process" if how == "for good" else "it has ended 3 times in a row"
    assert f"gone back: generation 2 → 1: generation 2 did not become ready: server/chat: {why}" in done.stderr
    assert ("invalid argument" if how == "for good" else "exited with code 3") in done.stderr
    fake.until_generation(1)
    assert fake.server() == server
    assert alive(server)
    assert states(fake) == ["ready", "failed"]
    assert len(fake.happened("manifest", "GenerationFailed")) == 1


def test_a_successor_that_cannot_start_is_named_while_the_earlier_one_serves(served: Stage) -> None:
    (served.folder / "bad").write_text('#!/bin/sh\necho "error: invalid argument: --alias" >&2\nexit 1\n')
    (served.folder / "bad").chmod(0o755)
    server = served.server()
    served.end_controller()
    served.write(manifest(served).replace(ENGINE, TWO_ENGINES).replace("engine: real", "engine: bad"))
    done = served.run("apply", code=6)
    assert "server/chat: Outdated: the earlier version serves until its successor is ready; that failed" in done.stderr
    assert "invalid argument" in done.stderr
    assert "invalid argument" in served.run("status").stdout
    assert served.server() == server
    assert served.ask()["choices"]


def test_the_first_generation_of_all_has_nothing_to_go_back_to(fake: Stage) -> None:
    wrapper(fake.folder / "engine", {"FAKE_ENGINE": "exit-at-once=3"})
    fake.write(manifest(fake, more="on_failure: rollback\n"))
    done = fake.run("apply", code=1)
    assert "exited with code 3" in done.stderr
    assert fake.generation() == 1
    wait_until(lambda: states(fake) == ["failed"], 10, "its failure is not noted")
    wrapper(fake.folder / "engine")
    fake.run("apply")  # a person tries again, and what was broken is mended
    assert states(fake) == ["ready"]
