"""`import` writes a manifest that is valid and tidy, replaces nothing unasked, and says what is left to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.foreign import TOOLS
from tests.api.schemas import check as by_schema
from tests.cli.conftest import Run
from tests.foreign.setups import SECRETS, SETUPS, put

Home = Callable[[str], Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Sets a tool up in a home folder, and goes to the folder where its files are looked for."""

    def at(tool: str) -> Path:
        folder = tmp_path / "home"
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS", "JAN_DATA_FOLDER"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(folder))
        folder.mkdir()
        SETUPS[tool](folder)
        monkeypatch.chdir(folder)
        return folder

    return at


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_written_is_valid_and_tidy_and_holds_no_secret(tool: str, run: Run, home: Home) -> None:
    folder = home(tool)
    said = run("import", "--from", tool)
    assert said.code == 0, said
    assert "next: `reconcile --dry-run`" in said.out
    assert (run("validate").code, run("fmt", "--check").code) == (0, 0)
    text = (folder / "stack.yaml").read_text()
    for secret in SECRETS:
        assert secret.removeprefix("Bearer ") not in text + said.out + said.err


@pytest.mark.parametrize("tool", TOOLS)
def test_the_report_as_json_is_what_its_schema_says(tool: str, run: Run, home: Home) -> None:
    home(tool)
    told = by_schema("output#/$defs/import", run("import", "--from", tool, "-o", "json").json)
    assert told["text"] == Path(told["manifest"]).read_text()
    assert told["left"]
    assert told["read"]


def test_it_says_what_to_set_and_what_is_left(run: Run, home: Home) -> None:
    folder = home("llama-swap")
    said = run("import", "--from", "llama-swap", "config.yaml")
    assert f"LLAMA_SWAP_KEY_1  key 1 that clients show to the gateway, now in {folder}/config.yaml:8:5" in said.out
    assert f"`groups` ({folder}/config.yaml:41:1): who stays in memory" in said.out


def test_it_says_what_is_denied_for_now(run: Run, home: Home) -> None:
    home("claude-desktop")
    said = run("import", "--from", "claude-desktop")
    assert "denied by a plan of this version" in said.out
    assert "mcp_servers are not yet supported here" in said.out


def test_what_is_there_is_not_replaced_unasked(run: Run, home: Home) -> None:
    home("ollama")
    put(Path("stack.yaml"), "mine")
    said = run("import", "--from", "ollama")
    assert said.code == 1
    assert "stack.yaml is already there" in said.err
    assert Path("stack.yaml").read_text() == "mine"
    assert run("import", "--from", "ollama", "-o", "other.yaml").code == 0
    assert run("import", "--from", "ollama", "-f", "deep/other.yaml").code == 0
    assert Path("other.yaml").read_text() == Path("deep/other.yaml").read_text()
    assert run("import", "--from", "ollama", "--force").code == 0
    assert Path("stack.yaml").read_text() == Path("other.yaml").read_text()
    Path("link.yaml").symlink_to("gone.yaml")
    assert run("import", "--from", "ollama", "-o", "link.yaml").code == 1
    Path("folder").mkdir()
    assert "is a folder" in run("import", "--from", "ollama", "--force", "-o", "folder").err


def test_it_prints_the_manifest_and_nothing_else(run: Run, home: Home) -> None:
    home("ollama")
    said = run("import", "--from", "ollama", "-o", "-")
    assert said.out.startswith("# Made by")
    assert said.out.splitlines()[1] == "version: 1"
    assert "not carried over" in said.err
    assert not Path("stack.yaml").exists()
    put(Path("x.yaml"), said.out)
    assert run("-f", "x.yaml", "validate").code == 0


def test_nothing_is_written_where_nothing_can_be_read(run: Run, home: Home) -> None:
    folder = home("ollama")
    put(folder / "config.yaml", "models: {a: {cmd: [")
    for words, expected in (
        (("--from", "llama-swap"), f"{folder}/config.yaml:2:1: error: not readable as YAML"),
        (("--from", "jan"), "there is no data folder of Jan"),
        (("--from", "litellm", "gone.yaml"), "cannot be read: No such file or directory"),
        (("--from", "lamaswap"), "did you mean 'llama-swap'?"),
        (("--from", "compose", "/dev/zero"), "it is not a file"),
    ):
        said = run("import", *words)
        assert said.code == 1
        assert expected in said.err
        assert not (folder / "stack.yaml").exists()


def test_a_set_up_of_which_nothing_can_be_carried_over_is_told_part_by_part(run: Run, home: Home) -> None:
    folder = home("ollama")
    put(folder / "config.yaml", 'models: {a: {cmd: "x --port ${PORT}"}}')
    said = run("import", "--from", "llama-swap")
    assert said.code == 1
    assert "nothing of llama-swap can be carried over" in said.err
    assert "does not say which model it serves" in said.err


def test_names_that_are_no_text_are_told_all_the_same(run: Run, home: Home) -> None:
    folder = home("lmstudio")
    models = folder / ".lmstudio" / "models"
    put(models / "lab" / os.fsdecode(b"\xff\n-GGUF") / os.fsdecode(b"\xfe.gguf"), b"GGUF")
    put(models / "mlx" / os.fsdecode(b"\xff") / "m.safetensors", b"x")
    assert "cannot be written as text" in run("import", "--from", "lmstudio", "-o", "-").out
    told = run("import", "--from", "lmstudio", "-o", "json").json
    assert [one for one in told["left"] if one["what"] == "the model mlx/?"]
    assert run("validate").code == 0


def test_wrong_calls(run: Run, home: Home) -> None:
    home("ollama")
    assert run("import").code == 1
    assert "not with both" in run("import", "--from", "ollama", "-f", "a", "-o", "b").err
    assert "import" in run("--help").out
    assert "--from" in run("import", "--help").out
