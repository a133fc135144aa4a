"""Options against what an engine says of itself, in three eras of llama-server, and what a help text may do to us."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from reconciler.kinds.engine.flags import called, embedded, parse
from reconciler.kinds.flags import Flag, FlagSet, Unfit, rendered, unfit
from reconciler.kinds.server.spec import Extra, Paths, ServerSpec, arguments, sorted_pairs
from tests.support import fake_engine
from tests.support.helps import AFTER, BEFORE, ERAS, TODAY, page

BEFORE_SET, AFTER_SET, TODAY_SET = (parse(text, version) for text, version in ERAS.values())
SETS = {"before": BEFORE_SET, "after": AFTER_SET, "today": TODAY_SET}


def flag(flags: FlagSet, name: str) -> Flag:
    return flags.spelled[name][0]


def argv(flags: FlagSet, **options: Any) -> list[str]:
    return rendered(sorted_pairs(options), flags)


def problem(flags: FlagSet, name: str, value: Any) -> str:
    (said,) = unfit(sorted_pairs({name: value}), flags, "engine/llama")
    with pytest.raises(Unfit):
        rendered(sorted_pairs({name: value}), flags)
    return said


# -- reading a help -------------------------------------------------------------------------------------------------


def test_every_spelling_its_value_its_default_and_its_variable() -> None:
    told = flag(TODAY_SET, "--gpu-layers")
    assert told.names == ("-ngl", "--gpu-layers", "--n-gpu-layers")
    assert (told.value, told.default, told.kind) == ("N", "auto", "number")
    told = flag(TODAY_SET, "-fit")
    assert (told.choices, told.default, told.env) == (("on", "off"), "on", "LLAMA_ARG_FIT")
    assert flag(TODAY_SET, "--rope-scaling").choices == ("none", "linear", "yarn")
    assert flag(TODAY_SET, "--cpu-strict").choices == ("0", "1")
    assert flag(TODAY_SET, "--cache-type-k").choices[-1] == "q5_1"
    assert flag(TODAY_SET, "--numa").choices == ()  # its list need not be whole
    assert flag(TODAY_SET, "--host").default == "127.0.0.1"
    assert flag(TODAY_SET, "--hf-repo").value == "<user>/<model>[:quant]"


def test_texts_of_several_lines_are_put_together() -> None:
    assert flag(TODAY_SET, "--cache-ram").text.startswith("most MiB of cache (default: 8192, -1 - no limit, 0 - dis")
    assert "(env:" not in flag(TODAY_SET, "--cache-ram").text


def test_what_switches_off_is_known_as_such() -> None:
    told = flag(TODAY_SET, "--kv-offload")
    assert (told.names, told.negations) == (("-kvo", "--kv-offload"), ("-nkvo", "--no-kv-offload"))
    assert flag(TODAY_SET, "--ui").negations == ("--no-ui", "--no-webui")
    assert flag(BEFORE_SET, "--no-mmap").negations == ()


def test_a_flag_of_which_only_the_name_is_left_is_none() -> None:
    assert not TODAY_SET.has("--draft-max")
    assert TODAY_SET.gone["--draft-max"] == "use --spec-draft-n-max or something"


def test_the_kind_of_a_number_follows_from_its_default() -> None:
    assert [flag(TODAY_SET, f"--{n}").kind for n in ("top-k", "temp", "rope-scale")] == ["whole", "number", "number"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 11434 (abc)\nbuilt with cc", "b11434"),
        ("\x1b[1mversion: 6000 (0badc0de)\x1b[0m", "b6000"),
        ("version: 0.6.0-dev (build 0, commit unknown)", "0.6.0-dev"),
        ("version: 0.6.0 (build 12000, commit abc)", "b12000"),
        ("version: 2026.10.11549 (xllamacpp)", "2026.10.11549"),
        ("load_backend: loaded CPU\nversion: 7001 (x)", "b7001"),
        ("version: 0 (unknown)", ""),
        ("error: no such thing", ""),
        ("", ""),
    ],
)
def test_a_version_for_people(text: str, version: str) -> None:
    assert called(text) == version


def test_the_fake_engine_and_the_embedded_one_are_read_by_the_same_reader() -> None:
    fake = parse(fake_engine.usage())
    assert {name for f in fake.flags for name in f.names} == {
        name for long, short, *_ in fake_engine.FLAGS for name in (long, short) if name
    }
    ours = embedded("1.0")
    assert (ours.version, flag(ours, "--flash-attn").choices) == ("xllamacpp 1.0", ("on", "off", "auto"))


@pytest.mark.parametrize("text", ["", "usage: cat [FILE]", "\x00\xff" * 1000, "--model FNAME  a\n", "a" * 100_000])
def test_what_is_no_help_of_a_server_gives_no_flags_and_says_why(text: str) -> None:
    found = parse(text)
    assert not found.known
    assert "--help does not tell of --" in found.why


def test_a_help_that_lies_harms_nobody() -> None:
    lies = [
        ("--evil; rm -rf", "a name with more behind it"),
        ("--\x1b[31mred\x1b[0m N", "colours"),
        ("--choices {" + ",".join(str(i) for i in range(5000)) + "}", "many"),
        ("--long N", "x" * 1_000_000),
        ("--model FNAME", "told twice"),
        ("--" + "n" * 5000, "a long name"),
    ]
    found = parse(TODAY + page(lies) + "--again N\n" * 10_000)
    assert len(found.flags) <= 2000
    assert all(len(f.text) <= 1000 and len(f.choices) <= 100 for f in found.flags)
    assert all(name.isprintable() for f in found.flags for name in f.names)
    assert flag(found, "--model").text == "the model"  # the first one counts
    assert not found.has("--evil;")


def test_no_text_makes_the_reader_raise() -> None:
    chance = random.Random(7)
    lines = (BEFORE + AFTER + TODAY).splitlines()
    for _ in range(300):
        some = chance.sample(lines, 30)
        cut = [line[chance.randrange(len(line) + 1) :] if chance.random() < 0.3 else line for line in some]
        found = parse("\n".join(["--model F  m", "--port P  p", *cut]))
        assert found.has("--model")
        unfit((("a", 1), ("threads", (1, 2)), ("mlock", True)), found, "engine/x")


# -- rendering ------------------------------------------------------------------------------------------------------

MANY = {
    "threads": 4,
    "temp": 0.5,
    "flash_attn": "on",
    "rope-scaling": "yarn",
    "no_mmap": True,
    "mlock": True,
    "warmup": False,
    "cont_batching": False,
    "context_shift": False,
    "draft_max": 8,
    "cpu_strict": True,
    "override_kv": ("a=int:1", "b=bool:true"),
    "dry_sequence_breaker": ("x", "y"),
    "control_vector_layer_range": (3, 5),
}


@pytest.mark.parametrize("era", SETS)
def test_one_manifest_in_three_eras(era: str, snapshot: SnapshotAssertion) -> None:
    spec = ServerSpec("chat", "llama", "e", "chat", "m", "chat", 4096, 2, -1, "q8_0", "f16", sorted_pairs(MANY))
    paths = Paths("/m.gguf", "/p.gguf", "/d.gguf", (("/a", 1.0), ("/b", 0.5), ("/c", 1.0)))
    assert arguments(spec, paths, "127.0.0.1", 8080, 7, SETS[era]) == snapshot
    assert arguments(spec, paths, "127.0.0.1", 8080, 7, SETS[era]) == arguments(
        replace(spec, options=sorted_pairs(dict(reversed(MANY.items())))), paths, "127.0.0.1", 8080, 7, SETS[era]
    )


def test_what_nobody_knows_is_passed_as_it_is() -> None:
    unknown = FlagSet(why="it is silent")
    assert argv(unknown, flash_attn="on", b=True, c=False, d=(1, 2)) == [
        "--b", "--d", "1", "--d", "2", "--flash-attn", "on",
    ]  # fmt: skip
    assert unfit((("anything", 1),), unknown, "engine/x") == ()
    spec = ServerSpec("chat", "llama", "e", "chat", "m", "embedding", 512, 1, -1, "f16", "f16")
    assert arguments(spec, Paths("/m"), "h", 1)[-2:] == ["--embeddings", "--no-webui"]


def test_flash_attention_is_a_switch_or_takes_a_value() -> None:
    for value, before, after in (
        ("on", ["--flash-attn"], ["--flash-attn", "on"]),
        (True, ["--flash-attn"], ["--flash-attn", "on"]),
        ("off", [], ["--flash-attn", "off"]),
        (False, [], ["--flash-attn", "off"]),
        ("auto", [], ["--flash-attn", "auto"]),
    ):
        assert (argv(BEFORE_SET, flash_attn=value), argv(AFTER_SET, flash_attn=value)) == (before, after)


def test_a_switch_that_has_no_opposite_is_left_out_where_it_is_off_anyway() -> None:
    assert argv(BEFORE_SET, mlock=False) == []
    assert argv(BEFORE_SET, no_mmap=False) == argv(BEFORE_SET, mmap=True) == []
    assert argv(BEFORE_SET, mmap=False) == argv(BEFORE_SET, no_mmap=True) == ["--no-mmap"]
    assert argv(BEFORE_SET, warmup=True) == []
    assert argv(BEFORE_SET, cont_batching=False) == ["--no-cont-batching"]
    assert argv(TODAY_SET, no_warmup=False) == argv(TODAY_SET, warmup=True) == ["--warmup"]
    assert argv(TODAY_SET, no_warmup=True) == ["--no-warmup"]


def test_a_switch_that_is_on_and_has_no_opposite_cannot_be_switched_off() -> None:
    flags = parse(page([("--model F", "m"), ("--port P", "p"), ("--always", "it is so (default: enabled)")]))
    assert argv(flags, always=True) == ["--always"]
    assert "--always is on in this engine" in problem(flags, "always", False)


@pytest.mark.parametrize(
    ("given", "older", "newer"),
    [
        ({"mlock": True}, ["--mlock"], ["--load-mode", "mmap+mlock"]),
        ({"no_mmap": True}, ["--no-mmap"], ["--load-mode", "none"]),
        ({"mmap": False}, ["--no-mmap"], ["--load-mode", "none"]),
        ({"mlock": True, "no_mmap": True}, ["--mlock", "--no-mmap"], ["--load-mode", "mlock"]),
        ({"mlock": False, "no_mmap": False}, [], []),
        ({"load_mode": "mmap+mlock"}, ["--mlock"], ["--load-mode", "mmap+mlock"]),
        ({"load_mode": "none"}, ["--no-mmap"], ["--load-mode", "none"]),
        ({"load_mode": "auto"}, [], ["--load-mode", "auto"]),
    ],
)
def test_mapping_and_locking_under_both_names(given: dict[str, Any], older: list[str], newer: list[str]) -> None:
    assert (argv(AFTER_SET, **given), argv(TODAY_SET, **given)) == (older, newer)


def test_both_names_at_once_are_refused() -> None:
    (said,) = unfit(sorted_pairs({"mlock": True, "load_mode": "mmap"}), TODAY_SET, "engine/llama")
    assert said == "options.mlock: engine/llama (b11434) no longer has --mlock: use load_mode: mlock"


def test_renamed_flags_go_by_the_name_that_is_there() -> None:
    assert argv(BEFORE_SET, spec_draft_n_max=4) == ["--draft", "4"]
    assert argv(TODAY_SET, draft=4) == argv(TODAY_SET, draft_max=4) == ["--spec-draft-n-max", "4"]


def test_several_values_as_the_engine_takes_them() -> None:
    assert argv(BEFORE_SET, override_kv=("a", "b")) == ["--override-kv", "a", "--override-kv", "b"]
    assert argv(TODAY_SET, override_kv=("a", "b")) == ["--override-kv", "a,b"]
    assert argv(TODAY_SET, device=("GPU0", "GPU1")) == ["--device", "GPU0,GPU1"]
    assert "separates its values by commas" in problem(TODAY_SET, "override_kv", ("a,b", "c"))
    assert "takes one value" in problem(TODAY_SET, "threads", (1, 2))
    assert "takes 2 values" in problem(TODAY_SET, "control_vector_layer_range", 3)
    assert "takes 2 values (START END), and not 3" in problem(TODAY_SET, "control_vector_layer_range", (1, 2, 3))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("flash_atn", True, "engine/llama (b11434) has no --flash-atn; nearest: --flash-attn"),
        ("thread", 1, "engine/llama (b11434) has no --thread; nearest: --threads, --threads-batch"),
        ("c", 1, "has no --c; -c is --ctx-size, which has a field of its own: `context`"),
        ("t", 1, "has no --t; nearest: --threads"),
        ("zzzzzzzzzz", 1, "engine/llama (b11434) has no --zzzzzzzzzz"),
        ("defrag_thold", 0.1, "no longer has --defrag-thold: the cache no longer needs it"),
        ("spec_ngram_size_n", 3, "no longer has --spec-ngram-size-n: use the respective"),
        ("flash_attn", "maybe", "must be one of on, off, auto (got 'maybe')"),
        ("rope_scaling", "yarm", "(got 'yarm'); did you mean 'yarn'?"),
        ("pooling", True, "must be one of none, mean, cls, last, rank (got true)"),
        ("threads", "many", "--threads takes a number (got 'many')"),
        ("threads", 1.5, "--threads takes a whole number (got 1.5)"),
        ("threads", 10**30, "cannot take so large a number"),
        ("threads", True, "--threads takes a value (N), and not true"),
        ("temp", "nan", "--temp takes a number (got 'nan')"),
        ("warmup", 3, "--warmup is a switch; write true or false (got 3)"),
        ("fim-qwen-1.5b-default", True, "fetches a model by itself"),
        ("list_devices", True, "prints something and ends"),
    ],
)
def test_what_an_engine_does_not_take_is_told_in_its_words(name: str, value: Any, said: str) -> None:
    assert said in problem(TODAY_SET, name, value)


def test_every_fault_of_a_model_is_told_at_once() -> None:
    found = unfit(sorted_pairs({"a_a_a": 1, "threads": "x", "temp": 1}), TODAY_SET, "engine/e")
    assert [text.split(":")[0] for text in found] == ["options.a_a_a", "options.threads"]


def test_numbers_in_quotes_and_words_that_the_help_names_are_numbers_too() -> None:
    assert argv(TODAY_SET, threads="4", temp="1e-3", top_k=-1) == ["--temp", "1e-3", "--threads", "4", "--top-k", "-1"]
    assert argv(TODAY_SET, gpu_layers="all") == ["--gpu-layers", "all"]


def test_the_flag_for_no_page_is_the_one_that_is_there() -> None:
    spec = ServerSpec("c", "e", "e", "c", "m", "chat", 512, 1, -1, "f16", "f16")
    renamed = parse(TODAY.replace("--ui,  --webui, --no-ui, --no-webui", "--ui,  --no-ui"))
    without = parse(TODAY.replace("--ui,  --webui, --no-ui, --no-webui", "--other"))
    ends = [arguments(spec, Paths("/m"), "h", 1, flags=flags)[-1] for flags in (BEFORE_SET, renamed, without)]
    assert ends == ["--no-webui", "--no-ui", "1"]


def test_what_runs_already_stays_the_same() -> None:
    """The digest of a server is over its settings: a manifest from before means the same process."""
    spec = ServerSpec(
        "chat", "embedded", "e1", "chat", "m1", "chat", 4096, 1, -1, "f16", "f16",
        sorted_pairs({"threads": 2, "flash_attn": "auto", "mlock": True, "temp": 0.5}), (("A", "b"),),
    )  # fmt: skip
    assert spec.digest == "f5c16cca6b890fd57ba160c526b1d2f0d47154854ba0a862aaf00dcf6301ffb1"
    extras = (Extra("chat+lora", "lora", "d", 0.5),)
    assert replace(spec, extras=extras).digest == "11277647384be36cb81dc8306d770ff5d479c7019c8662ecaf1360a5fe02ab31"
    assert arguments(spec, Paths("/m"), "127.0.0.1", 80, flags=embedded("1")) == [
        "--model", "/m", "--alias", "chat", "--host", "127.0.0.1", "--port", "80", "--ctx-size", "4096",
        "--parallel", "1", "--flash-attn", "auto", "--mlock", "--temp", "0.5", "--threads", "2", "--no-webui",
    ]  # fmt: skip
