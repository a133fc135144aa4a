"""A data root of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout


@pytest.fixture
def effects() -> Effects:
    return Effects()


@pytest.fixture
def files(effects: Effects) -> Files:
    return Files(effects)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    root = tmp_path / "root"
    root.mkdir()
    return Layout(root)
