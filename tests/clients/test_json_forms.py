"""Members go into JSON files of any style without changing a byte of them, and come out again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.clients import jsonc
from reconciler.clients.blocks import BOM, Mark
from reconciler.clients.forms import Form
from reconciler.clients.json_forms import Commented, Members
from reconciler.core.diagnostics import Refused
from tests.clients.generated import GENERATED

VALUE = {"api_url": "http://127.0.0.1:1/v1", "models": [{"name": 'a"b$(c)\u2028ü'}]}
COMMENTED = Commented(Mark("zed", "file", "//"), ("language_models", "openai_compatible"), "Reconciler", VALUE)
MEMBERS = Members(
    Mark("claude-code", "file"), "env", "RECONCILE_ENV", {"env.A": "1", "helper": "cat 'x'", "env.B": "ü"}
)
FORMS: list[Form] = [COMMENTED, MEMBERS]

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a{b}", 'q"\\', "ü", "// no comment"])
KEYS = st.sampled_from(["a", "b", "theme", "ünï", "// x"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
STYLES: list[dict[str, Any]] = [
    {}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}, {"indent": 0},
    {"ensure_ascii": False},
]  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A settings file, some of which have the objects that ours goes into."""
    document = draw(st.dictionaries(KEYS, VALUES, max_size=3))
    if draw(st.booleans()):
        document["env"] = draw(st.dictionaries(KEYS, LEAVES, max_size=2))
        document["language_models"] = draw(
            st.sampled_from([{}, {"openai": {}}, {"openai_compatible": {}}, {"openai_compatible": {"Other": {"a": 1}}}])
        )
    text = json.dumps(document, **draw(st.sampled_from(STYLES))) + draw(st.sampled_from(["", "\n", "\n\n"]))
    text = draw(st.sampled_from(["", "\n", " "])) + text
    raw = (text.replace("\n", "\r\n") if draw(st.booleans()) else text).encode()
    return BOM + raw if draw(st.booleans()) else raw


@GENERATED
@given(files(), st.sampled_from(FORMS))
def test_what_went_in_comes_out_to_the_byte(text: bytes, form: Form) -> None:
    new = form.put(text)
    assert new != text
    assert form.put(new) == new
    assert form.take(new) == text
    assert form.take(text) == text


@GENERATED
@given(files(), st.sampled_from(FORMS))
def test_every_line_of_a_person_is_still_there(text: bytes, form: Form) -> None:
    kept = iter(form.put(text))
    assert all(byte in kept for byte in text), "their bytes, in their order"


@GENERATED
@given(files())
def test_the_file_says_what_it_said_and_what_we_say(text: bytes) -> None:
    before = json.loads(text.removeprefix(BOM))
    after = jsonc.read(COMMENTED.put(text).removeprefix(BOM).decode(), "file", comments=True).value
    assert after["language_models"]["openai_compatible"].pop("Reconciler") == VALUE
    strict = json.loads(MEMBERS.put(text).removeprefix(BOM))
    assert (strict["env"].pop("A"), strict["env"].pop("B"), strict.pop("helper")) == ("1", "ü", "cat 'x'")
    assert strict["env"].pop("RECONCILE_ENV").startswith("claude-code [")
    for said in (after, strict):
        for key in ("env", "language_models"):
            if key not in before:
                said.pop(key, None)
        if "openai_compatible" not in before.get("language_models", {"openai_compatible": 1}):
            said["language_models"].pop("openai_compatible", None)
        assert said == before


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_was_not_there_goes_again(form: Form) -> None:
    new = form.put(None)
    assert form.put(new) == new
    assert form.take(new) is None
    before = new.replace(b"{\n", b'{\n  "mine": 1,\n', 1)
    behind = new[:-2] + b'  "mine": 1\n}\n' if form is COMMENTED else new[:-3] + b',\n  "mine": 1\n}\n'
    for mine in (before, behind):
        left = form.take(mine)
        assert left is not None
        assert jsonc.read(left.decode(), "file", comments=form is COMMENTED).value == {"mine": 1}


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_file_stays_an_empty_file(form: Form) -> None:
    assert form.take(form.put(b"")) == b""


@pytest.mark.parametrize(
    "text",
    [
        '{\n  // why\n  "a": 1, // so\n  /* and */ "b": [1, 2,],\n}\n',
        "{ // first\n}",
        '/* a\n b */ {/* c */\n"x": {}, }',
        "{}",
        "{ }\n",
        "{\n\n}\n",
        "// only\n{}// end",
    ],
)
def test_comments_and_trailing_commas_stay(text: str) -> None:
    new = COMMENTED.put(text.encode())
    assert COMMENTED.take(new) == text.encode()
    assert COMMENTED.put(new) == new


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_port_changes_only_what_is_ours(form: Form) -> None:
    text = b'{\r\n\t"mine": {"x": 1},\r\n\t"env": {}\r\n}'
    other: Form
    if isinstance(form, Commented):
        other = Commented(form.mark, form.path, form.key, {"api_url": "http://127.0.0.1:2/v1"})
    else:
        other = Members(MEMBERS.mark, "env", "RECONCILE_ENV", {"env.A": "2"})
    new = other.put(form.put(text))
    assert new == other.put(text)
    assert form.take(new) == text


