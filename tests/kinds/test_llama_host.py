"""The embedded engine's flags: each reaches the real parameters of its package, and its help says what is true."""

from __future__ import annotations

import argparse
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from reconciler.kinds.engine import llama_host
from reconciler.kinds.engine.flags import embedded
from reconciler.kinds.engine.llama_host import TABLE, Row, configure, flags, joined

ALWAYS = ["--model", "m.gguf", "--alias", "a", "--port", "1"]
FLAGS = embedded("any")
BY_DEST = {row.dest: row for row in TABLE}

# What a value is made from, by how it is called or by what reads it.
TEXTS = {
    "device": "none", "samplers": "top_k;temperature", "override_tensor": "ffn=CPU", "host": "h",
    "chat_template_kwargs": '{"enable_thinking": false}', "json_schema": '{"type": "object"}',
    "cpu_mask": "0x5", "cpu_range": "1-3", "tensor_split": "3,1", "fit_target": "100,200", "spec_type": "ngram-simple",
    "spec_synth_rates": "0.5,0.25", "poll": "7", "prio": "2", "port": "4711",
}  # fmt: skip


def given(*argv: str) -> argparse.Namespace:
    return flags().parse_args(joined([*ALWAYS, *argv]))


def made(*argv: str) -> Any:
    params = xllamacpp.CommonParams()
    configure(params, given(*argv), xllamacpp)
    return params


def at(params: Any, row: Row) -> Any:
    return reduce(getattr, row.to.removeprefix("!").split("."), params)


def plain(value: Any) -> Any:
    return value if isinstance(value, str | float | list | dict | set) else int(value)


def text_for(row: Row, folder: Path) -> str:
    if row.read is llama_host.contents:
        (folder / "text").write_text("{{ hello }}")
        return str(folder / "text")
    known = next((text for name, text in TEXTS.items() if name in row.dest), "")
    return known or {int: "11", float: "0.75"}.get(row.read, "2.5" if row.dest == "rope_scale" else "some")


@pytest.mark.parametrize("row", [row for row in TABLE if row.to], ids=lambda row: row.dest)
def test_every_flag_reaches_its_parameter(row: Row, tmp_path: Path) -> None:
    """Set by the flag, read back from the real thing: by every spelling the same, and not what it was before."""
    before = plain(at(made(), row))
    if not row.value:
        on = {plain(at(made(name), row)) for name in row.positives}
        off = {plain(at(made(name), row)) for name in row.negations}
        wanted = int(not row.to.startswith("!"))
        assert (on, off) == ({wanted}, {1 - wanted} if row.negations else set())
        assert before in (0, 1)
    elif row.choices:
        for choice in row.choices:
            assert {plain(at(made(name, choice), row)) for name in row.positives} == {int(row.read[choice])}
    else:
        text = text_for(row, tmp_path)
        found = [plain(at(made(name, text), row)) for name in row.positives]
        assert all(one == found[0] for one in found)
        assert found[0] != before or row.dest == "spec_draft_device"  # no device: the same as not saying


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--threads", "3"], "cpuparams.n_threads", 3),
        (["--threads-batch", "5"], "cpuparams_batch.n_threads", 5),
        (["--cpu-mask", "0x5"], "cpuparams.mask_valid", True),
        (["--prio", "2"], "cpuparams.priority", xllamacpp.ggml_sched_priority.GGML_SCHED_PRIO_HIGH),
        (["--rope-scale", "4"], "rope_freq_scale", 0.25),
        (["--seed", "-1"], "sampling.seed", xllamacpp.LLAMA_DEFAULT_SEED),
        (["--seed", "7"], "sampling.seed", 7),
        (["--temp", "0.5"], "sampling.user_sampling_config", 64),
        (["--top-k", "3", "--min-p", "0"], "sampling.user_sampling_config", 2 | 8),
        (["--n-predict", "9"], "n_predict", 9),
        (["--keep", "-1"], "n_keep", -1),
        (["--slot-save-path", "/x"], "slot_save_path", "/x/"),
        (["--slot-save-path", "/x/"], "slot_save_path", "/x/"),
        (["--no-slots"], "endpoint_slots", False),
        (["--no-mmap"], "load_mode", xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE),
        (["--mlock"], "load_mode", xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK),
        (["--mlock", "--no-mmap"], "load_mode", xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MLOCK),
        (["--mlock", "--load-mode", "dio"], "load_mode", xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_DIRECT_IO),
        (["--timeout", "9"], "timeout_write", 9),
        (["--draft-max", "6", "--draft-min", "2"], "speculative.draft.n_max", 6),
        (["--model-draft", "d"], "speculative.draft.mparams.path", "d"),
        (["--reranking"], "pooling_type", xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK),
        (["--reranking"], "embedding", True),
        (["--embeddings"], "embedding", True),
        (["--fit-target", "5"], "fit_params_target", [5 << 20] * len(xllamacpp.CommonParams().fit_params_target)),
        (["--reasoning-budget", "0"], "sampling.reasoning_budget_tokens", 0),
        (["--grammar", "root ::= x"], "sampling.grammar.grammar", "root ::= x"),
        (["--chat-template-kwargs", '{"a": "b", "c": true}'], "default_template_kwargs", {"a": '"b"', "c": "true"}),
        (["--reasoning-budget-message", "- enough"], "sampling.reasoning_budget_message", "- enough"),
        (["--reverse-prompt", "--a", "--reverse-prompt", "b"], "antiprompt", ["--a", "b"]),
        ([], "ui", False),
        ([], "reuse_port", False),
        ([], "n_ctx", 4096),
    ],
)
def test_what_flags_mean_together(argv: list[str], path: str, value: Any) -> None:
    found = reduce(getattr, path.split("."), made(*argv))
    assert found == pytest.approx(value) if isinstance(value, float) else found == value


