"""Ports, and who holds them, as they really are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.host.probes import bindable, free_port, holder_of, http_get, listens, unix_request
from tests.support.engines import FAKE_ENGINE
from tests.support.processes import kill9, listeners, wait_until

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(100)"
# The listener is a child of the process that was started, as behind a wrapper script.
WRAPPED = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[2], sys.argv[1]]))"


@contextmanager
def child(*argv: str, port: int) -> Iterator[int]:
    """A real process, once something listens on the port."""
    process = subprocess.Popen([sys.executable, *argv])
    try:
        wait_until(lambda: listeners(port), 20, "the child listens")
        yield process.pid
    finally:
        for pid in {*listeners(port), process.pid}:
            kill9(pid)
        process.wait()


def test_the_holder_of_a_port_is_named_with_its_pid() -> None:
    port = free_port()
    with child("-c", LISTEN, str(port), port=port) as pid:
        assert holder_of(port).startswith(f"pid {pid} (python")
        assert listens(pid, port) is True
        assert listens(os.getpid(), port) is True  # the listener is our descendant
        assert listens(pid, port + 1) is False
        assert bindable("127.0.0.1", port) == "Address already in use"
    assert holder_of(port) == "another process"
    assert listens(pid, port) is False
    assert bindable("127.0.0.1", port) == ""


def test_a_port_that_a_descendant_holds_counts_for_its_ancestor() -> None:
    port = free_port()
    with child("-c", WRAPPED, str(port), LISTEN, port=port) as pid:
        assert listeners(port) != [pid]
        assert listens(pid, port) is True


def test_a_port_held_by_somebody_else_does_not_count() -> None:
    port, other = free_port(), free_port()
    with child("-c", LISTEN, str(port), port=port) as pid, child("-c", LISTEN, str(other), port=other) as stranger:
        assert listens(pid, other) is False
        assert listens(stranger, port) is False
        assert str(stranger) in holder_of(other)


def test_a_port_of_our_own_is_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"pid {os.getpid()} " in holder_of(port)
        assert listens(os.getpid(), port) is True


def test_a_connection_is_not_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert listens(os.getpid(), client.getsockname()[1]) is False
        assert holder_of(client.getsockname()[1]) == "another process"


def test_a_free_port_can_be_bound() -> None:
    ports = {free_port() for _ in range(10)}
    assert all(bindable("127.0.0.1", port) == "" for port in ports)
    assert all(1024 <= port <= 65535 for port in ports)


def test_an_address_that_is_not_ours_cannot_be_bound() -> None:
    assert bindable("192.0.2.1", 8080)


async def test_a_get_gives_status_and_body() -> None:
    port = free_port()
    with child(str(FAKE_ENGINE), "--port", str(port), port=port):
        assert await http_get("127.0.0.1", port, "/health") == (200, b'{"status": "ok"}')
        assert (await http_get("127.0.0.1", port, "/nowhere"))[0] == 404


async def test_nobody_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"refused|111|61|Connect"):
        await http_get("127.0.0.1", free_port(), "/")


@contextmanager
def answering(family: socket.AddressFamily, address: object, answer: bytes) -> Iterator[socket.socket]:
    """A server that reads one request and says `answer`, whatever was asked."""
    with socket.socket(family) as server:
        server.bind(address)  # type: ignore[arg-type]
        server.listen(1)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server
        thread.join(10)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"\x00" * 100]
)
async def test_what_is_not_http_is_said_to_be_none(answer: bytes) -> None:
    with answering(socket.AF_INET, ("127.0.0.1", 0), answer) as server, pytest.raises(ValueError, match="not HTTP"):
        await http_get("127.0.0.1", server.getsockname()[1], "/")


async def test_silence_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimeoutError):
        await http_get("127.0.0.1", server.getsockname()[1], "/", timeout=0.05)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"a": 1}', {"a": 1}),
        (b"HTTP/1.0 200 OK\r\n\r\n[1]", None),
        (b"HTTP/1.0 500 No\r\n\r\n{}", None),
        (b"HTTP/1.0 200 OK\r\n\r\nnot json", None),
        (b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe", None),
        (b"", None),
    ],
)
def test_a_local_server_answers_an_object_or_nothing(tmp_path: Path, answer: bytes, value: object) -> None:
    with answering(socket.AF_UNIX, str(tmp_path / "s"), answer):
        assert unix_request(tmp_path / "s", "GET", "/", timeout=10) == value


def test_a_local_server_that_is_not_there_answers_nothing(tmp_path: Path) -> None:
    assert unix_request(tmp_path / "s", "GET", "/") is None
    (tmp_path / "f").write_text("")
    assert unix_request(tmp_path / "f", "GET", "/") is None


def test_a_port_that_is_to_be_avoided_is_not_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([4000, 4000, 4001])

    class Kernel(socket.socket):
        def bind(self, address: object) -> None: ...

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", next(given)

    monkeypatch.setattr(socket, "socket", Kernel)
    assert free_port(avoid=4000) == 4001
