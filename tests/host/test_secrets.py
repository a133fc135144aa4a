"""Secrets come from where the reference says, and no fault ever holds one."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.secrets import resolve


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
