"""`init` writes a manifest that is right and tidy, and replaces nothing unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reconciler.core.state import HostFacts
from reconciler.manifest.parse import check
from reconciler.manifest.schema import schema
from reconciler.manifest.starter import starter
from reconciler.manifest.tidy import tidy
from tests.cli.conftest import Run
from tests.manifest.helper import ROOT

GIB = 1 << 30


def test_a_manifest_is_written_and_is_right(run: Run) -> None:
    said = run("init")
    assert said.code == 0
    assert "next: `reconcile --dry-run`" in said.out
    text = Path("stack.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./stack.schema.json\n")
    assert json.loads(Path("stack.schema.json").read_text()) == schema()
    assert (run("validate").code, run("fmt", "--check").code) == (0, 0)


def test_what_is_there_is_not_replaced_unasked(run: Run) -> None:
    Path("stack.yaml").write_text("mine")
    said = run("init")
    assert said.code == 1
    assert "stack.yaml is already there" in said.err
    assert "--force" in said.err
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]
    assert run("init", "--force").code == 0
    assert "models:" in Path("stack.yaml").read_text()


def test_a_broken_link_and_a_folder_are_there_too(run: Run) -> None:
    Path("stack.yaml").symlink_to("gone.yaml")
    assert run("init").code == 1
    Path("folder").mkdir()
    assert "is a folder" in run("init", "--force", "-f", "folder").err


def test_another_name_is_part_of_the_next_command(run: Run) -> None:
    told = run("init", "-f", "my box/stack.yaml", "-o", "json").json
    assert told == {
        "manifest": str(Path("my box/stack.yaml").absolute()),
        "schema": str(Path("my box/stack.schema.json").absolute()),
        "next": "reconcile -f 'my box/stack.yaml'",
    }
    assert Path("my box/stack.yaml").is_file()


@pytest.mark.parametrize(
    ("facts", "context", "parallel"),
    [
        (HostFacts(), 2048, 1),
        (HostFacts(memory_total=2 * GIB, cpu=4), 2048, 1),
        (HostFacts(memory_total=6 * GIB, cpu=4), 4096, 2),
        (HostFacts(memory_total=16 * GIB, cpu=1), 8192, 1),
        (HostFacts(memory_total=1024 * GIB, cpu=128), 8192, 4),
    ],
)
def test_it_fits_the_machine(facts: HostFacts, context: int, parallel: int) -> None:
    text = starter(facts).encode()
    chat = check(text, Path("stack.yaml")).stack.models["chat"]
    assert (chat.context, chat.parallel) == (context, parallel)
    assert tidy(text, "stack.yaml") == text


def test_its_model_is_that_of_the_quickstart() -> None:
    example = check((ROOT / "examples/quickstart/stack.yaml").read_bytes(), Path("stack.yaml")).stack.models["chat"]
    chat = check(starter(HostFacts()).encode(), Path("stack.yaml")).stack.models["chat"]
    assert (chat.source, chat.sha256) == (example.source, example.sha256)
