"""A dry run has no effect at all: nothing is written, nothing is asked of a network, nothing is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import manifest
from tests.e2e.stage import CHECKOUT, Stage
from tests.support.processes import kill9


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("arguments", [("--dry-run",), ("plan",), ("plan", "-o", "json"), ("status",), ("validate",)])
def test_looking_leaves_no_trace(stage: Stage, arguments: tuple[str, ...]) -> None:
    stage.environment["HOME"] = str(stage.folder)
    stage.write(manifest(stage))
    before = tree(stage.folder)
    done = stage.run(*arguments, code=None)
    assert done.returncode == (0 if arguments[0] in ("status", "validate") else 2)
    assert tree(stage.folder) == before


def test_looking_at_a_stopped_stack_leaves_no_trace(hello: Stage) -> None:
    hello.run("down")
    before = tree(hello.folder)
    assert "not running" in hello.run("plan", code=2).stdout
    hello.run("status")
    assert tree(hello.folder) == before


def test_looking_after_a_crash_writes_nothing_but_lock_bookkeeping(hello: Stage) -> None:
    kill9(hello.controller)
    before = {k: v for k, v in tree(hello.root).items() if not k.endswith("-shm")}
    assert hello.run("plan").stdout.strip() == "nothing to do"
    assert {k: v for k, v in tree(hello.root).items() if not k.endswith("-shm")} == before


def test_the_plan_needs_no_network_and_no_writable_home(stage: Stage) -> None:
    """In a network namespace without a network, with every file system read-only."""
    stage.write(manifest(stage))
    isolate = shutil.which("unshare")
    assert isolate, "unshare (util-linux) is needed"
    script = (
        f'mount -o remount,ro,bind / 2>/dev/null || mount --bind -o ro "{stage.folder}" "{stage.folder}"; exec "$@"'
    )
    done = subprocess.run(
        [isolate, "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script, "sh",
         sys.executable, "-m", "reconciler", "--dry-run", "-f", str(stage.manifest), "-o", "text"],
        capture_output=True, text=True, cwd=CHECKOUT, timeout=60,
        env={**os.environ, "HOME": str(stage.folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done
    assert "server/chat" in done.stdout


def test_the_json_plan_is_the_published_form(stage: Stage) -> None:
    stage.write(manifest(stage))
    plan = json.loads(stage.run("plan", "-o", "json", code=2).stdout)
    assert plan["format"] == "1.0"
    assert [c["symbol"] for c in plan["changes"]] == ["⇄", "+", "+", "+"]
    assert plan["changes"][-1]["actions"][0]["hold"] == "waits for model/chat"


@pytest.mark.parametrize("call", [("plan", "--bogus"), ("bogus",), ("--dry-run", "plan"), ("logs",), ("-o", "xml")])
def test_a_wrong_call_is_an_error_and_not_pending_changes(stage: Stage, call: tuple[str, ...]) -> None:
    stage.write(manifest(stage))
    done = stage.run(*call, code=1)
    assert "Usage:" in done.stderr


def test_help_and_version_are_no_errors(stage: Stage) -> None:
    for call in (("-h",), ("plan", "--help"), ("--version",)):
        assert stage.run(*call).stdout
