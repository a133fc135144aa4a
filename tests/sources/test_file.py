"""`file:` copies a file of this machine, hashed on the way, and never touches the original."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Denied
from reconciler.host.files import Files
from reconciler.sources import file, huggingface, pypi, source_for, url
from tests.sources.conftest import Desk, left

DATA = bytes(range(256)) * 10_000


@pytest.mark.parametrize("form", ["file:{}", "file://{}"], ids=["file:/path", "file:///path"])
async def test_a_copy_is_exact_and_the_original_stays(desk: Desk, tmp_path: Path, form: str) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(DATA)
    path.chmod(0o640)
    got = await desk.within(Path("/nowhere")).bring(form.format(path))
    assert (got.sha256, got.size, got.name) == (hashlib.sha256(DATA).hexdigest(), len(DATA), "my model.gguf")
    assert desk.part.read_bytes() == path.read_bytes() == DATA
    assert not desk.part.samefile(path)
    assert path.stat().st_mode & 0o777 == 0o640
    assert desk.seen[-1] == (len(DATA), len(DATA))


async def test_blocks_are_the_checksums_of_each_16_mib(desk: Desk, tmp_path: Path) -> None:
    block = 16 << 20
    data = os.urandom(1 << 20) * 33
    (tmp_path / "m.gguf").write_bytes(data)
    got = await desk.bring("file:m.gguf")
    assert got.blocks == tuple(f"{zlib.crc32(data[at : at + block]):08x}" for at in range(0, len(data), block))
    assert len(got.blocks) == 3


async def test_what_is_found_is_its_size_and_no_more(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(DATA)
    listing = await desk.find("file:m.gguf")
    (remote,) = listing.files
    assert (listing.resolved, listing.opaque) == ("", False)
    assert (remote.name, remote.size, remote.sha256) == ("m.gguf", len(DATA), "")
    assert left(tmp_path) == []


async def test_finding_and_peeking_change_nothing(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(DATA)
    still = Desk(replace(desk.tap, effects=Denied(), files=Files(Denied())), desk.part, [])
    assert await still.peek("file:m.gguf", 256, 4) == bytes(range(4))


async def test_a_relative_path_counts_from_the_manifests_folder(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "stack" / "models").mkdir(parents=True)
    (tmp_path / "stack" / "models" / "m.gguf").write_bytes(b"GGUF")
    got = await desk.within(tmp_path / "stack").bring("file:models/m.gguf")
    assert (got.name, got.size) == ("m.gguf", 4)
    got = await desk.within(tmp_path / "stack").bring("file:../stack/models/m.gguf")
    assert got.size == 4


async def test_a_path_may_begin_at_home(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert (await desk.within(Path("/nowhere")).bring("file:~/m.gguf")).size == 4


async def test_a_link_is_followed_and_keeps_its_own_name(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(DATA)
    (tmp_path / "m.gguf").symlink_to("blobs/abc")
    got = await desk.bring("file:m.gguf")
    assert (got.name, got.size) == ("m.gguf", len(DATA))
    assert not desk.part.is_symlink()


async def test_a_part_of_an_earlier_try_is_replaced(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    desk.part.parent.mkdir()
    desk.part.write_bytes(b"something longer from before")
    await desk.bring("file:m.gguf")
    assert desk.part.read_bytes() == b"GGUF"


async def test_a_part_that_is_a_link_is_not_written_through(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "precious").write_bytes(b"keep me")
    desk.part.parent.mkdir()
    desk.part.symlink_to(tmp_path / "precious")
    await desk.bring("file:m.gguf")
    assert (tmp_path / "precious").read_bytes() == b"keep me"
    assert (desk.part.read_bytes(), desk.part.is_symlink()) == (b"GGUF", False)


@pytest.mark.parametrize(
    "source", ["file:missing.gguf", "file:folder", "file:missing/m.gguf", "file:~nobody-of-that-name/m"]
)
async def test_a_file_that_is_not_there_is_for_a_person_to_mend(desk: Desk, tmp_path: Path, source: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Fault) as caught:
        await desk.bring(source)
    assert (caught.value.code, caught.value.kind) == ("FILE_NOT_FOUND", FaultClass.NEEDS_HUMAN)
    assert "folder of the manifest" in caught.value.hint
    assert left(tmp_path) == []


async def test_a_folder_is_told_so_with_the_models_in_it(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(Fault, match=r"is a folder, not a file .name the file in it: a\.gguf"):
        await desk.find("file:folder")


async def test_a_pipe_is_refused_and_not_waited_for(desk: Desk, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(Fault, match="FILE_NOT_FOUND"):
        await asyncio.wait_for(desk.find("file:m.gguf"), 20)


async def test_a_file_that_cannot_be_read_is_told_as_such(desk: Desk, tmp_path: Path) -> None:
    """/proc/self/mem is a file whose bytes even root cannot read at 0."""
    (tmp_path / "m.gguf").symlink_to("/proc/self/mem")
    with pytest.raises(Fault) as caught:
        await desk.bring("file:m.gguf")
    assert (caught.value.code, caught.value.kind) == ("FILE_UNREADABLE", FaultClass.NEEDS_HUMAN)


async def test_a_file_that_changes_while_it_is_copied_is_tried_again(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(os.urandom(4 << 20))
    (remote,) = (await desk.find("file:m.gguf")).files

    def write_to_it(done: int, total: int | None) -> None:
        with path.open("r+b") as out:
            out.seek(done - 1)
            out.write(b"!")
        os.utime(path, ns=(1, done))

    with pytest.raises(Fault) as caught:
        await file.bring(replace(desk.request(remote), progress=write_to_it), desk.tap)
    assert (caught.value.code, caught.value.kind) == ("FILE_CHANGED", FaultClass.TRANSIENT)


async def test_all_parts_of_a_split_model_are_found_from_any_of_them(desk: Desk, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        (tmp_path / f"m-0000{n}-of-00003.gguf").write_bytes(b"GGUF" * n)
    listing = await desk.find("file:m-00002-of-00003.gguf")
    assert [(f.name, f.size) for f in listing.files] == [(f"m-0000{n}-of-00003.gguf", 4 * n) for n in (1, 2, 3)]


async def test_a_missing_part_of_a_split_model_is_named(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(Fault, match=r"m-00002-of-00002\.gguf is not a file") as caught:
        await desk.find("file:m-00001-of-00002.gguf")
    assert "2 parts" in caught.value.hint


def test_the_scheme_says_which_source_it_is() -> None:
    found = [source_for(text) for text in ("pypi:a", "file:a", "https://h/a", "http://localhost/a", "hf:a/b")]
    assert found == [pypi, file, url, url, huggingface]


async def test_a_copy_that_is_cancelled_stops_writing(desk: Desk, tmp_path: Path) -> None:
    """The copy is held after its first piece until the cancellation has been heard."""
    (tmp_path / "m.gguf").write_bytes(bytes(4 << 20))
    (remote,) = (await desk.find("file:m.gguf")).files
    loop, heard = asyncio.get_running_loop(), threading.Event()

    def hold(done: int, total: int | None) -> None:
        loop.call_soon_threadsafe(cancel)
        assert heard.wait(30)

    def cancel() -> None:
        task.cancel()
        loop.call_later(0.05, heard.set)  # a few rounds of the loop: the one who waits has told the copy to stop

    task = asyncio.create_task(file.bring(replace(desk.request(remote), progress=hold), desk.tap))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.part.stat().st_size <= 1 << 20
