"""Process look-ups agree with a process that is really there, and notice when it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from tests.support.processes import alive, children_with_env, free_port, kill9, listeners, wait_until

LISTEN = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(60)
"""


@pytest.fixture
def marked() -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    port, mark = free_port(), uuid.uuid4().hex
    child = subprocess.Popen([sys.executable, "-c", LISTEN, str(port)], env={**os.environ, "MARK": mark})
    yield child, port, mark
    child.kill()
    child.wait()


def test_a_process_is_seen_until_it_is_killed(marked: tuple[subprocess.Popen[bytes], int, str]) -> None:
    child, port, mark = marked
    assert wait_until(lambda: listeners(port), 10, "the child listens") == [child.pid]
    assert [process.pid for process in children_with_env("MARK", mark)] == [child.pid]
    assert children_with_env("MARK", mark + "x") == []
    kill9(child.pid)
    assert not alive(child.pid)
    assert children_with_env("MARK", mark) == []
    assert listeners(port) == []
    assert child.wait() == -9
    kill9(child.pid)


def test_kill9_refuses_groups() -> None:
    for pid in (-1, 0, 1):
        with pytest.raises(ValueError, match="one process"):
            kill9(pid)


def test_wait_until_says_what_did_not_happen() -> None:
    assert wait_until(lambda: 7, 1, "seven") == 7
    with pytest.raises(AssertionError, match="the moon turns blue"):
        wait_until(lambda: False, 0.02, "the moon turns blue")
