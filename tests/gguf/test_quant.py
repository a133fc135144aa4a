"""Quantizations: every one has a family, a size and a place, and is known by what people write for it."""

from __future__ import annotations

from itertools import pairwise

import gguf
import pytest

from reconciler.gguf.quant import FILE_TYPES, Family, Quant, named, parse
from tests.gguf.mixtures import recorded

BY_RANK = sorted(Quant, key=lambda quant: quant.rank)


def test_file_types_are_those_of_the_gguf_package() -> None:
    known = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    del known[int(gguf.LlamaFileType.GUESSED)]
    newer = {41: "Q2_0"}  # llama.cpp has it, the package does not yet
    assert {number: quant.value for number, quant in FILE_TYPES.items()} == known | newer


@pytest.mark.parametrize(("number", "name"), [(15, "Q4_K_M"), (0, "F32"), (34, "UNKNOWN(34)"), (-1, "UNKNOWN(-1)")])
def test_file_types_are_named(number: int, name: str) -> None:
    assert named(number) == name


def test_the_order_is_total() -> None:
    assert [quant.rank for quant in BY_RANK] == list(range(len(Quant)))


@pytest.mark.parametrize(
    "names",
    [
        "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_XS IQ4_NL",
        "Q2_K_S Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0 F16 BF16 F32",
        "Q4_0 Q4_1 Q4_K_S Q5_0 Q5_1 Q5_K_S Q8_0",
        "Q1_0 TQ1_0 TQ2_0 Q2_K",
        "Q3_K_L MXFP4_MOE Q4_K_M",
    ],
)
def test_better_ones_have_a_higher_rank(names: str) -> None:
    for worse, better in pairwise(names.split()):
        assert Quant(worse).rank < Quant(better).rank, (worse, better)


def test_rank_goes_by_size_but_where_a_smaller_one_loses_less() -> None:
    """The legacy ones: Q4_1 is larger than Q4_K_M and worse. Within a family no better one is smaller by much."""
    larger = [(a, b) for a, b in pairwise(BY_RANK) if a.bits > b.bits + 0.25]
    assert {quant.family for pair in larger for quant in pair if quant.family is not Family.K} <= {
        Family.LEGACY,
        Family.LOW,
        Family.I,
    }
    for family in Family:
        if family is not Family.LEGACY:
            members = [quant for quant in BY_RANK if quant.family is family]
            assert all(a.bits <= b.bits + 0.01 for a, b in pairwise(members)), family


@pytest.mark.parametrize("quant", Quant, ids=str)
def test_bits_are_what_the_quantizer_calculates(quant: Quant) -> None:
    if quant is Quant.NVFP4:
        per, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.NVFP4]
        assert quant.bits == size * 8 / per
    else:
        shape = "many-experts" if quant is Quant.MXFP4_MOE else "dense-8b"
        assert quant.bits == recorded()["bits"][shape][quant.value]


def test_every_family_has_its_members() -> None:
    members = {family: {quant.value for quant in Quant if quant.family is family} for family in Family}
    assert members[Family.FLOAT] == {"F32", "F16", "BF16"}
    assert members[Family.LEGACY] == {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert members[Family.TERNARY] == {"TQ1_0", "TQ2_0"}
    assert members[Family.LOW] == {"Q1_0", "Q2_0"}
    assert members[Family.MICROSCALING] == {"MXFP4_MOE", "NVFP4"}
    assert {name.partition("_")[0] for name in members[Family.I]} == {"IQ1", "IQ2", "IQ3", "IQ4"}
    assert all("_K" in name for name in members[Family.K])
    assert len(members[Family.K]) == 10


def test_what_is_never_chosen_without_being_asked_for() -> None:
    assert {quant.value for quant in Quant if not quant.automatic} == {
        "F32", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "IQ1_S", "IQ1_M", "NVFP4",
    }  # fmt: skip


@pytest.mark.parametrize("quant", Quant, ids=str)
def test_a_quantization_is_known_however_its_name_is_spelled(quant: Quant) -> None:
    for text in (quant, quant.lower(), quant.replace("_", "-"), quant.replace("_", ""), f" {quant.title()} "):
        assert parse(text) is quant, text
    assert parse(f"MOSTLY_{quant}") is quant
    assert parse(f"LLAMA_FTYPE_MOSTLY_{quant}") is quant


@pytest.mark.parametrize(
    ("text", "quant"),
    [
        ("q4km", "Q4_K_M"), ("Q4-K-M", "Q4_K_M"), ("q4.k.m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("q3_k", "Q3_K_M"),
        ("Q5K", "Q5_K_M"), ("q8", "Q8_0"), ("Q6", "Q6_K"), ("fp16", "F16"), ("FP32", "F32"), ("float16", "F16"),
        ("bfloat16", "BF16"), ("mxfp4", "MXFP4_MOE"), ("mxfp4_moe", "MXFP4_MOE"), ("all_f32", "F32"),
    ],
)  # fmt: skip
def test_aliases(text: str, quant: str) -> None:
    assert parse(text) is Quant(quant)


@pytest.mark.parametrize(
    "text",
    ["", "q4", "Q2", "int8", "int4", "fp4", "fp8", "auto", "Q4_K_XL", "UD-Q4_K_XL", "Q6_K_L", "Q4_0_4_4", "IQ4_KS",
     "Q9", "8", "Q8_0x", "best", "awq", "MOSTLY_", "Q4_K_M.gguf"],
)  # fmt: skip
def test_what_could_mean_several_or_none_is_not_guessed(text: str) -> None:
    assert parse(text) is None


def test_no_two_are_written_alike() -> None:
    assert len({quant.replace("_", "") for quant in Quant}) == len(Quant)
