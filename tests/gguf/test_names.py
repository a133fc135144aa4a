"""File names of every house style, the groups that they make, and names that were made to confuse."""

from __future__ import annotations

import unicodedata
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.gguf.names import Group, Shard, from_filename, groups
from reconciler.gguf.quant import Quant

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize(
    ("name", "quant", "label", "stem"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M", "Q4_K_M", "Qwen3-4B"),
        ("model.q4_k_m.gguf", "Q4_K_M", "q4_k_m", "model"),
        ("model.Q4_K_M.GGUF", "Q4_K_M", "Q4_K_M", "model"),
        ("qwen2.5-7b-instruct-q8_0.gguf", "Q8_0", "q8_0", "qwen2.5-7b-instruct"),
        ("x-IQ4_XS.gguf", "IQ4_XS", "IQ4_XS", "x"),
        ("x-IQ4_NL.gguf", "IQ4_NL", "IQ4_NL", "x"),
        ("x.IQ2_XXS.gguf", "IQ2_XXS", "IQ2_XXS", "x"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE", "MXFP4_MOE", "gpt-oss-20b"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4_MOE", "mxfp4", "gpt-oss-20b"),
        ("x-F16.gguf", "F16", "F16", "x"),
        ("x-fp16.gguf", "F16", "fp16", "x"),
        ("x.BF16.gguf", "BF16", "BF16", "x"),
        ("ggml-model-f32.gguf", "F32", "f32", "ggml-model"),
        ("mamba-2.8b-f16.gguf", "F16", "f16", "mamba-2.8b"),
        ("bitnet-b1.58-2B-4T-TQ2_0.gguf", "TQ2_0", "TQ2_0", "bitnet-b1.58-2B-4T"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1", "Q4_1", "SmolLM2-135M-Instruct"),
        ("QwQ-32B-Q2_K.gguf", "Q2_K", "Q2_K", "QwQ-32B"),
        ("Llama-3-8B-fp16-Q4_K_S.gguf", "Q4_K_S", "Q4_K_S", "Llama-3-8B-fp16"),
        ("x-Q6_K-f16.gguf", "Q6_K", "Q6_K", "x-f16"),
        ("x.f16.q6.gguf", "Q6_K", "q6", "x.f16"),
        ("report-2024-Q1-Q3_K_L.gguf", "Q3_K_L", "Q3_K_L", "report-2024-Q1"),
        ("x-Q4_K.gguf", "Q4_K_M", "Q4_K", "x"),
        ("Phi-3-mini-4k-instruct-q4.gguf", None, "q4", "Phi-3-mini-4k-instruct"),
        ("x-Q4_0_4_4.gguf", None, "Q4_0_4_4", "x"),
        ("x-Q4_0_8_8.gguf", None, "Q4_0_8_8", "x"),
        ("ggml-model-i2_s.gguf", None, "i2_s", "ggml-model"),
        ("x-IQ4_KS.gguf", None, "IQ4_KS", "x"),
        ("x-Q4_0_R8.gguf", None, "Q4_0_R8", "x"),
        ("Qwen3-4B.gguf", None, "", "Qwen3-4B"),
        ("Mistral-7B-v0.3.gguf", None, "", "Mistral-7B-v0.3"),
        ("aiq4_xs.gguf", None, "", "aiq4_xs"),
        ("faq8_0.gguf", None, "", "faq8_0"),
        (".gguf", None, "", ""),
        ("", None, "", ""),
    ],
)
def test_plain_styles(name: str, quant: str | None, label: str, stem: str) -> None:
    found = from_filename(name)
    assert (found.quant, found.label, found.stem) == (Quant(quant) if quant else None, label, stem)
    assert (found.name, found.mixed, found.imatrix, found.shard, found.partial) == (name, False, False, None, False)


@pytest.mark.parametrize(
    ("name", "quant", "label"),
    [
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "Q4_K_M", "UD-Q4_K_XL"),
        ("x-UD-Q8_K_XL.gguf", "Q8_0", "UD-Q8_K_XL"),
        ("x-UD-IQ1_S.gguf", "IQ1_S", "UD-IQ1_S"),
        ("x-UD-TQ1_0.gguf", "TQ1_0", "UD-TQ1_0"),
        ("Llama-3.2-1B-Instruct-Q4_K_L.gguf", "Q4_K_M", "Q4_K_L"),
        ("x-Q6_K_L.gguf", "Q6_K", "Q6_K_L"),
        ("x-Q5_K_XL.gguf", "Q5_K_M", "Q5_K_XL"),
        ("x-Q3_K_XL.gguf", "Q3_K_M", "Q3_K_XL"),
        ("x-Q2_K_L.gguf", "Q2_K", "Q2_K_L"),
    ],
)
def test_flavours_are_mixed_and_built_on_a_canonical_one(name: str, quant: str, label: str) -> None:
    found = from_filename(name)
    assert (found.quant, found.label, found.mixed) == (Quant(quant), label, True)


