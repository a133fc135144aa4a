"""claude_desktop_config.json, and the files of other clients with the same idea: .mcp.json, mcp.json, settings.json.

`mcpServers` in most of them, `servers` in VS Code (below `mcp` in its settings), `context_servers` in Zed.
"""

from __future__ import annotations

from pathlib import Path

from reconciler.core.diagnostics import Refused
from reconciler.foreign import mcp
from reconciler.foreign.draft import Draft
from reconciler.foreign.home import Home
from reconciler.foreign.text import mapping, read

NAME = "Claude Desktop"
_SECTIONS = (["mcpServers"], ["servers"], ["mcp", "servers"], ["mcp", "mcpServers"], ["context_servers"])


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is the file, or the folder that it lies in. Raises Refused where there is none, or no servers in it."""
    file = path or home.settings / "Claude" / "claude_desktop_config.json"
    if file.is_dir():
        names = ("claude_desktop_config.json", ".mcp.json", "mcp.json", ".cursor/mcp.json", ".vscode/mcp.json")
        file = next((file / name for name in names if (file / name).is_file()), file)
    text = read(file, "json")
    draft = Draft(NAME, home, [home.shown(file)])
    for section in _SECTIONS:
        values = text.values
        for key in section:
            values = mapping(values).get(key)
        if isinstance(values, dict):
            mcp.take(draft, text, section)
            return draft
    raise Refused(f"{file} names no MCP servers: it has no `mcpServers`", hint="name another file as PATH")
