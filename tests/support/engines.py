"""Makes `fake_engine.py` installable as an engine: an executable that behaves as told.

Promises: the script written by `wrapper` becomes the fake engine's process itself (exec, so one pid), and takes nothing
from the caller's environment that it needs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


def wrapper(path: Path, env: dict[str, str] | None = None) -> Path:
    """Write an executable script to `path` that runs the fake engine with `env`, and return `path`.

    Fits `engines: {e: {type: llama.cpp, path: …}}`:

        wrapper(tmp_path / "llama-server", {"FAKE_ENGINE": "slow-ready=2,ignore-sigterm"})
    """
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    command = shlex.join(["env", *settings, sys.executable, str(FAKE_ENGINE)])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path
