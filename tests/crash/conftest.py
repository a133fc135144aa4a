from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Hub
from tests.support.fileserver import FileServer
from tests.support.tiny_gguf import tiny_gguf

HERE = Path(__file__).parent
PADDING = 20 << 20  # bytes after the big model's tensors, so that its download has several syncs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    small = tiny_gguf(tmp_path_factory.mktemp("hub") / "small.gguf")
    model = small.read_bytes()
    with FileServer({"/big.gguf": model + bytes(PADDING), "/small.gguf": model}) as server:
        yield Hub(server, small)
