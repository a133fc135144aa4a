"""Whatever a server does, in whatever order: the right bytes arrive, or a Fault says why not; never wrong bytes."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.core.diagnostics import Fault
from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch, Patience, part, transfer
from reconciler.host.files import Files
from tests.support.downloads import quiet, sha, whole
from tests.support.fileserver import FileServer

SIZE = 150_000
VERSIONS = [random.Random(seed).randbytes(SIZE + 1000 * (seed % 2)) for seed in range(3)]

LIES = frozenset(("lying_length", "etag", "extra", "no_length"))

times = st.sampled_from([1, 2, 3, None])
offsets = st.integers(0, SIZE)
faults = st.one_of(
    st.tuples(st.just("cut"), st.tuples(offsets), times),
    st.tuples(st.just("stall"), st.tuples(offsets, st.just(60.0)), st.sampled_from([1, 2])),
    st.tuples(
        st.just("status"), st.tuples(st.sampled_from([401, 404, 416, 429, 500, 503])), st.sampled_from([1, 2, 9])
    ),
    st.tuples(st.just("lying_length"), st.tuples(st.sampled_from([-SIZE, -5000, -1, 1, 5000])), times),
    st.tuples(st.just("etag"), st.tuples(st.sampled_from(["", 'W/"x"', '"same"'])), times),
    st.tuples(st.just("extra"), st.tuples(st.just(b"x" * 700)), times),
    st.tuples(st.just("short_ranges"), st.tuples(st.integers(1, 30_000)), times),
    *(
        st.tuples(st.just(name), st.just(()), times)
        for name in ("no_range", "no_length", "restless", "html", "one_at_a_time")
    ),
)
changes = st.one_of(st.none(), st.tuples(st.integers(0, 12), st.sampled_from([1, 2])))


@pytest.fixture(autouse=True, scope="module")
def _many_small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "SEGMENT", 20_000)
        patch.setattr(transfer, "BATCH", 5_000)
        patch.setattr(transfer, "PROGRESS", 1_000)
        patch.setattr(part, "SYNC_EVERY", 15_000)
        patch.setattr(part, "UNSAFE", 30_000)
        patch.setattr(part, "WINDOW", 80_000)
        yield


def spoil(server: FileServer, sort: str, arguments: tuple[Any, ...], count: int | None) -> None:
    getattr(server, sort)(*arguments, times=count, path="/m")


async def attempt(fetch: Fetch, urls: list[str], path: Path, expected: str, cancel: float | None) -> Any:
    task = asyncio.create_task(fetch.get(urls, path, quiet, expected))
    if cancel is not None:
        await asyncio.sleep(cancel)
        task.cancel()
    try:
        async with asyncio.timeout(30):
            return await task
    except (Fault, asyncio.CancelledError) as stopped:
        return stopped


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.lists(
        st.tuples(st.lists(faults, max_size=3), changes, st.one_of(st.none(), st.floats(0, 0.05))),
        min_size=1,
        max_size=3,
    ),
    known=st.booleans(),
    mirrored=st.booleans(),
)
def test_the_bytes_are_right_or_there_is_a_fault(rounds: list[Any], known: bool, mirrored: bool) -> None:
    async def run() -> None:
        patience = Patience(stall=0.15, tries=3, pause=0.001, longest=0.05)
        fetch = Fetch(Files(Effects()), Effects(), patience=patience)
        with tempfile.TemporaryDirectory() as folder, FileServer({"/m": VERSIONS[0]}) as server:
            path = Path(folder) / "p"
            with FileServer({"/m": VERSIONS[0]}) as mirror:
                urls = [mirror.url("/m"), server.url("/m")] if mirrored else [server.url("/m")]
                lied = False  # what a server passed off as the whole file once is kept, as nothing says otherwise
                for sorts, change, cancel in [*rounds, ([], None, None)]:
                    for spoilt in (server, mirror):
                        spoilt.clear()
                        for sort, arguments, count in sorts:
                            spoil(spoilt, sort, arguments, count)
                    if change is not None:
                        server.change_after("/m", change[0], VERSIONS[change[1]])
                    lied |= any(sort in LIES for sort, *_ in sorts)
                    got = await attempt(fetch, urls, path, sha(VERSIONS[0]) if known else "", cancel)
                    if isinstance(got, BaseException):
                        continue
                    data = path.read_bytes()
                    assert got == whole(data)
                    if known:
                        assert data == VERSIONS[0]
                    elif not lied:
                        assert data in VERSIONS
                assert known is False or mirrored is False or got == whole(VERSIONS[0])
        await fetch.close()

    asyncio.run(run())
