"""What is in the language but cannot be carried out yet is accepted when it is read, and denied where it is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import pytest

from reconciler.core import planner
from reconciler.core.diagnostics import Exit, Refused, Where
from reconciler.core.ids import Ref
from reconciler.core.plan import Op, Plan
from reconciler.core.section import Later, Section
from reconciler.core.state import Denial, World
from reconciler.kinds.engine.spec import MlxEngine
from reconciler.kinds.gateway.spec import GatewaySection
from reconciler.manifest import later
from reconciler.manifest.later import unsupported
from reconciler.manifest.resolve import denials, resolve
from tests.core.simulation import RULES, Machine
from tests.manifest.helper import WHOLE, meant, read_text


@pytest.mark.parametrize(
    ("text", "line", "column", "ref", "summary"),
    [
        ("gateway:\n  workers: 2", 3, 3, "gateway/main", "`workers`"),
        ("limits:\n  disk: 50%", 3, 3, "manifest/limits.disk", "`disk`"),
        ("policy: [p.yaml]", 2, 1, "manifest/policy", "`policy`"),
    ],
)  # fmt: skip
def test_a_key_that_comes_later_is_denied_at_its_place(
    text: str, line: int, column: int, ref: str, summary: str
) -> None:
    found = denials(read_text(f"version: 1\n{text}\n"))
    denial = found.pop(Ref.parse(ref))
    assert denial == Denial(f"{summary} is not yet supported here", Where("stack.yaml", line, column))
    # A model's bytes are left alone with its server; that is told once.
    assert found == ({Ref("model", "a"): Denial("")} if ref == "server/a" else {})


def test_each_entry_of_a_section_that_comes_later_is_denied() -> None:
    found = denied("version: 1\nmcp_servers:\n  m: {command: x}\n  n: {command: y}\n")
    assert found == [
        (3, "mcp/m", "mcp_servers are not yet supported here"),
        (4, "mcp/n", "mcp_servers are not yet supported here"),
    ]


@pytest.fixture
def no_body_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second key of the gateway that comes later; today there is one."""
    limit = GatewaySection.model_fields["body_limit"]
    monkeypatch.setattr(limit, "metadata", [*limit.metadata, Later()])
    later._fields.cache_clear()
    yield
    monkeypatch.undo()
    later._fields.cache_clear()


def test_several_keys_of_one_entry_are_told_together_at_the_last_of_them(no_body_limit: None) -> None:
    text = "version: 1\ngateway:\n  body_limit: 1MiB\n  workers: 2\n"
    assert denied(text) == [
        (4, "gateway/main", "`body_limit` is not yet supported here; `workers` is not yet supported here")
    ]


@pytest.fixture
def no_mlx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine whose version comes later; today there is none of which anything does."""
    version = MlxEngine.model_fields["version"]
    monkeypatch.setattr(version, "metadata", [*version.metadata, Later()])
    later._fields.cache_clear()
    yield
    monkeypatch.undo()
    later._fields.cache_clear()


def test_what_needs_a_denied_engine_is_denied_where_it_names_it(no_mlx: None) -> None:
    text = """\
version: 1
engines:
  mac: {type: mlx, version: '1'}
models:
  a: {source: file:x, engine: mac}
  b: {source: file:y}
"""
    assert denied(text) == [(3, "engine/mac", "`version` is not yet supported here"), (5, "server/a", MAC)]
    resources = {str(ref) for ref in resolve(read_text(text), "cp311")}
    assert resources == {"engine/embedded", "model/b", "server/b", "gateway/main"}


MAC = "it needs engine/mac"
PARTLY = """\
version: 1
models:
  a: {source: file:x}
  b: {source: file:y, mcp: [m]}
