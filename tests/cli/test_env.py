"""`reconcile env`: as a new user in a hurry has it, and as somebody who wants to break it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.api.schemas import check
from tests.cli.conftest import Run, Said

STACK = """version: 1
models:
  embed: {source: "file:e", task: embedding}
  chat: {source: "file:c", context: 16k, aliases: [default]}
  other: {source: "file:o"}
gateway: {port: 4711KEYS}
"""
SECRET = "sk-canary-4711"
CONFIGS = {
    "claude-code": ".claude/settings.json",
    "codex": ".codex/reconciler.config.toml",
    "aider": ".aider.conf.yml",
    "continue": ".continue/config.yaml",
    "opencode": ".config/opencode/opencode.json",
    "zed": ".config/zed/settings.json",
}
PERSONS = {  # what somebody has there already
    "claude-code": b'{\n\t"model": "opus",\r\n\t"env": {"MINE": "1"}\n}',
    "codex": b"approval_policy = 'never' # mine\n\n[tui]\nx = 1",
    "aider": b"# mine\r\ndark-mode: true\r\n",
    "continue": b"name: x\nmodels:\n  # mine\n  - name: A\n    model: a\nrules: []",
    "opencode": b'{"theme": "mine"}',
    "zed": b'// mine\n{\n  "theme": "One", // here\n  "language_models": {"openai": {}},\n}\n',
}


@pytest.fixture
def home(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with nothing in it, a shell, and a manifest in the current folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith(("XDG_", "CLAUDE", "CODEX", "CONTINUE", "ZDOTDIR", "GATEWAY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SHELL", "/bin/bash")
    manifest()
    return folder


def manifest(keys: str = "", port: int = 4711) -> None:
    Path("stack.yaml").write_text(STACK.replace("KEYS", keys).replace("4711", str(port)))


def ok(said: Said, code: int = 0) -> Said:
    assert said.code == code, (said.out, said.err)
    return said


def refused(said: Said) -> str:
    assert said.code == 1, (said.out, said.err)
    return said.err


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_without_a_client_those_that_are_known_are_listed(run: Run, home: Path) -> None:
    Path("stack.yaml").unlink()
    said = ok(run("env"))
    assert "claude-code  Claude Code" in said.out
    assert "~/.codex/reconciler.config.toml" in said.out
    told = check("output#/$defs/env_list", run("env", "-o", "json").json)
    assert {c["client"]: c["file"] for c in told["clients"]} == {
        **dict.fromkeys(("openai", "anthropic", "jan")),
        **{name: str(home / path) for name, path in CONFIGS.items()},
    }


def test_what_is_printed_can_be_evaluated(run: Run, home: Path) -> None:
    said = ok(run("env", "claude-code"))
    script = f"{said.out}\nenv | grep ^ANTHROPIC_ | sort"
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "ANTHROPIC_AUTH_TOKEN=reconciler",
        "ANTHROPIC_BASE_URL=http://127.0.0.1:4711",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL=chat",
        "ANTHROPIC_DEFAULT_OPUS_MODEL=chat",
        "ANTHROPIC_DEFAULT_SONNET_MODEL=chat",
        "ANTHROPIC_MODEL=chat",
    ]
    assert all(line.startswith("# ") for line in said.err.splitlines())


def test_each_shell_gets_its_language(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "export OPENAI_API_KEY=reconciler\n" in run("env", "openai").out
    assert "set -gx OPENAI_API_KEY 'reconciler'\n" in run("env", "openai", "--shell", "fish").out
    assert "$env:OPENAI_API_KEY = 'reconciler'\n" in run("env", "openai", "--shell", "powershell").out
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert "set -gx " in run("env", "openai").out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "--shell" in refused(run("env", "openai"))
    assert "not set up by environment variables" in refused(run("env", "zed", "--shell", "sh"))


@pytest.mark.parametrize("client", ["claude-code", "openai", "anthropic", *CONFIGS, "jan"])
@pytest.mark.parametrize("keys", ["", ", api_keys: [{name: me, key: env:GATEWAY_KEY}]"])
def test_the_same_is_had_as_data(run: Run, home: Path, client: str, keys: str) -> None:
    manifest(keys)
    told = check("output#/$defs/env", ok(run("env", client, "-o", "json")).json)
    assert (told["client"], told["url"], told["model"]) == (client, "http://127.0.0.1:4711/v1", "chat")
    assert told["key"] == ({"reference": "env:GATEWAY_KEY", "value": None} if keys else
                           {"reference": None, "value": "reconciler"})  # fmt: skip
    assert (told["file"] is None) == (client == "jan")
    assert told["text"]


def test_as_data_it_is_for_every_shell(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/nu")
    told = check("output#/$defs/env", ok(run("env", "openai", "-o", "json")).json)
    assert (told["file"], told["text"]) == (None, "")
    assert {v["name"]: v["value"] for v in told["variables"]}["OPENAI_BASE_URL"] == "http://127.0.0.1:4711/v1"
    assert "-o json" in refused(run("env", "openai"))


def test_a_client_a_model_or_a_key_that_is_not_there_gets_the_nearest(run: Run, home: Path) -> None:
    assert "did you mean 'claude-code'?" in refused(run("env", "claude-cod"))
    assert "did you mean 'chat'?" in refused(run("env", "openai", "--model", "chta"))
    assert "leave out --key" in refused(run("env", "openai", "--key", "me"))
    assert "'embed' is for embedding" in refused(run("env", "codex", "--model", "embed"))
    assert "ANTHROPIC_MODEL=default" in run("env", "claude-code", "--model", "default").out
    errors = run("env", "nobody", "-o", "json")
    assert check("output#/$defs/errors", errors.json)


@pytest.mark.parametrize(
    "words",
    [["--write"], ["--remove"], ["aider", "--write", "--remove"], ["aider", "--dry-run"], ["aider", "--shell", "tcsh"]],
)
def test_what_makes_no_sense_is_refused(run: Run, home: Path, words: list[str]) -> None:
    assert run("env", *words).code == 1
    assert files(home) == {}


def test_a_gateway_that_refuses_the_address_is_told_of(run: Run, home: Path) -> None:
    manifest(", host: 10.0.0.7, api_keys: [{name: me, key: env:GATEWAY_KEY}]")
    said = ok(run("env", "openai"))
    assert "http://10.0.0.7:4711/v1" in said.out
    assert "gateway.trusted_hosts" in said.err
    manifest(", prefix: /ai")
    assert "let gateway.prefix end in /v1" in refused(run("env", "anthropic"))
    assert "http://127.0.0.1:4711/ai" in run("env", "openai").out


def test_a_key_is_given_by_reference_and_shown_when_asked(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEY", SECRET)
    Path("the key").write_text(SECRET)
    for reference in ("env:GATEWAY_KEY", '"file:the key"', f"'command:printf %s {SECRET[:-4]}4711'"):
        manifest(f", api_keys: [{{name: me, key: {reference}}}]")
        for client in ("openai", *CONFIGS):
            told = [run("env", client), run("env", client, "-o", "json"), run("env", client, "--write", "--dry-run")]
            if "command" not in reference:  # whose words a person has put into the manifest
                assert SECRET not in "".join(said.out + said.err for said in told)
            if client != "zed":
                assert SECRET in run("env", client, "--show-key").out
    assert files(home) == {}
    monkeypatch.delenv("GATEWAY_KEY")
    manifest(", api_keys: [{name: me, key: env:GATEWAY_KEY}]")
    ok(run("env", "openai"))
    assert "env:GATEWAY_KEY is not set" in refused(run("env", "openai", "--show-key"))


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", CONFIGS)
def test_a_clients_own_file_is_written_and_is_as_it_was_again(run: Run, home: Path, client: str) -> None:
    path = home / CONFIGS[client]
    assert run("env", client, "--print-path").out == f"{path}\n"
    assert check("output#/$defs/env_path", run("env", client, "--print-path", "-o", "json").json)["file"] == str(path)
    ok(run("env", client, "--write"))
    assert b"http://127.0.0.1:4711" in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "says so already" in run("env", client, "--write").out
    ok(run("env", client, "--remove"))
    assert files(home) == {}
    assert "nothing of" in run("env", client, "--remove").out

    path.write_bytes(PERSONS[client])
    path.chmod(0o600)
    ok(run("env", client, "--write"))
    manifest(port=4712)
    said = ok(run("env", client, "--write", "--dry-run"), code=2)
    assert "mine" not in said.out, "lines of a person's are not shown"
    assert b"4711" in path.read_bytes()
    ok(run("env", client, "--write"))
    assert b"4712" in path.read_bytes()
    assert b"4711" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Path("stack.yaml").unlink()
    ok(run("env", client, "--remove"))
    assert files(home) == {CONFIGS[client]: PERSONS[client]}


@pytest.mark.parametrize("client", ["claude-code", "openai", "anthropic", "aider"])
@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "powershell"])
def test_a_shells_profile_is_written_and_is_as_it_was_again(run: Run, home: Path, client: str, shell: str) -> None:
    path = Path(ok(run("env", client, "--shell", shell, "--print-path")).out.strip())
    for before in (None, b"# mine\nalias x=y\r\n", b"# mine, and no line end", b"\xff\xfemine"[2:], b""):
        if before is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(before)
        ok(run("env", client, "--shell", shell, "--write"))
        assert path.read_bytes().startswith(before or b"")
        ok(run("env", client, "--shell", shell, "--write"))
        ok(run("env", client, "--remove"))
        assert files(home) == ({} if before is None else {str(path.relative_to(home)): before})


def test_what_changes_is_told_as_data(run: Run, home: Path) -> None:
    told = check("output#/$defs/env_files", ok(run("env", "aider", "--write", "--dry-run", "-o", "json"), 2).json)
    assert (told["dry_run"], told["files"][0]["changed"], told["files"][0]["removed"]) == (True, True, False)
    assert files(home) == {}
    ok(run("env", "aider", "--write"))
    told = check("output#/$defs/env_files", run("env", "aider", "--remove", "-o", "json").json)
    assert [(f["file"], f["removed"]) for f in told["files"]] == [(str(home / ".aider.conf.yml"), True)]
    assert told["files"][0]["diff"][1] == "+++ /dev/null"


def test_nothing_is_left_behind_by_several_at_once(run: Run, home: Path) -> None:
    for client in ("openai", "anthropic", "claude-code", "aider"):
        ok(run("env", client, "--write", "--shell", "bash"))
    for client in CONFIGS:
        ok(run("env", client, "--write"))
    for client in ("aider", *CONFIGS, "openai", "anthropic"):
        ok(run("env", client, "--remove"))
    assert files(home) == {}


def test_what_is_wrong_with_other_files_does_not_keep_ours_from_going(run: Run, home: Path) -> None:
    ok(run("env", "claude-code", "--write"))
    (home / ".profile").mkdir()
    (home / ".zshenv").write_bytes("export X=1".encode("utf-16"))
    said = ok(run("env", "claude-code", "--remove"))
    assert "settings.json is removed" in said.out
    assert ".profile is a folder" in said.err
    (home / ".claude/settings.json").mkdir()
    assert "is a folder" in refused(run("env", "claude-code", "--remove"))


def test_what_leans_on_our_block_keeps_it_there(run: Run, home: Path) -> None:
    path = home / ".continue/config.yaml"
    path.parent.mkdir()
    path.write_bytes(b"name: mine\n")
    ok(run("env", "continue", "--write"))
    with path.open("ab") as out:
        out.write(b"  - name: B\n")
    before = path.read_bytes()
    assert f"{path}:2:1: error: without its block the file could not be read" in refused(
        run("env", "continue", "--remove")
    )
    assert path.read_bytes() == before


def test_a_client_that_is_set_up_by_hand_says_how(run: Run, home: Path) -> None:
    assert "Base URL:    http://127.0.0.1:4711/v1" in ok(run("env", "jan")).out
    said = refused(run("env", "jan", "--write"))
    assert "writes anew while it runs" in said
    assert "Base URL:    http://127.0.0.1:4711/v1" in said
    ok(run("env", "jan", "--remove"))
    assert files(home) == {}


def test_a_file_with_a_key_in_it_is_for_its_owner_alone(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", SECRET)
    manifest(", api_keys: [{name: me, key: env:GATEWAY_KEY}]")
    ok(run("env", "aider", "--write", "--show-key"))
    path = home / ".aider.conf.yml"
    assert SECRET in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for words in (["--write", "--dry-run"], ["--remove", "--dry-run"], ["--write", "--dry-run", "-o", "json"]):
        said = ok(run("env", "aider", *words), 2)
        assert SECRET not in said.out + said.err
        assert "is not shown" in said.out
    ok(run("env", "aider", "--write"))
    assert SECRET not in path.read_text()
    (home / ".bashrc").write_text("# mine\n")
    (home / ".bashrc").chmod(0o644)
    assert "others may read" in refused(run("env", "openai", "--write", "--show-key"))


# -- what others got wrong ---------------------------------------------------------------------------------------------


def test_lines_of_a_person_are_never_deleted(run: Run, home: Path) -> None:
    """Also not those that set the same variables: they are the person's to take out."""
    bashrc = b"export ANTHROPIC_BASE_URL=https://mine\nexport ANTHROPIC_MODEL='x'\nexport OTHER=1\n"
    (home / ".bashrc").write_bytes(bashrc)
    said = refused(run("env", "claude-code", "--write", "--shell", "bash"))
    assert f"{home}/.bashrc:1:1: error: ANTHROPIC_BASE_URL is set there already" in said
    assert "take that line out" in said
    ok(run("env", "claude-code", "--remove"))
    ok(run("env", "openai", "--write"))
    ok(run("env", "openai", "--remove"))
    assert files(home) == {".bashrc": bashrc}


