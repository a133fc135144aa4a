"""Several connections and several mirrors: what is there is not asked for again, and versions are never mixed."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.fetch import SEGMENT, WINDOW, Fetch, Patience, transfer
from reconciler.host.files import Files
from tests.support.downloads import quiet, sha, vouched, whole
from tests.support.fileserver import FileServer
from tests.support.processes import free_port, kill9, wait_until

BIG = random.Random(3).randbytes(70 << 20)
SMALL = random.Random(4).randbytes(300_000)
QUICK = Patience(stall=0.5, tries=4, pause=0.01, longest=0.5)


@pytest.fixture
async def fetch(files: Files) -> AsyncIterator[Fetch]:
    made = Fetch(files, Effects(), patience=QUICK)
    yield made
    await made.close()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Many segments of a small file."""
    monkeypatch.setattr(transfer, "SEGMENT", 40_000)
    monkeypatch.setattr(transfer, "BATCH", 10_000)
    return 40_000


async def test_a_big_file_comes_over_four_connections_and_no_byte_twice(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG)) == whole(BIG)
        assert server.sent["/m"] == len(BIG)
        asked = server.requests("/m")
        assert len(BIG) / SEGMENT <= len(asked) <= 16
        assert all(request.headers["If-Range"] == f'"{sha(BIG)}"' for request in asked[1:])
    assert (tmp_path / "p").read_bytes() == BIG


async def test_connections_do_run_at_the_same_time(fetch: Fetch, tmp_path: Path) -> None:
    data = BIG[: 4 * SEGMENT]
    with FileServer({"/m": data}) as server:
        server.slow(200_000)
        task = asyncio.create_task(fetch.get(server.url("/m"), tmp_path / "p", quiet))
        await asyncio.to_thread(wait_until, lambda: len(server.requests("/m")) >= 4, 20, "four requests under way")
        assert server.sent["/m"] < SEGMENT
        server.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_small_file_costs_one_request(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert await fetch.get(server.url("/m"), tmp_path / "q", quiet, size=len(SMALL)) == whole(SMALL)
        assert [request.range for request in server.log] == [f"bytes=0-{SEGMENT - 1}", None]


@pytest.mark.usefixtures("small_segments")
async def test_cuts_are_healed_and_only_what_is_missing_comes_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.cut(after_bytes=11_111, times=9)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(SMALL)) == whole(SMALL)
        assert server.sent["/m"] == len(SMALL)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("status", [429, 503, 500])
async def test_a_busy_server_is_asked_again_in_the_same_call(fetch: Fetch, tmp_path: Path, status: int) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(status, times=3, retry_after="0.05")
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert server.sent["/m"] == len(SMALL)


