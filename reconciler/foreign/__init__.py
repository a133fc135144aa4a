"""Other tools' files: model files that they brought to this machine, and settings that say what this one says.

They are read, never changed. One file a tool; each says in its own words what a manifest can say, and names the rest.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from reconciler.foreign.draft import Draft
from reconciler.foreign.home import Home

TOOLS = {
    "jan": "jan",
    "ollama": "ollama",
    "lmstudio": "lmstudio",
    "llama-swap": "llama_swap",
    "litellm": "litellm",
    "claude-desktop": "claude_desktop",
    "compose": "compose",
}  # how a tool is called on the command line, and its file here


def gather(tool: str, path: Path | None, home: Home) -> Draft:
    """What a tool's files say, as a draft of a manifest; without a path they are looked for where they usually lie.

    Raises Refused where they are not there, or cannot be read."""
    draft: Draft = importlib.import_module(f"reconciler.foreign.{TOOLS[tool]}").gather(path, home)
    draft.settle()
    return draft
