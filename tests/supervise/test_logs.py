"""The last lines of a log, and its rotation under a writer that knows nothing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.host.effects import Denied, Effects
from reconciler.host.files import Files
from reconciler.supervise.logs import KEPT, LIMIT, rotate, tail


@pytest.fixture
def files() -> Files:
    return Files(Effects())


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"", 5, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\nb\n", 5, ["a", "b"]),
        (b"a\nb\nc\n", 0, ["a", "b", "c"]),
        (b"a\r\nb\r\n", 5, ["a", "b"]),
        (b"ok\n\xff\xfe\n", 5, ["ok", "\ufffd\ufffd"]),
    ],
)
def test_the_tail_is_the_last_lines(tmp_path: Path, content: bytes, lines: int, expected: list[str]) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log", lines) == expected


def test_the_tail_begins_where_this_process_began(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before: out of memory\nnow\n")
    assert tail(tmp_path / "log", 40, start=22) == ["now"]
    assert tail(tmp_path / "log", 40, start=26) == []
    assert tail(tmp_path / "log", 40, start=9999) == ["before: out of memory", "now"]  # it was cut in between


def test_the_tail_of_nothing_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "missing", 5) == []
    assert tail(tmp_path, 5) == []


def test_the_tail_reads_the_end_of_a_long_log_only(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        log.truncate(1 << 33)  # sparse: reading it all would never end
        log.seek(0, 2)
        log.write(b"\nlast\n")
    assert tail(tmp_path / "log", 1) == ["last"]
    assert len("".join(tail(tmp_path / "log", 0))) <= 256 << 10


def test_a_short_log_stays(tmp_path: Path, files: Files) -> None:
    (tmp_path / "log").write_bytes(b"x" * 1000)
    rotate(tmp_path / "log", files)
    rotate(tmp_path / "missing", files)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def long_log(path: Path, mark: bytes) -> None:
    with path.open("ab") as log:
        log.write(mark)
        log.truncate(LIMIT)


def test_a_long_log_is_set_aside_and_only_so_many_are_kept(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "log"
    for number in range(KEPT + 2):
        long_log(path, str(number).encode())
        rotate(path, files)
        assert path.stat().st_size == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", *(f"log.{n}" for n in range(1, KEPT + 1))]
    with_marks = [(tmp_path / f"log.{n}").open("rb") for n in range(1, KEPT + 1)]
    try:
        assert [file.read(1) for file in with_marks] == [b"4", b"3", b"2"]
    finally:
        for file in with_marks:
            file.close()


def test_a_writer_goes_on_in_the_cut_file(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "log"
    long_log(path, b"old")
    script = "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line)\n    sys.stdout.flush()\n"
    with path.open("ab") as log:
        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=log)
    rotate(path, files)
    child.communicate(b"new\n", timeout=20)
    assert child.returncode == 0
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "log.1").stat().st_size == LIMIT


def test_looking_does_not_rotate(tmp_path: Path) -> None:
    long_log(tmp_path / "log", b"x")
    with pytest.raises(PermissionError, match="only looking"):
        rotate(tmp_path / "log", Files(Denied()))
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
