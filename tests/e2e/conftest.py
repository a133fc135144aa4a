from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stage import Stage, real_engine
from tests.support import llama_server
from tests.support.engines import wrapper
from tests.support.tiny_gguf import tiny_gguf

HERE = Path(__file__).parent
OWN_SERVER = HERE.parent / "support" / "own_server.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked `engines` runs on the embedded engine, and on a real llama-server where there is one."""
    if metafunc.definition.get_closest_marker("engines") is not None:
        missing = pytest.mark.skipif(llama_server.found() is None, reason=llama_server.WITHOUT)
        both = ["embedded", pytest.param("llama-server", marks=missing)]
        metafunc.parametrize("engine", both, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """Which real engine a stage has: `embedded`, or `llama-server` in tests marked `engines`."""
    return str(getattr(request, "param", "embedded"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models: hello.gguf (short answers) and endless.gguf (answers until max_tokens)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_gguf(folder / "hello.gguf", reply="Hello from a tiny model.")
    tiny_gguf(folder / "endless.gguf", loop=True, ctx=65536, layers=4, dim=256)
    tiny_gguf(folder / "embed.gguf", kind="bert")
    return folder


@pytest.fixture
def stage(tmp_path: Path, models: Path, engine: str) -> Iterator[Stage]:
    """An empty stage beside a real engine (`engine`) and the tiny models (`models/`)."""
    if engine == "llama-server":
        (tmp_path / "engine").symlink_to(llama_server.needed())
    else:
        real_engine(tmp_path / "engine")
    (tmp_path / "models").symlink_to(models)
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture
def fake(stage: Stage) -> Stage:
    """A stage whose engine is the fake one: ready at once, with answers that mean nothing."""
    wrapper(stage.folder / "engine")
    return stage


@pytest.fixture
def own(stage: Stage) -> Stage:
    """A stage with a server of its own manners (tests/support/own_server.py) beside its manifest."""
    program = stage.folder / "own"
    program.write_text(OWN_SERVER.read_text().replace("/usr/bin/env python3", sys.executable))
    program.chmod(0o755)
    return stage


@pytest.fixture
def served(fake: Stage) -> Stage:
    """A stage with one model up and ready, named chat, on the fake engine."""
    fake.write(manifest(fake))
    fake.run("apply")
    return fake


ENGINE = "engines: {real: {type: llama.cpp, path: ./engine}}"


@pytest.fixture
def hello(stage: Stage) -> Stage:
    """A stage with one tiny model up and ready, named chat."""
    stage.write(manifest(stage))
    stage.run("apply")
    return stage


def manifest(stage: Stage, models: str = "", gateway: str = "", more: str = "") -> str:
    """`models` are lines of that section, `gateway` more keys of that one, `more` lines beside them."""
    models = models or entry()
    listed = "\n".join(f"  {line}" for line in models.splitlines())
    head = f"version: 1\nname: test\n{more}{ENGINE}\n"
    return f"{head}models:\n{listed}\ngateway: {{port: {stage.port}{gateway}}}\n"


def entry(name: str = "chat", source: str = "models/hello.gguf", context: str = "1k", more: str = "") -> str:
    """One line of `models:`."""
    return f'{name}: {{source: "file:{source}", engine: real, context: {context}{more}}}'
