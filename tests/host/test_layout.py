"""Where things lie: everything below the root, sockets where the kernel can reach them."""

from __future__ import annotations

import socket
from pathlib import Path

from reconciler.host.layout import SOCKET_LIMIT, Layout

DIGEST = "ab" + "0" * 62


def test_everything_lies_below_the_root() -> None:
    layout = Layout(Path("/data"))
    paths = [
        layout.ledger,
        layout.lock,
        layout.owner,
        layout.run,
        layout.routes,
        layout.engines,
        layout.partial,
        layout.quarantine,
    ]
    paths += [
        layout.generations,
        layout.blob(DIGEST),
        layout.key("n"),
        layout.log("server/chat"),
        layout.control_socket,
    ]
    assert all(path.is_relative_to("/data") for path in paths)
    assert len(set(paths)) == len(paths)


def test_names_follow_from_what_they_are_for() -> None:
    layout = Layout(Path("/data"))
    assert layout.blob(DIGEST) == Path(f"/data/artifacts/sha256/ab/{DIGEST}")
    assert layout.log("server/chat") == Path("/data/logs/server/chat.log")
    assert layout.log("controller") == Path("/data/logs/controller.log")
    assert layout.key("n1") == Path("/data/run/keys/n1")


def test_a_long_root_gets_short_sockets_of_its_own(tmp_path: Path) -> None:
    one, two = Layout(tmp_path / ("a" * 120)), Layout(tmp_path / ("a" * 119 + "b"))
    sockets = [one.control_socket, one.gateway_socket, two.control_socket, two.gateway_socket]
    assert all(len(str(path)) <= SOCKET_LIMIT for path in sockets)
    assert len(set(sockets)) == 4
    assert one.control_socket.parent == one.gateway_socket.parent != two.control_socket.parent
    assert Layout(one.root).control_socket == one.control_socket
    assert not one.control_socket.is_relative_to(one.root)


def test_letters_of_several_bytes_count_as_such() -> None:
    root = Path("/" + "é" * 60)
    assert len(str(root / "run" / "control.sock")) < SOCKET_LIMIT
    assert not Layout(root).control_socket.is_relative_to(root)


def test_the_longest_path_that_stays_can_be_bound(tmp_path: Path) -> None:
    room = SOCKET_LIMIT - len(str(tmp_path / "run" / "control.sock")) - 1
    layout = Layout(tmp_path / ("a" * room) if room > 0 else tmp_path)
    path = layout.control_socket
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.unlink()
