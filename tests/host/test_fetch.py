"""Downloads from a real server that has bad days: resumed, verified, and every failure named."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.fetch import PIECE, SYNC_EVERY, Fetch, Fetched
from tests.support.fileserver import FileServer
from tests.support.processes import free_port, kill9, wait_until

BIG = random.Random(1).randbytes(20 << 20)
SMALL = random.Random(2).randbytes(100_000)
SECRET = "hunter2secret"


def quiet(done: int, total: int | None) -> None:
    """A progress that nobody watches."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def fails(fetch: Fetch, url: str, path: Path, expected: str = "") -> Fault:
    with pytest.raises(Fault) as caught:
        await fetch.get(url, path, quiet, expected)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    return caught.value


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


async def test_a_file_comes_whole_with_its_hash_and_the_progress_is_told(fetch: Fetch, tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    with FileServer({"/m": BIG}) as server:
        got = await fetch.get(server.url("/m"), tmp_path / "deep" / "p", lambda *at: heard.append(at), sha(BIG))
    assert got == Fetched(sha(BIG), len(BIG))
    assert (tmp_path / "deep" / "p").read_bytes() == BIG
    assert heard[0] == (0, len(BIG))
    assert heard[-1] == (len(BIG), len(BIG))
    assert heard == sorted(heard)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
async def test_a_file_of_any_size_comes(fetch: Fetch, tmp_path: Path, size: int) -> None:
    with FileServer({"/m": BIG[:size]}) as server:
        got = await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG[:size]))
    assert (got.size, (tmp_path / "p").read_bytes()) == (size, BIG[:size])


async def test_a_file_that_is_already_there_is_not_fetched_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        await fetch.get(server.url("/m"), tmp_path / "p", quiet)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(SMALL)) == Fetched(sha(SMALL), len(SMALL))
        assert len(server.requests("/m")) == 1


async def test_after_a_cut_only_what_was_not_vouched_for_is_sent_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        server.cut(after_bytes=11 << 20)
        fault = await fails(fetch, server.url("/m"), tmp_path / "p")
        assert (fault.code, fault.kind) == ("CUT_SHORT", FaultClass.TRANSIENT)
        vouched = json.loads((tmp_path / "p.json").read_text())["synced"]
        assert vouched >= SYNC_EVERY
        before = server.sent["/m"]
        got = await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG))
        assert got == Fetched(sha(BIG), len(BIG))
        assert server.sent["/m"] - before == len(BIG) - vouched
        assert server.requests("/m")[-1].range == f"bytes={vouched}-"
    assert (tmp_path / "p").read_bytes() == BIG


DOWNLOAD = """
import asyncio, sys
from pathlib import Path
from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch
from reconciler.host.files import Files

async def main():
    fetch = Fetch(Files(Effects()), Effects())
    await fetch.get(sys.argv[1], Path(sys.argv[2]), lambda done, total: None)

asyncio.run(main())
"""


async def test_a_download_goes_on_where_a_killed_process_left_it(fetch: Fetch, tmp_path: Path) -> None:
    part, sidecar = tmp_path / "p", tmp_path / "p.json"
    with FileServer({"/m": BIG}) as server:
        server.stall(after_bytes=13 << 20, seconds=60)
        child = subprocess.Popen([sys.executable, "-c", DOWNLOAD, server.url("/m"), str(part)])
        try:
            wait_until(lambda: sidecar.exists() and part.stat().st_size > SYNC_EVERY, 20, "the child has a part")
        finally:
            kill9(child.pid)
            assert child.wait() == -9
        vouched = json.loads(sidecar.read_text())["synced"]
        assert SYNC_EVERY <= vouched < len(BIG)
        before = server.sent["/m"]
        got = await fetch.get(server.url("/m"), part, quiet, sha(BIG))
        assert got == Fetched(sha(BIG), len(BIG))
        assert server.sent["/m"] - before == len(BIG) - vouched
    assert part.read_bytes() == BIG


async def cut_part(fetch: Fetch, server: FileServer, part: Path) -> int:
    """Fetch 11 MiB of the big file, and return how much of it counts."""
    server.cut(after_bytes=11 << 20)
    await fails(fetch, server.url("/m"), part)
    return int(json.loads(part.with_name(part.name + ".json").read_text())["synced"])


async def test_a_file_that_changed_in_between_starts_again(fetch: Fetch, tmp_path: Path) -> None:
    changed = BIG[::-1]
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.replace("/m", changed)
        got = await fetch.get(server.url("/m"), tmp_path / "p", quiet)
    assert got == Fetched(sha(changed), len(changed))
    assert (tmp_path / "p").read_bytes() == changed


