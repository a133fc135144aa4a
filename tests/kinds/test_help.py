"""Asking a program for its flags: real programs, most of them bad ones. None may hold us up, fill memory or stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from reconciler.kinds.engine import help as asking
from reconciler.kinds.engine.flags import embedded
from reconciler.kinds.engine.help import flags_of
from reconciler.kinds.engine.io import HOST_PROGRAM
from reconciler.kinds.engine.llama_host import usage
from tests.support.engines import wrapper
from tests.support.helps import TODAY
from tests.support.processes import alive, wait_until


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return tmp_path / "llama-server"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 0.3)


def test_a_good_one_tells_its_flags_and_its_version(binary: Path) -> None:
    flags = flags_of(wrapper(binary))
    assert (flags.version, flags.why) == ("b11434", "")
    assert flags.has("--flash-attn")


def test_the_embedded_engines_own_program_tells_the_same_as_its_table(binary: Path) -> None:
    flags = flags_of(program(binary, f'exec "{sys.executable}" "{HOST_PROGRAM}" "$@"'))
    assert flags.version[:4].isdecimal()
    assert flags.flags == embedded("any").flags


def test_the_embedded_engine_answers_without_its_package() -> None:
    """In an interpreter that has nothing but the standard library."""
    argv = [sys.executable, "-S", "-I", str(HOST_PROGRAM)]
    assert subprocess.run([*argv, "--help"], capture_output=True, text=True, check=True).stdout == usage()
    assert "version: unknown" in subprocess.run([*argv, "--version"], capture_output=True, text=True, check=True).stderr


def test_it_is_asked_once_as_long_as_it_is_the_same_file(binary: Path, tmp_path: Path) -> None:
    text = tmp_path / "help.txt"
    text.write_text(TODAY)
    count = tmp_path / "count"
    program(binary, f'echo "$1" >> {count}; cat {text}')
    first = flags_of(binary)
    assert flags_of(binary) is first
    assert sorted(count.read_text().split()) == ["--help", "--version"]
    other = tmp_path / "other"
    program(other, f'echo "$1" >> {count}; cat {text}; echo "version: 7 (x)"')
    other.replace(binary)
    assert flags_of(binary).version == "b7"
    assert len(count.read_text().split()) == 4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exit 1", "its --help exited with code 1"),
        (f"cat <<'E'\n{TODAY}\nE\nexit 3", "its --help exited with code 3"),
        ("kill -SEGV $$", "its --help was ended by signal 11"),
        ("exec head -c 100000000 /dev/zero", "its --help prints more than 1 MiB"),
        ("exec yes -- --flag", "its --help prints more than 1 MiB"),
        ("exec head -c 200000 /dev/urandom", "its --help does not tell of --model"),
        ("true", "its --help does not tell of --model"),
        ("cat", "its --help does not tell of --model"),  # nothing is there to read
    ],
)
def test_a_bad_one_is_told_by_what_it_did(binary: Path, text: str, why: str) -> None:
    flags = flags_of(program(binary, text))
    assert (flags.known, flags.why) == (False, why)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("text", ["exec sleep 300", "exec >&- 2>&-; exec sleep 300", "trap '' TERM INT HUP; sleep 300"])
def test_one_that_hangs_is_not_waited_for(binary: Path, text: str, tmp_path: Path) -> None:
    flags = flags_of(program(binary, f"echo $$ >> {tmp_path}/pids\n{text}"))
    assert flags.why == "its --help did not end within 0.3 s"
    for pid in (tmp_path / "pids").read_text().split():
        assert not psutil.pid_exists(int(pid))


def test_children_that_hold_its_output_are_neither_waited_for_nor_left(binary: Path, tmp_path: Path) -> None:
    text = f"sleep 300 &\necho $! >> {tmp_path}/pids\ncat <<'E'\n{TODAY}\nE"
    assert flags_of(program(binary, text)).known
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_until(lambda pid=pid: not alive(pid), 10, f"{pid} was left")


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01\x01" + bytes(200), os.urandom(5000), b"#!/nonexistent\n"])
def test_what_is_no_program_is_told(binary: Path, content: bytes) -> None:
    binary.write_bytes(content)
    binary.chmod(0o755)
    assert flags_of(binary).why.startswith("it cannot be run: ")
    assert flags_of(binary.with_name("gone")).why == "it cannot be read: No such file or directory"


def test_it_gets_no_input_and_nothing_of_our_environment(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    flags_of(program(binary, f"env > {tmp_path}/env$1; pwd >> {tmp_path}/env$1"))
    seen = (tmp_path / "env--help").read_text()
    assert "hunter2" not in seen
    assert seen.endswith("\n/\n")
