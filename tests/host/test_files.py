"""A file is wholly there or as it was before, whatever happens in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Denied
from reconciler.host.files import Files, disk_faults, disk_full, nearest_folder


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_write_makes_the_folder_and_a_private_file(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    files.write(path, b"1")
    assert path.read_bytes() == b"1"
    assert path.stat().st_mode & 0o777 == 0o600
    assert tree(tmp_path) == ["a", "a/b", "a/b/c.json"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444])
def test_a_write_sets_the_mode_whatever_was_there_and_whatever_the_umask(
    files: Files, tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o640)
    before = os.umask(0o077)
    try:
        files.write(path, b"new", mode)
    finally:
        os.umask(before)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)
    assert tree(tmp_path) == ["f"]


def test_a_write_replaces_a_link_not_what_it_points_to(files: Files, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"keep")
    (tmp_path / "f").symlink_to(tmp_path / "elsewhere")
    files.write(tmp_path / "f", b"new")
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"keep"


def test_a_reader_keeps_the_file_that_it_opened(files: Files, tmp_path: Path) -> None:
    files.write(tmp_path / "f", b"old")
    with (tmp_path / "f").open("rb") as reader:
        files.write(tmp_path / "f", b"newer")
        assert reader.read() == b"old"


FAILING_WRITE = """
import resource, sys
from pathlib import Path
from reconciler.host.effects import Effects
from reconciler.host.files import Files
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    Files(Effects()).write(Path(sys.argv[1]), bytes(1 << 20))
except Exception as error:
    print(type(error).__name__)
else:
    print("nothing was raised")
"""


def test_a_write_that_fails_half_way_leaves_the_old_content_and_nothing_else(files: Files, tmp_path: Path) -> None:
    """The kernel itself cuts the write short: the process may not write files of more than 64 KiB."""
    path = tmp_path / "f"
    files.write(path, b"old")
    ran = subprocess.run([sys.executable, "-c", FAILING_WRITE, str(path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() in ("OSError", "Fault"), ran
    assert path.read_bytes() == b"old"
    assert tree(tmp_path) == ["f"]


def test_a_write_onto_a_folder_fails_and_leaves_nothing(files: Files, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(Fault, match="directory"):
        files.write(tmp_path / "d", b"x")
    assert tree(tmp_path) == ["d"]


def test_a_killed_write_leaves_the_old_content(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.write(path, b"0" * 100_000)
    script = (
        "import itertools, sys\nfrom pathlib import Path\n"
        "from reconciler.host.effects import Effects\nfrom reconciler.host.files import Files\n"
        "files = Files(Effects())\n"
        "for i in itertools.count(1):\n"
        "    files.write(Path(sys.argv[1]), str(i % 10).encode() * 100_000)\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    content = path.read_bytes()
    assert len(content) == 100_000
    assert len(set(content)) == 1


def test_remove_takes_a_file_or_a_link_and_forgives_nothing_there(files: Files, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("f", "dangling", "never"):
        files.remove(tmp_path / name)
    assert tree(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="a file that not even root may remove")
def test_what_cannot_be_removed_is_a_fault_with_a_remedy(files: Files, tmp_path: Path) -> None:
    fixed = Path("/proc/self/comm")
    with pytest.raises(Fault) as removing:
        files.remove(fixed)
    assert removing.value.code == "NOT_WRITABLE"
    assert str(fixed) in removing.value.message


def test_remove_tree_never_follows_a_link(files: Files, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "link").symlink_to(outside)
    (tmp_path / "entry").symlink_to(outside)
    files.remove_tree(inside)
    files.remove_tree(tmp_path / "entry")
    files.remove_tree(tmp_path / "never")
    assert tree(tmp_path) == ["outside", "outside/precious"]


def test_move_replaces_and_makes_the_folder(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    files.move(tmp_path / "a", tmp_path / "x" / "b")
    (tmp_path / "a").write_bytes(b"newer")
    files.move(tmp_path / "a", tmp_path / "x" / "b")
    assert (tmp_path / "x" / "b").read_bytes() == b"newer"
    assert tree(tmp_path) == ["x", "x/b"]


def test_a_private_folder_that_others_may_enter_is_refused(files: Files, tmp_path: Path) -> None:
    assert files.private_folder(tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("open", "link"):
        with pytest.raises(Fault, match="UNSAFE_FOLDER") as caught:
            files.private_folder(tmp_path / name)
        assert caught.value.kind is FaultClass.NEEDS_HUMAN
        assert "chmod 700" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "code", "hint"),
    [
        (errno.ENOSPC, "DISK_FULL", "free some space"),
        (errno.EDQUOT, "DISK_FULL", "free some space"),
        (errno.EROFS, "NOT_WRITABLE", "--data-root"),
        (errno.EACCES, "NOT_WRITABLE", "write access"),
        (errno.EPERM, "NOT_WRITABLE", "write access"),
        (errno.EIO, "DISK_ERROR", "disk's health"),
    ],
    ids=lambda v: errno.errorcode.get(v, "") if isinstance(v, int) else "",
)
def test_the_systems_words_become_a_fault_with_a_remedy(tmp_path: Path, number: int, code: str, hint: str) -> None:
    with pytest.raises(Fault) as caught, disk_faults(tmp_path / "f"):
        raise OSError(number, os.strerror(number))
    assert (caught.value.code, caught.value.kind) == (code, FaultClass.NEEDS_HUMAN)
    assert hint in caught.value.hint
    assert str(tmp_path) in caught.value.message


def test_any_other_error_of_the_disk_is_a_fault_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="No such file") as refused, disk_faults(tmp_path / "f"):
        (tmp_path / "nowhere").read_bytes()
    assert refused.value.code == "WRITE_FAILED"


def test_a_full_disk_says_how_much_is_needed_and_how_much_is_there(tmp_path: Path) -> None:
    fault = disk_full(tmp_path / "not" / "there" / "f", 5_000_000_000)
    assert "5.0 GB needed, " in fault.message
    assert " free" in fault.message


def test_the_nearest_folder_is_the_one_that_exists(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    assert nearest_folder(tmp_path / "a" / "b" / "c") == tmp_path
    assert nearest_folder(tmp_path / "f" / "g") == tmp_path
    assert nearest_folder(tmp_path) == tmp_path


def test_where_only_looking_is_allowed_nothing_changes(tmp_path: Path) -> None:
    files = Files(Denied())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    attempts = [
        lambda: files.folder(tmp_path / "new"),
        lambda: files.write(tmp_path / "d" / "f", b"y"),
        lambda: files.write(tmp_path / "new" / "f", b"y"),
        lambda: files.move(tmp_path / "d" / "f", tmp_path / "g"),
        lambda: files.remove(tmp_path / "d" / "f"),
        lambda: files.remove_tree(tmp_path / "d"),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError, match="only looking is allowed"):
            attempt()
    assert tree(tmp_path) == ["d", "d/f"]
    assert (tmp_path / "d" / "f").read_bytes() == b"x"
