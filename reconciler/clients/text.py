"""Texts as the languages of settings files write them. Pure."""

from __future__ import annotations

import json


def yaml_text(value: str) -> str:
    """A double-quoted scalar: whatever it holds, it is text, and no template that a program fills in before reading
    (`${{ … }}`) is in it."""
    return json.dumps(value).replace("${{", "\\x24{{").replace("\x7f", "\\x7f")
