"""Several files become one document in which every value, and every fault, has the place that it came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.core.diagnostics import Refused
from reconciler.manifest import include
from reconciler.manifest.include import Disk, Gathered, Kept, gather
from reconciler.manifest.read import Document, read


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(**files: str) -> Gathered:
    """Write files (`team__base` is team/base.yaml) and gather stack.yaml."""
    for name, text in files.items():
        path = Path(name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return gather(Path("stack.yaml"), Disk())


def right(**files: str) -> Document:
    document = put(**files).document
    assert document.faults == []
    return document


def faults(**files: str) -> list[str]:
    return [f"{d.where}: {d.path}: {d.summary} ({d.hint})" for d in put(**files).document.faults]


def files_of(gathered: Gathered) -> list[str]:
    return [os.path.relpath(path) for path in gathered.texts]


ROOT = "version: 1\ninclude: [team/*.yaml]\nmodels:\n  chat: {source: file:a}\n"


def test_a_manifest_alone_is_what_it_says(folder: Path) -> None:
    text = (
        "version: 1\nname: box\nmodels:\n  chat: {source: file:a, aliases: [x]}\npolicy: [p.yaml]\ngateway: {port: 1}\n"
    )
    gathered = put(stack=text)
    alone = read(text.encode(), "stack.yaml")
    assert gathered.texts == {folder / "stack.yaml": text.encode()}
    assert (gathered.document.values, gathered.document.keys, gathered.document.places) == (
        alone.values,
        alone.keys,
        alone.places,
    )


def test_sections_are_merged_by_name_and_each_value_keeps_its_place() -> None:
    document = right(
        stack=ROOT + "gateway: {port: 1}\npolicy: [a.yaml]\n",
        team__base="version: 1\nmodels:\n  embed:\n    source: file:b\n"
        "gateway: {host: '::1'}\npolicy: [b.yaml, c.yaml]\n",
        team__x="engines:\n  e: {type: embedded}\n",
    )
    assert document.values == {
        "version": 1,
        "models": {"chat": {"source": "file:a"}, "embed": {"source": "file:b"}},
        "gateway": {"port": 1, "host": "::1"},
        "policy": ["a.yaml", "b.yaml", "c.yaml"],
        "engines": {"e": {"type": "embedded"}},
    }
    assert str(document.where(("models", "chat", "source"))) == "stack.yaml:4:18"
    assert str(document.where(("models", "embed"), key=True)) == "team/base.yaml:3:3"
    assert str(document.where(("models", "embed", "source"))) == "team/base.yaml:4:13"
    assert str(document.where(("gateway", "host"), key=True)) == "team/base.yaml:5:11"
    assert str(document.where(("policy", 2))) == "team/base.yaml:6:18"
    assert str(document.where(("models",), key=True)) == "stack.yaml:3:1"


def test_files_are_read_once_in_the_order_in_which_they_are_written() -> None:
    gathered = put(
        stack="version: 1\ninclude: [z.yaml, team/*.yaml, z.yaml]\n",
        z="include: [team/b.yaml]\n",
        team__b="include: [deep/*/*.yaml, ../a.yaml]\nmodels: {}\n",
        team__a="models: {}\n",
        team__deep__one__y="models: {}\n",
        a="models: {}\n",
    )
    assert gathered.document.faults == []
    assert files_of(gathered) == [
        "stack.yaml",
        "z.yaml",
        "team/b.yaml",
        "team/deep/one/y.yaml",
        "a.yaml",
        "team/a.yaml",
    ]


def test_a_pattern_passes_over_hidden_files_and_the_file_that_says_it() -> None:
    gathered = put(
        **{".hidden": "models: {}", "team/.x": "x: ["}, stack="version: 1\ninclude: ['*.yaml', t?am/*.yaml, none/*]\n"
    )
    assert gathered.document.faults == []
    assert files_of(gathered) == ["stack.yaml"]


def test_wildcards_in_the_name_of_the_manifests_folder_are_none(tmp_path: Path) -> None:
    odd = tmp_path / "a[b]*"
    odd.mkdir()
    (odd / "stack.yaml").write_text("include: [x*.yaml, 'x[1].yaml']\n")
    (odd / "x[1].yaml").write_text("name: x\n")
    assert gather(odd / "stack.yaml", Disk()).document.values == {"name": "x"}


def test_the_same_name_twice_is_told_with_both_places() -> None:
    team = "models:\n  chat: {source: file:b}\ngateway:\n  port: 2\nname: b\ndata_root: x\n"
    assert faults(stack=ROOT + "gateway: {port: 2}\nname: b\n", team__base=team) == [
        f"team/base.yaml:{line}: {path}: {path} is also in {other}"
        " (remove one, or say `override: true` in the one that shall win)"
        for line, path, other in [
            ("2:3", "models.chat", "stack.yaml:4:3"),
            ("4:3", "gateway.port", "stack.yaml:5:11"),
            ("5:1", "name", "stack.yaml:6:1"),
        ]
    ]


def test_every_version_must_be_the_same() -> None:
    (fault,) = faults(stack=ROOT, team__a="version: 1\n", team__b="version: true\n")
    assert fault == "team/b.yaml:1:1: version: version is also in stack.yaml:1:1 (both must be the same)"


@pytest.mark.parametrize("winner", ["stack", "team"])
def test_an_overriding_entry_is_laid_over_the_other_wherever_it_is(winner: str) -> None:
    over = "  chat: {override: true, context: 8k, aliases: [b], cache_type: {k: q8_0}}\n"
    base = "  chat: {source: file:a, context: 4k, aliases: [a, c], cache_type: {k: f16, v: f16}}\n"
    first, second = (over, base) if winner == "stack" else (base, over)
    document = right(stack="version: 1\ninclude: [team/*.yaml]\nmodels:\n" + first, team__x="models:\n" + second)
    assert document.values["models"]["chat"] == {
        "override": True,
        "source": "file:a",
        "context": "8k",
        "aliases": ["b"],
        "cache_type": {"k": "q8_0", "v": "f16"},
    }
    won, lost = ("stack.yaml:4", "team/x.yaml:2") if winner == "stack" else ("team/x.yaml:2", "stack.yaml:4")
    for key, place in [("source", lost), ("context", won), ("aliases", won)]:
        assert str(document.where(("models", "chat", key))).startswith(place + ":")
    assert str(document.where(("models", "chat"), key=True)).startswith(won)
    assert str(document.where(("models", "chat", "cache_type", "v"))).startswith(lost)
    assert str(document.where(("models", "chat", "cache_type", "k"))).startswith(won)


def test_a_file_or_the_gateway_section_may_override_as_a_whole() -> None:
    document = right(
        stack="version: 1\ninclude: [a.yaml, b.yaml]\nname: x\n"
        "gateway: {port: 1, prefix: /a}\nmodels: {m: {source: s}}\n",
        a="override: true\nname: y\nmodels: {m: {context: 1}}\n",
        b="gateway: {override: true, port: 2}\n",
    )
    assert document.values == {
        "version": 1,
        "name": "y",
        "gateway": {"port": 2, "prefix": "/a"},
        "models": {"m": {"source": "s", "context": 1}},
    }


def test_two_that_override_the_same_are_refused() -> None:
    over = "models:\n  chat: {override: true}\n"
    (fault,) = faults(stack=ROOT, team__a=over, team__b=over)
    assert fault == (
        "team/b.yaml:2:3: models.chat: models.chat is also in team/a.yaml:2:3"
        " (both say `override: true`; only one can win)"
    )


def test_an_override_is_true_or_false() -> None:
    assert faults(stack=ROOT, team__a="override: please\ngateway: {override: 1}\n") == [
        "team/a.yaml:1:11: override: must be true or false ()",
        "team/a.yaml:2:21: gateway.override: must be true or false ()",
    ]


def test_overriding_nothing_is_no_fault() -> None:
    text = "override: true\ngateway: {override: true, port: 1}\nmodels: {a: {override: true, source: x}}\n"
    entry = {"override": True, "source": "x"}  # an entry keeps it: it is a key of its type
    assert right(stack=text).values == {"gateway": {"port": 1}, "models": {"a": entry}}


@pytest.mark.parametrize(
    ("root", "other", "expected"),
    [
        ("include: [gone.yaml]\n", "", "stack.yaml:1:11: : there is no file gone.yaml"),
        ("include: [other.yaml]\n", "include: [stack.yaml]\n", "other.yaml:1:11: : the file includes itself (it goes round: stack.yaml → other.yaml → stack.yaml)"),  # noqa: E501
        ("include: other.yaml\n", "", "stack.yaml:1:10: include: must be a list"),
        ("include: [7]\n", "", "stack.yaml:1:11: include.0: must be a file name"),
        ("include: ['a/**/b.yaml']\n", "", "stack.yaml:1:11: include.0: `**` is not known"),
        ("include: [folder]\n", "", "stack.yaml:1:11: : folder cannot be read: it is not a file"),
        ("include: [other.yaml]\n", "- a\n", "other.yaml:1:1: : must be a mapping"),
        ("include: [other.yaml]\n", "a: b: c\n", "other.yaml:1:5: : not readable"),
        ("include: [other.yaml]\n", "", "other.yaml:1:1: : the file is empty"),
        ("include: [other.yaml]\nmodels: {}\n", "models: [a]\n", "other.yaml:1:1: models: must be a mapping"),
        ("include: [other.yaml]\nmodels:\n", "models: {}\n", "stack.yaml:2:1: models: must be a mapping"),
        ("include: [other.yaml]\npolicy: [a]\n", "policy: a\n", "other.yaml:1:1: policy: must be a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_included_has_a_place(root: str, other: str, expected: str) -> None:
    Path("folder").mkdir()
    (fault,) = faults(stack=root, other=other)
    assert fault.startswith(expected)


def test_faults_of_all_files_come_in_one_run() -> None:
    found = faults(stack="include: [a.yaml, gone.yaml]\nx: 1\nx: 2\n", a="y: [\n")
    assert [fault.split(":")[0] for fault in found] == ["stack.yaml", "a.yaml", "stack.yaml"]


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_root_that_cannot_be_read_is_refused(kind: str) -> None:
    if kind == "folder":
        Path("stack.yaml").mkdir()
    with pytest.raises(Refused, match=r"there is no|it is not a file") as caught:
        gather(Path("stack.yaml"), Disk())
    assert "-f FILE" in caught.value.diagnostics[0].hint


def test_files_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"team__f{i}": "models: {}\n" for i in range(include.MAX_FILES + 5)}
    (fault,) = faults(stack=ROOT, **many)
    assert "more than 200 files" in fault
    monkeypatch.setattr(include, "MAX_TOTAL", 200)
    (fault,) = faults(stack=ROOT)
    assert "more than 200 bytes" in fault


def test_a_long_chain_of_includes_ends_at_the_bound() -> None:
    (fault,) = faults(**{f"f{i}": f"include: [f{i + 1}.yaml]\n" for i in range(300)}, stack="include: [f0.yaml]\n")
    assert "more than 200 files" in fault


def test_a_watcher_learns_which_folders_matter(folder: Path) -> None:
    (folder / "team").mkdir()
    disk = Disk()
    Path("stack.yaml").write_text("include: [team/*.yaml, later/*/*.yaml, ../x/gone.yaml]\n")
    gather(Path("stack.yaml"), disk)
    assert disk.folders == {folder, folder / "team", folder.parent}


def same(a: Gathered, b: Gathered) -> bool:
    return (a.document, list(a.texts.items())) == (b.document, list(b.texts.items()))


def test_a_kept_generation_is_put_together_as_it_was(folder: Path) -> None:
    then = put(
        stack="version: 1\ninclude: [team/*.yaml, a.yaml, '*/x?.yaml']\nmodels: {a: {source: x}}\n",
        a="include: [team/sub/*.yaml]\n",
        team__one="models: {b: {source: y}}\n",
        team__sub__x="models: {c: {source: z}}\n",
        other__x1="models: {a: {override: true, source: w}}\n",
    )
    assert len(then.texts) == 5
    for path in then.texts:
        path.unlink()
    (folder / "team" / "new.yaml").write_text("x: [")
    assert same(gather(folder / "stack.yaml", Kept(then.texts)), then)


# -- nothing at all makes it stumble --------------------------------------------------------------------------------

LEAVES = st.sampled_from(["1", "true", "x", "[a, b]", "{k: 1}", "{override: true, k: {a: 1}}", "", "{override: 2}"])
SECTION = st.dictionaries(st.sampled_from(["a", "b", "override"]), LEAVES, max_size=3).map(
    lambda d: "{" + ", ".join(f"{k}: {v or '~'}" for k, v in d.items()) + "}"
)
KEYS = ["version", "name", "models", "gateway", "policy", "override", "include", "odd"]
INCLUDES = st.lists(st.sampled_from(["a.yaml", "'*.yaml'", "d/b.yaml", "d/*.yaml", "../*.yaml"]), max_size=3).map(
    lambda names: f"[{', '.join(names)}]"
)
TEXTS = st.dictionaries(st.sampled_from(KEYS), LEAVES | SECTION | INCLUDES, max_size=5).map(
    lambda d: "".join(f"{k}: {v}\n" for k, v in d.items())
)


@given(st.fixed_dictionaries({"stack.yaml": TEXTS, "a.yaml": TEXTS, "d/b.yaml": TEXTS, "d/c.yaml": TEXTS}))
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_files_give_a_document_in_which_everything_has_a_place(files: dict[str, str]) -> None:
    kept = {Path("/srv") / name: text.encode() for name, text in files.items()}
    gathered = gather(Path("/srv/stack.yaml"), Kept(kept))
    document = gathered.document
    for path in paths_of(document.values) if document.values is not None else ():
        assert path in document.places
    assert same(gather(Path("/srv/stack.yaml"), Kept(gathered.texts)), gathered)


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in inner for path in paths_of(item, (*here, key)))]
