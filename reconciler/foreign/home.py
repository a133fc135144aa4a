"""Where a person's files lie: the environment, the home folder and the system, as the rooms here are told of them.

Nothing here reads the machine's own; tests and callers hand it in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

System = Literal["linux", "darwin", "windows"]


@dataclass(frozen=True, slots=True)
class Home:
    """`folder` is the home folder, `here` the current one; relative paths count from there."""

    environ: Mapping[str, str]
    folder: Path
    system: System
    here: Path

    def named(self, variable: str) -> Path | None:
        """The path that an environment variable holds, `~` expanded; None where it is unset or empty."""
        text = self.environ.get(variable, "")
        return self.path(text) if text else None

    def path(self, text: str) -> Path:
        """A path as a file or an environment variable writes it."""
        if text == "~" or text.startswith("~/"):
            return self.folder / text[2:]
        return self.here / text

    @property
    def caches(self) -> Path:
        """The folder for caches of the system."""
        if self.system == "darwin":
            return self.folder / "Library" / "Caches"
        return self.named("XDG_CACHE_HOME") or self.folder / ".cache"

    @property
    def data(self) -> Path:
        """The folder for data of applications."""
        if self.system == "darwin":
            return self.folder / "Library" / "Application Support"
        if self.system == "windows":
            return self.named("APPDATA") or self.folder / "AppData" / "Roaming"
        return self.named("XDG_DATA_HOME") or self.folder / ".local" / "share"

    @property
    def settings(self) -> Path:
        """The folder for settings of applications."""
        if self.system == "linux":
            return self.named("XDG_CONFIG_HOME") or self.folder / ".config"
        return self.data

    def shown(self, path: Path) -> str:
        """A path as a manifest should say it: absolute, or from `~` on where it lies below the home folder."""
        whole = Path(os.path.normpath(path if path.is_absolute() else self.here / path))
        if whole.is_relative_to(self.folder) and whole != self.folder:
            return f"~/{whole.relative_to(self.folder)}"
        return str(whole)


def this_home() -> Home:
    """The one of this process. Raises RuntimeError where there is no home folder."""
    import platform

    system = platform.system().lower()
    known: System = "darwin" if system == "darwin" else "windows" if system == "windows" else "linux"
    return Home(os.environ, Path.home(), known, Path.cwd())
