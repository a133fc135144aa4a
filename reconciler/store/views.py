"""Folders of links: how an engine sees the parts of a split model, which it finds by their names.

Derived from the store alone: made when a server starts, and again whenever one is missing. No name in them comes from
a source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from reconciler.host.files import Files
from reconciler.host.layout import Layout


def together(digests: Sequence[str], layout: Layout, files: Files) -> Path:
    """The path of the first of several parts, in a folder that links to all of them under llama.cpp's names."""
    name = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]
    folder = layout.views / name
    files.folder(folder)
    paths = [folder / f"model-{i:05d}-of-{len(digests):05d}.gguf" for i in range(1, len(digests) + 1)]
    for path, digest in zip(paths, digests, strict=True):
        if not path.is_symlink() or path.readlink() != layout.blob(digest):
            files.link(path, layout.blob(digest))
    return paths[0]
