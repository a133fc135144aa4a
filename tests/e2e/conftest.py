from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stage import Stage, real_engine
from tests.support.tiny_gguf import tiny_gguf

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models: hello.gguf (short answers) and endless.gguf (answers until max_tokens)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_gguf(folder / "hello.gguf", reply="Hello from a tiny model.")
    tiny_gguf(folder / "endless.gguf", loop=True, ctx=65536, layers=4, dim=256)
    tiny_gguf(folder / "embed.gguf", kind="bert")
    return folder


@pytest.fixture
def stage(tmp_path: Path, models: Path) -> Iterator[Stage]:
    """An empty stage beside a real engine (`engine`) and the tiny models (`models/`)."""
    real_engine(tmp_path / "engine")
    (tmp_path / "models").symlink_to(models)
    stage = Stage(tmp_path)
    yield stage
    stage.close()


ENGINE = "engines: {real: {type: llama.cpp, path: ./engine}}"


@pytest.fixture
def hello(stage: Stage) -> Stage:
    """A stage with one tiny model up and ready, named chat."""
    stage.write(manifest(stage))
    stage.run("apply")
    return stage


def manifest(stage: Stage, models: str = "", gateway: str = "") -> str:
    models = models or 'chat: {source: "file:models/hello.gguf", engine: real, context: 1k}'
    listed = "\n".join(f"  {line}" for line in models.splitlines())
    return f"version: 1\nname: test\n{ENGINE}\nmodels:\n{listed}\ngateway: {{port: {stage.port}{gateway}}}\n"
