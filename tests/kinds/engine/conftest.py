"""A data root with its tools, a server of releases, and an engine that is installed from it step by step."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.app import tools_for
from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Change, Phase
from reconciler.core.state import Declared, HostFacts, Observation, World
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.rules import EngineState
from reconciler.kinds.engine.spec import CommandEngine, EngineSpec, LlamaCppEngine, MlxEngine, resolve
from reconciler.kinds.registry import KINDS
from reconciler.store.ledger import Ledger
from tests.support.releases import Releases

ENGINE = Ref("engine", "llama")
HOST = HostFacts(os="linux", arch="x86_64")


class Crash(BaseException):
    """What the process ends of, at a given effect."""


class Cut(Effects):
    """Effects that can be cut off: before the one of that number from now on."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.seen: list[str] = []

    def before(self, name: str, subject: str) -> None:
        self.seen.append(name)
        if self.left is not None:
            if self.left == 0:
                raise Crash(name)
            self.left -= 1


@dataclass
class Bench:
    """An engine as the loop would carry it out: look, plan, act, as often as there is something to do."""

    tools: Tools
    effects: Cut
    releases: Releases
    host: HostFacts = HOST
    verbs: list[str] = field(default_factory=list)

    def declared(self, keys: Any = None, ref: Ref = ENGINE, **more: Any) -> dict[Ref, Declared]:
        section: LlamaCppEngine | MlxEngine | CommandEngine = LlamaCppEngine(
            type="llama.cpp",
            **({} if "path" in more or "url" in more or "source" in more else {"releases": self.releases.api}),
            **more,
        )
        if keys is not None:
            section = keys
        spec = resolve(section, str(self.tools.base), "cp311", self.host, self.tools.ledger.pins())
        return {ref: Declared(ref, spec)}

    def look(self, desired: dict[Ref, Declared]) -> dict[Ref, Observation]:
        self.tools.host = lambda: self.host
        return KINDS["engine"].observe(list(desired), desired, self.tools)

    def change(self, desired: dict[Ref, Declared]) -> Change | None:
        observed = self.look(desired)
        world = World(desired, observed, self.tools.ledger.owned(), self.tools.ledger.troubles(), self.host)
        (ref,) = desired
        return KINDS["engine"].rules.change(ref, world)

    async def converge(self, desired: dict[Ref, Declared]) -> EngineState:
        """Until there is nothing to do → what is there then. Raises Fault."""
        (ref,) = desired
        for _ in range(5):
            change = self.change(desired)
            if change is None:
                return self.look(desired)[ref].state  # type: ignore[union-attr, no-any-return]
            assert change.actions, change.reason
            self.verbs.append(change.actions[0].verb)
            await KINDS["engine"].apply(change.actions[0], ref, desired[ref], self.tools)
        raise AssertionError(f"it does not converge: {self.verbs}")

    async def renew(self, desired: dict[Ref, Declared]) -> None:
        for ref, declared in desired.items():
            await KINDS["engine"].apply(Action(Phase.MATERIALISE, "renew", ""), ref, declared, self.tools)

    def anew(self, desired: dict[Ref, Declared]) -> dict[Ref, Declared]:
        """As the manifest is read again, once the lock has learned."""
        out = {}
        for ref, declared in desired.items():
            spec: EngineSpec = declared.spec
            bare = replace(spec, locked="", resolved="", files=(), installed="")
            from reconciler.kinds.engine.spec import pinned

            pins = self.tools.ledger.pins()
            out[ref] = Declared(ref, pinned(bare, pins[bare.pin], self.host) if bare.pin in pins else bare)
        return out

    @property
    def folders(self) -> list[str]:
        return sorted(path.name for path in self.tools.layout.engines.glob("*"))


@pytest.fixture
def releases() -> Iterator[Releases]:
    with Releases() as releases:
        yield releases


@pytest.fixture
async def bench(tmp_path: Path, releases: Releases) -> AsyncIterator[Bench]:
    layout, effects = Layout(tmp_path / "state"), Cut()
    layout.root.mkdir()
    with Ledger.write(layout.ledger, effects) as ledger:
        tools = tools_for(layout, tmp_path, effects, ledger, KINDS)
        yield Bench(tools, effects, releases)
        await tools.fetch.close()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Have pip know one index only."""

    def point(url: str) -> None:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", url)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")

    return point
