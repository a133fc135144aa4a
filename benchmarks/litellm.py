"""LiteLLM as a proxy to compare with, in a virtual environment of its own.

    python -m benchmarks.litellm        installs it into the user's cache, once (some 750 MB)

It cannot live in ours: it wants an older client of the model hub. RECONCILER_LITELLM names another environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.sse import KEY

VERSION = "1.106.2"
START_SECONDS = 120.0  # its imports alone take seconds of a core


def environment() -> Path:
    """Where it is, or will be."""
    if told := os.environ.get("RECONCILER_LITELLM"):
        return Path(told)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reconciler" / f"litellm-{VERSION}"


def found() -> Path | None:
    """The program, where it is installed."""
    program = environment() / "bin" / "litellm"
    return program if program.is_file() else None


def proxy(program: Path, folder: Path, port: int, whole: int, stream: int) -> list[str]:
    """One worker with two models, `whole` and `stream`, that lead to these ports."""
    folder.mkdir()
    configuration = folder / "config.yaml"
    configuration.write_text(json.dumps(_configuration({"whole": whole, "stream": stream})), encoding="utf-8")
    return [str(program), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port), *_QUIET]


_QUIET = ("--num_workers", "1", "--telemetry", "False")


def _configuration(models: dict[str, int]) -> dict[str, object]:
    listed = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": f"http://127.0.0.1:{to}/v1", "api_key": "none"},
        }
        for name, to in models.items()
    ]
    return {"model_list": listed, "general_settings": {"master_key": KEY}, "router_settings": {"num_retries": 0}}


def install() -> Path:
    """Make the environment; returns the program."""
    folder = environment()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"litellm[proxy]=={VERSION}"], check=True)
    return folder / "bin" / "litellm"


if __name__ == "__main__":
    print(found() or install())