def test_shares_of_gpus_fill_the_list() -> None:
    assert made("--tensor-split", "3,1").tensor_split[:3] == [3.0, 1.0, 0.0]


def test_experts_stay_with_the_cpu_by_rules_on_tensors() -> None:
    rules = made("--n-cpu-moe", "2", "--override-tensor", "output=CPU").tensor_buft_overrides.split(",")
    assert rules[0] == "output=CPU"
    assert [rule.split(".ffn")[0].replace("\\.", ".").rstrip("\\") for rule in rules[1:]] == ["blk.0", "blk.1"]
    assert "exps=CPU" in made("--cpu-moe").tensor_buft_overrides


def test_a_schema_becomes_a_grammar() -> None:
    found = made("--json-schema", '{"type": "object"}').sampling.grammar
    assert found.type == xllamacpp.common_grammar_type.COMMON_GRAMMAR_TYPE_OUTPUT_FORMAT
    assert found.grammar


def test_adapters_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "k")
    params = made("--lora", "a", "--lora", "b", "--lora-scaled", "c:d:0.5")
    assert [(one.path, one.scale) for one in params.lora_adapters] == [("a", 1.0), ("b", 1.0), ("c:d", 0.5)]
    assert params.api_keys == ["k"]


@pytest.mark.parametrize("row", [r for r in TABLE if r.to and r.value], ids=lambda row: row.dest)
def test_the_help_tells_the_defaults_that_the_package_has(row: Row) -> None:
    told = FLAGS.spelled[row.positives[-1]][0]
    number = told.default.partition(",")[0]
    if number and row.read in (int, float) and row.dest not in ("ctx_size", "video_fps"):
        default = float(at(xllamacpp.CommonParams(), row))
        assert float(number) == pytest.approx(-1 if row.dest == "seed" else default, abs=0.005)
    elif row.choices and told.default:
        assert plain(at(xllamacpp.CommonParams(), row)) == int(row.read[told.default])


def test_the_help_tells_of_every_flag_in_full() -> None:
    for row in TABLE:
        told, negated = FLAGS.spelled[row.positives[-1]]
        assert not negated
        assert (set(told.names), set(told.negations)) == (set(row.positives), set(row.negations))
        assert told.value == row.value
        if row.choices and row.dest not in ("numa",):
            assert set(told.choices) == set(row.choices)
        if row.read is int and row.dest != "port":
            assert told.kind == "whole"
        if row.read is float:
            assert told.kind == "number"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["--threads", "many"], "argument -t/--threads: invalid int value: 'many'"),
        (["--flash-attn", "foo"], "invalid choice: 'foo'"),
        (["--threads"], "expected one argument"),
        (["--spec-type", "magic"], "invalid speculations value"),
        (["--chat-template-kwargs", "[]"], "invalid keywords value"),
    ],
)
def test_what_it_does_not_take_ends_it_with_a_word(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        given(*argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tensor-split", ",".join(["1"] * 1000)], "--tensor-split: xllamacpp"),
        (["--spec-draft-device", "GPU99"], "does not take it: invalid device: GPU99"),
        (["--batch-size", str(1 << 40)], "--batch-size: xllamacpp"),
    ],
)
def test_what_the_package_does_not_take_is_told_with_its_version(argv: list[str], said: str) -> None:
    with pytest.raises(llama_host.Unfit, match=said):
        made(*argv)


def test_a_package_without_a_field_is_told() -> None:
    class Old:
        """Parameters as an earlier version has them: without what came later."""

        def __init__(self) -> None:
            self.inner = xllamacpp.CommonParams()

        def __getattr__(self, name: str) -> Any:
            if name == "lazy_mode":
                raise AttributeError(name)
            return getattr(self.inner, name)

    with pytest.raises(llama_host.Unfit, match=r"--lazy-mode: xllamacpp .* does not take it: lazy_mode"):
        configure(Old(), given("--lazy-mode", "on"), xllamacpp)