@pytest.mark.parametrize(
    ("name", "quant"),
    [("Model.i1-Q4_K_S.gguf", "Q4_K_S"), ("Model.i1-IQ2_M.gguf", "IQ2_M"), ("model-IQ3_M-imat.gguf", "IQ3_M"),
     ("model-Q4_K_M-imatrix.gguf", "Q4_K_M")],
)  # fmt: skip
def test_an_importance_matrix_is_a_property_not_a_role(name: str, quant: str) -> None:
    found = from_filename(name)
    assert (found.quant, found.imatrix, found.mixed, found.role) == (Quant(quant), True, False, "")


@pytest.mark.parametrize(
    ("name", "quant", "label", "stem", "number", "of"),
    [
        ("x-Q8_0-00001-of-00003.gguf", "Q8_0", "Q8_0", "x", 1, 3),
        ("x-Q6_K_L-00002-of-00002.gguf", "Q6_K", "Q6_K_L", "x", 2, 2),
        ("Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M", "Q4_K_M", "model", 1, 2),
        ("UD-IQ1_S/R1-UD-IQ1_S-00003-of-00003.gguf", "IQ1_S", "UD-IQ1_S", "R1", 3, 3),
        ("deep/Q8_0/bf16-notes/m-00007-of-00002.gguf", "BF16", "bf16", "m", 7, 2),
    ],
)
def test_parts_and_folders(name: str, quant: str, label: str, stem: str, number: int, of: int) -> None:
    found = from_filename(name)
    assert (found.quant, found.label, found.stem, found.shard) == (Quant(quant), label, stem, Shard(number, of))


def test_the_files_own_name_comes_before_its_folders() -> None:
    assert from_filename("Q8_0/model-Q4_K_M.gguf").quant is Quant.Q4_K_M
    assert from_filename(r"Q8_0\model.gguf").quant is Quant.Q8_0


@pytest.mark.parametrize(
    "suffix",
    [".incomplete", ".part", ".partial", ".download", ".crdownload", ".tmp", ".!qB", ".aria2", ".part1of2",
     "-split-a", ".split-00", ".part.tmp"],
)  # fmt: skip
def test_what_is_not_finished_is_no_model(suffix: str) -> None:
    found = from_filename(f"x.Q4_K_M.gguf{suffix}")
    assert (found.partial, found.quant, found.stem) == (True, Quant.Q4_K_M, "x")
    assert groups([found.name]) == ()


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("mmproj-F16.gguf", "mmproj"), ("mmproj-model-f16.gguf", "mmproj"), ("x.mmproj-Q8_0.gguf", "mmproj"),
        ("x.imatrix.gguf", "imatrix"), ("imatrix.dat", "imatrix"), ("x-imatrix.gguf", "imatrix"),
        ("ggml-vocab-llama-bpe.gguf", "vocab"), ("x-lora-f16.gguf", "lora"), ("x-draft-Q8_0.gguf", "draft"),
        ("x-eagle3.gguf", "draft"), ("x-MTP-Q8_0.gguf", "mtp"), ("control_vector.gguf", "control-vector"),
        ("Explora-7B-Q8_0.gguf", ""), ("vocabulary-tutor-Q4_0.gguf", ""), ("aircraft-draftsman.gguf", ""),
    ],
)  # fmt: skip
def test_hints_of_roles_are_whole_words(name: str, role: str) -> None:
    assert from_filename(name).role == role


