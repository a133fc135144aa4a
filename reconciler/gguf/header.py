"""A bounded parser of GGUF headers, over a prefix of the file that may still be growing.

The format: magic, version (u32), counts of tensors and of keys (u64), the key-value pairs, then one record a tensor
(name, dimensions, type, offset). Long arrays such as vocabularies are stepped over, not built, so that a header is
read in milliseconds; so are texts of more than a MiB.

Nothing in a file is trusted. Whatever the bytes are, `parse` returns a Header or raises Short or NotGguf, within a
bounded time and memory: a header has at most MAX_HEADER bytes, MAX_KEYS keys and MAX_TENSORS tensors, of whose values
MAX_KEPT (MAX_TEXT bytes of them text) are built and MAX_STEPS stepped over one by one. A Header that was returned is
sound in itself: names are there once, rows are whole blocks, no tensor is counted beyond 2^63 or lies over another one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MAGIC = b"GGUF"
MAX_HEADER = 128 << 20  # bytes; vocabularies and merges of half a million entries take about 15 MiB
PREFIX = 1 << 20  # bytes that most headers fit
MAX_KEYS = 65_536
MAX_TENSORS = 131_072  # a tensor for each of 256 experts in 61 layers makes 47,000
MAX_TEXT = 16 << 20  # bytes of names and texts that are built, over all
MAX_NAME = 1024  # bytes; llama.cpp takes names of tensors up to 63
MAX_DIMENSIONS = 8
MAX_ALIGNMENT = 1 << 20
KEEP_ARRAY = 1024  # arrays up to this many elements (one a layer, at most) are kept, longer ones become their length
KEEP_TEXT = 1 << 20  # so are texts, in bytes: a chat template fits ten times, a whole tokenizer as JSON does not
MAX_KEPT = 1 << 18  # values that are built, over all keys
MAX_STEPS = 1 << 22  # strings and arrays that are stepped over one by one, over all keys
MAX_DEPTH = 4

_SCALARS = {
    kind: struct.Struct(form)
    for kind, form in {
        0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
    }.items()
}  # fmt: skip
_U32, _U64, _STRING, _ARRAY = _SCALARS[4], _SCALARS[10], 8, 9
_TAIL = struct.Struct("<IQ")  # of a tensor: type, offset; of an array: type, count

# ggml tensor types: (elements a block, bytes a block), from the tables of ggml and the gguf package.
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip

# Their names in ggml; of the ones that were removed (31–33, 36–38: rows interleaved for some processors), too.
TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip


def type_name(kind: int) -> str:
    """The name of a tensor type by its number, `UNKNOWN(n)` for one that is not known here."""
    return TYPES.get(kind, f"UNKNOWN({kind})")


class NotGguf(ValueError):
    """These bytes are not a usable GGUF file; the message says what they look like."""


class Short(Exception):
    """The prefix ends inside the header; `needed` is a length (bytes) that is surely not too long."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__(f"at least {needed} bytes of the header are needed")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `shape` is as in the file: the length of a row comes first."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int  # from the start of the data section

    @property
    def count(self) -> int:
        """How many weights it has."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product

    @property
    def bytes(self) -> int:
        """Bytes of its data; 0 of a type that is not known."""
        per, block = BLOCKS.get(self.type, (1, 0))
        return self.count // per * block


@dataclass(frozen=True, slots=True)
class Share:
    """What one type has of a model: how many tensors, weights and bytes (0 for a type that is not known)."""

    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """`keys` maps names to values; of a long array or text there is an int, its length.

    `data` is where tensor bytes begin, `digest` the sha256 of all before them where it was read whole (`reading`).
    """

    version: int
    keys: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    data: int
    alignment: int = 32
    digest: str = ""

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0 where the file does not say."""
        return max(0, self.integer(f"{self.architecture}.context_length"))

    @property
    def parameters(self) -> int:
        """How many weights its tensors have together."""
        return sum(tensor.count for tensor in self.tensors)

    @property
    def size(self) -> int:
        """The least size in bytes that the whole file can have."""
        return self.data + max((t.offset + t.bytes for t in self.tensors), default=0)

    def integer(self, key: str, default: int = 0) -> int:
        """A key's value if it is a whole number, else `default`. Files give these keys any type."""
        value = self.keys.get(key)
        return value if type(value) is int else default

    def text(self, key: str) -> str:
        """A key's value if it is text, else the empty text."""
        value = self.keys.get(key)
        return value if isinstance(value, str) else ""


def histogram(headers: Iterable[Header]) -> dict[int, Share]:
    """What each tensor type has of a model, over the headers of all its files; the one with most weights first."""
    found: dict[int, list[int]] = {}
    for header in headers:
        for tensor in header.tensors:
            share = found.setdefault(tensor.type, [0, 0, 0])
            share[0] += 1
            share[1] += tensor.count
            share[2] += tensor.bytes
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    return {kind: Share(*share) for kind, share in ordered}