async def test_a_server_that_stays_busy_is_given_up(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(503, times=None)
        with pytest.raises(Fault, match="SOURCE_BUSY"):
            await fetch.get(server.url("/m"), tmp_path / "p", quiet)
        assert len(server.log) == QUICK.tries


async def test_who_asks_for_a_long_pause_gets_it_from_the_caller(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(429, times=None, retry_after=120)
        with pytest.raises(Fault) as caught:
            await fetch.get(server.url("/m"), tmp_path / "p", quiet)
        assert caught.value.after == 120
        assert len(server.log) == 1


@pytest.mark.usefixtures("small_segments")
async def test_a_server_that_falls_silent_is_left(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.stall(after_bytes=20_000, seconds=60, times=2)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        server.stall(after_bytes=0, seconds=60, times=None)
        with pytest.raises(Fault) as caught:
            await fetch.get(server.url("/m"), tmp_path / "q", quiet)
    assert (caught.value.code, caught.value.kind) == ("STALLED", FaultClass.TRANSIENT)


@pytest.mark.usefixtures("small_segments")
async def test_a_server_that_allows_one_connection_only_is_enough(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.one_at_a_time()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("length", [300_000, 290_000, 310_000])
async def test_a_file_that_changes_between_two_ranges_is_never_spliced(
    fetch: Fetch, tmp_path: Path, after: int, length: int
) -> None:
    changed = random.Random(5).randbytes(length)
    with FileServer({"/m": SMALL}) as server:
        server.change_after("/m", after, changed)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(changed)
    assert (tmp_path / "p").read_bytes() == changed


@pytest.mark.usefixtures("small_segments")
async def test_a_changed_size_is_noticed_by_the_range_alone(fetch: Fetch, tmp_path: Path) -> None:
    """A server that ignores If-Range and names no version: with a known sha256 it may still be read in parallel."""
    changed = random.Random(5).randbytes(290_000)
    with FileServer({"/m": SMALL}) as server:
        server.etag("")
        server.change_after("/m", 3, changed)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(changed)) == whole(changed)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
async def test_what_has_no_strong_version_comes_in_one_stream(fetch: Fetch, tmp_path: Path, etag: str) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.etag(etag)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert server.log[-1].range is None


@pytest.mark.usefixtures("small_segments")
async def test_a_file_that_never_holds_still_is_given_up(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.restless("/m")
        with pytest.raises(Fault) as caught:
            await fetch.get(server.url("/m"), tmp_path / "p", quiet)
        assert len(server.log) < 60
    assert (caught.value.code, caught.value.kind) == ("SOURCE_CHANGED", FaultClass.TRANSIENT)
    assert list(tmp_path.iterdir()) == []


# --- odd servers -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
async def test_a_server_without_ranges_is_read_as_one_stream(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.no_range()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert len(server.log) == 1


async def test_a_server_without_a_length_is_read_to_the_end(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL, "/empty": b""}) as server:
        server.no_length()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert await fetch.get(server.url("/empty"), tmp_path / "e", quiet) == whole(b"")
        server.cut(after_bytes=1000, times=2)
        assert await fetch.get(server.url("/m"), tmp_path / "q", quiet) == whole(SMALL)


async def test_more_than_was_announced_is_not_taken(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.extra(b"x" * 1000)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        server.no_length()
        with pytest.raises(Fault, match="SIZE_MISMATCH"):
            await fetch.get(server.url("/m"), tmp_path / "q", quiet, size=len(SMALL))


@pytest.mark.usefixtures("small_segments")
async def test_a_server_that_gives_less_than_a_range_asks_for(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.short_ranges(17_000)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert server.sent["/m"] == len(SMALL)


async def test_another_size_than_announced_is_refused_before_it_comes(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        with pytest.raises(Fault) as caught:
            await fetch.get(server.url("/m"), tmp_path / "p", quiet, size=len(BIG) + 1)
        assert (caught.value.code, caught.value.kind) == ("SIZE_MISMATCH", FaultClass.PERMANENT)
    assert list(tmp_path.iterdir()) == []


# --- mirrors ---------------------------------------------------------------------------------------------------------


async def test_the_first_mirror_that_works_is_used(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as mirror, FileServer({"/m": SMALL}) as origin:
        urls = [f"http://127.0.0.1:{free_port()}/m", mirror.url("/none"), mirror.url("/m"), origin.url("/m")]
        assert await fetch.get(urls, tmp_path / "p", quiet, sha(SMALL)) == whole(SMALL)
        assert origin.log == []


@pytest.mark.parametrize("fault", ["404", "401", "403", "busy", "size", "sha256", "page", "stall", "cut"])
async def test_a_mirror_that_fails_leads_to_the_origin(fetch: Fetch, tmp_path: Path, fault: str) -> None:
    with FileServer({"/m": SMALL}) as mirror, FileServer({"/m": SMALL}) as origin:
        match fault:
            case "404" | "401" | "403":
                mirror.status(int(fault), times=None)
            case "busy":
                mirror.status(503, times=None, retry_after=3000)
            case "size":
                mirror.replace("/m", SMALL[:-1])
            case "sha256":
                mirror.corrupt(70_000)
            case "page":
                mirror.html("/m")
            case "stall":
                mirror.stall(0, 60, times=None)
            case "cut":
                mirror.cut(1000, times=None)
        urls = [mirror.url("/m"), origin.url("/m")]
        assert await fetch.get(urls, tmp_path / "p", quiet, sha(SMALL), size=len(SMALL)) == whole(SMALL)
        assert mirror.log
        assert origin.log
    assert (tmp_path / "p").read_bytes() == SMALL


@pytest.mark.usefixtures("small_segments")
async def test_the_origin_goes_on_with_what_a_mirror_began(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as mirror, FileServer({"/m": SMALL}) as origin:
        origin.etag('"another"')
        mirror.status_after("/m", 4, 404)
        urls = [mirror.url("/m"), origin.url("/m")]
        assert await fetch.get(urls, tmp_path / "p", quiet, sha(SMALL)) == whole(SMALL)
        assert mirror.sent["/m"] + origin.sent["/m"] == len(SMALL)
        assert mirror.sent["/m"] == 4 * 40_000


@pytest.mark.usefixtures("small_segments")
async def test_without_a_known_sha256_the_origin_begins_again(fetch: Fetch, tmp_path: Path) -> None:
    other = SMALL[::-1]
    with FileServer({"/m": SMALL}) as mirror, FileServer({"/m": other}) as origin:
        mirror.status_after("/m", 4, 404)
        assert await fetch.get([mirror.url("/m"), origin.url("/m")], tmp_path / "p", quiet) == whole(other)


@pytest.mark.usefixtures("small_segments")
async def test_a_bad_mirror_does_not_spoil_what_a_good_one_brings(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as bad, FileServer({"/m": SMALL}) as good:
        bad.corrupt(1000)
        bad.status_after("/m", 4, 403)
        assert await fetch.get([bad.url("/m"), good.url("/m")], tmp_path / "p", quiet, sha(SMALL)) == whole(SMALL)


async def test_when_all_fail_the_origins_fault_names_the_mirrors(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/o": SMALL}) as server:
        server.status(503, times=None, path="/a")
        with pytest.raises(Fault) as caught:
            await fetch.get([server.url("/a"), server.url("/b")], tmp_path / "p", quiet)
    assert caught.value.code == "NOT_FOUND"
    assert f"{server.url('/a')} (SOURCE_BUSY)" in caught.value.message
    assert caught.value.kind is FaultClass.TRANSIENT  # the mirror may come back


# --- interrupted -----------------------------------------------------------------------------------------------------


async def test_a_cancelled_download_is_gone_on_with(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        server.stall(after_bytes=6 << 20, seconds=60, times=None)
        task = asyncio.create_task(fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG)))
        await asyncio.to_thread(wait_until, lambda: server.sent["/m"] == 24 << 20, 20, "all connections stall")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.clear()
        kept, before = vouched(tmp_path / "p"), server.sent["/m"]
        assert kept >= 16 << 20
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG)) == whole(BIG)
        assert server.sent["/m"] - before == len(BIG) - kept
    assert (tmp_path / "p").read_bytes() == BIG


DOWNLOAD = """
import asyncio, sys
from pathlib import Path
from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files

async def main():
    def told(done, total):
        print(done, flush=True)

    await Fetch(Files(Effects()), Effects()).get(sys.argv[1], Path(sys.argv[2]), told)

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(4))
async def test_killed_at_any_moment_less_than_a_segment_comes_again(fetch: Fetch, tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    with FileServer({"/m": BIG}) as server:
        server.slow(40 << 20)  # so that what the kernel holds unread stays small
        kills, most = 0, 0
        for _ in range(3):
            child = subprocess.Popen(
                [sys.executable, "-c", DOWNLOAD, server.url("/m"), str(tmp_path / "p")],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            told, until = 0, moments.randrange(1 << 20, 30 << 20)
            start = None
            for line in child.stdout:
                told = int(line)
                start = told if start is None else start
                if told >= start + until:
                    break
            kill9(child.pid)
            child.stdout.close()
            kills += child.wait() == -9
            kept = vouched(tmp_path / "p") if (tmp_path / "p.json").exists() else 0
            most = max(most, told - kept)
            assert told - kept <= SEGMENT
        assert kills
        server.clear()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG)) == whole(BIG)
    assert (tmp_path / "p").read_bytes() == BIG


async def test_what_is_not_claimed_is_not_believed(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        server.stall(after_bytes=6 << 20, seconds=60, times=None)
        task = asyncio.create_task(fetch.get(server.url("/m"), tmp_path / "p", quiet))
        await asyncio.to_thread(wait_until, lambda: server.sent["/m"] == 24 << 20, 20, "all connections stall")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.clear()
        note = json.loads((tmp_path / "p.json").read_text())
        note["spans"] = [[0, 1 << 20], [SEGMENT, SEGMENT + (2 << 20)]]
        (tmp_path / "p.json").write_text(json.dumps(note))
        with (tmp_path / "p").open("r+b") as part:  # what a power cut may leave
            part.seek(1 << 20)
            part.write(b"\0" * (5 << 20))
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(BIG)


async def test_memory_stays_bounded_when_the_first_segment_hangs(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG + BIG}) as server:
        server.stall(after_bytes=0, seconds=60, times=1)
        patient = Fetch(Files(Effects()), Effects(), patience=Patience(stall=60))
        task = asyncio.create_task(patient.get(server.url("/m"), tmp_path / "p", quiet))
        await asyncio.to_thread(wait_until, lambda: server.sent["/m"] >= WINDOW - 2 * SEGMENT, 30, "the rest is here")
        await asyncio.sleep(0.3)
        assert server.sent["/m"] <= WINDOW
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await patient.close()
