"""Kept: thinking that has to go back to where it came from, unaltered, with the results of the tools it led to.

PURE. Chat has no place for signed thinking. Whoever handles several exchanges keeps one of these and hands it to each;
what was let go is simply not sent, as by any client without thinking.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from reconciler.dialects.text import encode


class Kept:
    """Thinking blocks by the id of a tool call; the oldest go first."""

    def __init__(self, most: int = 1024, size: int = 16 << 20) -> None:
        """At most `most` entries and `size` bytes of JSON."""
        self._most = most
        self._room = size
        self._blocks: OrderedDict[str, tuple[int, list[dict[str, Any]]]] = OrderedDict()

    def put(self, ident: str, blocks: list[dict[str, Any]]) -> None:
        """Keep the blocks; those that alone are too large are not kept."""
        size = len(encode(blocks))
        self._drop(ident)
        self._blocks[ident] = (size, blocks)
        self._room -= size
        while self._blocks and (self._room < 0 or len(self._blocks) > self._most):
            self._drop(next(iter(self._blocks)))

    def get(self, ident: str) -> list[dict[str, Any]]:
        """The blocks, or none."""
        if ident not in self._blocks:
            return []
        self._blocks.move_to_end(ident)
        return self._blocks[ident][1]

    def _drop(self, ident: str) -> None:
        if ident in self._blocks:
            self._room += self._blocks.pop(ident)[0]