def assemble(headers: Sequence[Header]) -> tuple[Header, ...]:
    """The headers of one whole model in the order of its parts. Raises NotGguf where they do not belong together.

    Each part of a split model says its number (`split.no`, from 0), how many parts there are (`split.count`) and how
    many tensors they have together (`split.tensors.count`); a model in one file says nothing, or a count of 1 or 0.
    """
    if not headers:
        raise NotGguf("a model has no part at all")
    counts = {header.integer("split.count", 1) or 1 for header in headers}
    if counts != {len(headers)}:
        said = " and ".join(str(count) for count in sorted(counts))
        raise NotGguf(f"its parts say that there are {said} of them, but {len(headers)} are here")
    if len(headers) == 1:
        return tuple(headers)
    numbers = sorted(header.integer("split.no", -1) for header in headers)
    if numbers != list(range(len(headers))):
        raise NotGguf(f"its parts are numbered {', '.join(map(str, numbers))}, not 0 to {len(headers) - 1}")
    parts = tuple(sorted(headers, key=lambda header: header.integer("split.no")))
    _same_model(parts)
    return parts


def _same_model(parts: tuple[Header, ...]) -> None:
    kinds = {part.architecture for part in parts if part.architecture}
    if len(kinds) > 1:
        raise NotGguf(f"its parts are of different models: {', '.join(sorted(kinds))}")
    names = [tensor.name for part in parts for tensor in part.tensors]
    twice = _repeated(names)
    if twice is not None:
        raise NotGguf(f"tensor {twice!r} is in more than one of its parts")
    for part in parts:
        said = part.integer("split.tensors.count", -1)
        if said != len(names):
            text = said if said >= 0 else "an unknown number of"
            raise NotGguf(
                f"part {part.integer('split.no') + 1} says {text} tensors in all, its parts have {len(names)}"
            )


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def parse(buffer: bytes | memoryview) -> Header:
    """Read the header from a prefix of the file. Raises Short when more bytes are needed, NotGguf when hopeless.

    Each call begins anew: double the prefix from call to call, and all calls cost twice the last one.
    """
    return _Parser(memoryview(buffer)).header()


def reading() -> Generator[int, bytes, Header]:
    """How to read a header, wherever it lies: yields the length (bytes) of the prefix that is wanted, and is sent it,
    shorter only where the file ends; returns the header. Raises NotGguf.
    """
    wanted = PREFIX
    while True:
        prefix = yield wanted
        try:
            found = parse(prefix)
            if found.data <= len(prefix) or len(prefix) < wanted:  # without a tensor, the padding may be missing
                return replace(found, digest=hashlib.sha256(memoryview(prefix)[: found.data]).hexdigest())
            wanted = found.data
        except Short as short:
            if len(prefix) < wanted or wanted >= MAX_HEADER:
                raise NotGguf(f"it ends after {len(prefix)} bytes, inside its own header") from short
            wanted = min(max(wanted * 2, short.needed), MAX_HEADER)


