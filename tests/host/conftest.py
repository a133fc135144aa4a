"""The real tools of the machine, on a folder of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files
from reconciler.host.process import Processes


@pytest.fixture
def files() -> Files:
    return Files(Effects())


@pytest.fixture
def processes() -> Processes:
    return Processes(Effects())


@pytest.fixture
async def fetch(files: Files) -> AsyncIterator[Fetch]:
    made = Fetch(files, Effects())
    yield made
    await made.close()
