"""A bounded parser of GGUF headers, over a prefix of the file that may still be growing.

The format: magic, version (u32), counts of tensors and of keys (u64), the key-value pairs, then one record a tensor
(name, dimensions, type, offset). Long arrays such as vocabularies are stepped over, not built, so that a header is
read in milliseconds. Counts and lengths come from the file and are never trusted: each is checked against a limit
before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAGIC = b"GGUF"
MAX_KEYS = 65_536
MAX_TENSORS = 1_000_000
MAX_STRING = 64 << 20  # a chat template may be long; nothing else comes near
MAX_DIMENSIONS = 8
KEEP_ARRAY = 1024  # arrays up to this many elements (one a layer, at most) are kept, longer ones become their length
MAX_DEPTH = 4

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# ggml tensor types: (elements a block, bytes a block), from the tables of ggml and the gguf package.
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip


class NotGguf(ValueError):
    """These bytes are not a usable GGUF file; the message says what they look like."""


class Short(Exception):
    """The prefix ends inside the header; `needed` is a length (bytes) that is surely not too long."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__(f"at least {needed} bytes of the header are needed")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int  # from the start of the data section


@dataclass(frozen=True, slots=True)
class Header:
    """`keys` maps names to values; a long array is an int, its length. `data` is where tensor bytes begin."""

    version: int
    keys: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    data: int

    @property
    def architecture(self) -> str:
        return str(self.keys.get("general.architecture", ""))

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0 where the file does not say."""
        value = self.keys.get(f"{self.architecture}.context_length", 0)
        return value if isinstance(value, int) else 0

    @property
    def size(self) -> int:
        """The least size in bytes that the whole file can have."""
        end = self.data
        for tensor in self.tensors:
            count = 1
            for extent in tensor.shape:
                count *= extent
            per, bytes_ = BLOCKS.get(tensor.type, (1, 0))  # of an unknown type only the offset is known
            end = max(end, self.data + tensor.offset + count // per * bytes_)
        return end


def parse(buffer: bytes | memoryview) -> Header:
    """Read the header from a prefix of the file. Raises Short when more bytes are needed, NotGguf when hopeless."""
    return _Parser(memoryview(buffer)).header()


class _Parser:
    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.at = buffer, 0

    def header(self) -> Header:
        if self.buffer[:4] != MAGIC[: len(self.buffer)]:
            raise NotGguf(f"it starts with {bytes(self.buffer[:16])!r}, not with {MAGIC!r}")
        self._need(24)
        version, tensors, keys = struct.unpack_from("<IQQ", self.buffer, 4)
        if version not in (2, 3):
            raise NotGguf(f"GGUF version {version} is not known (2 and 3 are)")
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            raise NotGguf(f"it claims {keys} keys and {tensors} tensors")
        self.at = 24
        found: dict[str, Any] = {}
        for _ in range(keys):
            name = self._string()
            found[name] = self._value(self._number("<I"), depth=0)
        records = tuple(self._tensor() for _ in range(tensors))
        alignment = found.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise NotGguf(f"alignment {alignment!r} is impossible")
        return Header(version, found, records, self.at + -self.at % alignment)

    def _need(self, count: int) -> None:
        if self.at + count > len(self.buffer):
            raise Short(self.at + count)

    def _number(self, form: str) -> Any:
        self._need(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self.buffer, self.at)
        self.at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._number("<Q")
        if length > MAX_STRING:
            raise NotGguf(f"a string of {length} bytes at offset {self.at}")
        self._need(length)
        text = bytes(self.buffer[self.at : self.at + length]).decode("utf-8", "replace")
        self.at += length
        return text

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise NotGguf(f"value type {kind} at offset {self.at} is not known")
        return self._number(_SCALARS[kind])

    def _array(self, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            raise NotGguf(f"arrays nested deeper than {MAX_DEPTH}")
        kind, count = self._number("<I"), self._number("<Q")
        if kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            if count > KEEP_ARRAY:
                self._need(count * width)
                self.at += count * width
                return count
        elif kind not in (_STRING, _ARRAY):
            raise NotGguf(f"array type {kind} at offset {self.at} is not known")
        self._need(count * (8 if kind == _STRING else 1))  # the least it can take: refuses absurd counts at once
        values = [self._value(kind, depth + 1) for _ in range(count)] if count <= KEEP_ARRAY else None
        if values is not None:
            return values
        for _ in range(count):
            self._skip(kind, depth)
        return count

    def _skip(self, kind: int, depth: int) -> None:
        if kind != _STRING:
            self._value(kind, depth + 1)
            return
        length = self._number("<Q")
        if length > MAX_STRING:
            raise NotGguf(f"a string of {length} bytes at offset {self.at}")
        self._need(length)
        self.at += length

    def _tensor(self) -> Tensor:
        name = self._string()
        dimensions = self._number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise NotGguf(f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        return Tensor(name, shape, self._number("<I"), self._number("<Q"))
