"""A tap in the test's folder, what to ask of a source with it, and an index that is the only one that pip knows of."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files
from reconciler.sources import Brought, Listing, Remote, Request, Source, Tap, source_for
from tests.support.index import Index


@dataclass
class Desk:
    """Asks sources; what is brought goes to `parts/p` below the test's folder."""

    tap: Tap
    part: Path
    seen: list[tuple[int, int | None]]

    def within(self, base: Path) -> Desk:
        return replace(self, tap=replace(self.tap, base=base))

    async def find(self, source: str) -> Listing:
        return await source_for(source).find(source, self.tap)

    def request(self, remote: Remote, pattern: str = "", sha256: str = "") -> Request:
        return Request(remote, self.part, lambda done, total: self.seen.append((done, total)), pattern, sha256)

    async def bring(self, source: str, pattern: str = "", sha256: str = "", listing: Listing | None = None) -> Brought:
        """Find (unless that was done), choose the one file that the pattern fits, and bring it."""
        listing = listing or await self.find(source)
        files = [f for f in listing.files if listing.opaque or fnmatch.fnmatchcase(f.name, pattern or "*")]
        (remote,) = files
        return await source_for(source).bring(self.request(remote, pattern, sha256), self.tap)

    async def peek(self, source: str, start: int, length: int, number: int = 0) -> bytes:
        found: Source = source_for(source)
        return await found.peek((await found.find(source, self.tap)).files[number], start, length, self.tap)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    effects = Effects()
    files = Files(effects)
    fetch = Fetch(files, effects)
    yield Desk(Tap(tmp_path, files, effects, fetch), tmp_path / "parts" / "p", [])
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
