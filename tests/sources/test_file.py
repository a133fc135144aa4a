"""`file:` copies a file of this machine, hashed on the way, and never touches the original."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import file, pypi, source_for, url
from tests.sources.conftest import Ask, left
from tests.support.fileserver import FileServer

DATA = bytes(range(256)) * 10_000


@pytest.mark.parametrize("form", ["file:{}", "file://{}"], ids=["file:/path", "file:///path"])
async def test_a_copy_is_exact_and_the_original_stays(ask: Ask, tmp_path: Path, form: str) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(DATA)
    path.chmod(0o640)
    request = ask(form.format(path), base=Path("/nowhere"))
    got = await file.bring(request)
    assert (got.sha256, got.size, got.name, got.resolved) == (
        hashlib.sha256(DATA).hexdigest(),
        len(DATA),
        "my model.gguf",
        "",
    )
    assert request.part.read_bytes() == path.read_bytes() == DATA
    assert not request.part.samefile(path)
    assert path.stat().st_mode & 0o777 == 0o640


async def test_a_relative_path_counts_from_the_manifests_folder(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "stack" / "models").mkdir(parents=True)
    (tmp_path / "stack" / "models" / "m.gguf").write_bytes(b"GGUF")
    got = await file.bring(ask("file:models/m.gguf", base=tmp_path / "stack"))
    assert (got.name, got.size) == ("m.gguf", 4)
    got = await file.bring(ask("file:../stack/models/m.gguf", base=tmp_path / "stack"))
    assert got.size == 4


async def test_a_path_may_begin_at_home(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert (await file.bring(ask("file:~/m.gguf", base=Path("/nowhere")))).size == 4


async def test_a_part_of_an_earlier_try_is_replaced(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    request = ask("file:m.gguf")
    request.part.parent.mkdir()
    request.part.write_bytes(b"something longer from before")
    await file.bring(request)
    assert request.part.read_bytes() == b"GGUF"


@pytest.mark.parametrize(
    "source", ["file:missing.gguf", "file:folder", "file:missing/m.gguf", "file:~nobody-of-that-name/m"]
)
async def test_a_file_that_is_not_there_is_for_a_person_to_mend(ask: Ask, tmp_path: Path, source: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Fault) as caught:
        await file.bring(ask(source))
    assert (caught.value.code, caught.value.kind) == ("FILE_NOT_FOUND", FaultClass.NEEDS_HUMAN)
    assert "folder of the manifest" in caught.value.hint
    assert left(tmp_path) == []


async def test_an_address_brings_one_file_under_its_own_name(ask: Ask, tmp_path: Path) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    with FileServer({"/a b/my model.gguf": DATA}) as server:
        request = ask(server.url("/a%20b/my%20model.gguf?download=true"), sha256=digest)
        got = await url.bring(request)
    assert (got.sha256, got.size, got.name) == (digest, len(DATA), "my model.gguf")
    assert request.part.read_bytes() == DATA


async def test_an_address_with_other_bytes_than_asked_for_brings_nothing(ask: Ask, tmp_path: Path) -> None:
    with FileServer({"/m.gguf": DATA}) as server, pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await url.bring(ask(server.url("/m.gguf"), sha256="0" * 64))
    assert left(tmp_path) == []


def test_the_scheme_says_which_source_it_is() -> None:
    found = [source_for(text) for text in ("pypi:a", "file:a", "https://h/a", "http://localhost/a")]
    assert found == [pypi.bring, file.bring, url.bring, url.bring]
