"""`options` through the command line: checked in the plan against the engine at hand, and passed in its own form."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.helps import ERAS
from tests.support.processes import wait_until


def era(stage: Stage, name: str) -> None:
    """The fake engine behind the help of another time."""
    text, version = ERAS[name]
    (stage.folder / "help.txt").write_text(text)
    wrapper(stage.folder / "fake")
    script = f"""#!/bin/sh
case "$1" in
    --help) cat {stage.folder}/help.txt ;;
    --version) echo "version: {version[1:]} (0badc0de)" >&2 ;;
    *) exec {stage.folder}/fake "$@" ;;
esac
"""
    new = stage.folder / "engine.new"
    new.write_text(script)
    new.chmod(0o755)
    new.replace(stage.folder / "engine")


def with_options(stage: Stage, options: str) -> None:
    stage.write(manifest(stage, entry(more=f", options: {options}")))


def argv(stage: Stage) -> list[str]:
    """The server's arguments behind those that are the same in all eras."""
    found = psutil.Process(stage.server("chat")).cmdline()
    return found[found.index("--parallel") + 2 :]


def test_an_option_that_the_engine_does_not_have_is_denied_before_anything_is_done(stage: Stage) -> None:
    era(stage, "before")
    with_options(stage, "{flash_atn: on, threads: many, rope_scaling: yarm}")
    shown = stage.run("plan", code=1).stdout
    assert "engine/llama (b6000)" not in shown
    assert "engine/real (b6000) has no --flash-atn; nearest: --flash-attn" in shown
    assert "options.threads: --threads takes a whole number" in shown or "--threads takes a number" in shown
    assert "did you mean 'yarn'?" in shown
    assert "(b6000)" in next(line for line in shown.splitlines() if "use " in line)
    refused = stage.run("apply", code=1)
    assert "has no --flash-atn" in refused.stderr
    assert not stage.root.joinpath("artifacts", "sha256").exists()


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("before", ["--draft-max", "4", "--flash-attn", "--no-mmap", "--no-warmup", "--no-webui"]),
        ("after", ["--draft-max", "4", "--flash-attn", "on", "--no-mmap", "--no-warmup", "--no-webui"]),
        (
            "today",
            ["--spec-draft-n-max", "4", "--flash-attn", "on", "--load-mode", "none", "--no-warmup", "--no-webui"],
        ),
    ],
)
def test_one_manifest_starts_engines_of_three_eras(stage: Stage, name: str, passed: list[str]) -> None:
    era(stage, name)
    with_options(stage, "{flash_attn: on, no_mmap: true, draft_max: 4, warmup: false}")
    stage.run("apply")
    assert argv(stage) == passed


def test_an_engine_that_tells_nothing_gets_its_options_unchecked_and_the_plan_warns(stage: Stage) -> None:
    era(stage, "before")
    (stage.folder / "help.txt").write_text("there is no help for you\n")
    with_options(stage, "{whatever: 1}")
    warning = "warning: its options are passed unchecked: its --help does not tell of --model"
    assert warning in stage.run("plan", code=2).stdout
    stage.run("apply")
    assert argv(stage) == ["--whatever", "1", "--no-webui"]
    assert "nothing to do" in stage.run("plan").stdout


def test_options_are_checked_as_soon_as_the_engine_is_there_and_nothing_is_started(stage: Stage) -> None:
    (stage.folder / "engine").unlink()
    with_options(stage, "{flash_atn: on}")
    assert "its options are checked once the engine is there" in stage.run("plan", code=2).stdout
    stage.run("apply", code=1)  # for want of an engine
    era(stage, "today")
    ready = lambda: stage.told("server/chat").get("Ready", {})  # noqa: E731
    wait_until(lambda: ready().get("reason") == "OptionsRefused", 60, f"never refused: {stage.snapshot()}")
    assert "engine/real (b11434) has no --flash-atn; nearest: --flash-attn" in ready()["message"]
    assert "begin ref=server/chat action=start" not in stage.log()
    with_options(stage, "{flash_attn: on}")
    stage.run("apply")
    assert argv(stage) == ["--flash-attn", "on", "--no-webui"]