async def test_a_file_that_became_shorter_than_the_part_starts_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.replace("/m", SMALL)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == Fetched(sha(SMALL), len(SMALL))
    assert (tmp_path / "p").read_bytes() == SMALL


async def test_a_server_without_ranges_sends_all_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.no_range()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == Fetched(sha(BIG), len(BIG))
    assert (tmp_path / "p").read_bytes() == BIG


async def test_a_part_belongs_to_its_address(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG, "/n": SMALL}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        assert await fetch.get(server.url("/n"), tmp_path / "p", quiet) == Fetched(sha(SMALL), len(SMALL))
        assert server.requests("/n")[0].range is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"synced": 1}',
        '{"url": 1, "synced": "x", "validator": "y"}',
        '{"url": "URL", "synced": 9000000000, "size": 9000000001, "validator": "x"}',
        '{"url": "URL", "synced": 8, "validator": "x"}',
        '{"url": "URL", "synced": 8, "size": 20971520, "validator": ""}',
        '{"url": "URL", "synced": -8, "size": 20971520, "validator": "x"}',
    ],
)
async def test_a_damaged_note_beside_a_part_means_to_start_again(fetch: Fetch, tmp_path: Path, damage: str) -> None:
    with FileServer({"/m": SMALL}) as server:
        (tmp_path / "p").write_bytes(b"junk" * 100)
        (tmp_path / "p.json").write_text(damage.replace("URL", server.url("/m")))
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == Fetched(sha(SMALL), len(SMALL))
    assert (tmp_path / "p").read_bytes() == SMALL


async def test_a_part_without_its_note_starts_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        (tmp_path / "p.json").unlink()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == Fetched(sha(BIG), len(BIG))
        assert server.requests("/m")[-1].range is None


async def test_a_refused_range_throws_the_part_away_and_the_next_try_is_whole(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.status(416)
        fault = await fails(fetch, server.url("/m"), tmp_path / "p")
        assert (fault.code, fault.kind) == ("RANGE_REFUSED", FaultClass.TRANSIENT)
        assert left(tmp_path) == []
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet)).sha256 == sha(BIG)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "SOURCE_REFUSED", FaultClass.PERMANENT),
        (401, "ACCESS_DENIED", FaultClass.NEEDS_HUMAN),
        (403, "ACCESS_DENIED", FaultClass.NEEDS_HUMAN),
        (404, "NOT_FOUND", FaultClass.PERMANENT),
        (410, "NOT_FOUND", FaultClass.PERMANENT),
        (408, "SOURCE_BUSY", FaultClass.TRANSIENT),
        (429, "SOURCE_BUSY", FaultClass.TRANSIENT),
        (500, "SOURCE_BUSY", FaultClass.TRANSIENT),
        (502, "SOURCE_BUSY", FaultClass.TRANSIENT),
        (503, "SOURCE_BUSY", FaultClass.TRANSIENT),
    ],
)
async def test_every_status_has_its_meaning(
    fetch: Fetch, tmp_path: Path, status: int, code: str, kind: FaultClass
) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(status)
        fault = await fails(fetch, server.url(f"/m?token={SECRET}"), tmp_path / "p")
    assert (fault.code, fault.kind, fault.after) == (code, kind, 0.0)
    assert f"/m answered {status}" in fault.message
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("1.5", 1.5, 1.5), ("99999999", 3600, 3600), ("-5", 0, 0), ("soon", 0, 0), ("", 0, 0), ("nan", 0, 0)],
)
async def test_a_busy_server_says_when_to_come_back(
    fetch: Fetch, tmp_path: Path, status: int, header: str, least: float, most: float
) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(status, retry_after=header)
        fault = await fails(fetch, server.url("/m"), tmp_path / "p")
    assert least <= fault.after <= most


async def test_a_busy_server_may_name_a_date(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(503, retry_after=format_datetime(datetime.now(UTC) + timedelta(minutes=30), usegmt=True))
        assert 1000 < (await fails(fetch, server.url("/m"), tmp_path / "p")).after <= 1800
        server.status(503, retry_after=format_datetime(datetime.now(UTC) - timedelta(minutes=30), usegmt=True))
        assert (await fails(fetch, server.url("/m"), tmp_path / "p")).after == 0


async def test_a_busy_moment_does_not_cost_the_part(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        vouched = await cut_part(fetch, server, tmp_path / "p")
        server.status(503)
        await fails(fetch, server.url("/m"), tmp_path / "p")
        before = server.sent["/m"]
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet)).sha256 == sha(BIG)
        assert server.sent["/m"] - before == len(BIG) - vouched


