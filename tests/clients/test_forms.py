"""Blocks in shell profiles, TOML and YAML: nothing of a person's is moved, hidden or overruled."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reconciler.clients.blocks import BOM, Mark
from reconciler.clients.continue_dev import SKELETON
from reconciler.clients.forms import Form, Items, Lines
from reconciler.core.diagnostics import Refused
from tests.clients.generated import GENERATED

SHELL = Lines(Mark("openai", "file"), "shell", ("export OPENAI_BASE_URL=u",), ("OPENAI_BASE_URL",))
TOML = Lines(Mark("codex", "file"), "toml", ('model = "m"', 'model_providers.reconciler = { name = "n" }'), top=True)
YAML = Lines(Mark("aider", "file"), "yaml", ('model: "openai/m"', 'openai-api-base: "u"'))
ITEMS = Items(Mark("continue", "file"), "models", ('- name: "Ours"', '  model: "m"'), SKELETON, names=("Ours",))


def refused(form: Form, text: str | bytes) -> str:
    with pytest.raises(Refused) as caught:
        form.put(text.encode() if isinstance(text, str) else text)
    (fault,) = caught.value.diagnostics
    assert fault.hint
    return f"{fault.where}: {fault.summary} | {fault.hint}"


def there_and_back(form: Form, text: bytes) -> bytes:
    new = form.put(text)
    assert form.put(new) == new
    assert form.take(new) == text
    return new


@pytest.mark.parametrize("form", [SHELL, TOML, YAML, ITEMS])
def test_a_file_that_was_not_there_goes_again(form: Form) -> None:
    new = form.put(None)
    assert form.put(new) == new
    assert form.take(new) is None


@pytest.mark.parametrize("form", [SHELL, TOML, YAML])
@pytest.mark.parametrize("text", [b"", b"\n", b"# a\n", b"# a", b"# a\r\n# b\r\n", BOM, BOM + b"# a\r\n"])
def test_any_other_file_is_as_it_was(form: Form, text: bytes) -> None:
    there_and_back(form, text)


@GENERATED
@given(
    st.binary(max_size=60).filter(lambda text: b"\0" not in text and not text.startswith((b"\xff\xfe", b"\xfe\xff")))
)
def test_a_profile_may_be_in_any_encoding(text: bytes) -> None:
    there_and_back(SHELL, text)


def test_utf_16_is_refused() -> None:
    for form in (SHELL, TOML, YAML, ITEMS):
        assert "UTF-16" in refused(form, "a = 1".encode("utf-16"))


def test_what_a_person_exports_is_not_overruled() -> None:
    said = refused(SHELL, "# mine\nexport OPENAI_BASE_URL=https://mine\n")
    assert said.startswith("file:2:1: OPENAI_BASE_URL is set there already, and not by reconcile | take that line out")


def test_what_another_block_of_ours_exports_does_not_count() -> None:
    other = Lines(Mark("other", "file"), "shell", SHELL.body, SHELL.names)
    both = SHELL.put(other.put(None))
    assert both.count(b"export OPENAI_BASE_URL=u") == 2
    rest = other.take(both)
    assert rest is not None
    assert SHELL.take(rest) is None, "the last one takes the file along, since the first one made it"


# -- TOML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'approval_policy = "never"\n',
        "[tui]\nx = 1",
        "[model_providers.other]\nname = 'o'\n",
        "[a.b]\r\n[a.c]\r\n",
        "# c\n",
    ],
)
def test_keys_stand_before_all_tables(text: str) -> None:
    new = there_and_back(TOML, text.encode())
    said, before = tomllib.loads(new.decode()), tomllib.loads(text)
    assert said.pop("model") == "m"
    assert said["model_providers"].pop("reconciler") == {"name": "n"}
    if not said["model_providers"]:
        said.pop("model_providers")
    assert said == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nmodel = 'mine'\n", "file:2:1: model is set there already"),
        ("[model_providers.reconciler]\nname = 'mine'\n", "file:2:1: model_providers.reconciler.name is set there"),
        ("model_providers = 1\n", "model_providers is set there already"),
        ("[model_providers]\nx = 1\n", "cannot be added safely | paste this:\nmodel ="),
        ("a = \n", "not readable as TOML"),
        (b"a = '\xff'\n", "not UTF-8"),
    ],
)
def test_toml_that_leaves_no_room_is_refused(text: str | bytes, words: str) -> None:
    assert words in refused(TOML, text)


# -- YAML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["dark-mode: true\n", "a: |\n  text\n\n", "a: [1,\n 2]", "---\na: 1\n", "a: 1 # c\r\n"]
)
def test_yaml_keys_stand_behind_all_others(text: str) -> None:
    new = there_and_back(YAML, text.encode())
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "model": "openai/m", "openai-api-base": "u"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nmodel: gpt\n", "file:2:1: model is set there already"),
        ("{a: 1}\n", "cannot be added safely | paste this:\nmodel:"),
        ("a: 1\n...\n", "cannot be added safely"),
        ("  a: 1\n", "cannot be added safely"),
        ("a: 'open\n", "not readable as YAML"),
        ("- a\n", "not a mapping"),
        ("a: 1\n---\nb: 1\n", "more than one document"),
        ("a: \t- x\n\t", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
    ],
)
def test_yaml_that_leaves_no_room_is_refused(text: str, words: str) -> None:
    assert words in refused(YAML, text)


def test_an_open_scalar_at_the_end_does_not_swallow_ours() -> None:
    assert "cannot be added safely" in refused(YAML, "a: |\n  a line end here would be one more of its\n  text")
    for text in ("a: |\n  text\n  # no comment\n", "a: >-\n  folded\n\n\n", "a: b\n  c", "a:\n"):
        new = YAML.put(text.encode())
        assert yaml.safe_load(new)["model"] == "openai/m"
        assert yaml.safe_load(new)["a"] == yaml.safe_load(text)["a"]


def test_many_aliases_cost_nothing() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    there_and_back(YAML, bomb.encode())
    there_and_back(ITEMS, bomb.encode())


# -- a list in YAML ----------------------------------------------------------------------------------------------------

LISTS = [
    "name: x\nmodels:\n  - name: A\n    model: a\nrules:\n  - r\n",
    "name: x\nmodels:\n- name: A\n  roles: [chat,\n    edit]\n# behind\nrules: []\n",
    "models:\n    # first\n    - {name: A}",
    "models:\n  - name: A\n    prompt: |\n      text\n\n      more\n\nname: x\n",
    "models:\r\n  - name: A\r\n\r\n",
    "name: x\n",
    "name: x\nmodels:\n",
    "name: x\nmodels:   # mine\nrules: []",
    "# nothing yet\n",
    "models:\n  - name: A\n    nested:\n      - deep: [1]\n      - deeper:\n          - x\n",
]


@pytest.mark.parametrize("text", LISTS)
def test_entries_stand_behind_those_of_a_person(text: str) -> None:
    new = there_and_back(ITEMS, text.encode())
    before, said = yaml.safe_load(text) or {}, yaml.safe_load(new)
    assert said["models"] == [*(before.get("models") or []), {"name": "Ours", "model": "m"}]
    assert {**said, "models": 0} == {**before, "models": 0}
    other = Items(ITEMS.mark, "models", ('- name: "Other"',), SKELETON, names=("Other",))
    assert other.take(other.put(new)) == text.encode()


SCALARS = (
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["", "a b", "x: y", "# no", "two\nlines\n", "é"])
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
ENTRIES = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["A", "B"])}, optional={"more": TREES}), max_size=3)


def put(form: Form, text: bytes) -> bytes | None:
    """None where it is refused."""
    try:
        return form.put(text)
    except Refused:
        return None


@st.composite
def yaml_files(draw: st.DrawFn) -> bytes:
    """What a person may have, written in any style, with comments between some lines."""
    said = draw(st.dictionaries(st.sampled_from(["a", "rules", "z"]), TREES, max_size=3))
    if draw(st.booleans()):
        said["models"] = draw(ENTRIES | st.none())
    style: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {
                "default_flow_style": st.sampled_from([False, False, None]),
                "indent": st.sampled_from([2, 4]),
                "sort_keys": st.booleans(),
                "explicit_start": st.booleans(),
                "allow_unicode": st.booleans(),
                "default_style": st.sampled_from([None, '"', "'"]),
            }
        )
    )
    lines = yaml.safe_dump(said, **style).split("\n") if said else [""]
    for at in draw(st.lists(st.integers(0, len(lines)), max_size=2)):
        lines.insert(at, draw(st.sampled_from(["# mine", "", "    # deeper"])))
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    text = text.rstrip("\r\n") if draw(st.booleans()) else text
    return draw(st.sampled_from([b"", BOM])) + text.encode()


@GENERATED
@given(yaml_files(), st.sampled_from([YAML, ITEMS]))
def test_whatever_the_style_it_is_exact_or_refused(text: bytes, form: Form) -> None:
    new = put(form, text)
    if new is None:
        return
    before = yaml.safe_load(text)
    assert form.put(new) == new
    assert form.take(new) == text
    said = yaml.safe_load(new)
    if form is ITEMS:
        assert said.pop("models") == [*((before or {}).pop("models", None) or []), {"name": "Ours", "model": "m"}]
    else:
        assert (said.pop("model"), said.pop("openai-api-base")) == ("openai/m", "u")
    assert said == (before or {})


@GENERATED
@given(
    st.lists(st.sampled_from(["a = 1", "# c", "", "[t]", "x.y = 'z'", "[[l]]", "[model_providers.o]", 'm = """\n[x]"""',
                              "[model_providers]", "model = 1"]), unique=True, max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)  # fmt: skip
def test_whatever_the_tables_it_is_exact_or_refused(lines: list[str], eol: str, ended: bool) -> None:
    text = eol.join(lines) + eol * ended
    new = put(TOML, text.encode())
    if new is None:
        return
    before = tomllib.loads(text)
    assert TOML.put(new) == new
    assert TOML.take(new) == text.encode()
    said = tomllib.loads(new.decode())
    assert said.pop("model") == "m"
    assert said["model_providers"].pop("reconciler") == {"name": "n"}
    assert said == {**before, "model_providers": before.get("model_providers", {})}


def test_entries_that_a_person_adds_to_our_file_stay() -> None:
    new = ITEMS.put(None) + b"  - name: Mine\n"
    left = ITEMS.take(new)
    assert left is not None
    assert yaml.safe_load(left)["models"] == [{"name": "Mine"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: []\n", "file:1:1: `models` is not written as a list with one entry a line"),
        ("models: {a: 1}\n", "`models` is not written as a list"),
        ("models:\n  - name: Ours\n", "file:2:1: models: Ours is set there already"),
        ("models: &m\n  - name: A\nmore: *m\n", ""),
        ("{models: [{name: A}]}\n", "not written as a list"),
    ],
)
def test_a_list_that_leaves_no_room_is_refused(text: str, words: str) -> None:
    if words:
        assert words in refused(ITEMS, text)
    else:
        there_and_back(ITEMS, text.encode())


def test_a_file_that_would_be_broken_without_ours_is_not_written() -> None:
    """A person's entries below a `models:` that is ours would be left without it."""
    new = ITEMS.put(b"name: x\n") + b"  - name: Mine\n"
    with pytest.raises(Refused):
        ITEMS.take(new)
