"""Downloads from a real server that has bad days: resumed, verified, and every failure named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.fetch import PIECE, SEGMENT, SYNC_EVERY, Fetch, Patience
from reconciler.host.files import Files
from tests.support.downloads import quiet, sha, vouched, whole
from tests.support.fileserver import FileServer
from tests.support.processes import free_port, kill9, wait_until

BIG = random.Random(1).randbytes(20 << 20)
SMALL = random.Random(2).randbytes(100_000)
SECRET = "hunter2secret"


@pytest.fixture
async def fetch(files: Files) -> AsyncIterator[Fetch]:
    """One that tries once, so that each failure is seen by itself."""
    made = Fetch(files, Effects(), patience=Patience(tries=1))
    yield made
    await made.close()


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
    assert got == whole(BIG)
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
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet, sha(SMALL)) == whole(SMALL)
        assert len(server.requests("/m")) == 1


async def test_after_a_cut_only_what_was_not_vouched_for_is_sent_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        kept = await cut_part(fetch, server, tmp_path / "p")
        assert kept >= 3 << 20
        before = server.sent["/m"]
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
    fetch = Fetch(Files(Effects()), Effects())
    await fetch.get(sys.argv[1], Path(sys.argv[2]), lambda done, total: None)

asyncio.run(main())
"""


async def test_a_download_goes_on_where_a_killed_process_left_it(fetch: Fetch, tmp_path: Path) -> None:
    part, sidecar = tmp_path / "p", tmp_path / "p.json"
    with FileServer({"/m": BIG}) as server:
        server.stall(after_bytes=9 << 20, seconds=60)  # in the first of two segments
        child = subprocess.Popen([sys.executable, "-c", DOWNLOAD, server.url("/m"), str(part)])
        try:
            wait_until(lambda: sidecar.exists() and vouched(part) >= SYNC_EVERY, 20, "the child has a part")
        finally:
            kill9(child.pid)
            assert child.wait() == -9
        kept = vouched(part)
        assert SYNC_EVERY <= kept < len(BIG)
        before = server.sent["/m"]
        got = await fetch.get(server.url("/m"), part, quiet, sha(BIG))
        assert got == whole(BIG)
        assert server.sent["/m"] - before == len(BIG) - kept
    assert part.read_bytes() == BIG


async def cut_part(fetch: Fetch, server: FileServer, part: Path) -> int:
    """Fetch 1 MiB of each segment of the big file, and return how much of it counts."""
    server.cut(after_bytes=1 << 20, times=None, path="/m")
    fault = await fails(fetch, server.url("/m"), part)
    assert (fault.code, fault.kind) == ("CUT_SHORT", FaultClass.TRANSIENT)
    server.clear("/m")
    return vouched(part)


async def test_a_file_that_changed_in_between_starts_again(fetch: Fetch, tmp_path: Path) -> None:
    changed = BIG[::-1]
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.replace("/m", changed)
        got = await fetch.get(server.url("/m"), tmp_path / "p", quiet)
    assert got == whole(changed)
    assert (tmp_path / "p").read_bytes() == changed


async def test_a_file_that_became_shorter_than_the_part_starts_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.replace("/m", SMALL)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
    assert (tmp_path / "p").read_bytes() == SMALL


async def test_a_server_without_ranges_sends_all_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        server.no_range()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(BIG)
    assert (tmp_path / "p").read_bytes() == BIG


async def test_a_part_belongs_to_its_address(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG, "/n": SMALL}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        assert await fetch.get(server.url("/n"), tmp_path / "p", quiet) == whole(SMALL)
        assert server.requests("/n")[0].range == f"bytes=0-{SEGMENT - 1}"


NOTE = {
    "url": "URL",
    "origins": ["URL"],
    "etag": "ETAG",
    "modified": "",
    "size": 100_000,
    "sha256": "",
    "spans": [[0, 8]],
}


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps(NOTE | {"spans": []}),
        json.dumps(NOTE | {"spans": [[0, 9_000_000_000]], "size": 9_000_000_001}),
        json.dumps(NOTE | {"spans": [[-8, 8]]}),
        json.dumps(NOTE | {"spans": [[8, 0]]}),
        json.dumps(NOTE | {"spans": [[4, 8], [0, 4]]}),
        json.dumps(NOTE | {"spans": [[0, 8], [4, 12]]}),
        json.dumps(NOTE | {"spans": [["a", "b"]]}),
        json.dumps(NOTE | {"spans": [[0, 8, 9]]}),
        json.dumps(NOTE | {"spans": [[0, 8.5]]}),
        json.dumps(NOTE | {"size": 4}),
        json.dumps(NOTE | {"size": "big"}),
        json.dumps(NOTE | {"etag": ""}),
        json.dumps(NOTE | {"etag": None}),
        json.dumps(NOTE | {"url": "other"}),
        json.dumps({name: value for name, value in NOTE.items() if name != "etag"}),
    ],
)
async def test_a_damaged_note_beside_a_part_means_to_start_again(fetch: Fetch, tmp_path: Path, damage: str) -> None:
    with FileServer({"/m": SMALL}) as server:
        (tmp_path / "p").write_bytes(b"junk" * 100)
        (tmp_path / "p.json").write_text(
            damage.replace("URL", sha(server.url("/m").encode())).replace("ETAG", f'\\"{sha(SMALL)}\\"')
        )
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
    assert (tmp_path / "p").read_bytes() == SMALL