mcp_servers: {m: {command: x}}
"""


WITHOUT = PARTLY.replace(", mcp: [m]", "").replace("mcp_servers: {m: {command: x}}\n", "")


def planned_for(text: str, machine: Machine) -> Plan:
    manifest = read_text(text)
    desired = dict(resolve(manifest, "cp311"))
    return planner.plan(replace(machine.world(desired), denied=denials(manifest)), RULES)


def test_a_denied_model_and_its_server_are_left_alone_and_told_in_the_plan() -> None:
    machine = Machine()
    machine.converge(dict(resolve(read_text(WITHOUT), "cp311")))
    plan = planned_for(PARTLY, machine)
    other, change = plan.changes
    assert (str(other.ref), other.op) == ("mcp/m", Op.DENIED)
    assert (str(change.ref), change.op, change.actions) == ("server/b", Op.DENIED, ())
    assert str(change.where) == "stack.yaml:4:23"
    assert Ref("model", "b") not in [same.ref for same in plan.same]
    assert planner.runnable(plan, World()) == []


def test_a_plan_with_something_denied_is_refused_with_a_code_of_its_own() -> None:
    with pytest.raises(Refused) as caught:
        planner.refuse_denied(planned_for(PARTLY, Machine()))
    assert caught.value.exit_code is Exit.DENIED == 3
    _, diagnostic = caught.value.diagnostics
    assert str(diagnostic) == "stack.yaml:4:23: error: server/b: `mcp` is not yet supported here"
    planner.refuse_denied(planned_for(WITHOUT, Machine()))


def test_what_is_denied_is_not_looked_at_by_the_rules_of_any_kind() -> None:
    plan = planned_for("version: 1\nmcp_servers: {p: {command: x}}\npolicy: [p.yaml]\n", Machine())
    assert [(str(c.ref), c.op) for c in plan.changes if c.op is Op.DENIED] == [
        ("manifest/policy", Op.DENIED),
        ("mcp/p", Op.DENIED),
    ]


def denied(text: str) -> list[tuple[int, str, str]]:
    """(line, resource, sentence) of each denial that is told."""
    found = denials(read_text(text)).items()
    return [(d.where.line, str(ref), d.reason) for ref, d in found if d.reason and d.where is not None]


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: {source: file:x, quant: ~, mmproj: auto, lora: [], start: always, force: false}}",
        "models: {a: {source: file:x, priority: 0, memory: {}, mcp: [], draft: ~, idle_timeout: 600s}}",
        "models: {a: {source: file:x, when: host.cpu > 2, override: true, protect: true, drift: warn}}",
        "engines: {e: {type: llama.cpp, path: x, source: path}}",
        "engines: {e: {type: llama.cpp, version: b1, variant: vulkan, sha256: %s}}" % ("a" * 64),
        "engines: {e: {type: llama.cpp, url: 'https://h/x.zip', sha256: %s}}" % ("a" * 64),
        "engines: {e: {type: llama.cpp, source: pypi, package: x, version: '1'}}",
        "{providers: {}, routes: {}, mcp_servers: {}, policy: []}",
        "gateway: {cors: {origins: []}, timeouts: {connect: 5000ms, idle: 2m}, body_limit: 64MiB, workers: auto}",
        "gateway: {api_keys: [{name: a, key: 'keyring:a', allow: ~, rate: ~}], override: true}",
        "limits: {memory: auto, disk: 80%, downloads: 7, bandwidth: none}",
        "{override: true, on_failure: rollback}",
    ],
)
def test_a_default_that_is_written_out_and_all_that_is_there_is_accepted(text: str) -> None:
    whole = f"{{version: 1, {text[1:]}" if text.startswith("{") else f"version: 1\n{text}\n"
    manifest = read_text(whole)
    assert list(unsupported(manifest.stack)) == []
    assert denials(manifest) == {}


def test_of_the_whole_language_exactly_the_marked_keys_come_later() -> None:
    found = {".".join(map(str, path)) for path, _ in unsupported(meant(WHOLE))}
    assert found == {
        "models.chat.mcp", "mcp_servers.files", "mcp_servers.search", "policy",
    }  # fmt: skip


class Inner(Section):
    word: Annotated[Literal["now", "then", "soon"], Later("then", "soon")] = "now"
    size: Annotated[int, Later(lambda size: size > 5, says="a large `size`")] = 9


class Outer(Section):
    any: Annotated[int | None, Later()] = None
    inner: Inner = Inner(size=1)
    many: dict[str, Inner] = {}
    list: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        (Outer(), []),
        (Outer(any=None), []),
        (Outer(any=0), [(("any",), "`any` is not yet supported here")]),
        (Outer(inner=Inner(word="then", size=5)), [(("inner", "word"), "`word: then` is not yet supported here")]),
        (Outer(inner=Inner()), [(("inner", "size"), "a large `size` is not yet supported here")]),
        (
            Outer(many={"x": Inner(word="soon", size=1)}, list=(Inner(size=2), Inner(size=7))),
            [
                (("many", "x", "word"), "`word: soon` is not yet supported here"),
                (("list", 1, "size"), "a large `size` is not yet supported here"),
            ],
        ),
    ],
)
def test_a_mark_alone_decides(outer: Outer, expected: list[object]) -> None:
    found: Iterator[object] = unsupported(outer)  # type: ignore[arg-type]
    assert list(found) == expected