@given(st.text(max_size=120) | st.from_regex(r"(?i)[ -~]{0,20}(UD-|i1-)?I?Q[1-9][-_KMSLX0148]{0,40}[ -~]{0,20}"))
@FUZZ
def test_any_name_is_read(name: str) -> None:
    found = from_filename(name)
    assert found.name == name
    assert not found.label or found.label in unicodedata.normalize("NFC", name)
    assert found.quant is None or found.label


def test_a_name_made_to_be_slow_is_read() -> None:
    for name in (
        "Q4" + "KL" * 50_000 + "!",
        "UD-" * 50_000 + "x",
        "x" + ".part" * 50_000,
        "-" * 200_000,
        "1-of-" * 50_000,
    ):
        assert from_filename(name).quant is None


# --- groups -----------------------------------------------------------------------------------------------------------


def test_files_of_a_repository_become_models() -> None:
    names = [
        "README.md", "config.json", "x-Q8_0-00002-of-00002.gguf", "x-Q4_K_M.gguf", "mmproj-F16.gguf",
        "x-Q8_0-00001-of-00002.gguf", "BF16/x-BF16-00001-of-00001.gguf", "x.Q4_K_M.gguf.incomplete", "x.imatrix.dat",
    ]  # fmt: skip
    found = groups(names)
    assert [(group.stem, group.names, group.of, group.whole) for group in found] == [
        ("x", ("BF16/x-BF16-00001-of-00001.gguf",), 1, True),
        ("mmproj", ("mmproj-F16.gguf",), 1, True),
        ("x", ("x-Q4_K_M.gguf",), 1, True),
        ("x", ("x-Q8_0-00001-of-00002.gguf", "x-Q8_0-00002-of-00002.gguf"), 2, True),
    ]


def only(*names: str) -> Group:
    (found,) = groups(names)
    return found


def test_missing_parts_are_named() -> None:
    found = only("x-00002-of-00004.gguf", "x-00003-of-00004.gguf")
    assert (found.missing, found.faults, found.whole) == ((1, 4), (), False)


def test_parts_that_count_differently_are_told() -> None:
    found = only("x-00001-of-00002.gguf", "x-00002-of-00002.gguf", "x-00003-of-00003.gguf")
    assert (found.of, found.missing) == (2, ())
    assert found.faults == ("its parts count 2 and 3 of them", "part 3 of 2 cannot be")


def test_a_part_that_is_there_twice_is_told() -> None:
    found = only("x-00001-of-00002.gguf", "X-00001-of-00002.gguf", "x-00002-of-00002.gguf")
    assert found.faults == ("part 1 is there 2 times: X-00001-of-00002.gguf, x-00001-of-00002.gguf",)


@pytest.mark.parametrize("part", ["x-00000-of-00002.gguf", "x-00003-of-00002.gguf"])
def test_a_part_that_cannot_be_is_told(part: str) -> None:
    found = only("x-00001-of-00002.gguf", "x-00002-of-00002.gguf", part)
    assert len(found.faults) == 1
    assert "of 2 cannot be" in found.faults[0]


def test_a_count_beyond_reason_is_not_counted_to() -> None:
    found = only("x-1-of-999999.gguf")
    assert len(found.missing) == 9998
    assert "999999 parts are more" in found.faults[0]


def test_case_and_accents_do_not_part_a_model() -> None:
    composed, apart = "Modèle-q8_0-00001-of-00002.gguf", unicodedata.normalize("NFD", "modèle-Q8_0-00002-of-00002.gguf")
    assert composed != unicodedata.normalize("NFD", composed)
    found = only(composed, apart)
    assert (found.names, found.whole) == ((composed, apart), True)


def test_folders_and_whole_files_are_models_of_their_own() -> None:
    names = ["a/x-00001-of-00001.gguf", "b/x-00001-of-00001.gguf", "x.gguf", "x-00001-of-00001.gguf"]
    assert [group.names for group in groups(names)] == [(name,) for name in sorted(names)]


def test_the_order_of_names_does_not_count() -> None:
    names = ["x-Q8_0-00001-of-00002.gguf", "x-q8_0-00002-of-00002.gguf", "x-Q4_0.gguf", "y.gguf"]
    assert len({groups(order) for order in permutations(names)}) == 1
    assert groups(names + names) == groups(names)
