"""stack.lock: what every source was found to be is written beside the manifest, and holds on every machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.index import Index, build_wheel
from tests.support.processes import wait_until


def lock_of(stage: Stage) -> Path:
    return stage.folder / "stack.lock"


def pins(stage: Stage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lock_of(stage).read_text())["pins"]
    return found


@pytest.fixture
def other(tmp_path: Path, models: Path) -> Iterator[Stage]:
    """A second machine, with the same files in its folder."""
    folder = tmp_path / "other"
    folder.mkdir()
    wrapper(folder / "engine")
    (folder / "models").symlink_to(models)
    stage = Stage(folder)
    yield stage
    stage.close()


@pytest.fixture
def changing(fake: Stage, models: Path) -> Stage:
    """A stage whose model is a file of its own, m.gguf."""
    shutil.copy(models / "hello.gguf", fake.folder / "m.gguf")
    fake.write(manifest(fake, entry(source="m.gguf")))
    return fake


def test_the_lock_is_written_on_first_use_with_the_same_bytes_everywhere(fake: Stage, other: Stage) -> None:
    both = f"{entry('b', 'models/endless.gguf')}\n{entry('a')}"
    fake.write(manifest(fake, both))
    missing = fake.run("lock", "--check", code=2)
    assert "stack.yaml:5:3: error: model/b: file:models/endless.gguf is not pinned in the lock" in missing.stderr
    assert "model/a" in missing.stderr
    assert "run `reconcile lock`" in missing.stderr
    fake.run("apply")
    assert "pins everything that is wanted here" in fake.run("lock", "--check").stdout

    other.write(manifest(other, both))
    assert "stack.lock: 2 pins; changed: model/a, model/b" in other.run("lock").stdout
    assert not other.workloads(), "to pin is not to start"
    assert lock_of(other).read_bytes() == lock_of(fake).read_bytes()
    assert "nothing changed" in other.run("lock").stdout


def test_locked_resolves_nothing(fake: Stage, other: Stage) -> None:
    fake.write(manifest(fake))
    refused = fake.run("apply", "--locked", code=1)
    assert "file:models/hello.gguf is not pinned in the lock" in refused.stderr
    assert not fake.root.exists(), "nothing was fetched, and nobody was started"

    other.write(manifest(other))
    other.run("lock")
    shutil.copy(lock_of(other), lock_of(fake))
    assert "ready" in fake.run("apply", "--locked").stdout
    assert lock_of(fake).read_bytes() == lock_of(other).read_bytes()
    fake.end_controller()
    fake.write(manifest(fake, f"{entry()}\n{entry('more', 'models/endless.gguf')}"))
    assert "endless.gguf is not pinned" in fake.run("apply", "--locked", code=1).stderr
    assert not fake.snapshot()


def test_a_file_that_is_not_what_the_lock_says_is_refused(changing: Stage) -> None:
    wrong = {"version": 1, "pins": [{"source": "file:m.gguf", "size": 5, "sha256": "0" * 64}]}
    lock_of(changing).write_text(json.dumps(wrong))
    done = changing.run("apply", code=1)
    assert "model/chat: ChecksumMismatch" in done.stderr
    assert "the lock says " + "0" * 64 in done.stderr
    assert "`reconcile lock --upgrade model/chat`" in done.stderr
    assert not changing.blobs()
    assert pins(changing)[0]["sha256"] == "0" * 64, "the lock is not bent to what came"
    assert "changed: model/chat" in changing.run("lock", "--upgrade", "model/chat").stdout
    changing.until_ready()


def test_a_lock_that_was_pulled_makes_the_server_follow(changing: Stage, other: Stage, models: Path) -> None:
    changing.run("apply")
    old, (bytes_,) = changing.server(), changing.blobs()
    shutil.copy(models / "endless.gguf", other.folder / "m.gguf")
    other.write(manifest(other, entry(source="m.gguf")))
    other.run("lock")

    shutil.copy(other.folder / "m.gguf", changing.folder / "m.gguf")
    shutil.copy(lock_of(other), lock_of(changing))
    changing.until_generation(2)
    assert changing.server() not in (0, old)
    assert bytes_ in changing.blobs(), "going back needs it"
    assert lock_of(changing).read_bytes() == lock_of(other).read_bytes()
    (pin,) = pins(changing)
    assert pin["sha256"] in [p.name for p in changing.blobs()]
    changed = changing.run("diff", "1", "2", code=2).stdout
    assert changed == f"file:m.gguf in the lock: {bytes_.name} → {pin['sha256']}\n"


def test_upgrade_with_a_controller_looks_at_the_source_anew(changing: Stage, models: Path) -> None:
    changing.run("apply")
    old, before = changing.server(), lock_of(changing).read_bytes()
    shutil.copy(models / "endless.gguf", changing.folder / "m.gguf")
    assert "nothing changed" in changing.run("lock").stdout
    assert (changing.server(), lock_of(changing).read_bytes()) == (old, before)
    unknown = changing.run("lock", "--upgrade", "model/nobody", code=1)
    assert "nothing is pinned for model/nobody" in unknown.stderr
    assert "there are: model/chat" in unknown.stderr
    assert "changed: model/chat" in changing.run("lock", "--upgrade", "model/chat").stdout
    wait_until(lambda: changing.server() not in (0, old), 20, "the server does not follow")
    changing.until_ready()
    (changing.folder / "m.gguf").unlink()
    failed = changing.run("lock", "--upgrade", code=1)
    assert "model/chat" in failed.stderr
    assert "m.gguf is not a file" in failed.stderr
    assert changing.snapshot()["ready"], "what is in use stays so"


def test_upgrade_without_a_controller_moves_a_range_of_versions(fake: Stage, models: Path, tmp_path: Path) -> None:
    def wheel(version: str, model: str) -> Path:
        return build_wheel(tmp_path, "tiny-model", version, {"tiny_model/m.gguf": (models / model).read_bytes()})

    with Index([wheel("1.0", "hello.gguf")]) as index:
        settings = {"INDEX_URL": index.simple_url, "EXTRA_INDEX_URL": "", "FIND_LINKS": "", "CONFIG_FILE": os.devnull}
        fake.environment |= {f"PIP_{name}": value for name, value in {**settings, "NO_CACHE_DIR": "1"}.items()}
        fake.write(manifest(fake, "chat: {source: 'pypi:tiny-model>=1,<2', engine: real, context: 1k}"))
        fake.run("lock")
        assert pins(fake)[0]["resolved"] == "pypi:tiny-model==1.0"
        index.add(wheel("1.1", "endless.gguf"))
        assert "nothing changed" in fake.run("lock").stdout
        assert "changed: model/chat" in fake.run("lock", "--upgrade", "model/chat").stdout
        assert pins(fake)[0]["resolved"] == "pypi:tiny-model==1.1"
        assert not fake.workloads()
        assert not fake.snapshot()


def test_where_the_folder_cannot_be_written_the_ledger_keeps_the_pins(fake: Stage) -> None:
    fake.write(manifest(fake))
    repository = fake.folder / "repository"
    repository.mkdir()
    (repository / "stack.yaml").write_text(
        fake.manifest.read_text().replace("./engine", "../engine").replace("file:models", "file:../models")
    )
    repository.chmod(0o555)
    # Root may write anywhere unless it gives up that capability.
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    where = ["-f", "repository/stack.yaml", "--data-root", str(fake.root)]
    argv = [*powerless, sys.executable, "-m", "reconciler", "apply", *where]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=fake.folder, timeout=60)
    assert done.returncode == 0, done
    assert not (repository / "stack.lock").exists()
    (said,) = fake.happened("manifest", "LockNotWritten")
    assert "the pins are in the ledger" in said
    assert "nothing to do" in fake.run("plan", *where).stdout
    repository.chmod(0o755)


def test_conflict_markers_keep_the_last_good_one_and_are_named(served: Stage) -> None:
    good, server = lock_of(served).read_text(), served.server()
    head, rest = good.split('      "name"', 1)
    lock_of(served).write_text(f'{head}<<<<<<< HEAD\n      "name"{rest}')
    wait_until(lambda: served.snapshot()["manifest"]["faults"], 10, "nobody noticed")
    told = served.run("plan", code=1).stderr
    assert "stack.lock:6:1: error: a merge left conflict markers in it" in told
    assert "git checkout --theirs" in told
    assert "stack.lock:6:1" in served.run("status").stdout
    assert served.server() == server
    lock_of(served).write_text(good)
    wait_until(lambda: not served.snapshot()["manifest"]["faults"], 10, "the mended lock was not taken")
    assert (served.generation(), served.server()) == (1, server)


def test_pins_of_other_machines_survive_and_those_of_nobody_go(fake: Stage) -> None:
    foreign = [
        {"source": "pypi:elsewhere==1", "sha256": "1" * 64},
        {"source": "pypi:xllamacpp==2026.10.11549", "platform": "macos-arm64", "sha256": "2" * 64},
    ]
    lock_of(fake).write_text(json.dumps({"version": 1, "pins": foreign}))
    absent = "there: {source: 'pypi:elsewhere==1', engine: real, when: \"host.os == 'plan9'\"}"
    fake.write(manifest(fake, f"{entry()}\n{absent}"))
    fake.run("apply")
    assert [p["sha256"][0] for p in pins(fake) if p["source"] != "file:models/hello.gguf"] == ["1", "2"]
    assert len(pins(fake)) == 3
    fake.run("lock", "--upgrade")
    assert len(pins(fake)) == 3
    fake.write(manifest(fake))
    fake.until_generation(2)
    assert len(pins(fake)) == 3, "only `reconcile lock` takes anything away"
    fake.run("lock")
    assert [p["source"] for p in pins(fake)] == ["file:models/hello.gguf", "pypi:xllamacpp==2026.10.11549"]
