"""The parser agrees with the gguf package on good files, and says Short or NotGguf, never more, of all others."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.gguf.header import BLOCKS, KEEP_ARRAY, PREFIX, TYPES, Header, NotGguf, Short, parse, reading, type_name
from tests.support.tiny_gguf import QUANTS, tiny_gguf

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None)
MODELS = [("chat", q) for q in QUANTS] + [("bert", q) for q in QUANTS]
MODELS += [("random", "F32"), ("rerank", "F16"), ("mmproj", "F32")]


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def head(keys: int, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def one_key(kind: int, value: bytes) -> Any:
    return parse(head(1) + pair(b"k", kind, value)).keys["k"]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small header that has every type of value, short and long arrays, and a few tensors; no tensor bytes."""
    path = tmp_path_factory.mktemp("gguf") / "rich.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, add in {
        "u8": writer.add_uint8,
        "i8": writer.add_int8,
        "u16": writer.add_uint16,
        "i16": writer.add_int16,
        "u32": writer.add_uint32,
        "i32": writer.add_int32,
        "u64": writer.add_uint64,
        "i64": writer.add_int64,
        "f32": writer.add_float32,
        "f64": writer.add_float64,
    }.items():
        add(name, 7)
    writer.add_bool("bool", True)
    writer.add_string("text", "höher")
    writer.add_array("short", [1, 2, 3])
    writer.add_array("words", ["a", "bc", ""])
    writer.add_array("long", list(range(KEEP_ARRAY + 1)))
    writer.add_array("vocabulary", [f"w{i}" for i in range(KEEP_ARRAY + 2)])
    writer.add_context_length(2048)
    writer.add_tensor_info("a", (4, 8), np.dtype("float32"), 4 * 8 * 4)
    writer.add_tensor_info("b", (3,), np.dtype("float16"), 3 * 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize(("kind", "quant"), MODELS, ids=lambda v: v)
def test_the_header_agrees_with_the_gguf_package(tmp_path: Path, kind: Any, quant: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", kind=kind, quant=quant)
    header, oracle = parse(path.read_bytes()), gguf.GGUFReader(path)

    fields = {name: field for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
    assert header.keys.keys() == fields.keys()
    for name, field in fields.items():
        value = field.contents()
        if isinstance(value, list) and len(value) > KEEP_ARRAY:
            value = len(value)
        assert header.keys[name] == value, name
    assert header.version == 3
    assert header.architecture == fields["general.architecture"].contents()

    assert header.data == oracle.data_offset
    seen = [(t.name, t.shape, t.type, header.data + t.offset) for t in header.tensors]
    assert seen == [(t.name, tuple(t.shape.tolist()), int(t.tensor_type), t.data_offset) for t in oracle.tensors]


@pytest.mark.parametrize(("kind", "quant"), MODELS, ids=lambda v: v)
def test_the_size_is_where_the_last_tensor_ends(tmp_path: Path, kind: Any, quant: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", kind=kind, quant=quant)
    size, oracle = parse(path.read_bytes()).size, gguf.GGUFReader(path)
    assert size == max(t.data_offset + t.n_bytes for t in oracle.tensors)
    assert 0 <= path.stat().st_size - size < oracle.alignment  # the writer fills up to the alignment


def test_the_size_of_every_tensor_type_is_that_of_the_gguf_package() -> None:
    known = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    newer = {42: (64, 18)}  # Q2_0, which llama.cpp has and the package does not yet
    assert known | newer == BLOCKS


def test_the_name_of_every_tensor_type_is_that_of_the_gguf_package() -> None:
    known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    assert {kind: type_name(kind) for kind in known} == known
    assert TYPES.keys() >= BLOCKS.keys()
    assert [type_name(31), type_name(42), type_name(43)] == ["Q4_0_4_4", "Q2_0", "UNKNOWN(43)"]


def test_a_long_context_is_read_from_the_architectures_own_key(rich: bytes) -> None:
    header = parse(rich)
    assert (header.architecture, header.context_length) == ("llama", 2048)
    assert Header(3, {}, (), 0).context_length == 0
    assert Header(3, {"general.architecture": "llama", "llama.context_length": "many"}, (), 0).context_length == 0


def test_every_type_of_value_is_read(rich: bytes) -> None:
    keys = parse(rich).keys
    for name in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64"):
        assert keys[name] == 7, name
    assert (keys["bool"], keys["text"], keys["short"], keys["words"]) == (True, "höher", [1, 2, 3], ["a", "bc", ""])
    assert (keys["long"], keys["vocabulary"]) == (KEEP_ARRAY + 1, KEEP_ARRAY + 2)


def end_of(data: bytes) -> int:
    """The least length of a prefix that parses."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        try:
            parse(data[:middle])
            high = middle
        except Short:
            low = middle + 1
    return low


def assert_short(data: bytes, length: int, end: int) -> None:
    with pytest.raises(Short) as caught:
        parse(data[:length])
    assert length < caught.value.needed <= end


def test_a_header_cut_at_any_byte_asks_for_more_but_never_for_too_much(rich: bytes) -> None:
    end = end_of(rich)
    assert end > 1000
    for length in range(end):
        assert_short(rich, length, end)
    assert parse(rich[:end]) == parse(rich)


def test_a_model_cut_within_its_vocabulary_asks_for_more(tmp_path: Path) -> None:
    data = tiny_gguf(tmp_path / "m.gguf").read_bytes()
    end = end_of(data)
    for length in range(0, end, 97):
        assert_short(data, length, end)


def test_asking_for_what_is_needed_comes_to_an_end(rich: bytes) -> None:
    length, tries = 0, 0
    while True:
        try:
            parse(rich[:length])
            break
        except Short as short:
            length, tries = short.needed, tries + 1
    assert tries <= end_of(rich)


@pytest.mark.parametrize(
    "start",
    [b"PK\x03\x04", b"<!DOCTYPE html>", b"ggml", b"GGUX", b"\x00", b"G\x00", b"version https://git-lfs"],
    ids=repr,
)
def test_other_files_are_told_by_their_first_bytes(start: bytes) -> None:
    with pytest.raises(NotGguf, match="it starts with"):
        parse(start)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (0, "version 0 is not known"),
        (1, "version 1 is no longer read"),
        (4, "version 4 is not known"),
        (0x03000000, "version 3 for a big-endian machine"),
        (0x02000000, "version 2 for a big-endian machine"),
        (0x00010000, "version 65536 is not known"),
    ],
)
def test_other_versions_are_refused(version: int, said: str) -> None:
    with pytest.raises(NotGguf, match=said):
        parse(head(0, version=version))


def test_a_whole_big_endian_file_is_told_as_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_context_length(2048)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(NotGguf, match="big-endian"):
        parse((tmp_path / "m.gguf").read_bytes())
    with pytest.raises(NotGguf, match="big-endian"):
        parse(b"FUGG")


def test_versions_two_and_three_are_read() -> None:
    assert [parse(head(0, version=v)).version for v in (2, 3)] == [2, 3]


HUGE = (1 << 64) - 1
REFUSED: dict[str, bytes] = {
    "keys": head(HUGE),
    "a million keys": head(1_000_000),
    "tensors": head(0, HUGE),
    "a name": head(1) + struct.pack("<Q", HUGE),
    "a text": head(1) + pair(b"k", 8, struct.pack("<Q", HUGE)),
    "a text in a short array": head(1) + pair(b"k", 9, array(8, 1, struct.pack("<Q", HUGE))),
    "a text in a long array": head(1) + pair(b"k", 9, array(8, 100, struct.pack("<Q", HUGE) + bytes(1000))),
    "dimensions": head(0, 1) + string(b"t") + struct.pack("<I", 1 << 31),
    "a type of value": head(1) + pair(b"k", 13, b""),
    "a type of elements": head(1) + pair(b"k", 9, array(99, 1, b"")),
    "an alignment of nothing": head(1) + pair(b"general.alignment", 4, struct.pack("<I", 0)),
    "an alignment of text": head(1) + pair(b"general.alignment", 8, string(b"32")),
    "an alignment without end": head(1) + pair(b"general.alignment", 4, struct.pack("<I", 1 << 31)),
    "five arrays in each other": head(1)
    + pair(b"k", 9, array(9, 1, array(9, 1, array(9, 1, array(9, 1, array(4, 0, b"")))))),
}
ENDLESS: dict[str, bytes] = {
    "numbers": head(1) + pair(b"k", 9, array(4, HUGE, bytes(100))),
    "texts": head(1) + pair(b"k", 9, array(8, HUGE, bytes(100))),
    "arrays": head(1) + pair(b"k", 9, array(9, HUGE, bytes(100))),
    "many tensors": head(0, 1_000_000),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_claim_is_refused(data: bytes) -> None:
    with pytest.raises(NotGguf):
        parse(data)


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_claim_beyond_the_file_costs_no_memory(data: bytes, peak: Callable[[Callable[[], object]], int]) -> None:
    def attempt() -> None:
        with pytest.raises((Short, NotGguf)):
            parse(data)

    assert peak(attempt) < 1 << 20


@pytest.fixture
def peak() -> Callable[[Callable[[], object]], int]:
    """Runs a function and says how many bytes of memory it held at once."""
    import tracemalloc

    def measure(run: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


def test_a_long_array_is_stepped_over_not_built(peak: Callable[[Callable[[], object]], int]) -> None:
    data = head(1) + pair(b"k", 9, array(4, 1_000_000, bytes(4_000_000)))
    assert peak(lambda: parse(data)) < 1 << 20
    assert parse(data).keys == {"k": 1_000_000}


def test_nested_arrays_are_read() -> None:
    inner = array(4, 2, struct.pack("<II", 1, 2))
    assert one_key(9, array(9, 2, inner + array(8, 1, string(b"x")))) == [[1, 2], ["x"]]
    many = array(9, KEEP_ARRAY + 1, inner * (KEEP_ARRAY + 1))
    assert one_key(9, many) == KEEP_ARRAY + 1
    assert one_key(9, array(9, 1, array(9, 0, b""))) == [[]]


def test_text_that_is_not_utf8_does_not_stop_the_reading() -> None:
    assert one_key(8, string(b"a\xffb")) == "a\ufffdb"


def test_the_alignment_of_the_file_says_where_the_data_begins() -> None:
    data = head(1) + pair(b"general.alignment", 4, struct.pack("<I", 4096))
    assert parse(data).data == 4096
    assert parse(head(0)).data == 32


def test_an_unknown_tensor_type_counts_up_to_its_offset() -> None:
    data = head(0, 1) + string(b"t") + struct.pack("<IQIQ", 1, 10, 999, 640)
    header = parse(data)
    assert header.size == header.data + 640


def outcome(data: bytes) -> Header | Short | NotGguf:
    try:
        return parse(data)
    except (Short, NotGguf) as error:
        return error


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda b: head(3, 2) + b))
@FUZZ
def test_any_bytes_give_a_header_or_one_of_two_errors(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, Short):
        assert found.needed > len(data)
    if isinstance(found, Header):
        assert found.size >= found.data >= 24


@given(st.data())
@FUZZ
def test_flipped_bits_give_a_header_or_one_of_two_errors(rich: bytes, data: st.DataObject) -> None:
    damaged = bytearray(rich)
    for position in data.draw(st.lists(st.integers(0, len(rich) * 8 - 1), min_size=1, max_size=4)):
        damaged[position // 8] ^= 1 << (position % 8)
    found = outcome(bytes(damaged))
    if isinstance(found, Header):
        assert found.size >= 0
        assert isinstance(found.architecture, str)
        assert isinstance(found.context_length, int)
    elif isinstance(found, Short):
        assert found.needed > len(damaged)


def vocabulary(texts: int) -> bytes:
    tokens = b"".join(string(b"token%d" % i) for i in range(texts))
    return head(1) + pair(b"tokenizer.ggml.tokens", 9, array(8, texts, tokens))


@pytest.mark.parametrize("texts", [10, 100_000, 400_000], ids=["one prefix", "two", "several"])
def test_a_header_is_read_in_growing_prefixes_and_not_much_further(texts: int) -> None:
    whole = vocabulary(texts)
    data = whole + bytes(8 << 20)
    steps = reading()
    asked, found = [next(steps)], None
    try:
        while True:
            asked.append(steps.send(data[: asked[-1]]))
    except StopIteration as done:
        found = done.value
    assert found == replace(parse(data), digest=sha256(data[: parse(data).data]).hexdigest())
    assert asked == sorted(set(asked))
    assert asked[-1] <= max(PREFIX, 2 * len(whole))


@pytest.mark.parametrize("length", [0, 3, 30, 4000])
def test_a_file_that_ends_inside_its_header_is_told_so(length: int) -> None:
    whole = vocabulary(1000)
    steps = reading()
    next(steps)
    with pytest.raises(NotGguf, match=f"ends after {length} bytes"):
        steps.send(whole[:length])
