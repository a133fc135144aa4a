"""Another reader, of YAML 1.2 and written by others, finds the same values in a text, or both refuse it.

`ONLY_WE_REFUSE`, `ONLY_WE_ACCEPT` and `ANOTHER_VALUE` are all the differences that are known and meant.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from reconciler.manifest.read import read

OFTEN = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class _Refused(Exception):
    pass


def ours(text: str) -> Any:
    document = read(text.encode(), "f")
    if document.faults:
        raise _Refused(str(document.faults[0]))
    return document.values


def theirs(text: str) -> Any:
    """What ruamel.yaml composes, with the things refused that the manifest language does not have."""
    try:
        with warnings.catch_warnings(action="ignore"):  # an anchor set twice, which is refused below
            node = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, ValueError, AssertionError) as error:
        raise _Refused(str(error)) from error
    if node is None:
        raise _Refused("empty")
    return _value(node, set())


def _value(node: Node, seen: set[int]) -> Any:
    if id(node) in seen or node.anchor:
        raise _Refused("an anchor or an alias")
    seen.add(id(node))
    tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if isinstance(node, MappingNode):
        keys = [_scalar(k.value, "str") if isinstance(k, ScalarNode) and not k.anchor else None for k, _ in node.value]
        if None in keys or "<<" in keys or len(set(keys)) < len(keys) or tag != "map":
            raise _Refused("a key or a tag")
        return {key: _value(value, seen) for key, (_, value) in zip(keys, node.value, strict=True)}
    if not isinstance(node, ScalarNode):
        if tag != "seq":
            raise _Refused("a tag")
        return [_value(item, seen) for item in node.value]
    return _scalar(node.value, tag if node.style is None else "str")


def _scalar(text: str, tag: str) -> Any:
    if re.search("[\0\ud800-\udfff]", text):
        raise _Refused("half a character")
    try:
        match tag:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text.replace("_", ""), 0 if re.match("[-+]?0[xo]", text) else 10)
            case "float":
                return float(text.replace("_", ""))
    except ValueError:  # 0b11 and such
        return text
    return text


def outcome(reader: Any, text: str) -> str:
    """Comparable: 1, 1.0 and true are different; the order of keys counts."""
    try:
        return repr(reader(text))
    except _Refused:
        return "refused"


LONG = "k" * 1100
ODD = [
    # plain words and where they end
    *("a: b#c", "a: b #c", "a:    # c\n", "a: b:", "a:b\n", "a: :b", "a: ?b", "a: -b", "a: ,b", "a: b,c", "a: ::1"),
    *("a: http://x:80/#y", "[http://x:80/, b]", "{a: http://x}", "{a:1}", "[a:1]", "[a: b, c]", "[?x]", "{?x: 1}"),
    *("a: x%", "a: %x", "a: @x", "a: `x`", "a: {{ x }}", "a: b]", "a: }", "a: x y: z", "a: 1:2", "a: b: c", "a b: 1"),
    *("a: x\n  y\n\n  z\n", "a: x\ny\n", "a: x\n y: z\n", "a\nb: 1\n", "a: 1\n  b: 2\n", "a: é\u00a0😀 𝒳\n", "é😀: ☃"),
    # what they mean
    *("a: NO", "a: yes", "a: on", "a: y", "a: ~", "a: null", "a: Null", "a: nULL", "a: true", "a: TRUE"),
    *("a: tRue", "a: false", "a: 0", "a: -0", "a: 010", "a: +1", "a: -1", "a: 1_000", "a: 0x1F", "a: 0o17"),
    *("a: 0o8", "a: 0x", "a: 0b11", "a: -0x1F", "a: 1.", "a: .5", "a: 1.5", "a: 1.5.3", "a: 1e3", "a: 1E-3"),
    *("a: 1e", "a: .", "a: +", "a: -", "a: 1._5", "a: 0_1", "a: __1", "a: =", "a: <<", "a: .iNf", "a: -.nan"),
    *("a: 2026-01-01", "a: 2026-01-01 10:00:00", "a: 12:30:45", "a:", "a: ''", "~: 1", "1: 1", "true: 1", "'': 1"),
    *("%YAML 1.2\n---\na: 010\n", "%YAML 1.2\n---\na: NO\n", "%YAML 2.0\n---\na\n", "%YAML 1.3\n---\na\n"),
    # quotes and escapes
    *("a: 'it''s'", "a: 'x\n\n  y'", 'a: "x\\\n   y"', 'a: "b\n\n\n   c  \n d"', "a: 'b\n  c'  # d\n", "a: 'x\ty'"),
    *('a: "\\/\\e\\a\\_\\N\\L\\P\\x7f\\t\\"\\\\"', 'a: "\\U0001f600"', 'a: "\\q"', 'a: "C:\\Users"', 'a: "\\ud800"'),
    *('a: "\\ud83d\\ude00"', 'a: "b"c', "a: 'b' 'c'", "a: 'b", 'a: "b', "a: 'b'#c", "'a b': 1", '"a": 1', 'a: "\\0"'),
    # block text
    *(
        f"a: {mark}\n  x\n   y\n\n  z\n\n"
        for mark in ("|", "|-", "|+", ">", ">-", ">+", "|2", ">2-", "|1", "|+1", ">-1")
    ),
    *(
        "a: |3\n  x\n",
        "a: |0\n x\n",
        "a: |+-\n x\n",
        "a: |x\n y\n",
        "a: | # c\n  x\n",
        "a: |\nb: 1\n",
        "a: |\n\n\n  x\n",
    ),
    *("a: |\n  \n", "a: >-\n", "a: >\n x\n  y\n z\n", "a: |\n x\n#c\nb: 1\n", "a: |\n    x\n  y\n", "a: |\r\n  x\r\n"),
    *("a: >\n\n  x\n\n\n  y\n", "a: |\n  x\n # c\n", "a: |\n  é😀\n", "a: |\n  x", "a: |+\n  x", "- |\n x\n- y\n"),
    *("a: |\n  x\ty\n", "a: >\n  x\n  \ty\n", "a: |\n\tx\n"),
    # lists and mappings
    *(
        "- - a\n  - b\n- c\n",
        "-\n  a: 1\n- b: 2\n",
        "a:\n- b\n- c\n",
        "- \n- a\n",
        "a: - b\n",
        "a:\n- b\nc\n",
        "a: 1\n- b",
    ),
    *("a: [\n1,\n2,\n]\n", "a: {x: 1,}", "a: [,]", "a: [a,,b]", "[a", "{a: 1", "a: [b}", "[]: 1", "{a, b: c}", "{a: }"),
    *('{"a":1}', "{'a':1}", '{"a":"b","c":[1,{"d":null}]}', "{a: b}: c", "[a]: b", "a: [b, c]: d", "{a: b\n  c: d}"),
    *(
        "? a\n: b\n",
        "? a\n",
        "? a\n? b\n",
        "? |\n  x\n: y\n",
        "? 'a'\n: - 1\n",
        "? - a\n: b\n",
        "{? a : b}",
        "[? a : b]",
    ),
    *(f"{LONG}: 1", f"? {LONG}\n: 1\n", f'{{"{LONG}": 1}}', f"a: {LONG}", f'a: "{LONG}"', f"[{LONG}: 1]"),
    # documents, line ends, tabs, comments
    *(
        "",
        "# c\n\n",
        "---",
        "--- a\n",
        "--- |\n x\n",
        "a: b\n...\n",
        "a: b\n---\n",
        "a: b\n... c\n",
        "--- {a: 1}\n",
        "...\n",
    ),
    *(
        "a: 1\r\nb: 2\r\n",
        "a: 1\rb: 2\r",
        "\ta: 1\n",
        "a:\n\tb: 1\n",
        "a:\n  b: 1\n\tc: 2\n",
        "a: [\n\tb]\n",
        "#\ta\na: 1",
    ),
    *(
        "<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> x\n",
        "a: 1\n# \x07\n",
        "a: \x7f\n",
        "\ufeffa: 1\n",
        "a: 1 # é\nb: 2 #",
    ),
    # what the manifest language does not have
    *(
        "a: &x 1",
        "a: *x",
        "a: &x 1\nb: *x\n",
        "<<: 1",
        "a: !x {}",
        "a: !x []",
        "a: 1\na: 2\n",
        "&x a: 1",
        "a: !a!b c",
        "*x",
    ),
]

ONLY_WE_REFUSE = {
    # line ends of YAML 1.1, and marks that nobody sees: an editor does not show what they do
    **dict.fromkeys(
        ("a\u2028: 1", "a: 'x\u2029y'", "a: 'x\x85y'", "a: \ufeffb", "\ufeff\ufeffa: 1"), "the character U+"
    ),
    # libyaml wants quotes here
    **dict.fromkeys(("[::1]", "{a: ::1}", "{: a}"), "expected node content"),
    ": a": "expected key",
    "%FOO x\n---\na: 1\n": "unknown directive",
    # tags say nothing that quotes do not
    **dict.fromkeys(("a: !!str 1", "a: !!int '1'", "a: ! 1", "!!map {}", "a: !x b", "!!str a: 1"), "the tag"),
    "%TAG ! x\n---\na: 1\n": "%TAG",
    # numbers that cannot be kept
    **dict.fromkeys(("a: .inf", "a: +.inf", "a: .NaN", "a: 1e999"), "not a finite number"),
    f"a: {'9' * 65}": "64 digits",
}

# Tabs after a word are spaces to YAML 1.2, to libyaml and to every editor.
ONLY_WE_ACCEPT = {
    **{text: {"a": "b"} for text in ("a:\tb", "a: b\t", "a: b\t# c\n")},
    "a:\t\n  b: 1\n": {"a": {"b": 1}},
    "['a':1]": [{"a": 1}],
    "a: |# c\n  x\n": {"a": "x\n"},
}

ANOTHER_VALUE = {
    "a: .5e3": ({"a": 500.0}, {"a": ".5e3"}),  # YAML 1.2 agrees with us
    "a: ._5": ({"a": "._5"}, {"a": 0.5}),
    "a: -_1": ({"a": "-_1"}, {"a": -1}),
}


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_mean_the_same_to_both(text: str) -> None:
    assert outcome(ours, text) == outcome(theirs, text)


@pytest.mark.parametrize("text", [text for text in ODD if text != "a: [\n\tb]\n"])
def test_without_libyaml_odd_texts_mean_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml._yaml", None)
    assert outcome(ours, text) == outcome(theirs, text)


@pytest.mark.parametrize(("text", "word"), ONLY_WE_REFUSE.items())
def test_what_only_we_refuse_has_a_reason(text: str, word: str) -> None:
    assert outcome(theirs, text) != "refused"
    with pytest.raises(_Refused, match=re.escape(word)):
        ours(text)


@pytest.mark.parametrize(("text", "value"), ONLY_WE_ACCEPT.items())
def test_what_only_we_accept_has_one_meaning(text: str, value: Any) -> None:
    assert outcome(theirs, text) == "refused"
    assert ours(text) == value


@pytest.mark.parametrize(("text", "values"), ANOTHER_VALUE.items())
def test_a_value_that_differs_is_known_to(text: str, values: tuple[Any, Any]) -> None:
    assert (ours(text), theirs(text)) == values


# -- texts made at random -------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("a", "b c", "é😀", "x:y", "http://x/#y", "-1", "1.5", "0x1f", "NO", "true", "~", "", "-", "?", "[", "{"),
        *("#", "it's", "a: b", " a", "a ", "&x", "*x", "!t", "|", ">", "%", "@", "=", "<<<", "\n", "a\nb"),
        *("a\n\n b\n", "\\", '"', "2026-01-01"),
    ]
) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff\ufffe\uffff"), max_size=9
)
PLAIN = st.from_regex(r"(?![-+]?\.)[a-zé😀0-9+-][a-zé😀0-9.:/+~-]{0,8}[a-z0-9]", fullmatch=True)
COMMENT = st.sampled_from(["", "", "", " # c: d", "  #é", "\n\n# x\n"])


@st.composite
def block_text(draw: st.DrawFn, indent: str) -> str:
    lines = draw(
        st.lists(st.sampled_from(["x", "é y", "  more", "", "# no", "- a", "k: v", "'q'", "...", "a\tb"]), max_size=5)
    )
    head = draw(st.sampled_from(["|", ">"])) + draw(st.sampled_from(["", "-", "+"]))
    return (
        head + draw(st.sampled_from(["", " # c"])) + "".join(f"\n{indent}  {line}" if line else "\n" for line in lines)
    )


@st.composite
def node(draw: st.DrawFn, indent: str = "", depth: int = 0) -> str:
    """A value as it stands behind its key or dash, in one of the many ways of YAML to write it."""
    way = draw(st.integers(0, 9 if depth < 3 else 5))
    if way <= 1:
        return draw(PLAIN)
    if way == 2:
        return json.dumps(draw(WORDS), ensure_ascii=False)
    if way == 3:
        return "'" + draw(WORDS).replace("\n", " ").replace("'", "''") + "'"
    if way == 4:
        return draw(block_text(indent))
    if way == 5:
        return draw(st.sampled_from(["", "[]", "{}", "[1, b]", '{"a":1,"b":[]}', "{a, b: c,}", "[a: b, 'c': d]", "~"]))
    below = indent + draw(st.sampled_from(["  ", "    ", " "]))
    items = draw(st.lists(node(below, depth + 1), min_size=1, max_size=3))
    if way <= 7:
        return "".join(f"{draw(COMMENT)}\n{below}-{draw(st.sampled_from([' ', '   ']))}{item}" for item in items)
    names = draw(st.lists(PLAIN | WORDS.map(json.dumps), min_size=len(items), max_size=len(items)))
    lead = draw(st.sampled_from(["{}:", "{}  :", "? {}\n" + below + ":"]))
    return "".join(f"{draw(COMMENT)}\n{below}{lead.format(n)} {item}" for n, item in zip(names, items, strict=True))


PIECES = st.lists(
    st.sampled_from(
        [
            *("a", "b: ", "c:\n", "  ", "    ", "\n", "\n\n", "- ", "x y", "|\n", ">-\n", "|2\n", "  text\n", "#no"),
            *(" # c\n", "'q'", '"d\\n"', "[1, b]", "{a: 1}", ", ", "é", "😀\u00a0", "\r\n", "  y: 2\n", "? "),
            *("? k\n: v\n", " - z\n", ":", '"a\\\n  b"', "'a\n\n b'", '{"a":1}', "[a,b: c]", "[", "]", "{", "}"),
            *("---", "...", "&x", "*x", "%", "@", "'", '"'),
        ]
    ),
    max_size=12,
).map("".join)


def same_or_known(text: str) -> None:
    we, they = outcome(ours, text), outcome(theirs, text)
    if we == "refused" != they:  # the differences that the tables above name, wherever they stand
        assert re.search("expected key|node content|the tag|finite|64 digits", str(read(text.encode(), "f").faults[0]))
    elif they == "refused" != we:
        assert re.search("\t|['\"]:|[|>][-+0-9]*#", text)
    else:
        assert we == they


@given(node())
@example("\n  a: .5\n  'b': |\n    x")
@OFTEN
def test_every_way_to_write_a_value_means_the_same_to_both(text: str) -> None:
    same_or_known(f"top:{text if text.startswith(chr(10)) else ' ' + text}\n")


@given(PIECES)
@OFTEN
def test_pieces_of_yaml_in_any_order_mean_the_same_to_both(text: str) -> None:
    same_or_known(f"k: {text}")
    same_or_known(f"k:\n  {text}\n")


@given(PIECES | st.text(max_size=30))
@OFTEN
def test_without_libyaml_nothing_reads_as_something_else(text: str) -> None:
    """The slower parser refuses a few things more (tabs behind words); what it reads has the same values and places."""
    fast = read(text.encode("utf-8", "surrogatepass"), "f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yaml._yaml", None)
        pure = read(text.encode("utf-8", "surrogatepass"), "f")
    assert pure.faults or not fast.faults
    if not pure.faults:
        assert repr(pure.values) == repr(fast.values)
        assert pure.keys.spots == fast.keys.spots
