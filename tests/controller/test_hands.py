"""What a person holds, in the ledger: which resources are meant, what is new by it, and that it lasts."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.controller import hands
from reconciler.controller.hands import Hold, chosen
from reconciler.controller.source import Ask, Source
from reconciler.core.diagnostics import Fault, Refused
from reconciler.core.ids import Ref
from reconciler.core.state import Suspension
from reconciler.host.effects import Effects
from reconciler.kinds.base import Tools
from reconciler.kinds.registry import KINDS
from reconciler.store.generations import Generations
from reconciler.store.ledger import Ledger
from tests.controller.conftest import CHAT, ENGINE, GATEWAY, ONE, SERVER, TWO, Breakable

KNOWN = {CHAT, ENGINE, SERVER, GATEWAY}
EMBED = Ref("model", "embed")


def test_which_resources_are_meant() -> None:
    assert chosen(Hold(("chat",)), KNOWN, ()) == (CHAT,), "a plain name means the model"
    assert chosen(Hold(("server/chat", "embedded", "gateway", "chat")), KNOWN, ()) == (ENGINE, GATEWAY, CHAT, SERVER)
    assert chosen(Hold(("chat",), resume=True), KNOWN, {SERVER}) == (SERVER,), "the one that is paused"
    assert chosen(Hold(("chat",), resume=True), KNOWN, {SERVER, CHAT}) == (CHAT, SERVER)
    assert chosen(Hold(("chat",), resume=True), KNOWN, ()) == (CHAT,)
    assert chosen(Hold(("model/gone",), resume=True), KNOWN, {Ref("model", "gone")}) == (Ref("model", "gone"),)
    assert chosen(Hold(), KNOWN, ()) == ()
    with pytest.raises(Refused) as refused:
        chosen(Hold(("chit", "server/chat", "model/")), KNOWN, ())
    assert [d.summary for d in refused.value.diagnostics] == ["there is no chit", "there is no model/"]
    with pytest.raises(Refused, match="may be engine/x or server/x"):
        chosen(Hold(("x",)), {Ref("engine", "x"), Ref("server", "x")}, ())


def test_a_pause_lasts_over_controllers_and_keeps_its_time(tools: Tools) -> None:
    assert hands.pause([CHAT, SERVER], tools.ledger) == [CHAT, SERVER]
    since = dict(tools.ledger.paused())
    assert hands.pause([CHAT, ENGINE], tools.ledger) == [ENGINE]
    with Ledger.read(tools.layout.ledger) as another:
        assert {ref: at for ref, at in another.paused().items() if ref != ENGINE} == since
    assert hands.resume([CHAT, EMBED], tools.ledger) == [CHAT]
    assert set(tools.ledger.paused()) == {SERVER, ENGINE}
    assert [e["type"] for e in tools.ledger.events()] == ["Resumed"]


def test_a_ledger_that_cannot_be_written_changes_nothing(tools: Tools, effects: Breakable) -> None:
    effects.broken["hold ledger"] = 28
    with pytest.raises(Fault):
        hands.pause([CHAT], tools.ledger)
    with pytest.raises(Fault):
        hands.suspend(tools.ledger, promised=False)
    assert (tools.ledger.paused(), tools.ledger.suspension()) == ({}, None)


def test_suspending_twice_says_since_when(tools: Tools) -> None:
    assert hands.suspend(tools.ledger, promised=False)
    first = tools.ledger.suspension()
    assert first is not None
    assert not first.asked
    assert not hands.suspend(tools.ledger, promised=True)
    tools.ledger.set_suspension(Suspension(first.since, asked=True))
    assert hands.suspend(tools.ledger, promised=False), "what was asked for by hand is held again"
    assert tools.ledger.suspension() == first
    assert hands.lift(tools.ledger)
    assert not hands.lift(tools.ledger)
    with pytest.raises(Refused, match="waits to be confirmed"):
        hands.suspend(tools.ledger, promised=True)


async def test_without_a_controller(tools: Tools, source: Source) -> None:
    source.apply(source.path, Ask())
    declared, generations = source.wanted.resources, Generations(tools.layout, tools.files, tools.ledger)

    async def ask(hold: Hold) -> dict[str, object]:
        return await hands.hold_offline(hold, declared, tools, KINDS, generations)

    assert (await ask(Hold(("chat",))))["changed"] == ["model/chat"]
    tools.files.folder(tools.layout.partial)
    assert (await ask(Hold(("chat",), discard=True)))["discarded"] == []
    assert (await ask(Hold()))["changed"] == ["controller"]
    assert (await ask(Hold()))["changed"] == []
    answer = await ask(Hold(("chat",), resume=True))
    assert (answer["changed"], answer["paused"]) == (["model/chat"], {})
    assert (await ask(Hold(resume=True)))["suspended"] is None
    for odd in (Hold(("gateway",), discard=True), Hold(discard=True), Hold(("nobody",))):
        with pytest.raises(Refused):
            await ask(odd)
    assert tools.ledger.open_operations() == []


def test_suspended_the_generation_in_force_is_held_whatever_the_file_says(path: Path, tools: Tools) -> None:
    first = Source(path, tools, KINDS)
    first.apply(path, Ask())
    hands.suspend(tools.ledger, promised=False)
    path.write_text(TWO)
    heir = Source(path, tools, KINDS)
    heir.recall()
    assert CHAT in heir.wanted.resources
    assert EMBED not in heir.wanted.resources
    with pytest.raises(Refused, match="suspended"):
        heir.apply(path, Ask())
    assert tools.ledger.suspension() is not None
    heir.apply(path, Ask(targets=frozenset({EMBED})))
    let = tools.ledger.suspension()
    assert let is not None
    assert let.asked
    assert heir.generations.current == 2
    path.write_text(TWO)
    hands.lift(tools.ledger)
    heir.resume()
    assert heir.read()
    assert heir.wanted.targets == frozenset(), "the same file, but as a whole"
    assert heir.generations.current == 3
    path.write_text(ONE)
    assert heir.read()


def test_what_is_paused_is_not_a_target(path: Path, tools: Tools, source: Source) -> None:
    hands.pause([CHAT], tools.ledger)
    with pytest.raises(Refused, match="model/chat is paused"):
        source.apply(path, Ask(targets=frozenset({CHAT})))
    assert source.generations.current == 0
    source.apply(path, Ask(targets=frozenset({SERVER})))


def test_pauses_are_effects_like_any_other(tmp_path: Path) -> None:
    seen: list[str] = []

    class Noted(Effects):
        def before(self, name: str, subject: str) -> None:
            seen.append(name)

    with Ledger.write(tmp_path / "ledger.db", Noted()) as ledger:
        seen.clear()
        hands.pause([CHAT], ledger)
        hands.pause([CHAT], ledger)
    assert seen == ["hold"]