async def test_a_sound_note_is_believed(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        (tmp_path / "p").write_bytes(SMALL[:8] + b"junk" * 100)
        (tmp_path / "p.json").write_text(
            json.dumps(NOTE).replace("URL", sha(server.url("/m").encode())).replace("ETAG", f'\\"{sha(SMALL)}\\"')
        )
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert server.sent["/m"] == len(SMALL) - 8


async def test_a_part_without_its_note_starts_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        (tmp_path / "p.json").unlink()
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(BIG)
        assert f"bytes=0-{SEGMENT - 1}" in [request.range for request in server.requests("/m")[1:]]


async def test_a_refused_range_throws_the_part_away_and_all_comes_again(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG}) as server:
        await cut_part(fetch, server, tmp_path / "p")
        before = server.sent["/m"]
        server.status(416)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(BIG)
        assert server.sent["/m"] - before == len(BIG)
    assert (tmp_path / "p").read_bytes() == BIG


async def test_a_server_that_refuses_every_range_gives_the_whole(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        server.status(416)
        assert await fetch.get(server.url("/m"), tmp_path / "p", quiet) == whole(SMALL)
        assert [request.range for request in server.requests("/m")] == [f"bytes=0-{SEGMENT - 1}", None]
        fetch.discard(tmp_path / "p")
        server.status(416, times=None)
        fault = await fails(fetch, server.url("/m"), tmp_path / "p")
    assert (fault.code, fault.kind) == ("RANGE_REFUSED", FaultClass.TRANSIENT)
    assert left(tmp_path) == []


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
        kept = await cut_part(fetch, server, tmp_path / "p")
        server.status(503)
        await fails(fetch, server.url("/m"), tmp_path / "p")
        before = server.sent["/m"]
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet)).sha256 == sha(BIG)
        assert server.sent["/m"] - before == len(BIG) - kept


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


async def test_a_web_page_is_not_taken_for_a_file(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL, "/huge": b"<!doctype html>" + BIG, "/claimed.html": b"<p>" + SMALL}) as server:
        server.html("/m")
        for path in ("/m", "/huge", "/claimed.html"):
            fault = await fails(fetch, server.url(f"{path}?token={SECRET}"), tmp_path / "p")
            assert (fault.code, fault.kind) == ("NOT_A_FILE", FaultClass.PERMANENT)
            assert "web page" in fault.hint
        assert left(tmp_path) == []


async def test_a_redirect_is_followed_and_a_part_goes_on_through_it(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": BIG, "/old": b""}) as server:
        server.redirect("/old", server.url(f"/m?signature={SECRET}", host="localhost"))
        server.cut(after_bytes=1 << 20, times=None, path="/m")
        await fails(fetch, server.url("/old"), tmp_path / "p")
        server.clear("/m")
        before, asked = server.sent["/m"], len(server.requests("/old"))
        assert (await fetch.get(server.url("/old"), tmp_path / "p", quiet)).sha256 == sha(BIG)
        assert server.sent["/m"] - before <= 17 << 20
        assert len(server.requests("/old")) == asked + 1  # the others ask where it led


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
        server.lying_length(1000)
        fault = await fails(fetch, server.url("/m"), tmp_path / "p")
        assert (fault.code, fault.kind) == ("CUT_SHORT", FaultClass.TRANSIENT)
        server.clear()
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
        kept = await cut_part(fetch, server, tmp_path / "p")
    assert (await fails(fetch, server.url("/m"), tmp_path / "p")).code == "NETWORK_UNREACHABLE"
    with server:
        before = server.sent["/m"]
        assert (await fetch.get(server.url("/m"), tmp_path / "p", quiet)).sha256 == sha(BIG)
        assert server.sent["/m"] - before == len(BIG) - kept


async def test_discard_takes_the_part_and_its_note(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": SMALL}) as server:
        await fetch.get(server.url("/m"), tmp_path / "p", quiet)
    assert left(tmp_path) == ["p", "p.json"]
    fetch.discard(tmp_path / "p")
    fetch.discard(tmp_path / "p")
    assert left(tmp_path) == []