def refused(form: Form, text: str | bytes) -> str:
    with pytest.raises(Refused) as caught:
        form.put(text.encode() if isinstance(text, str) else text)
    (fault,) = caught.value.diagnostics
    return f"{fault.where}: {fault.summary} | {fault.hint}"


def test_a_key_of_a_person_is_not_overruled() -> None:
    said = refused(COMMENTED, '{\n "language_models": {\n  "openai_compatible": {\n   "Reconciler": {}}}}')
    assert "file:4:1: language_models.openai_compatible.Reconciler is set there already" in said
    assert "file:3:1: env.B is set there already" in refused(MEMBERS, '{\n"env": {\n "B": "mine"}}')
    assert "helper is set there already" in refused(MEMBERS, '{"helper": 1}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"language_models": null}', "`language_models` is no object"),
        ('{"a": 1', "a ',' is missing"),
        ("[]", "not an object"),
        ("", ""),
        ('{"a": 1} {', "something behind the end"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": ' + "[" * 2000, "nested deeper"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_its_place(text: str | bytes, words: str) -> None:
    if not words:
        assert COMMENTED.put(b"")
    else:
        assert words in refused(COMMENTED, text)


def test_where_no_object_is_the_text_to_paste_comes_along() -> None:
    assert '"api_url": "http://127.0.0.1:1/v1"' in refused(COMMENTED, '{"language_models": []}')
    assert '"RECONCILE_ENV"' not in refused(MEMBERS, '{"env": []}')
    assert '"A": "1"' in refused(MEMBERS, '{"env": []}')


def test_comments_are_refused_where_the_program_itself_would() -> None:
    assert "a comment" in refused(MEMBERS, '{\n  // no\n  "a": 1\n}')


def test_a_member_that_was_changed_by_hand_is_left_alone() -> None:
    new = MEMBERS.put(b'{"x": 1}')
    for changed in (new.replace(b'"A": "1"', b'"A": "mine"'), new.replace(b'"A": "1", ', b"")):
        assert "changed by hand" in refused(MEMBERS, changed)
        with pytest.raises(Refused):
            MEMBERS.take(changed)


def test_a_program_may_write_its_settings_anew() -> None:
    """As it does where a person changes one in its own dialogue: order and spaces may differ then."""
    for text in ('{"x": {"y": 1}}', '{"env": {"MINE": "1"}}', "{}"):
        document = json.loads(MEMBERS.put(text.encode()))
        document = {"new": True, **dict(reversed(document.items()))}
        document["env"] = dict(reversed(document["env"].items()))
        for style in STYLES:
            left = MEMBERS.take(json.dumps(document, **style).encode())
            assert left is not None
            assert json.loads(left) == {"new": True, **json.loads(text)}


@GENERATED
@given(st.text(st.sampled_from('{}[]":,/*\\ \n1at'), max_size=30))
def test_the_reader_takes_what_json_takes(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(Refused):
            jsonc.read(text, "file", comments=False)
        return
    assert jsonc.read(text, "file", comments=False).value == expected


def test_it_stays_where_another_program_moved_it() -> None:
    """One adds its own first line to a file that it finds; one sorts all lines."""
    text = b'{\n  "mine": {}\n}\n'
    first = COMMENTED.put(text).replace(b"{\n", b'{\n  "$schema": "x",\n', 1)
    assert COMMENTED.put(first) == first
    other = Commented(COMMENTED.mark, COMMENTED.path, COMMENTED.key, 1)
    assert other.put(first).startswith(b'{\n  "$schema": "x",\n  // >>> reconcile')
    assert COMMENTED.take(other.put(first)) == b'{\n  "$schema": "x",\n  "mine": {}\n}\n'


def test_it_moves_into_an_object_that_a_person_adds_later() -> None:
    """Two members of one name would hide each other."""
    new = COMMENTED.put(b'{\n  "a": 1\n}\n').replace(b'  "a": 1', b'  "a": 1,\n  "language_models": {"openai": {}}')
    moved = COMMENTED.put(new)
    assert jsonc.read(moved.decode(), "file", comments=True).value["language_models"].keys() == {
        "openai",
        "openai_compatible",
    }
    assert COMMENTED.take(moved) == b'{\n  "a": 1,\n  "language_models": {"openai": {}}\n}\n'
