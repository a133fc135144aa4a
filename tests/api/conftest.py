from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.client import Client
from reconciler.host.layout import Layout
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.tiny_gguf import tiny_gguf

HERE = Path(__file__).parent
ONE = 'chat: {source: "file:hello.gguf", engine: fake, context: 1k, aliases: [fast]}'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def manifest(stage: Stage, *models: str, engine: str = "fake: {type: llama.cpp, path: ./engine}") -> str:
    listed = "\n".join(f"  {line}" for line in models or (ONE,))
    return f"version: 1\nname: test\nengines: {{{engine}}}\nmodels:\n{listed}\ngateway: {{port: {stage.port}}}\n"


def _stage(folder: Path) -> Stage:
    tiny_gguf(folder / "hello.gguf", reply="Hello.")
    wrapper(folder / "engine")
    stage = Stage(folder)
    stage.write(manifest(stage))
    return stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A manifest with one model behind a fake engine; nothing was applied yet."""
    stage = _stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The same, up and ready, for all tests of a file: they leave it so."""
    stage = _stage(tmp_path_factory.mktemp("up"))
    stage.run("apply")
    yield stage
    stage.close()


@pytest.fixture
def client(up: Stage) -> Iterator[Client]:
    with Client(Layout(up.root)) as client:
        yield client