def test_values_are_quoted(run: Run, home: Path) -> None:
    Path("stack.yaml").write_text(
        STACK.replace("KEYS", "")
        + "providers: {lab: {base_url: 'http://lab/v1', models: [\"a'$(touch${IFS}gone)`id`\"]}}\n"
    )
    name = "lab/a'$(touch${IFS}gone)`id`"
    ok(run("env", "claude-code", "--write", "--shell", "bash", "--model", name))
    script = '. "$HOME/.bashrc"; printf %s "$ANTHROPIC_MODEL"'
    done = subprocess.run(["bash", "-c", script], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout == name
    assert list(files(home)) == [".bashrc"]


def test_variables_do_not_pile_up(run: Run, home: Path) -> None:
    for port in range(4711, 4720):
        manifest(port=port)
        ok(run("env", "claude-code", "--write", "--shell", "bash"))
        ok(run("env", "claude-code", "--write"))
    assert (home / ".bashrc").read_text().count("ANTHROPIC_BASE_URL=http://127.0.0.1:4719") == 1
    assert (home / ".bashrc").read_text().count("ANTHROPIC_BASE_URL") == 1
    assert list(json.loads((home / ".claude/settings.json").read_text())["env"]) == [
        "RECONCILE_ENV", "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "ANTHROPIC_AUTH_TOKEN",
    ]  # fmt: skip


def test_a_shell_that_is_not_known_is_not_taken_for_another(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/nu")
    assert "/usr/bin/nu" in refused(run("env", "openai", "--write"))
    assert files(home) == {}
    ok(run("env", "openai", "--write", "--shell", "zsh"))
    assert list(files(home)) == [".zshenv"]
    ok(run("env", "openai", "--remove"))
    assert files(home) == {}


# -- what may be in the way --------------------------------------------------------------------------------------------


def trouble(run: Run, home: Path, client: str, data: bytes) -> str:
    """What is said of a file that is then as it was."""
    path = home / CONFIGS[client]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    said = refused(run("env", client, "--write"))
    assert str(path) in said
    assert "hint:" in said
    assert path.read_bytes() == data
    return said


@pytest.mark.parametrize("client", CONFIGS)
def test_a_file_that_cannot_be_edited_is_left_alone(run: Run, home: Path, client: str) -> None:
    trouble(run, home, client, b"\x00\x01")
    trouble(run, home, client, "x: 1".encode("utf-16"))
    trouble(run, home, client, b"{ '" if client not in ("aider", "continue") else b"a: 'x\n")
    trouble(run, home, client, b" " * (10 << 20))
    if client != "aider":
        trouble(run, home, client, b"# \xff\n")
    (home / CONFIGS[client]).unlink()
    (home / CONFIGS[client]).mkdir()
    assert "is a folder" in refused(run("env", client, "--write"))


@pytest.mark.parametrize(
    ("client", "text", "words"),
    [
        ("claude-code", b'{"env": {"ANTHROPIC_BASE_URL": "x"}}', "env.ANTHROPIC_BASE_URL is set there already"),
        ("codex", b"model = 'mine'\n", "model is set there already"),
        ("aider", b"x: 1\nmodel: mine\n", "2:1: error: model is set there already"),
        ("continue", b"models: [{name: A}]\n", "paste this"),
        ("opencode", b'{\n"provider": {"reconciler": {}}}', "2:14: error: provider.reconciler is set there already"),
        ("zed", b'{"language_models": null}', "paste this"),
    ],
)
def test_what_a_person_has_set_is_not_overruled(run: Run, home: Path, client: str, text: bytes, words: str) -> None:
    said = trouble(run, home, client, text)
    assert words.split(": ")[-1] in said


@pytest.mark.parametrize("client", ["codex", "aider", "continue", "opencode", "zed", "claude-code"])
def test_a_block_that_a_person_changed_is_left_alone(run: Run, home: Path, client: str) -> None:
    ok(run("env", client, "--write"))
    path = home / CONFIGS[client]
    whole = path.read_bytes()
    spoilt = [whole.replace(b"4711", b"9999")]
    if client != "claude-code":
        lines = whole.splitlines(keepends=True)
        begin = next(i for i, line in enumerate(lines) if b">>>" in line)
        end = next(i for i, line in enumerate(lines) if b"<<<" in line)
        spoilt += [b"".join(lines[:end] + lines[end + 1 :]), b"".join(lines[:begin] + lines[begin + 1 :])]
        spoilt += [b"".join([*lines[: end + 1], *lines[begin : end + 1], *lines[end + 1 :]])]
    for text in spoilt:
        path.write_bytes(text)
        for word in ("--write", "--remove"):
            said = refused(run("env", client, word))
            assert str(path) in said
            assert "hint:" in said
            assert path.read_bytes() == text


def test_a_link_to_elsewhere_is_followed(run: Run, home: Path) -> None:
    real = home / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_bytes(b"{}")
    (home / ".claude").mkdir()
    (home / ".claude/settings.json").symlink_to("../dotfiles/settings.json")
    ok(run("env", "claude-code", "--write"))
    assert (home / ".claude/settings.json").is_symlink()
    assert b"4711" in real.read_bytes()
    ok(run("env", "claude-code", "--remove"))
    assert real.read_bytes() == b"{}"


@pytest.mark.parametrize("value", ["", "relative", "."])
def test_without_a_home_folder_nothing_is_written(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HOME", value)
    assert "no home folder" in refused(run("env", "openai", "--write"))
    assert files(home) == {}


def test_a_home_folder_that_is_not_there_is_not_made(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home / "gone"))
    assert "is not there" in refused(run("env", "aider", "--write"))
    assert list(home.iterdir()) == []
    ok(run("env", "openai"))
    ok(run("env", "openai", "--remove"))


def test_where_home_is_not_set_the_system_knows_it(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.delenv("HOME")
    said = ok(run("env", "openai", "--print-path"))
    assert said.out == f"{Path(pwd.getpwuid(os.getuid()).pw_dir) / '.bashrc'}\n"


def test_without_a_manifest_the_way_to_one_is_told(run: Run, home: Path) -> None:
    Path("stack.yaml").unlink()
    assert "there is no" in refused(run("env", "openai"))
    Path("stack.yaml").write_text("version: 1\nmodels: {}\n")
    assert "add one below `models`" in refused(run("env", "openai"))
    Path("stack.yaml").write_text("version: 1\nmodles: {}\n")
    assert "did you mean 'models'?" in refused(run("env", "openai"))


def test_every_option_is_explained(run: Run, home: Path) -> None:
    said: Any = run("env", "--help").out
    for option in ("--model", "--key", "--shell", "--write", "--remove", "--dry-run", "--print-path", "--show-key"):
        assert option in said
