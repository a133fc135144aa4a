"""The last lines of a log, and its rotation under a writer that knows nothing of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler.host.effects import Denied, Effects
from reconciler.host.files import Files
from reconciler.supervise.logs import KEPT, LIMIT, Follower, begin, history, last_words, rotate, tail


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


def test_the_last_words_are_those_of_the_process_that_began_last(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "log"
    path.write_text("out of memory\n")
    start = begin(path, "server/chat", files)
    assert start == path.stat().st_size
    with path.open("a") as log:
        log.write("now\n")
    assert last_words(path, 40) == last_words(path, 40, start) == ["now"]
    path.rename(tmp_path / "log.1")  # it was set aside since
    path.write_text("bye\n")
    assert last_words(path, 40) == last_words(path, 40, start) == ["now", "bye"]
    assert last_words(path, 1) == ["bye"]
    assert last_words(tmp_path / "missing", 5) == []


STORY = """\
out of nowhere
── 2026-01-02 10:00:00 server/chat starts ──
0.00.010.000 I begin
0.01.500.000 I later
  and more of it
1.00.000.000 I a minute on
── 2026-01-02 11:00:00 server/chat starts ──
0.00.000.500 I again
2026-01-02 11:30:00,123 INFO one that tells the time itself
"""


@pytest.mark.parametrize(
    ("since", "first", "count"),
    [
        ("09:00:00", "── 2026-01-02 10:00:00 server/chat starts ──", 8),
        ("10:00:01", "0.01.500.000 I later", 6),
        ("10:00:30", "1.00.000.000 I a minute on", 4),
        ("10:30:00", "── 2026-01-02 11:00:00 server/chat starts ──", 3),
        ("11:10:00", "2026-01-02 11:30:00,123 INFO one that tells the time itself", 1),
        ("12:00:00", "", 0),
    ],
)
def test_lines_are_as_old_as_they_tell_or_as_the_one_before(tmp_path: Path, since: str, first: str, count: int) -> None:
    (tmp_path / "log").write_text(STORY)
    moment = time.mktime(time.strptime(f"2026-01-02 {since}", "%Y-%m-%d %H:%M:%S"))
    found = history(tmp_path / "log", 0, moment)
    assert (found[0] if found else "", len(found)) == (first, count)
    assert history(tmp_path / "log", 2, moment) == found[-2:]


def test_older_files_count_where_the_newest_is_short(tmp_path: Path) -> None:
    for name, text in (("log.2", "a\nb\n"), ("log.1", "c\nd\n"), ("log", "e\n")):
        (tmp_path / name).write_text(text)
    assert history(tmp_path / "log", 1) == ["e"]
    assert history(tmp_path / "log", 4) == ["b", "c", "d", "e"]
    assert history(tmp_path / "log", 0) == ["a", "b", "c", "d", "e"]
    assert history(tmp_path / "nothing", 5) == []


def test_what_is_added_is_followed_through_cutting_and_replacing(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    follower = Follower(path)
    assert follower.more() == b""
    with path.open("ab") as log:
        log.write(b"one\n")
    assert follower.more() == b"one\n"
    with path.open("ab") as log:
        log.write(b"unread\n" + b"x" * LIMIT)
    rotate(path, files)
    with path.open("ab") as log:
        log.write(b"two\n")
    read = follower.more()
    assert read.startswith(b"unread\nxxx")
    assert read.endswith(b"xtwo\n")
    path.write_bytes(b"3\n")  # cut by somebody else
    assert follower.more() == b"3\n"
    path.unlink()
    assert follower.more() == b""
    path.write_bytes(b"4\n")
    assert Follower(tmp_path / "later").more() == b""


def test_what_came_too_fast_is_told(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (3 * LIMIT))
    follower = Follower(path)
    rotate(path, files)
    assert (tmp_path / "log.1").stat().st_size == LIMIT
    assert "faster than it could be shown" in follower.more().decode()


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
