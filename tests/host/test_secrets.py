"""Secrets come from where the reference says, and no fault ever holds one."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keyring
import psutil
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail
from keyring.errors import KeyringError, KeyringLocked

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host import secrets
from reconciler.host.secrets import forget, resolve


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECONCILER_TEST_KEY", "k1")
    assert resolve("env:RECONCILER_TEST_KEY", tmp_path) == "k1"


def test_a_secret_comes_from_a_file_without_its_line_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a").write_text("  k2\r\n")
    assert resolve("file:keys/a", tmp_path) == "k2"
    assert resolve(f"file:{tmp_path}/keys/a", Path("/elsewhere")) == "k2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("file:~/keys/a", Path("/elsewhere")) == "k2"


@pytest.mark.parametrize(
    ("reference", "problem", "hint"),
    [
        ("env:RECONCILER_TEST_UNSET", "is not set", "export RECONCILER_TEST_UNSET"),
        ("env:RECONCILER_TEST_EMPTY", "is not set", "export RECONCILER_TEST_EMPTY"),
        ("file:missing", "cannot be read: No such file", "file"),
        ("file:empty", "is empty", "put the key into the file"),
        ("file:blank", "is empty", "put the key into the file"),
        ("file:folder", "cannot be read: Is a directory", "file"),
        ("file:binary", "cannot be read: it is not text", "file"),
        ("file:~nobody-of-that-name/key", "cannot be read", "file"),
    ],
)
def test_a_secret_that_is_not_there_is_for_a_person_to_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: str, problem: str, hint: str
) -> None:
    monkeypatch.delenv("RECONCILER_TEST_UNSET", raising=False)
    monkeypatch.setenv("RECONCILER_TEST_EMPTY", "")
    (tmp_path / "empty").write_text("")
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"hunter2\xff")
    with pytest.raises(Fault) as caught:
        resolve(reference, tmp_path)
    assert (caught.value.code, caught.value.kind) == ("SECRET_MISSING", FaultClass.NEEDS_HUMAN)
    assert caught.value.message.startswith(f"{reference} {problem}")
    assert hint in caught.value.hint
    assert "hunter2" not in repr(caught.value)


def test_another_kind_of_reference_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "hunter2").write_text("x")
    with pytest.raises(Fault, match="not a kind of reference") as caught:
        resolve("plain:hunter2", tmp_path)
    assert "hunter2" not in repr(caught.value)


# -- keyrings -------------------------------------------------------------------------------------------------------


class FileKeyring(KeyringBackend):
    """A keyring that keeps its entries in a JSON file, and counts how often it is asked."""

    priority = 1.0  # type: ignore[assignment]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.asked = path, 0

    def entries(self) -> dict[str, str]:
        return dict(json.loads(self.path.read_text())) if self.path.exists() else {}

    def get_password(self, service: str, username: str) -> str | None:
        self.asked += 1
        return self.entries().get(f"{service} {username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        self.path.write_text(json.dumps({**self.entries(), f"{service} {username}": password}))

    def delete_password(self, service: str, username: str) -> None:
        raise NotImplementedError


class BrokenKeyring(FileKeyring):
    """A keyring whose own error holds what it read."""

    def __init__(self, error: Exception) -> None:
        super().__init__(Path("/nowhere"))
        self.error = error

    def get_password(self, service: str, username: str) -> str | None:
        raise self.error


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    before = keyring.get_keyring()
    forget()
    yield
    keyring.set_keyring(before)
    forget()


def use(backend: KeyringBackend) -> None:
    keyring.set_keyring(backend)


def test_a_secret_comes_from_the_keyring(tmp_path: Path) -> None:
    use(FileKeyring(tmp_path / "keys.json"))
    keyring.set_password("reconciler", "anthropic", "k3")
    keyring.set_password("team/lab", "ci", "k4")
    assert resolve("keyring:anthropic", tmp_path) == "k3"
    assert resolve("keyring:team/lab/ci", tmp_path) == "k4"


@pytest.mark.parametrize(
    ("backend", "problem", "hint"),
    [
        (FileKeyring(Path("/nowhere")), "is not in the keyring", "`keyring set reconciler 'my key'`"),
        (fail.Keyring(), "this machine has no keyring", "use file:PATH"),
        (BrokenKeyring(KeyringLocked("hunter2")), "the keyring is locked", "unlock it"),
        (BrokenKeyring(KeyringError("hunter2")), "cannot be looked up: KeyringError", "keyring diagnose"),
        (BrokenKeyring(OSError("hunter2")), "cannot be looked up: OSError", "keyring diagnose"),
    ],
    ids=["no entry", "no backend", "locked", "broken", "its own error"],
)
def test_what_is_wrong_with_a_keyring_is_told(tmp_path: Path, backend: KeyringBackend, problem: str, hint: str) -> None:
    use(backend)
    for _ in range(2):  # found out, and remembered
        with pytest.raises(Fault) as caught:
            resolve("keyring:my key", tmp_path)
        assert (caught.value.code, caught.value.kind) == ("SECRET_MISSING", FaultClass.NEEDS_HUMAN)
        assert caught.value.message.startswith("keyring:my key ")
        assert problem in caught.value.message
        assert hint in caught.value.hint
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_keyring_is_asked_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FileKeyring(tmp_path / "keys.json")
    use(backend)
    keyring.set_password("reconciler", "a", "old")
    assert [resolve("keyring:a", tmp_path) for _ in range(3)] == ["old"] * 3
    assert backend.asked == 1
    keyring.set_password("reconciler", "a", "new")
    assert resolve("keyring:a", tmp_path) == "old"
    forget()
    assert resolve("keyring:a", tmp_path) == "new"
    keyring.set_password("reconciler", "a", "newer")
    monkeypatch.setattr(secrets, "KEPT", 0.0)
    assert resolve("keyring:a", tmp_path) == "newer"


# -- commands -------------------------------------------------------------------------------------------------------


def test_a_secret_is_the_first_line_that_a_command_prints(tmp_path: Path) -> None:
    (tmp_path / "vault").write_text("  k5  \nlogin: me\n")
    assert resolve("command:cat vault", tmp_path) == "k5"
    assert resolve("command:printf '%s' 'a b;c $HOME'", tmp_path) == "a b;c $HOME"  # no shell


def test_a_command_has_no_input_and_no_terminal(tmp_path: Path) -> None:
    code = "import sys, os; print(len(sys.stdin.read()), os.getsid(0) == os.getpid())"
    assert resolve(f'command:{sys.executable} -c "{code}"', tmp_path) == "0 True"


def test_a_command_runs_once_a_minute_and_never_twice_at_once(tmp_path: Path) -> None:
    line = "command:sh -c 'echo x >>runs; sleep 0.1; echo k6'"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: resolve(line, tmp_path), range(8))) == ["k6"] * 8
    assert (tmp_path / "runs").read_text() == "x\n"
    forget()
    resolve(line, tmp_path)
    assert (tmp_path / "runs").read_text() == "x\nx\n"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("no-such-program-here hunter2", "command:no-such-program-here is not found", "whole path"),
        ("sh -c 'echo hunter2; echo hunter2 >&2; exit 3'", "command:sh exited with code 3", "by hand"),
        ("sh -c 'echo hunter2; kill -9 $$'", "command:sh was ended by signal 9", "by hand"),
        ("sh -c ': hunter2'", "command:sh printed nothing", "must print the secret"),
        ("echo", "command:echo printed nothing", "must print the secret"),
        (r"printf 'hunter2\377'", "command:printf printed something that is not text", "by hand"),
        ("yes hunter2", "command:yes printed more than 1048576 bytes", "by hand"),
        ("./folder hunter2", "command:./folder cannot be started: Permission denied", "by hand"),
        ("echo 'hunter2", "command: cannot be split into words: No closing quotation", "quotes"),
        ("'' hunter2", "command: names no program", "command:pass"),
        (" ", "command: names no program", "command:pass"),
    ],
)
def test_what_is_wrong_with_a_command_is_told_without_its_words(
    tmp_path: Path, line: str, message: str, hint: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Fault) as caught:
        resolve(f"command:{line}", tmp_path)
    assert caught.value.kind == FaultClass.NEEDS_HUMAN
    assert caught.value.message == message
    assert hint in caught.value.hint
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "BUDGET", 0.3)
    started = time.monotonic()
    with pytest.raises(Fault, match=r"command:sh did not end within"):
        resolve("command:sh -c 'sleep 60 & echo $! >pid; echo hunter2; wait'", tmp_path)
    assert time.monotonic() - started < 5
    pid = int((tmp_path / "pid").read_text())
    assert eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
