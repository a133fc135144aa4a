"""A data root with its ledger and tools, and a manifest beside it. Nothing is started; all of it is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.app import tools_for
from reconciler.controller.source import Source
from reconciler.core.ids import Ref
from reconciler.host.effects import Effects
from reconciler.host.files import disk_faults
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.registry import KINDS
from reconciler.store.ledger import Ledger

CHAT, ENGINE, SERVER, GATEWAY = (
    Ref("model", "chat"),
    Ref("engine", "embedded"),
    Ref("server", "chat"),
    Ref("gateway", "main"),
)
ONE = "version: 1\nmodels:\n  chat: {source: file:chat.gguf}\n"
TWO = ONE + "  embed: {source: file:embed.gguf, task: embedding}\n"
A, B = "a" * 64, "b" * 64


class Breakable(Effects):
    """Effects of which one may be made to fail as a disk fails: with the kernel's own error number."""

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}

    def before(self, name: str, subject: str) -> None:
        if number := self.broken.get(f"{name} {Path(subject).name}", 0):
            with disk_faults(Path(subject)):
                raise OSError(number, "the disk says no")


@pytest.fixture
def effects() -> Breakable:
    return Breakable()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "stack.yaml"
    path.write_text(ONE)
    return path


@pytest.fixture
def tools(tmp_path: Path, path: Path, effects: Effects) -> Iterator[Tools]:
    layout = Layout(tmp_path / "state")
    layout.root.mkdir()
    with Ledger.write(layout.ledger, effects) as ledger:
        yield tools_for(layout, path.parent, effects, ledger, KINDS)


@pytest.fixture
def source(path: Path, tools: Tools) -> Source:
    return Source(path, tools, KINDS)


@pytest.fixture
def restarted(path: Path, tools: Tools) -> Callable[[], Source]:
    """The source of the next controller on the same data root."""
    return lambda: Source(path, tools, KINDS)
