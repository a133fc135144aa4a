"""Parts make a model when all of them are there, in their order, whatever they are called."""

from __future__ import annotations

import itertools

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.sources.names import printable, shards
from reconciler.sources.parts import Entry, models, part_number

STYLES = [
    "m.gguf.part{}", "m.gguf.part-0000{}", "m.gguf.part{}of3", "m.gguf.part0{}-of-03", "m.gguf-p{}", "m.gguf.00{}",
    "m.gguf.{}", "m.gguf-0000{}-of-00003", "M.GGUF.PART{}", "m.gguf.chunk_{}", "m.gguf.split-{}",
]  # fmt: skip


def entries(*names: str) -> list[Entry]:
    return [Entry(f"big/{name}", 10 + n) for n, name in enumerate(names)]


def names_of(found: object) -> list[list[str]]:
    return [[entry.name for _, entry in model.pieces] for model in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize("style", STYLES)
def test_each_style_in_any_order_and_spread(style: str) -> None:
    parts = [style.format(n) for n in (1, 2, 3)]
    for order in itertools.permutations(parts):
        assert names_of(models([entries(*order, "README.md")])) == [parts]
        assert names_of(models([entries(name) for name in order])) == [parts]
    (model,) = models([entries(*parts)])
    assert (model.name.lower(), model.size, model.sha256) == ("m.gguf", 33, "")


@pytest.mark.parametrize("ends", [["00", "01", "02"], ["part0", "part1"], ["aa", "ab", "ac"], ["part_aa", "part_ab"]])
def test_counted_from_zero_or_by_letters(ends: list[str]) -> None:
    parts = [f"m.gguf.{end}" for end in ends]
    assert names_of(models([entries("m.gguf.md", *parts)])) == [parts]


def test_ten_comes_after_nine() -> None:
    parts = [f"m.gguf.part{n}" for n in range(1, 12)]
    assert names_of(models([entries(*sorted(parts))])) == [parts]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["m.gguf.part1", "m.gguf.part3"], "of which 2 is not there"),
        (["m.gguf.part2", "m.gguf.part3"], "of which 1 is not there"),
        (["m.gguf.part1"], "of which 2 is not there"),
        (["m.gguf.00"], "of which 1 is not there"),
        (["m.gguf.part1of4", "m.gguf.part2of4"], "of which 3, 4 are not there"),
        (["m.gguf.part1of99999"], "of which 2, 3, 4, 5, 6, 7, 8, 9, … are not there"),
        (["m.gguf.aa", "m.gguf.ac"], "of which 1 is not there"),
    ],
)
def test_what_is_missing_is_said(names: list[str], missing: str) -> None:
    with pytest.raises(Fault, match="PARTS_MISSING") as caught:
        models([entries(*names)])
    assert missing in caught.value.message


@pytest.mark.parametrize(
    "names", [["m.gguf.part1", "m.gguf.1", "m.gguf.2"], ["m.gguf.part1of2", "m.gguf.part2of2", "m.gguf.part3of2"]]
)
def test_numbers_that_do_not_fit_together_are_said(names: list[str]) -> None:
    with pytest.raises(Fault, match="BAD_PARTS"):
        models([entries(*names)])


def test_what_is_whole_needs_no_parts() -> None:
    assert names_of(models([entries("m.gguf", "m.gguf.part1", "m.gguf.de", "x.gguf.sha256")])) == [["m.gguf"]]


def test_what_llama_cpp_split_stays_split() -> None:
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert names_of(models([entries(*names)])) == [[name] for name in names]


@pytest.mark.parametrize(
    ("required", "number"),
    [("big-part1", 1), ("big-part-02", 2), ("big-3", 3), ("big-p4", 4), ("big-part5-of-7", 5), ("big-shard-0006", 6),
     ("big", None), ("big-parts", None), ("bigger-part1", None), ("big-extra", None), ("numpy", None),
     ("big-part", None)],
)  # fmt: skip
def test_which_package_is_a_part(required: str, number: int | None) -> None:
    assert part_number("big", required) == number


def test_names_are_cut_in_their_middle_and_no_escape_is_left() -> None:
    shown = printable("a\x00" * 500 + "end.gguf")
    assert len(shown) == 201
    assert shown.endswith("end.gguf")
    assert shown.isprintable()


def test_the_parts_of_a_split_model() -> None:
    assert shards("d/m-00002-of-00002.gguf") == ("d/m-00001-of-00002.gguf", "d/m-00002-of-00002.gguf")
    assert shards("m-00003-of-00002.gguf") == shards("m.gguf") == shards("m-00001-of-00002.gguf.part1") == ()
