"""The engine for Macs with Apple silicon, as far as it can be tried without one: what is planned, installed, started.

The package here is one of the same name that serves over the same flags and names; that mlx itself computes is for a
Mac to show.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Phase
from reconciler.core.state import Declared, Found
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.engine.spec import MlxEngine
from reconciler.kinds.model.rules import ModelState
from reconciler.kinds.registry import KINDS
from reconciler.kinds.server.spec import ServerSpec
from tests.kinds.engine.conftest import ENGINE, HOST, Bench
from tests.support import own_server
from tests.support.index import Index, build_wheel

MAC = replace(HOST, os="macos", arch="arm64")
MAIN = """
import os, sys
import mlx_part
from mlx_lm import own
assert sys.argv[1] == "server"
flags = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
assert set(flags) == {"--model", "--host", "--port"}, flags
os.environ.pop("RECONCILER_API_KEY")  # it knows no keys
at = f"{flags['--host']}:{flags['--port']}"
sys.argv[1:] = ["--at", at, "--weights", flags["--model"], "--served", "default_model", "--ready", "/health"]
sys.exit(own.main())
"""
FILES = {
    "mlx_lm/__init__.py": b"",
    "mlx_lm/__main__.py": MAIN.encode(),
    "mlx_lm/own.py": Path(own_server.__file__).read_bytes(),
}


@pytest.mark.parametrize(("system", "arch"), [("linux", "x86_64"), ("linux", "arm64"), ("macos", "x86_64")])
def test_it_is_denied_where_it_cannot_run_and_nothing_is_touched(bench: Bench, system: str, arch: str) -> None:
    bench.host = replace(bench.host, os=system, arch=arch)
    before = list(bench.effects.seen)
    change = bench.change(bench.declared(MlxEngine(type="mlx")))
    assert change is not None
    assert (change.op.value, change.wrong, change.actions) == ("denied", True, ())
    assert f"Apple silicon only, and this is {system}/{arch}" in change.reason
    assert bench.folders == []
    assert bench.effects.seen == before


@pytest.fixture
def mac(bench: Bench) -> Bench:
    bench.host = MAC
    return bench


def wheels(folder: Path) -> list[Path]:
    return [
        build_wheel(folder, "mlx-lm", "0.9", FILES, requires=["mlx-part>=1"]),
        build_wheel(folder, "mlx-part", "1.0", {"mlx_part.py": b""}),
    ]


async def test_its_package_is_pinned_installed_with_what_it_needs_and_kept(
    mac: Bench, tmp_path: Path, index: Callable[[str], None]
) -> None:
    with Index(wheels(tmp_path)) as served:
        index(served.simple_url)
        desired = mac.declared(MlxEngine(type="mlx", env={"A": "b"}))
        change = mac.change(desired)
        assert change is not None
        assert [action.verb for action in change.actions] == ["resolve", "install"]
        state = await mac.converge(desired)
        assert (state.title, state.owned) == ("mlx 0.9", True)
        (folder,) = mac.folders
        assert folder.startswith("mlx-0.9-cp311-")
        assert state.template is not None
        start, *rest = state.template.filled({"model_path": "/m", "host": "127.0.0.1", "port": "80"})
        assert start == str(mac.tools.layout.engines / folder / "bin" / "python")
        assert rest == ["-m", "mlx_lm", "server", "--model", "/m", "--host", "127.0.0.1", "--port", "80"]
        assert state.template.calls == "default_model"
        assert dict(state.template.env) == {"A": "b", "HF_HUB_OFFLINE": "1"}
        pin = mac.tools.ledger.pins()[desired[ENGINE].spec.pin]
        assert (pin["version"], len(pin["sha256"])) == ("0.9", 64)
        served.add(build_wheel(tmp_path, "mlx-lm", "1.0", FILES))
        assert mac.change(mac.anew(desired)) is None, "what is pinned stays"


async def test_another_wheel_than_the_pinned_one_is_refused(
    mac: Bench, tmp_path: Path, index: Callable[[str], None]
) -> None:
    first, part = wheels(tmp_path)
    with Index([first, part]) as served:
        index(served.simple_url)
        desired = mac.declared(MlxEngine(type="mlx"))
        await KINDS["engine"].apply(Action(Phase.MATERIALISE, "resolve", ""), ENGINE, desired[ENGINE], mac.tools)
    (tmp_path / "other").mkdir()
    other = build_wheel(tmp_path / "other", "mlx-lm", "0.9", {**FILES, "mlx_lm/more.py": b"x = 1\n"})
    with Index([other, part]) as served:
        index(served.simple_url)
        with pytest.raises(Fault) as caught:
            await mac.converge(mac.anew(desired))
        assert "0.9" in caught.value.message
        assert not [name for name in mac.folders if (mac.tools.layout.engines / name / ".installed").exists()]


async def test_a_server_of_it_is_started_and_asked_for_the_one_name_that_it_takes(
    mac: Bench, tmp_path: Path, index: Callable[[str], None]
) -> None:
    with Index(wheels(tmp_path)) as served:
        index(served.simple_url)
        engine: EngineState = await mac.converge(mac.declared(MlxEngine(type="mlx")))
    blob = "ab" * 32
    states: dict[Ref, Any] = {ENGINE: engine, Ref("model", "chat"): ModelState(blob, 7, present=True, token="t")}
    mac.tools.look = states.get
    spec = ServerSpec("chat", "llama", "e", "chat", "m", "chat", 4096, 1, -1, "f16", "f16")
    ref, kind = Ref("server", "chat"), KINDS["server"]
    declared = Declared(ref, spec)
    await kind.apply(Action(Phase.START, "start", ""), ref, declared, mac.tools)
    (row,) = mac.tools.ledger.processes()
    try:
        assert (row.inputs["calls"], row.inputs["http"]) == ("default_model", "/health")
        seen = kind.observe([ref], {ref: declared}, mac.tools)[ref]
        assert isinstance(seen, Found)
        (instance,) = seen.state.instances
        assert instance.ready is not None
        url = f"http://127.0.0.1:{row.port}/v1/chat/completions"
        answer = asked(url, "default_model")
        assert json.loads(answer["choices"][0]["message"]["content"])["weights"].endswith(blob)
        with pytest.raises(urllib.error.HTTPError):
            asked(url, "chat")
    finally:
        await kind.apply(Action(Phase.STOP, "stop", "", {"nonce": row.nonce}), ref, declared, mac.tools)
    assert list(mac.tools.ledger.processes()) == []


def asked(url: str, model: str) -> Any:
    body = json.dumps({"model": model, "messages": []}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:
        return json.load(answer)
