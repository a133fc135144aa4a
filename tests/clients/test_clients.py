"""What each client gets, where its file is on each system, and that no key is told unless it may be."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.clients import CLIENTS, described, jsonc
from reconciler.clients.client import Client, everywhere, in_profile
from reconciler.clients.offer import Key, Model, Offer, Places
from reconciler.clients.shells import SHELLS
from reconciler.core.diagnostics import Refused

NASTY = "lab/it's\"$(touch/gone)`x`\\${{secrets.A}}#é"
SECRET = "sk-canary-4711"
MODELS = (Model("embed", "embedding"), Model("chat", "chat", 16384), Model("small"))
KEYS = {
    "none": Key(),
    "env": Key("env:GATEWAY_KEY"),
    "file": Key("file:k'ey", "/srv/it's", file="/srv/it's/k'ey"),
    "command": Key("command:pass show 'my key'", "/srv"),
    "keyring": Key("keyring:ci", "/srv"),
}
ALL = [described(name) for name in CLIENTS]
FILES = [one for one in ALL if one.config]


def places(system: str = "linux", **environ: str) -> Places:
    return Places(environ, Path("/home/me"), system)  # type: ignore[arg-type]


def offer(key: Key = KEYS["none"], model: str = "chat", port: int = 4711) -> Offer:
    chosen = next((m for m in MODELS if m.name == model), Model(model))
    return Offer(f"http://127.0.0.1:{port}/v1", chosen, MODELS, key)


def written(one: Client, made: Offer) -> str:
    assert one.config is not None
    return one.config(made, places()).form.put(None).decode()


def document(one: Client, made: Offer) -> Any:
    """What the client itself would read."""
    text = written(one, made)
    match one.name:
        case "codex":
            return tomllib.loads(text)
        case "aider" | "continue":
            return yaml.safe_load(text)
        case "claude-code":
            return json.loads(text)
    return jsonc.read(text, "file", comments=True).value


def everything(one: Client, made: Offer) -> str:
    """All that is ever printed or written for a client."""
    out = [*one.notes(made, True), *one.notes(made, False), one.steps(made) if one.steps else ""]
    if one.config:
        out += [written(one, made), one.config(made, places()).form.snippet]
    if one.variables:
        out += [in_profile(one, made, shell, places()).form.snippet for shell in SHELLS]
    return "\n".join(out)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_client_is_told_the_address_and_the_model(one: Client) -> None:
    said = everything(one, offer())
    assert "http://127.0.0.1:4711" in said
    assert "chat" in said
    assert one.summary
    assert one.variables or one.config or (one.steps and one.unwritten)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize("key", [key for name, key in KEYS.items() if name != "none"], ids=lambda key: key.reference)
def test_a_key_is_told_only_where_it_may_be(one: Client, key: Key) -> None:
    assert SECRET not in everything(one, offer(key))
    shown = Key(key.reference, key.base, SECRET, key.file)
    if one.name != "zed":
        assert SECRET in everything(one, offer(shown))
    if one.config and one.name != "zed":
        form = one.config(offer(shown), places()).form
        assert form.secret(form.put(None)), "the file itself says that it holds one"
        plain = one.config(offer(key), places()).form
        assert not plain.secret(plain.put(form.put(None)))
        assert SECRET not in plain.put(form.put(None)).decode()


def test_zed_keeps_no_key_in_its_file() -> None:
    one = described("zed")
    assert SECRET not in written(one, offer(Key("env:X", value=SECRET)))


@pytest.mark.parametrize("one", FILES, ids=lambda one: one.name)
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_file_can_be_read_and_is_kept_up_to_date(one: Client, key: Key) -> None:
    assert one.config is not None
    target = one.config(offer(key), places())
    first = target.form.put(None)
    assert document(one, offer(key))
    assert target.form.put(first) == first
    moved = one.config(offer(key, port=4712), places()).form.put(first)
    assert moved == one.config(offer(key, port=4712), places()).form.put(None)
    assert b"4711" not in moved
    assert one.config(None, places()).form.take(moved) is None, "without knowing what was put in"


@pytest.mark.parametrize("one", FILES, ids=lambda one: one.name)
def test_a_model_may_be_called_anything(one: Client) -> None:
    said = document(one, offer(model=NASTY))
    names = {
        "claude-code": lambda d: d["env"]["ANTHROPIC_MODEL"],
        "codex": lambda d: d["model"],
        "aider": lambda d: d["model"].removeprefix("openai/"),
        "continue": lambda d: d["models"][0]["model"],
        "opencode": lambda d: next(iter(d["provider"]["reconciler"]["models"])),
        "zed": lambda d: d["language_models"]["openai_compatible"]["Reconciler"]["available_models"][0]["name"],
    }
    assert names[one.name](said) == NASTY
    assert "${{secrets" not in written(one, offer(model=NASTY)) or one.name != "continue"


def test_what_a_client_would_fill_in_is_not_handed_to_it() -> None:
    one = described("opencode")
    for model in ("lab/{env:HOME}", "lab/{file:/etc/passwd}"):
        with pytest.raises(Refused, match="fill in"):
            written(one, offer(model=model))
    others = Offer("http://h/v1", Model("chat"), (Model("chat"), Model("lab/{file:/x}")), Key())
    assert "{file:" not in written(one, others)


PATHS = {
    "claude-code": (".claude/settings.json", ".claude/settings.json", ".claude/settings.json"),
    "codex": (".codex/reconciler.config.toml",) * 3,
    "aider": (".aider.conf.yml",) * 3,
    "continue": (".continue/config.yaml",) * 3,
    "opencode": (".config/opencode/opencode.json",) * 3,
    "zed": (".config/zed/settings.json", ".config/zed/settings.json", "AppData/Roaming/Zed/settings.json"),
}


@pytest.mark.parametrize("one", FILES, ids=lambda one: one.name)
def test_each_system_has_its_places(one: Client) -> None:
    assert one.config is not None
    found = [one.config(None, places(system)).path for system in ("linux", "darwin", "windows")]
    assert found == [Path("/home/me") / path for path in PATHS[one.name]]


@pytest.mark.parametrize(
    ("name", "variable", "path"),
    [
        ("claude-code", "CLAUDE_CONFIG_DIR", "/x/settings.json"),
        ("codex", "CODEX_HOME", "/x/reconciler.config.toml"),
        ("continue", "CONTINUE_GLOBAL_DIR", "/x/config.yaml"),
        ("opencode", "XDG_CONFIG_HOME", "/x/opencode/opencode.json"),
        ("zed", "XDG_CONFIG_HOME", "/x/zed/settings.json"),
    ],
)
def test_a_person_may_have_moved_them(name: str, variable: str, path: str) -> None:
    config = described(name).config
    assert config is not None
    assert str(config(None, places(**{variable: "/x"})).path) == path
    assert str(config(None, places(**{variable: "relative"})).path).startswith("/home/me/.")
    assert str(config(None, places(**{variable: "~/x"})).path) == f"/home/me{path}"


def test_keys_by_reference_are_those_of_each_client() -> None:
    def said(name: str, key: str) -> Any:
        return document(described(name), offer(KEYS[key]))

    assert said("codex", "env")["model_providers"]["reconciler"]["env_key"] == "GATEWAY_KEY"
    assert said("codex", "file")["model_providers"]["reconciler"]["auth"]["args"][0] == "-c"
    assert "env_key" not in said("codex", "none")["model_providers"]["reconciler"]
    assert said("claude-code", "env")["apiKeyHelper"] == 'printf %s "$GATEWAY_KEY"'
    assert "ANTHROPIC_AUTH_TOKEN" not in said("claude-code", "env")["env"]
    assert "apiKeyHelper" not in said("claude-code", "none")
    assert said("opencode", "env")["provider"]["reconciler"]["options"]["apiKey"] == "{env:GATEWAY_KEY}"
    assert said("opencode", "file")["provider"]["reconciler"]["options"]["apiKey"] == "{file:/srv/it's/k'ey}"
    assert said("opencode", "command")["provider"]["reconciler"]["options"]["apiKey"] == "{env:RECONCILER_API_KEY}"
    assert said("continue", "env")["models"][0]["apiKey"] == "${{ secrets.GATEWAY_KEY }}"
    assert "openai-api-key" not in said("aider", "env")
    assert said("aider", "none")["openai-api-key"] == "reconciler"
    for name in ("continue", "opencode", "zed"):
        notes = "\n".join(described(name).notes(offer(KEYS["command"]), True))
        assert "export RECONCILER_API_KEY=\"$(cd /srv && pass show 'my key' | head -n 1)\"" in notes


def test_what_may_have_been_written_anywhere_is_looked_for_everywhere() -> None:
    found = [str(target.path) for target in everywhere(described("claude-code"), places())]
    assert found[0] == "/home/me/.claude/settings.json"
    assert "/home/me/.zshenv" in found
    assert len(everywhere(described("codex"), places())) == 1
    assert everywhere(described("jan"), places()) == []
    with pytest.raises(Refused, match="not set up by environment variables"):
        in_profile(described("zed"), None, "sh", places())


def test_models_are_listed_with_what_they_are_for() -> None:
    said = document(described("continue"), offer())
    assert [(m["model"], m["roles"]) for m in said["models"]] == [
        ("chat", ["chat", "edit", "apply"]),
        ("small", ["chat", "edit", "apply"]),
        ("embed", ["embed"]),
    ]
    assert document(described("codex"), offer())["model_context_window"] == 16384
    assert "model_context_window" not in document(described("codex"), offer(model="small"))
