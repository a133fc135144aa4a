"""What is taken over is proved, costs no disk where it can be linked, and leaves the other tool's file as it is."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.foreign import link
from reconciler.foreign.caches import Candidate
from reconciler.foreign.link import apart, drop, shared, take
from reconciler.host.digest import BLOCK
from reconciler.host.effects import Denied, Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store.blobs import Blobs
from reconciler.store.ledger import Ledger

DATA = bytes(range(256)) * 3000
EFFECTS = Effects()


def quiet(done: int, total: int | None) -> None:
    pass


def candidate(path: Path, data: bytes = DATA, mode: int = 0o644) -> Candidate:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return Candidate(path, len(data), "Ollama", named=True)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return apart(tmp_path / "partial" / "p")


async def test_on_one_file_system_it_is_linked_and_the_original_is_as_it_was(tmp_path: Path, part: Path) -> None:
    one = candidate(tmp_path / "blob", mode=0o640)
    before = one.path.stat()
    heard: list[tuple[int, int | None]] = []
    got = await take(one, part, EFFECTS, lambda done, total: heard.append((done, total)))
    assert (got.sha256, got.size) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert got.how in ("link", "reflink")
    assert got.saved == len(DATA)
    assert part.read_bytes() == DATA
    assert (got.how == "link") == part.samefile(one.path) == shared(part)
    after = one.path.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
    assert heard[-1] == (len(DATA), len(DATA))


async def test_the_bytes_outlive_the_other_tools_name_and_letting_go_leaves_the_original(
    tmp_path: Path, part: Path
) -> None:
    one = candidate(tmp_path / "blob")
    await take(one, part, EFFECTS, quiet)
    drop(part, EFFECTS)
    assert one.path.read_bytes() == DATA
    await take(one, part, EFFECTS, quiet)
    one.path.unlink()
    assert part.read_bytes() == DATA


async def test_blocks_are_the_crc_of_each_sixteen_mebibytes(tmp_path: Path, part: Path) -> None:
    data = os.urandom(1 << 20) * 17 + b"rest"
    got = await take(candidate(tmp_path / "b", data), part, EFFECTS, quiet)
    assert got.blocks == (f"{zlib.crc32(data[:BLOCK]):08x}", f"{zlib.crc32(data[BLOCK:]):08x}")
    exact = data[:BLOCK]
    got = await take(candidate(tmp_path / "c", exact), part, EFFECTS, quiet)
    assert got.blocks == (f"{zlib.crc32(exact):08x}",)


@pytest.mark.parametrize("mode", [0o666, 0o602])
async def test_what_others_may_write_to_is_copied(tmp_path: Path, part: Path, mode: int) -> None:
    got = await take(candidate(tmp_path / "blob", mode=mode), part, EFFECTS, quiet)
    if got.how != "reflink":
        assert (got.how, got.saved, shared(part)) == ("copy", 0, False)
    assert part.read_bytes() == DATA
    assert part.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_another_users_file_is_copied(tmp_path: Path, part: Path) -> None:
    one = candidate(tmp_path / "blob")
    os.chown(one.path, 12345, -1)
    got = await take(one, part, EFFECTS, quiet)
    assert got.how in ("copy", "reflink")
    assert not part.samefile(one.path)


async def test_another_file_system_is_copied(tmp_path: Path, part: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system here")
    one = candidate(memory / f"reconciler-test-{os.getpid()}")
    try:
        got = await take(one, part, EFFECTS, quiet)
    finally:
        one.path.unlink()
    assert (got.how, got.sha256) == ("copy", hashlib.sha256(DATA).hexdigest())
    assert part.read_bytes() == DATA


async def test_a_later_write_into_the_original_shows_from_outside(tmp_path: Path, part: Path) -> None:
    one = candidate(tmp_path / "blob")
    await take(one, part, EFFECTS, quiet)
    before = part.stat()
    with one.path.open("r+b") as out:
        out.write(b"changed")
    after = part.stat()
    assert part.read_bytes() == DATA or after.st_mtime_ns != before.st_mtime_ns


async def test_a_file_that_is_open_for_writing_is_not_taken(tmp_path: Path, part: Path) -> None:
    one = candidate(tmp_path / "blob")
    with one.path.open("r+b"), pytest.raises(Fault, match="being written to"):
        await take(one, part, EFFECTS, quiet)
    assert not part.exists()
    assert (await take(one, part, EFFECTS, quiet)).size == len(DATA)


async def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path, part: Path) -> None:
    one = candidate(tmp_path / "blob", DATA * 4, mode=0o666)

    def meddle(done: int, total: int | None) -> None:
        os.utime(one.path, ns=(1, 1))

    if link._cloned(fd := os.open(one.path, os.O_RDONLY), probe := tmp_path / "probe"):
        probe.unlink()
        pytest.skip("a reflink cannot change")
    os.close(fd)
    with pytest.raises(Fault, match="CANDIDATE_GONE"):
        await take(one, part, EFFECTS, meddle)
    assert not part.exists()


@pytest.mark.parametrize("kind", ["gone", "link", "fifo", "folder", "device", "other size"])
async def test_what_is_no_longer_an_ordinary_file_is_not_taken(tmp_path: Path, part: Path, kind: str) -> None:
    path = tmp_path / "blob"
    if kind == "link":
        path.symlink_to(candidate(tmp_path / "x").path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "other size":
        path.write_bytes(DATA + b"x")
    with pytest.raises(Fault, match="CANDIDATE_GONE"):
        await take(Candidate(path, len(DATA), "x", named=True), part, EFFECTS, quiet)
    assert not part.exists()


async def test_what_an_earlier_try_left_is_replaced_and_never_written_into(tmp_path: Path, part: Path) -> None:
    other = candidate(tmp_path / "other", b"of another model")
    part.parent.mkdir()
    os.link(other.path, part)
    got = await take(candidate(tmp_path / "blob", mode=0o666), part, EFFECTS, quiet)
    assert got.size == len(DATA)
    assert other.path.read_bytes() == b"of another model"


async def test_a_name_that_downloads_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="apart"):
        await take(candidate(tmp_path / "blob"), tmp_path / "p", EFFECTS, quiet)


async def test_it_happens_inside_an_effect(tmp_path: Path, part: Path) -> None:
    with pytest.raises(PermissionError, match="effect adopt"):
        await take(candidate(tmp_path / "blob"), part, Denied(), quiet)
    assert not part.parent.exists()


async def test_no_room_for_a_copy_is_told(tmp_path: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = candidate(tmp_path / "blob", mode=0o666)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    if link._cloned(fd := os.open(one.path, os.O_RDONLY), probe := tmp_path / "probe"):
        probe.unlink()
        pytest.skip("a reflink needs no room")
    os.close(fd)
    with pytest.raises(Fault, match="DISK_FULL"):
        await take(one, part, EFFECTS, quiet)


async def test_a_store_takes_a_link_in_and_leaves_the_originals_mode(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    files = Files(EFFECTS)
    one = candidate(tmp_path / "blob", mode=0o640)
    layout.root.mkdir()
    with Ledger.write(layout.ledger, EFFECTS) as ledger:
        blobs = Blobs(layout, files, ledger, EFFECTS)
        part = apart(layout.partial / "p")
        got = await take(one, part, EFFECTS, quiet)
        blobs.take(part, got.sha256)
        assert blobs.holds(got.sha256)
        assert one.path.stat().st_mode & 0o777 == 0o640
        assert layout.blob(got.sha256).samefile(one.path) == (got.how == "link")
        with one.path.open("ab") as out:
            out.write(b"x")
        assert blobs.holds(got.sha256) == (got.how != "link")  # it is noticed, and proved anew
        blobs.remove(got.sha256)
    assert one.path.read_bytes() == DATA + b"x"