def test_the_embedded_engines_options_are_checked_before_it_is_installed(stage: Stage) -> None:
    stage.write(
        f"version: 1\nmodels:\n  chat: {{source: 'file:models/hello.gguf', options: {{no_such: 1, ctx_shift: true}}}}\n"
        f"gateway: {{port: {stage.port}}}\n"
    )
    shown = stage.run("plan", code=1).stdout
    assert "has no --no-such" in shown
    assert "nearest: --context-shift" in shown
    assert "install xllamacpp" in shown


def test_what_has_a_field_of_its_own_and_what_is_ours_is_refused_where_it_stands(stage: Stage) -> None:
    with_options(stage, '{ctx_size: 1, hf_repo: a/b, flash_attn: [[1]], a: {b: c}, temp: "\\x07"}')
    said = stage.run("validate", code=1).stderr
    assert "stack.yaml:5:81: error: models.chat.options.ctx_size: --ctx-size has a field of its own: `context`" in said
    assert "--hf-repo may not be set: models are fetched by the reconciler" in said
    assert "models.chat.options.flash_attn.0: must be true or false" in said
    assert "models.chat.options.a: must be text or a list" in said
    assert "must not hold control characters" in said


def test_explain_lists_what_the_engine_knows(stage: Stage) -> None:
    era(stage, "today")
    with_options(stage, "{draft_max: 4}")
    listed = stage.run("explain", "models.chat.options").stdout
    assert "engine/real (b11434)" in listed
    assert "-fa, --flash-attn [on|off|auto]" in listed
    assert "--hf-repo" not in listed
    assert "--draft-max" not in listed
    one = json.loads(stage.run("explain", "models.chat.options.draft_max", "-o", "json").stdout)
    assert one["passed_as"] == ["--spec-draft-n-max", "4"]
    assert one["flags"][0]["env"] == "LLAMA_ARG_SPEC_DRAFT_N_MAX"
    assert one["flags"][0]["kind"] == "whole"
    assert (
        "has no --flash-atn; nearest: --flash-attn"
        in stage.run("explain", "models.chat.options.flash_atn", code=1).stderr
    )
    assert "may not be set" in stage.run("explain", "models.chat.options.port", code=1).stderr


MANY = """{flash_attn: on, threads: 2, threads_batch: 2, batch_size: 256, ubatch_size: 64, context_shift: true,
    cache_ram: 16, jinja: true, chat_template: chatml, rope_freq_base: 10000, rope_freq_scale: 1.0, seed: 7, temp: 0,
    top_k: 5, keep: 4, n_predict: 6, swa_full: true, kv_unified: true, prio: 0, poll: 0, warmup: false, metrics: true,
    props: true, no_mmap: true, split_mode: none, main_gpu: 0, reasoning_format: none, reasoning_budget: 0,
    slots: true, tensor_split: [1, 0], numa: distribute, cache_reuse: 8, timeout: 60, n_cpu_moe: 1}"""


def test_the_real_engine_serves_with_many_options(stage: Stage) -> None:
    stage.write(manifest(stage, entry(more=f", cache_type: {{k: bf16, v: f32}}, options: {MANY}")))
    stage.run("apply")
    answer = stage.ask()
    assert answer["usage"]["completion_tokens"] <= 6  # n_predict
    passed = argv(stage)
    assert passed[passed.index("--tensor-split") + 1] == "1,0"
    assert "--no-warmup" in passed


def test_a_real_llama_server_that_changes_its_mind_is_told_at_the_start(stage: Stage, tmp_path: Path) -> None:
    """The help told of a flag that the program then refuses: an ordinary failure, told by its own words."""
    real = stage.folder / "engine"
    real.rename(stage.folder / "real")
    text = ERAS["today"][0]
    (stage.folder / "help.txt").write_text(text + "--lie N                                 is none\n")
    real.write_text(
        f'#!/bin/sh\n[ "$1" != --help ] || exec cat {stage.folder}/help.txt\nexec {stage.folder}/real "$@"\n'
    )
    real.chmod(0o755)
    with_options(stage, "{lie: 3}")
    done = stage.run("apply", code=1)
    assert "unrecognized arguments" in done.stderr
    wait_until(lambda: stage.log().count("begin ref=server/chat action=start") == 1)
