"""A person's file is replaced whole, and stays theirs: where links lead, with its mode and owner; or is left alone."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.clients.writer import MAX_BYTES, diff, look, write
from reconciler.core.diagnostics import Refused
from reconciler.host.effects import Denied, Effects


def put(path: Path, data: bytes | None, private: bool = False) -> None:
    write(look(path), data, Effects(), private)


def refused(path: Path, data: bytes = b"new", private: bool = False) -> str:
    with pytest.raises(Refused) as caught:
        put(path, data, private)
    assert caught.value.diagnostics[0].hint
    return str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_gets_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    put(path, b"x")
    assert (path.read_bytes(), mode(path), mode(path.parent)) == (b"x", 0o644, 0o700)
    put(tmp_path / "secret", b"x", private=True)
    assert mode(tmp_path / "secret") == 0o600


@pytest.mark.parametrize("bits", [0o600, 0o644, 0o640, 0o755, 0o666])
def test_mode_and_owner_stay(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(bits)
    before = path.stat()
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
        before = path.stat()
    put(path, b"new")
    after = path.stat()
    assert (path.read_bytes(), mode(path)) == (b"new", bits)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_root_makes_in_somebodys_home_is_theirs(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 1234, 2345)
    owner = tmp_path.stat()
    put(tmp_path / "a" / "b" / "file", b"x")
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (owner.st_uid, owner.st_gid)


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "bashrc"
    real.parent.mkdir()
    real.write_bytes(b"old")
    (tmp_path / "between").symlink_to("dotfiles/bashrc")
    link = tmp_path / ".bashrc"
    link.symlink_to(tmp_path / "between")
    put(link, b"new")
    assert (real.read_bytes(), link.is_symlink(), (tmp_path / "between").is_symlink()) == (b"new", True, True)
    put(link, None)
    assert (real.exists(), link.is_symlink()) == (False, True)
    put(link, b"again")
    assert (real.read_bytes(), link.is_symlink()) == (b"again", True)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "cannot be read" in refused(tmp_path / "a")


def test_what_is_no_ordinary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refused(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo")
    assert "not an ordinary file" in refused(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "not an ordinary file" in refused(tmp_path / "zero")
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be" in refused(tmp_path / "file" / "below")


def test_what_is_far_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as out:
        out.truncate(10 << 20)
    assert "more than 1 MiB" in refused(path)
    path.write_bytes(b"#" * MAX_BYTES)
    put(path, b"new")


def test_what_a_person_made_read_only_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    assert "read-only" in refused(path)
    assert path.read_bytes() == b"old"


def test_a_second_name_is_not_parted_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "other").hardlink_to(path)
    assert "hard link" in refused(path)
    assert (tmp_path / "other").read_bytes() == b"old"


def test_what_others_may_read_gets_no_key(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    assert "others may read" in refused(path, private=True)
    path.chmod(0o600)
    put(path, b"key", private=True)


def test_what_changes_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = look(path)
    path.write_bytes(b"newer")
    with pytest.raises(Refused, match="changed meanwhile"):
        write(seen, b"mine", Effects())
    seen = look(path)
    path.unlink()
    with pytest.raises(Refused, match="removed meanwhile"):
        write(seen, b"mine", Effects())
    seen = look(path)
    path.write_bytes(b"made")
    with pytest.raises(Refused, match="changed meanwhile"):
        write(seen, b"mine", Effects())
    assert path.read_bytes() == b"made"


def test_every_change_passes_the_one_place_for_effects(tmp_path: Path) -> None:
    for data in (b"x", None):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(Refused, match="only looking is allowed"):
            write(look(path), data, Denied())
        assert path.read_bytes() == b"old"


@contextmanager
def nobody() -> Iterator[Path]:
    """A folder of nobody's, and nobody's rights: root may read and write everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if was == 0:
                os.seteuid(0)


def test_a_file_that_may_not_be_read_is_refused() -> None:
    with nobody() as folder:
        (folder / "file").write_bytes(b"old")
        (folder / "file").chmod(0)
        assert "cannot be read: Permission denied" in refused(folder / "file")


def test_a_folder_that_may_not_be_written_is_refused() -> None:
    with nobody() as folder:
        below = folder / "below"
        below.mkdir()
        (below / "file").write_bytes(b"old")
        below.chmod(0o555)
        assert "cannot be written: Permission denied" in refused(below / "file")
        assert "cannot be written: Permission denied" in refused(below / "other")
        assert (below / "file").read_bytes() == b"old"


def test_a_difference_shows_nothing_of_a_persons_lines() -> None:
    lines = diff("file", b"export SECRET=1\nmine\n", b"export SECRET=1\nours\nmine\n")
    assert lines[2:] == ["@@ -1,0 +2 @@", "+ours"]
    assert diff("file", None, b"x\n")[0] == "--- /dev/null"
    assert diff("file", b"x\n", None)[1] == "+++ /dev/null"
    assert diff("file", b"\xff\n", b"\xff\n") == []
