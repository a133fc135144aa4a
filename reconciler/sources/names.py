"""Names as a source gives them: made fit to be shown, and read for what they count. Pure; never a path."""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_SHARDS = 1000
WEIGHTS = ".safetensors"
_OF_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(safetensors|json|model|txt|jinja|tiktoken)")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE)


def printable(name: str, most: int = 200) -> str:
    r"""`name` with all that a terminal may act on written as an escape (`\x1b`); two names stay two.

    Only what is longer than `most` characters is cut, in its middle.
    """
    shown = "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in name)
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[-(most // 2) :]}"


def _escaped(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shards(text: str) -> tuple[str, ...]:
    """All parts of the split model that `text` (a name or an address without its query) is a part of, in order.

    Empty for what is not split: `…-00002-of-00005.gguf` is the form that llama.cpp writes and reads. Also empty where
    the count makes no sense.
    """
    match = _SHARD.search(text)
    if match is None:
        return ()
    number, count = int(match[1]), int(match[2])
    if not 1 <= number <= count <= MOST_SHARDS:
        return ()
    stem = text[: match.start()]
    return tuple(f"{stem}-{n:05d}-of-{match[2]}{match[3]}" for n in range(1, count + 1))


def of_folder(names: Iterable[str]) -> list[str]:
    """The files of a folder of weights, as MLX and Python engines load it, the weights first; none where it is none.

    Only what is data: no programs, and no pickles, which are programs. These names are fit to be names of files.
    """
    found = sorted((n for n in names if _OF_FOLDER.fullmatch(n)), key=lambda n: (not n.endswith(WEIGHTS), n))
    return found if found and found[0].endswith(WEIGHTS) and "config.json" in found else []
