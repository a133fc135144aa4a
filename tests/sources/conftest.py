"""A source's request, and an index that is the only one that pip knows of."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files
from reconciler.sources import Request
from tests.support.index import Index

Ask = Callable[..., Request]


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Ask]:
    """Makes requests whose part is `parts/p` below the test's folder."""
    effects = Effects()
    files = Files(effects)
    fetch = Fetch(files, effects)

    def make(source: str, file: str = "", sha256: str = "", base: Path = tmp_path) -> Request:
        part = tmp_path / "parts" / "p"
        return Request(source, file, sha256, part, base, files, effects, fetch, lambda done, total: None)

    yield make
    await fetch.close()


@pytest.fixture
def only_index(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points pip at one index and away from all else that this machine may have set up."""

    def use(url: str) -> None:
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            monkeypatch.delenv(name)
        settings = {
            "INDEX_URL": url,
            "EXTRA_INDEX_URL": "",
            "FIND_LINKS": "",
            "CONFIG_FILE": os.devnull,
            "NO_CACHE_DIR": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"PIP_{name}", value)

    return use


@pytest.fixture
def index(only_index: Callable[[str], None]) -> Iterator[Index]:
    with Index() as running:
        only_index(running.simple_url)
        yield running


def left(tmp_path: Path) -> list[str]:
    folder = tmp_path / "parts"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []
