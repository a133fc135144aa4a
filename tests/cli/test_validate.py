"""`validate` says that a manifest is right."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run


def test_a_right_manifest(run: Run) -> None:
    Path("stack.yaml").write_text("version: 1\nmodels: {chat: {source: file:x}}\n")
    assert run("validate").out == "stack.yaml is valid: 1 model\n"
    assert run("validate", "-o", "json").json == {"valid": True, "errors": [], "left_out": []}


def test_broken_labels_are_told_and_do_not_stop_it(run: Run) -> None:
    Path("stack.yaml").write_text("version: 1\n")
    Path("state").mkdir()
    Path("state/labels.yaml").write_text("- a\n")
    said = run("validate")
    assert said.code == 0
    assert "state/labels.yaml:1:1: error: must be a mapping" in said.err


def test_what_comes_later_is_valid_already(run: Run) -> None:
    Path("stack.yaml").write_text(
        "version: 1\nmodels: {chat: {source: 'hf:a/b', quant: Q8_0}}\nmcp_servers: {m: {url: 'http://h'}}\n"
    )
    assert run("validate").out == "stack.yaml is valid: 1 model\n"


def test_what_comes_later_is_told_by_the_plan_and_not_applied(run: Run) -> None:
    Path("stack.yaml").write_text("version: 1\ngateway: {workers: 2}\nmodels: {chat: {source: file:x}}\n")
    planned = run("plan")
    assert planned.code == 3
    assert "✗ gateway/main  `workers` is not yet supported here  stack.yaml:2:11" in planned.out
    refused = run("apply")
    assert refused.code == 3, refused
    assert "stack.yaml:2:11: error: gateway/main: `workers` is not yet supported here" in refused.err