class _Parser:
    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.at, self.end = buffer, 0, len(buffer)
        self.kept = self.built = self.steps = 0

    def header(self) -> Header:
        version, tensors, keys = self._start()
        found: dict[str, Any] = {}
        for _ in range(keys):
            name = self._name("key")
            if name in found:
                raise NotGguf(f"key {name[:80]!r} is there twice")
            found[name] = self._value(self._number(_U32), 0)
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise NotGguf(f"alignment {str(alignment)[:80]!r} is not a power of two up to {MAX_ALIGNMENT}")
        records = tuple(self._tensor() for _ in range(tensors))
        _lie_apart(records, alignment)
        return Header(version, found, records, self.at + -self.at % alignment, alignment)

    def _start(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of keys."""
        if self.buffer[:4] != MAGIC[: self.end]:
            if self.buffer[:4] == MAGIC[::-1]:
                raise NotGguf("its magic is reversed: it was written for a big-endian machine")
            raise NotGguf(f"it starts with {bytes(self.buffer[:16])!r}, not with {MAGIC!r}")
        self._need(24)
        version, tensors, keys = struct.unpack_from("<IQQ", self.buffer, 4)
        if version and version & 0xFFFFFF == 0:
            raise NotGguf(
                f"it is GGUF version {version >> 24} for a big-endian machine; convert it (gguf-convert-endian)"
            )
        if version == 1:
            raise NotGguf("GGUF version 1 is no longer read by anything current; convert the original model again")
        if version not in (2, 3):
            raise NotGguf(f"GGUF version {version} is not known (2 and 3 are)")
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            raise NotGguf(f"it claims {keys} keys and {tensors} tensors")
        self.at = 24
        return version, tensors, keys

    def _need(self, count: int) -> None:
        end = self.at + count
        if end > MAX_HEADER:
            raise NotGguf(f"{count} bytes are claimed at offset {self.at}; a header has at most {MAX_HEADER}")
        if end > self.end:
            raise Short(end)

    def _number(self, form: struct.Struct) -> Any:
        self._need(form.size)
        (value,) = form.unpack_from(self.buffer, self.at)
        self.at += form.size
        return value

    def _length(self) -> int:
        """The length of a text, whose bytes are all there."""
        length: int = self._number(_U64)
        self._need(length)
        return length

    def _bytes(self, length: int) -> bytes:
        self.built += length
        if self.built > MAX_TEXT:
            raise NotGguf(f"more than {MAX_TEXT} bytes of texts and names")
        found = bytes(self.buffer[self.at : self.at + length])
        self.at += length
        return found

    def _name(self, of: str) -> str:
        length: int = self._number(_U64)
        if not 0 < length <= MAX_NAME:
            raise NotGguf(f"the name of a {of} at offset {self.at} has {length} bytes (1 to {MAX_NAME} are possible)")
        self._need(length)
        raw = self._bytes(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise NotGguf(f"the name of a {of} is not text: {raw[:80]!r}") from None

    def _text(self) -> str | int:
        length = self._length()
        if length > KEEP_TEXT:
            self.at += length
            return length
        return self._bytes(length).decode("utf-8", "replace")

    def _value(self, kind: int, depth: int) -> Any:
        self.kept += 1
        if self.kept > MAX_KEPT:
            raise NotGguf(f"more than {MAX_KEPT} values")
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise NotGguf(f"value type UNKNOWN({kind}) at offset {self.at}: what follows cannot be read")
        return self._number(_SCALARS[kind])

    def _array(self, depth: int) -> Any:
        kind, count = self._array_start(depth)
        if count > KEEP_ARRAY:
            self._skip_elements(kind, count, depth)
            return count
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _array_start(self, depth: int) -> tuple[int, int]:
        """Type and number of an array's elements, for which there are bytes enough."""
        if depth >= MAX_DEPTH:
            raise NotGguf(f"arrays nested deeper than {MAX_DEPTH}")
        kind, count = self._number(_U32), self._number(_U64)
        if kind in _SCALARS:
            least = _SCALARS[kind].size
        elif kind in (_STRING, _ARRAY):
            least = _U64.size if kind == _STRING else _TAIL.size
        else:
            raise NotGguf(f"element type UNKNOWN({kind}) at offset {self.at}: what follows cannot be read")
        self._need(count * least)
        return kind, count

    def _skip_elements(self, kind: int, count: int, depth: int) -> None:
        if kind in _SCALARS:
            self.at += count * _SCALARS[kind].size
            return
        self.steps += count
        if self.steps > MAX_STEPS:
            raise NotGguf(f"arrays of more than {MAX_STEPS} texts")
        if kind == _STRING:
            self._skip_strings(count)
            return
        for _ in range(count):
            self._skip_elements(*self._array_start(depth + 1), depth + 1)

    def _skip_strings(self, count: int) -> None:
        """Step over texts: the one loop that decides how long a vocabulary takes, so it checks its end only once.

        A length only ever moves it forward, and reading a length beyond the buffer fails: an end within the buffer
        proves every step, and any other one is the first that is surely missing.
        """
        at, missing, buffer, read = self.at, 0, self.buffer, _U64.unpack_from
        try:
            for _ in range(count):
                at += 8 + read(buffer, at)[0]
        except (struct.error, OverflowError):
            missing = 0 if at > self.end else _U64.size
        self._need(at + missing - self.at)
        self.at = at

    def _tensor(self) -> Tensor:
        name = self._name("tensor")
        dimensions = self._number(_U32)
        if dimensions > MAX_DIMENSIONS:
            raise NotGguf(f"tensor {name[:80]!r} has {dimensions} dimensions")
        self._need(8 * dimensions + _TAIL.size)
        shape = struct.unpack_from(f"<{dimensions}Q", self.buffer, self.at)
        kind, offset = _TAIL.unpack_from(self.buffer, self.at + 8 * dimensions)
        self.at += 8 * dimensions + _TAIL.size
        tensor = Tensor(name, shape, kind, offset)
        row, per = shape[0] if shape else 1, BLOCKS.get(kind, (1, 0))[0]
        if row % per:
            raise NotGguf(f"tensor {name[:80]!r} has rows of {row}, but {type_name(kind)} comes in blocks of {per}")
        if any(extent >= 1 << 63 for extent in shape) or tensor.count >= 1 << 63 or offset + tensor.bytes >= 1 << 63:
            raise NotGguf(f"tensor {name[:80]!r} is impossibly large: {' × '.join(map(str, shape))} at {offset}")
        return tensor


def _lie_apart(tensors: tuple[Tensor, ...], alignment: int) -> None:
    """Raises NotGguf for names that are there twice, and data that is not aligned or shared."""
    twice = _repeated(tensor.name for tensor in tensors)
    if twice is not None:
        raise NotGguf(f"tensor {twice[:80]!r} is there twice")
    before: Tensor | None = None
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.bytes)):
        if tensor.offset % alignment:
            raise NotGguf(f"tensor {tensor.name[:80]!r} lies at {tensor.offset}, not at a multiple of {alignment}")
        if before is not None and before.offset + before.bytes > tensor.offset:
            raise NotGguf(f"tensors {before.name[:80]!r} and {tensor.name[:80]!r} lie over each other")
        before = tensor
