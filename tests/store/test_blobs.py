"""Bytes enter the store once they are proved, read-only, and any later touch shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.host.effects import Effects
from reconciler.host.files import Files
from reconciler.host.layout import Layout
from reconciler.store.blobs import Blobs, sha256_of, token
from reconciler.store.ledger import Ledger

DATA = b"GGUF" + bytes(100_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def ledger(layout: Layout, effects: Effects) -> Iterator[Ledger]:
    made = Ledger.write(layout.ledger, effects)
    yield made
    made.close()


@pytest.fixture
def blobs(layout: Layout, files: Files, ledger: Ledger, effects: Effects) -> Blobs:
    return Blobs(layout, files, ledger, effects)


@pytest.fixture
def part(layout: Layout) -> Path:
    path = layout.partial / "p"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    return path


def test_what_is_taken_is_read_only_recorded_and_no_longer_a_part(
    blobs: Blobs, ledger: Ledger, layout: Layout, part: Path
) -> None:
    blobs.take(part, DIGEST)
    blob = layout.blob(DIGEST)
    assert blob.read_bytes() == DATA
    assert blob.stat().st_mode & 0o777 == 0o444
    assert not part.exists()
    record = ledger.artifact(DIGEST)
    assert record is not None
    assert (record.size, record.token) == (len(DATA), token(blob))


def test_the_same_bytes_may_be_taken_twice(blobs: Blobs, ledger: Ledger, layout: Layout, part: Path) -> None:
    blobs.take(part, DIGEST)
    part.write_bytes(DATA)
    blobs.take(part, DIGEST)
    record = ledger.artifact(DIGEST)
    assert record is not None
    assert record.token == token(layout.blob(DIGEST))
    assert len(ledger.artifacts()) == 1


def test_a_token_changes_with_every_touch(blobs: Blobs, layout: Layout, part: Path) -> None:
    blobs.take(part, DIGEST)
    blob = layout.blob(DIGEST)
    seen = [token(blob)]
    assert token(blob) == seen[0]
    os.utime(blob, ns=(1, 1))
    seen.append(token(blob))
    os.truncate(blob, 10)
    seen.append(token(blob))
    copy = blob.with_name("copy")
    copy.write_bytes(b"x" * 10)
    info = blob.stat()
    os.utime(copy, ns=(info.st_atime_ns, info.st_mtime_ns))
    copy.replace(blob)
    seen.append(token(blob))
    blob.unlink()
    seen.append(token(blob))
    assert len(set(seen)) == 5
    assert seen[-1] is None


def test_reading_does_not_change_the_token(blobs: Blobs, layout: Layout, part: Path) -> None:
    blobs.take(part, DIGEST)
    before = token(layout.blob(DIGEST))
    assert sha256_of(layout.blob(DIGEST)) == DIGEST
    assert token(layout.blob(DIGEST)) == before


def test_what_is_set_aside_is_kept_for_a_look_and_forgotten(
    blobs: Blobs, ledger: Ledger, layout: Layout, part: Path
) -> None:
    blobs.take(part, DIGEST)
    aside = blobs.set_aside(DIGEST)
    assert aside.parent == layout.quarantine
    assert aside.name.startswith(DIGEST)
    assert aside.read_bytes() == DATA
    assert not layout.blob(DIGEST).exists()
    assert ledger.artifact(DIGEST) is None


def test_what_is_removed_is_gone_and_forgotten(blobs: Blobs, ledger: Ledger, layout: Layout, part: Path) -> None:
    blobs.take(part, DIGEST)
    blobs.remove(DIGEST)
    blobs.remove(DIGEST)
    assert not layout.blob(DIGEST).exists()
    assert ledger.artifacts() == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_hash_is_that_of_the_whole_file_and_tells_how_far_it_is(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    heard: list[int] = []
    assert sha256_of(tmp_path / "f", heard.append) == hashlib.sha256(data[:size]).hexdigest()
    assert heard == sorted(heard)
    assert (heard or [0])[-1] == size
