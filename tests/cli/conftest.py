"""A folder of one's own, and the command line in this process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reconciler.cli import main


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Calls `reconcile WORDS`, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECONCILER_DATA_ROOT", raising=False)
    before = signal.getsignal(signal.SIGINT)

    def call(*words: str) -> Said:
        result = CliRunner().invoke(main, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    yield call
    signal.signal(signal.SIGINT, before)