async def test_a_wrong_hash_is_final_and_the_part_is_gone(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        fault = await fails(fetch, server.url(f"/m?token={SECRET}"), tmp_path / "p", "0" * 64)
    assert (fault.code, fault.kind) == ("CHECKSUM_MISMATCH", FaultClass.PERMANENT)
    assert sha(SMALL) in fault.message
    assert "0" * 64 in fault.message
    assert fault.hint
    assert left(tmp_path) == []


async def test_bytes_that_changed_on_the_way_are_noticed(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.corrupt(5000, times=1)
        assert (await fails(fetch, server.url("/m"), tmp_path / "p", sha(SMALL))).code == "CHECKSUM_MISMATCH"
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(SMALL))).sha256 == sha(SMALL)


async def test_bytes_that_changed_in_the_part_are_noticed(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        with (tmp_path / "p").open("r+b") as part:
            part.seek(1000)
            part.write(bytes([BIG[1000] ^ 1]))
        assert (await fails(fetch, server.url("/m"), tmp_path / "p", sha(BIG))).code == "CHECKSUM_MISMATCH"
        assert left(tmp_path) == []
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(BIG))).sha256 == sha(BIG)


async def test_a_redirect_is_followed_and_a_part_goes_on_through_it(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG, "/old": b""}) as server:
        server.redirect("/old", server.url(f"/m?signature={SECRET}", host="localhost"))
        server.cut(after_bytes=11 << 20, path="/m")
        await fails(fetch, server.url("/old"), tmp_path / "p")
        assert (await fetch.get(server.url("/old"), tmp_path / "p", quiet)).sha256 == sha(BIG)
        assert server.requests("/m")[-1].range is not None


async def test_redirects_without_end_are_final(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/a": b""}) as server:
        server.redirect("/a", server.url(f"/a?token={SECRET}"))
        fault = await fails(fetch, server.url(f"/a?token={SECRET}"), tmp_path / "p")
        assert len(server.requests("/a")) < 30
    assert (fault.code, fault.kind) == ("TOO_MANY_REDIRECTS", FaultClass.PERMANENT)


@pytest.mark.parametrize(
    "target",
    [
        f"http://127.0.0.1:99999/{SECRET}",
        f"ftp://127.0.0.1/{SECRET}",
        f"http://127.0.0.1:x/{SECRET}",
    ],
)
async def test_a_redirect_to_nowhere_is_a_fault_of_the_source(fetch: Fetch, tmp_path: Path, target: str) -> None:
    with FileServer({"/a": b""}) as server:
        server.redirect("/a", target)
        assert (await fails(fetch, server.url("/a"), tmp_path / "p")).message


async def test_a_length_that_promises_too_much_is_a_cut(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.lying_length(1000, times=1)
        fault = await fails(fetch, server.url("/m"), tmp_path / "p")
        assert (fault.code, fault.kind) == ("CUT_SHORT", FaultClass.TRANSIENT)
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(SMALL))).size == len(SMALL)


async def test_a_length_that_promises_too_little_does_not_pass_for_the_file(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.lying_length(-1000, times=1)
        assert (await fails(fetch, server.url("/m"), tmp_path / "p", sha(SMALL))).code == "CHECKSUM_MISMATCH"


async def test_a_file_that_the_disk_cannot_hold_is_refused_before_it_is_fetched(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.lying_length(10**16)
        fault = await fails(fetch, server.url(f"/m?token={SECRET}"), tmp_path / "p")
    assert (fault.code, fault.kind) == ("DISK_FULL", FaultClass.NEEDS_HUMAN)
    assert "TB needed" in fault.message
    assert left(tmp_path) == []


async def test_a_server_that_is_not_there_is_unreachable(fetch: Fetch, tmp_path: Path) -> None:
    url = f"http://me:{SECRET}@127.0.0.1:{free_port()}/m?token={SECRET}#{SECRET}"
    fault = await fails(fetch, url, tmp_path / "p")
    assert (fault.code, fault.kind) == ("NETWORK_UNREACHABLE", FaultClass.TRANSIENT)
    assert "/m cannot be reached" in fault.message
    assert "proxy" in fault.hint


async def test_a_server_that_comes_back_serves_the_rest(fetch: Fetch, tmp_path: Path) -> None:
    server = FileServer({"/m": BIG})
    with server:
        vouched = await cut_part(fetch, server, tmp_path / "p")
    assert (await fails(fetch, server.url("/m"), tmp_path / "p")).code == "NETWORK_UNREACHABLE"
    with server:
        before = server.sent["/m"]
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet)).sha256 == sha(BIG)
        assert server.sent["/m"] - before == len(BIG) - vouched


async def test_discard_takes_the_part_and_its_note(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        await fetch.get(server.url("/m"), tmp_path / "p", quiet)
    assert left(tmp_path) == ["p", "p.json"]
    fetch.discard(tmp_path / "p")
    fetch.discard(tmp_path / "p")
    assert left(tmp_path) == []
