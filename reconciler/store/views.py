"""Folders of links: how an engine sees the parts of a model, which it finds by their names.

Derived from the store alone: made when a server starts, and again whenever one is missing. The names of a split model
are our own; those of a folder of weights come from its source, and are plain file names or refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import canonical
from reconciler.host.files import Files
from reconciler.host.layout import Layout

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def together(digests: Sequence[str], layout: Layout, files: Files) -> Path:
    """The path of the first of several parts, in a folder that links to all of them under llama.cpp's names."""
    names = [f"model-{i:05d}-of-{len(digests):05d}.gguf" for i in range(1, len(digests) + 1)]
    return _linked(" ".join(digests), dict(zip(names, digests, strict=True)), layout, files) / names[0]


def by_name(digests: Mapping[str, str], layout: Layout, files: Files) -> Path:
    """A folder that links to all of several files (name → sha256) under their names. Fault for one that is a path."""
    if odd := [name for name in digests if not _PLAIN.fullmatch(name)]:
        raise Fault(
            "BAD_NAME",
            f"{odd[0]!r} is no plain name of a file of a model",
            hint="correct it in the lock, or see anew what its source holds: `reconcile lock --upgrade`",
            kind=FaultClass.PERMANENT,
        )
    return _linked(canonical(digests), digests, layout, files)


def _linked(what: str, digests: Mapping[str, str], layout: Layout, files: Files) -> Path:
    folder = layout.views / hashlib.sha256(what.encode()).hexdigest()[:32]
    files.folder(folder)
    for name, digest in digests.items():
        path = folder / name
        if not path.is_symlink() or path.readlink() != layout.blob(digest):
            files.link(path, layout.blob(digest))
    return folder
