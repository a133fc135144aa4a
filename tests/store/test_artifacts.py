"""What the ledger says of verified bytes, through its migration; and what the store does with what is odd."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.host.digest import BLOCK
from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store import blobs as store
from reconciler.store.blobs import Blobs, prove, sha256_of, token
from reconciler.store.ledger import Ledger
from reconciler.store.schema import MIGRATIONS

A = "a" * 64


@pytest.fixture
def ledger(layout: Layout, effects: Effects) -> Iterator[Ledger]:
    with Ledger.write(layout.ledger, effects) as made:
        yield made


@pytest.fixture
def blobs(layout: Layout, files: Files, ledger: Ledger, effects: Effects) -> Blobs:
    return Blobs(layout, files, ledger, effects)


@pytest.fixture
def second(layout: Layout) -> Path:
    """A ledger of the second format with one file in it."""
    db = sqlite3.connect(layout.ledger)
    for script in MIGRATIONS[:2]:
        db.executescript(script)
    db.execute("INSERT INTO artifacts VALUES (?, 5, '1:5:1', 1234.5)", (A,))
    db.execute("PRAGMA user_version=2")
    db.commit()
    db.close()
    return layout.ledger


def test_one_of_the_second_format_says_when_its_files_were_last_hashed(second: Path, effects: Effects) -> None:
    with Ledger.read(second) as ledger:
        found = ledger.artifact(A)
        assert found is not None
        assert (found.verified, found.checked, ledger.blocks(A)) == (1234.5, 1234.5, ())
    assert [p.name for p in second.parent.iterdir()] == [second.name]
    with Ledger.write(second, effects) as ledger:
        assert ledger.artifacts() == [found]
    backup = sqlite3.connect(second.with_name("ledger.db.v2.bak"))
    assert backup.execute("SELECT * FROM artifacts").fetchall() == [(A, 5, "1:5:1", 1234.5)]
    backup.close()


def test_blocks_stay_known_until_others_are_said(ledger: Ledger) -> None:
    ledger.record_artifact(A, 5, "1:5:1", ["00000001", "00000002"])
    ledger.record_artifact(A, 5, "1:5:2")
    assert ledger.blocks(A) == ("00000001", "00000002")
    ledger.record_artifact(A, 5, "1:5:3", ["00000003"])
    assert ledger.blocks(A) == ("00000003",)
    found = ledger.artifact(A)
    assert found is not None
    assert (found.token, found.checked) == ("1:5:3", found.verified)
    assert time.time() - found.checked < 60
    assert ledger.blocks("b" * 64) == ()
    ledger.forget_artifact(A)
    ledger.record_artifact(A, 5, "1:5:1")
    assert ledger.blocks(A) == ()


def test_only_the_file_that_was_seen_is_doubted(ledger: Ledger) -> None:
    ledger.record_artifact(A, 5, "1:5:1", ["00000001"])
    assert not ledger.doubt_artifact(A, "1:5:2")
    assert not ledger.doubt_artifact("b" * 64, "1:5:1")
    found = ledger.artifact(A)
    assert found is not None
    assert found.token == "1:5:1"
    assert ledger.doubt_artifact(A, "1:5:1")
    found = ledger.artifact(A)
    assert found is not None
    assert (found.token, ledger.blocks(A)) == ("", ("00000001",))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_a_proof_is_of_all_bytes_and_of_each_block(tmp_path: Path, size: int) -> None:
    data = (os.urandom(1 << 12) * (size // (1 << 12) + 1))[:size]
    path = tmp_path / "f"
    path.write_bytes(data)
    heard: list[int] = []
    proof = prove(path, heard.append)
    assert (proof.sha256, proof.size) == (hashlib.sha256(data).hexdigest(), size)
    assert proof.blocks == tuple(f"{crc32(data[n : n + BLOCK]):08x}" for n in range(0, size, BLOCK))
    assert heard == sorted(heard)
    assert (heard or [0])[-1] == size


def cached(path: Path) -> float:
    """The share of a file's pages that the kernel holds."""
    import ctypes
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        pages = -(-len(mapped) // mmap.PAGESIZE)
        vector = (ctypes.c_ubyte * pages)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), vector) == 0
        return sum(v & 1 for v in vector) / pages


def test_proving_does_not_fill_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(2 * BLOCK + 5))
    with path.open("rb") as data:
        os.fsync(data.fileno())
    sha256_of(path)
    if cached(path) < 0.9:  # a file system without a page cache of its own has nothing to drop
        return
    prove(path)
    assert cached(path) < 0.1


FAULTS = {
    "/proc/self/mem": ("DISK_ERROR", "the disk failed while reading"),
    "missing": ("FILE_GONE", "is gone"),
    "link": ("NOT_READABLE", "a link lies in its place"),
    ".": ("NOT_READABLE", "cannot be read"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_is_a_fault_that_says_why(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    code, words = FAULTS[name]
    with pytest.raises(Fault, match=words) as caught:
        prove(tmp_path / name)
    assert caught.value.code == code


def test_a_link_or_a_folder_is_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert token(tmp_path / "file")
    assert token(tmp_path / "link") is None
    assert token(tmp_path) is None


@pytest.mark.parametrize("sort", ["link", "folder", "file"])
def test_bytes_that_come_take_the_place_of_whatever_lies_there(
    blobs: Blobs, layout: Layout, files: Files, sort: str
) -> None:
    data = b"the bytes"
    digest = hashlib.sha256(data).hexdigest()
    blob = layout.blob(digest)
    blob.parent.mkdir(parents=True)
    elsewhere = layout.root / "elsewhere"
    elsewhere.write_bytes(b"of somebody else")
    if sort == "link":
        blob.symlink_to(elsewhere)
    elif sort == "folder":
        (blob / "inside").mkdir(parents=True)
    else:
        blob.write_bytes(b"other bytes")
    assert digest in blobs.digests() or sort != "file"
    part = layout.partial / "p"
    files.write(part, data)
    blobs.take(part, digest)
    assert blob.read_bytes() == data
    assert not blob.is_symlink()
    assert elsewhere.read_bytes() == b"of somebody else"
    assert blobs.holds(digest)
    assert layout.quarantine.exists() == (sort == "folder")


def test_what_is_set_aside_in_the_same_second_stays_too(
    blobs: Blobs, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.time, "time", lambda: 1000.0)
    blob = layout.blob(A)
    for number in range(4):
        blob.parent.mkdir(parents=True, exist_ok=True)
        if number == 2:
            blob.mkdir()
        else:
            blob.write_text(str(number))
        blobs.set_aside(A)
    assert len({p.name for p in layout.quarantine.iterdir()}) == 4
    assert sorted(p.read_text() for p in layout.quarantine.iterdir() if p.is_file()) == ["0", "1", "3"]


def test_a_file_that_vanishes_before_it_is_noted(blobs: Blobs, ledger: Ledger) -> None:
    with pytest.raises(Fault, match="taken away") as caught:
        blobs.record(A)
    assert caught.value.code == "BLOB_GONE"
    assert ledger.artifacts() == []
