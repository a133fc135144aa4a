"""The mark of an installed engine says what is there. It is written last: a folder without it is a half-made one."""

from __future__ import annotations

import json
from pathlib import Path

from reconciler.kinds.base import Tools
from reconciler.kinds.engine.spec import EngineSpec

MARK = ".installed"


def mark(folder: Path, start: Path, spec: EngineSpec, variant: str, why: str, said: str, tools: Tools) -> None:
    """Write down that a folder is a whole engine. `start` is what begins its command line, relative to the folder;
    `said` what the engine calls its own version."""
    about = {"start": str(start), "version": spec.resolved, "variant": variant, "why": why, "said": said}
    tools.files.write(folder / MARK, (json.dumps(about, indent=2) + "\n").encode())


def marked(folder: Path) -> dict[str, str] | None:
    """What the mark of a folder says; None where there is none, or none that can be read."""
    try:
        about = json.loads((folder / MARK).read_bytes())
    except (OSError, ValueError):
        return None
    return {str(key): str(value) for key, value in about.items()} if isinstance(about, dict) else None


def python(folder: Path) -> Path:
    """The interpreter of an engine that is a virtual environment."""
    return folder / "bin" / "python"
