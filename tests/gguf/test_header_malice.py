"""Headers that were made to hurt: what they claim is refused in words, and costs neither memory nor time."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from reconciler.gguf.header import (
    KEEP_ARRAY,
    KEEP_TEXT,
    MAX_HEADER,
    MAX_KEPT,
    MAX_NAME,
    MAX_STEPS,
    MAX_TEXT,
    Header,
    NotGguf,
    Short,
    histogram,
    parse,
)
from tests.support.gguf_header import ARRAY, F32, I32, STRING, U32, Spec, Typed, header, pair, text

TOP = (1 << 64) - 1
NAN = float("nan")


def raw(keys: int, tensors: int, body: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body


def keyed(kind: int, value: bytes, name: bytes = b"k") -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


REFUSED: dict[str, tuple[bytes, str]] = {
    "a key twice": (header([("a", 1), ("b", 2), ("a", 1)]), "key 'a' is there twice"),
    "a key without a name": (header([("", 1)]), "name of a key at offset 32 has 0 bytes"),
    "a key with a long name": (header([("n" * (MAX_NAME + 1), 1)]), f"{MAX_NAME + 1} bytes"),
    "a key that is no text": (header([(b"\xff\xfe", 1)]), "name of a key is not text"),
    "a tensor twice": (header({}, [Spec("t", (8,)), Spec("t", (8,))]), "tensor 't' is there twice"),
    "a tensor without a name": (raw(0, 1, tensor(b"", (1,))), "name of a tensor"),
    "a tensor that is no text": (raw(0, 1, tensor(b"\xc3", (1,))), "name of a tensor is not text"),
    "a name of 2^64-1": (raw(0, 1, struct.pack("<Q", TOP)), f"{TOP} bytes"),
    "dimensions whose product overflows": (raw(0, 1, tensor(b"t", (1 << 32, 1 << 32))), "impossibly large"),
    "a product that overflows to little": (raw(0, 1, tensor(b"t", (1 << 32, 1 << 31, 2, 4))), "impossibly large"),
    "one dimension of 2^64-1": (raw(0, 1, tensor(b"t", (TOP,))), "impossibly large"),
    "an infinite one beside an empty one": (raw(0, 1, tensor(b"t", (TOP, 0))), "impossibly large"),
    "bytes that overflow": (raw(0, 1, tensor(b"t", (1 << 62,), 0)), "impossibly large"),
    "an offset of 2^64-32": (raw(0, 1, tensor(b"t", (8,), 0, (1 << 64) - 32)), "impossibly large"),
    "an offset that is not aligned": (raw(0, 1, tensor(b"t", (8,), 0, 8)), "not at a multiple of 32"),
    "an offset not aligned to the file's own": (
        header({"general.alignment": 64}, [Spec("t", (8,), 0, 32)]),
        "not at a multiple of 64",
    ),
    "tensors over each other": (
        raw(0, 2, tensor(b"a", (16,), 0, 0) + tensor(b"b", (8,), 0, 32)),
        "tensors 'a' and 'b' lie over each other",
    ),
    "tensors at one place": (raw(0, 2, tensor(b"a", (8,)) + tensor(b"b", (8,))), "lie over each other"),
    "rows that are no whole blocks": (raw(0, 1, tensor(b"t", (100, 2), 12)), "rows of 100, but Q4_K comes in blocks"),
    "a scalar in blocks": (raw(0, 1, tensor(b"t", (), 2)), "rows of 1, but Q4_0"),
    "nine dimensions": (raw(0, 1, tensor(b"t", (1,) * 9)), "has 9 dimensions"),
    "an alignment that is no power of two": (header({"general.alignment": 48}), "alignment '48'"),
    "an alignment of nothing": (header({"general.alignment": 0}), "alignment '0'"),
    "a negative alignment": (header({"general.alignment": Typed(I32, -32)}), "alignment '-32'"),
    "an alignment that is no number": (header({"general.alignment": Typed(F32, NAN)}), "alignment 'nan'"),
    "an alignment of 32.0": (header({"general.alignment": 32.0}), "alignment '32.0'"),
    "an alignment of true": (header({"general.alignment": True}), "alignment 'True'"),
    "an alignment of many": (header({"general.alignment": [32] * (KEEP_ARRAY)}), "alignment"),
    "an unknown type of value": (raw(1, 0, keyed(13, b"")), r"value type UNKNOWN\(13\)"),
    "an unknown type of elements": (raw(1, 0, keyed(ARRAY, struct.pack("<IQ", 99, 1))), r"element type UNKNOWN\(99\)"),
    "a text of 2^64-1": (raw(1, 0, keyed(STRING, struct.pack("<Q", TOP))), "a header has at most"),
    "a text beyond any header": (raw(1, 0, keyed(STRING, struct.pack("<Q", MAX_HEADER))), "a header has at most"),
    "numbers beyond any header": (raw(1, 0, keyed(ARRAY, struct.pack("<IQ", U32, MAX_HEADER // 4))), "at most"),
    "texts that lead beyond 2^64": (
        raw(1, 0, keyed(ARRAY, struct.pack("<IQ", STRING, 2000) + struct.pack("<QQ", TOP - 8, 8) + bytes(16_000))),
        "a header has at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_in_words(data: bytes, said: str) -> None:
    with pytest.raises(NotGguf, match=said):
        parse(data)


@pytest.mark.parametrize(("data", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_header_cut_anywhere_is_short_or_refused(data: bytes, said: str) -> None:
    for length in range(min(len(data), 400)):
        with pytest.raises((Short, NotGguf)) as caught:
            parse(data[:length])
        if isinstance(caught.value, Short):
            assert length < caught.value.needed


def test_neighbours_of_what_is_refused_are_read() -> None:
    data = header(
        {"general.alignment": 64, "n" * MAX_NAME: 1, "höher": "a\x00b"},
        [Spec("a", (16,)), Spec("empty", (0, 8)), Spec("b", (256, 2), 12), Spec("scalar", ()), Spec("odd", (7,), 99)],
        alignment=64,
    )
    found = parse(data)
    assert [(t.name, t.count, t.bytes, t.offset) for t in found.tensors] == [
        ("a", 16, 64, 0),
        ("empty", 0, 0, 64),
        ("b", 512, 288, 64),
        ("scalar", 1, 4, 384),
        ("odd", 7, 0, 448),
    ]
    assert (found.alignment, found.data % 64, found.parameters) == (64, 0, 16 + 512 + 1 + 7)
    assert found.keys["höher"] == "a\x00b"
    assert histogram([found, found])[12].weights == 1024


def bounded(data: bytes, most: int) -> Header | NotGguf | Short:
    """What parsing gives; fails where it held more than `most` bytes at once."""
    tracemalloc.start()
    try:
        found: Any = parse(data)
    except (NotGguf, Short) as error:
        found = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < most, f"{peak / 2**20:.0f} MiB"
    return found


def many_short_arrays() -> bytes:
    """As many values as arrays that are kept can have in 2 MB."""
    inner = struct.pack("<IQ", 0, KEEP_ARRAY) + bytes(KEEP_ARRAY)
    return raw(2000, 0, b"".join(keyed(ARRAY, inner, b"k%d" % i) for i in range(2000)))


def many_nested_arrays() -> bytes:
    """Arrays of arrays, all of them short, so that each is built."""
    leaf = struct.pack("<IQ", 0, 100) + bytes(100)
    middle = struct.pack("<IQ", ARRAY, 100) + leaf * 100
    return raw(40, 0, b"".join(keyed(ARRAY, middle, b"k%d" % i) for i in range(40)))


def many_empty_texts() -> bytes:
    return raw(1, 0, keyed(ARRAY, struct.pack("<IQ", STRING, MAX_STEPS + 1) + bytes(8 * (MAX_STEPS + 1))))


def many_wide_texts() -> bytes:
    """Texts that take four times their bytes in memory."""
    wide = ("a" * (KEEP_TEXT - 4) + "\U0001f600").encode()
    return raw(20, 0, b"".join(keyed(STRING, text(wide), b"k%d" % i) for i in range(20)))


def many_long_names() -> bytes:
    names = (b"%d" % i + b"n" * (MAX_NAME - 10) for i in range(20_000))
    return raw(20_000, 0, b"".join(keyed(0, b"\0", name) for name in names))


def many_tensors() -> bytes:
    return raw(0, 100_000, b"".join(tensor(b"t%d" % i, (0,)) for i in range(100_000)))


BOMBS: dict[str, tuple[Callable[[], bytes], int, type]] = {
    "short arrays": (many_short_arrays, 16 << 20, NotGguf),
    "nested arrays": (many_nested_arrays, 16 << 20, NotGguf),
    "empty texts": (many_empty_texts, 1 << 20, NotGguf),
    "wide texts": (many_wide_texts, 5 * MAX_TEXT, NotGguf),
    "long names": (many_long_names, 2 * MAX_TEXT, NotGguf),
    "tensors": (many_tensors, 64 << 20, Header),
}


@pytest.mark.parametrize(("build", "most", "outcome"), BOMBS.values(), ids=BOMBS.keys())
def test_small_claims_that_add_up_are_stopped(build: Callable[[], bytes], most: int, outcome: type) -> None:
    assert type(bounded(build(), most)) is outcome


def test_the_budgets_are_far_above_what_models_need() -> None:
    """Half a million merges, a vocabulary of 262,144, and a value for each of a thousand layers in fifty keys."""
    assert MAX_STEPS > 4 * (500_000 + 262_144)
    assert MAX_KEPT > 4 * 50 * 1000
    assert MAX_TEXT >= 16 * KEEP_TEXT > 100_000


def test_a_long_text_becomes_its_length_and_costs_nothing() -> None:
    data = raw(2, 0, keyed(STRING, text(b"x" * (KEEP_TEXT + 1))) + keyed(STRING, text(b"after"), b"general.name"))
    found = bounded(data, 1 << 20)
    assert isinstance(found, Header)
    assert found.keys == {"k": KEEP_TEXT + 1, "general.name": "after"}
    assert len(parse(raw(1, 0, keyed(STRING, text(b"x" * KEEP_TEXT)))).keys["k"]) == KEEP_TEXT


def test_a_long_array_of_arrays_is_stepped_over_without_being_built() -> None:
    inner = struct.pack("<IQ", 0, 1000) + bytes(1000)
    data = raw(1, 0, keyed(ARRAY, struct.pack("<IQ", ARRAY, KEEP_ARRAY + 1) + inner * (KEEP_ARRAY + 1)))
    found = bounded(data, 1 << 20)
    assert isinstance(found, Header)
    assert found.keys == {"k": KEEP_ARRAY + 1}


def test_keys_after_the_vocabulary_are_found() -> None:
    words = [f"w{i}" for i in range(KEEP_ARRAY + 500)]
    found = parse(header({"tokenizer.ggml.tokens": words, "general.file_type": 15, "general.name": "late"}))
    assert (found.integer("general.file_type"), found.text("general.name")) == (15, "late")


def test_a_growing_prefix_ends_with_the_whole_header() -> None:
    """As it is read over a network: the prefix doubles until it is long enough."""
    words = [f"word-{i}" for i in range(40_000)]
    data = header({"tokenizer.ggml.tokens": words, "general.file_type": 15}, [Spec("t", (8,))]) + bytes(1 << 20)
    length, steps = 1 << 16, 0
    while True:
        try:
            found = parse(memoryview(data)[:length])
            break
        except Short as short:
            length, steps = max(2 * length, short.needed), steps + 1
    assert found == parse(data)
    assert 3 <= steps <= 5


def test_values_are_given_as_what_they_are_asked_for_or_not_at_all() -> None:
    found = parse(header({"general.architecture": 7, "a": True, "b": 1.5, "c": -1.0, "d": "text", "e": [1]}))
    assert found.architecture == ""
    assert [found.integer(key) for key in "abcde"] == [0] * 5
    assert [found.text(key) for key in "abcde"] == ["", "", "", "text", ""]
    assert found.integer("missing", -1) == -1


def test_pairs_are_written_as_they_are_read() -> None:
    """The writer that these tests build on says what it should."""
    assert pair("k", 1) == text("k") + struct.pack("<II", U32, 1)
