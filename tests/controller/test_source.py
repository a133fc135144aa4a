"""Files that people edit: what is right becomes a generation, what is not keeps the last, and going back holds."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.controller.source import Ask, Source
from reconciler.core.diagnostics import Exit, Refused
from reconciler.core.ids import Ref
from reconciler.kinds.base import Tools
from reconciler.manifest.lock import Lock, beside, read
from tests.controller.conftest import CHAT, GATEWAY, ONE, SERVER, TWO, A, B, Breakable

KEY = '["file:chat.gguf","",""]'
BROKEN = "version: 1\nmodels: {chat: {sauce: 1}}\n"


def write(path: Path, text: str) -> None:
    """As an editor does it: a new file takes the place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name("." + path.name).write_text(text)
    path.with_name("." + path.name).replace(path)


def names(source: Source) -> set[str]:
    """The models that are wanted."""
    return {ref.name for ref in source.wanted.resources if ref.kind == "model"}


def number(source: Source) -> int:
    return source.generations.current


def states(source: Source) -> list[str]:
    return [g.state for g in source.generations.all()]


def events(tools: Tools) -> list[str]:
    return [e["type"] for e in tools.ledger.events() if e["ref"] == "manifest"]


def become_ready(source: Source) -> None:
    source.judge_health(ready=True, settled=True, routes="r", failed="")


def fail(source: Source, why: str = "") -> None:
    source.judge_health(ready=False, settled=True, routes="r", failed=why)


# -- taking over ------------------------------------------------------------------------------------------------------


def test_a_good_file_becomes_a_generation_once(source: Source, path: Path, tools: Tools) -> None:
    assert source.read()
    assert (number(source), names(source), source.faults) == (1, {"chat"}, ())
    assert not source.read()
    assert source.generations.texts(1).files == {path: ONE.encode()}
    path.write_text(TWO)
    assert source.read()
    assert (number(source), names(source)) == (2, {"chat", "embed"})
    assert events(tools) == ["Accepted", "Accepted"]
    assert tools.base == path.parent


def test_a_broken_file_keeps_the_last_and_says_where(source: Source, path: Path, tools: Tools) -> None:
    source.read()
    path.write_text(BROKEN)
    assert source.read()
    assert (number(source), names(source)) == (1, {"chat"})
    assert str(source.faults[0].where).endswith("stack.yaml:2:10")
    assert not source.read(), "it is told once"
    assert events(tools) == ["Accepted", "Rejected"]
    path.write_text(ONE)
    assert source.read()
    assert (number(source), source.faults) == (1, ()), "what is in force already keeps its number"


def test_a_missing_file_keeps_the_last(source: Source, path: Path) -> None:
    source.read()
    path.unlink()
    assert source.read()
    assert source.faults[0].summary == "the manifest is gone"
    assert names(source) == {"chat"}
    path.write_text(TWO)
    assert source.read()
    assert (names(source), source.faults) == ({"chat", "embed"}, ())


def test_before_the_first_good_file_nothing_is_wanted(source: Source, path: Path) -> None:
    path.write_text(BROKEN)
    source.read()
    assert (source.held, number(source), dict(source.wanted.resources)) == (None, 0, {})


def test_a_controller_that_starts_with_a_broken_file_has_the_last_generation(
    source: Source, path: Path, restarted: Callable[[], Source]
) -> None:
    source.read()
    path.write_text(BROKEN)
    again = restarted()
    again.read()
    assert (names(again), number(again)) == ({"chat"}, 1)
    assert again.faults


def test_what_cannot_be_done_yet_is_refused_and_keeps_the_last(source: Source, path: Path) -> None:
    source.read()
    path.write_text(ONE + "gateway: {workers: 2}\n")
    source.read()
    assert (number(source), source.faults[0].path) == (1, "gateway/main")
    with pytest.raises(Refused) as caught:
        source.apply(path, Ask())
    assert caught.value.exit_code is Exit.DENIED
    assert number(source) == 1


def test_what_is_for_another_machine_is_not_denied_on_this_one(source: Source, path: Path) -> None:
    never = "when: host.os == 'none'"
    path.write_text(
        ONE + f"  other: {{source: file:o, {never}, engine: mac}}\nengines: {{mac: {{type: mlx, when: 'false'}}}}\n"
    )
    source.read()
    assert ([str(fault) for fault in source.faults], names(source)) == ([], {"chat"})


def test_removing_everything_by_an_edit_is_refused(source: Source, path: Path, tools: Tools) -> None:
    source.read()
    tools.ledger.own(CHAT, "d", {"source": "file:chat.gguf", "file": "", "sha256": ""})
    path.write_text("version: 1\n")
    source.read()
    assert "--allow-empty" in source.faults[0].hint
    assert number(source) == 1
    source.apply(path, Ask(allow_empty=True))
    assert (number(source), names(source), source.faults) == (2, set(), ())


def test_apply_refuses_and_changes_nothing(source: Source, path: Path, tools: Tools) -> None:
    source.read()
    other = path.with_name("other.yaml")
    other.write_text(BROKEN)
    asks = [(other, Ask()), (path, Ask(locked=True)), (path, Ask(binding={"lineage": "x"})), (Path("/nowhere"), Ask())]
    for at, ask in asks:
        with pytest.raises(Refused):
            source.apply(at, ask)
    assert (source.path, number(source), names(source), events(tools)) == (path, 1, {"chat"}, ["Accepted"])


def test_apply_takes_another_file_and_reads_that_from_then_on(source: Source, path: Path) -> None:
    source.read()
    other = path.with_name("other.yaml")
    other.write_text(TWO)
    assert source.apply(other, Ask()).number == 2
    assert not source.read()
    path.write_text(BROKEN)
    assert not source.read(), "the first file no longer counts"
    other.write_text(ONE)
    source.read()
    assert (number(source), names(source)) == (3, {"chat"})


def test_targets_belong_to_the_generation_until_the_manifest_changes(
    source: Source, path: Path, restarted: Callable[[], Source]
) -> None:
    path.write_text(TWO)
    taken = source.apply(path, Ask(targets=frozenset({SERVER})))
    assert (taken.targets, source.wanted.targets) == (("server/chat",), frozenset({SERVER}))
    again = restarted()
    again.read()
    assert (number(again), again.wanted.targets) == (1, frozenset({SERVER}))
    path.write_text(TWO + "name: changed\n")
    again.read()
    assert (number(again), again.wanted.targets) == (2, frozenset())
    assert again.apply(path, Ask(targets=frozenset({SERVER}))).number == 3


def test_peeking_takes_nothing_over(source: Source, path: Path) -> None:
    source.peek()
    assert (names(source), number(source), source.generations.all()) == ({"chat"}, 0, [])
    path.write_text(BROKEN)
    with pytest.raises(Refused):
        source.peek()


# -- included files ---------------------------------------------------------------------------------------------------

INCLUDING = "version: 1\ninclude: [team/*.yaml]\n"
TEAM = "models:\n  chat: {source: file:chat.gguf}\n"


def test_included_files_belong_to_the_generation(source: Source, path: Path, tools: Tools) -> None:
    team = path.parent / "team" / "a.yaml"
    write(team, TEAM)
    path.write_text(INCLUDING)
    source.read()
    assert (number(source), names(source)) == (1, {"chat"})
    assert source.generations.texts(1).files == {path: INCLUDING.encode(), team: TEAM.encode()}
    write(team, TEAM.replace("chat:", "talk:"))
    assert source.read()
    assert (number(source), names(source)) == (2, {"talk"})
    write(team.with_name("b.yaml"), "models: {more: {source: file:m}}\n")
    assert source.read(), "a file that a pattern finds now"
    assert names(source) == {"talk", "more"}
    for file in team.parent.iterdir():
        file.unlink()
    assert source.back(1, "test").number == 1
    assert names(source) == {"chat"}, "it needs no file of the disk"


@pytest.mark.parametrize("changed", ["stack.yaml", "team/a.yaml", "team/new.yaml", "stack.lock"])
async def test_every_file_that_counts_wakes_the_loop(source: Source, path: Path, changed: str) -> None:
    path.write_text(INCLUDING)
    write(path.parent / "team" / "a.yaml", TEAM)
    source.read()
    woken = asyncio.Event()
    watching = asyncio.create_task(source.watch(woken.set))
    try:
        async with asyncio.timeout(10):
            while not woken.is_set():  # the watch needs a moment before it sees anything
                write(path.parent / changed, f"# {time.time_ns()}\n")
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), 0.4)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def test_a_changed_label_is_a_change(source: Source, path: Path, tools: Tools) -> None:
    path.write_text(ONE + "  other: {source: file:o, when: \"'team' in host.labels\"}\n")
    source.read()
    assert names(source) == {"chat"}
    tools.layout.labels.write_text("team: research\n")
    assert source.read()
    assert (number(source), names(source)) == (1, {"chat", "other"})
    tools.layout.labels.write_text("- broken\n")
    source.read()
    assert (source.faults[0].summary, names(source)) == ("must be a mapping", {"chat", "other"})


async def test_other_files_beside_it_do_not_wake_the_loop(source: Source, path: Path) -> None:
    source.read()
    woken = asyncio.Event()
    watching = asyncio.create_task(source.watch(woken.set))
    try:
        await asyncio.sleep(0.3)
        write(path.parent / "notes.txt", "x")
        await asyncio.sleep(0.4)
        assert not woken.is_set()
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


# -- going back -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(source: Source, path: Path) -> Source:
    """Two generations, the second in force."""
    source.read()
    become_ready(source)
    path.write_text(TWO)
    source.read()
    assert number(source) == 2
    return source


def test_going_back_holds_until_the_file_changes(two: Source, path: Path, tools: Tools) -> None:
    assert two.back(None, "asked for").number == 1
    assert (number(two), names(two)) == (1, {"chat"})
    for _ in range(3):
        two.read()
    path.touch()
    two.read()
    write(path, TWO)
    two.read()
    assert (number(two), names(two)) == (1, {"chat"}), "saved again, but it says the same"
    path.write_text(TWO + "name: fixed\n")
    two.read()
    assert (number(two), names(two), two.generations.held) == (3, {"chat", "embed"}, "")
    assert events(tools)[-2:] == ["RolledBack", "Accepted"]


def test_going_back_outlives_the_controller(two: Source, path: Path, restarted: Callable[[], Source]) -> None:
    two.back(1, "asked for")
    again = restarted()
    again.read()
    assert (number(again), names(again)) == (1, {"chat"})
    again.read()
    assert number(again) == 1
    path.write_text(TWO + "name: fixed\n")
    again.read()
    assert number(again) == 3


def test_a_controller_can_go_back_before_it_has_read_anything(two: Source, restarted: Callable[[], Source]) -> None:
    again = restarted()
    assert again.back(1, "asked for").number == 1
    again.read()
    assert (number(again), names(again)) == (1, {"chat"})


def test_going_back_from_a_broken_file_holds_and_forgets_its_faults(two: Source, path: Path) -> None:
    path.write_text(BROKEN)
    two.read()
    assert two.faults
    two.back(1, "asked for")
    two.read()
    assert (number(two), two.faults) == (1, ())
    path.write_text(TWO)
    two.read()
    assert number(two) == 3


def test_apply_ends_the_hold(two: Source, path: Path) -> None:
    two.back(1, "asked for")
    assert two.apply(path, Ask()).number == 3
    assert (names(two), two.generations.held) == ({"chat", "embed"}, "")
    two.read()
    assert number(two) == 3


def test_apply_of_what_was_gone_back_to_ends_the_hold_without_a_new_number(two: Source, path: Path) -> None:
    two.back(1, "asked for")
    path.write_text(ONE)
    assert two.apply(path, Ask()).number == 1
    assert two.generations.held == ""
    path.write_text(TWO)
    two.read()
    assert number(two) == 3


def test_what_cannot_be_gone_back_to_is_refused_with_what_there_is(two: Source, path: Path, tools: Tools) -> None:
    for asked, said in ((2, "in force already"), (7, "there is no generation 7"), (0, "there is no generation 0")):
        with pytest.raises(Refused, match=said) as caught:
            two.back(asked, "asked for")
    assert caught.value.diagnostics[0].hint == "there are: 1, 2"
    (tools.layout.generations / "1.json").unlink()
    with pytest.raises(Refused, match="not kept here"):
        two.back(1, "asked for")
    assert (number(two), two.generations.held, names(two)) == (2, "", {"chat", "embed"})


def test_without_an_earlier_one_there_is_nothing_to_go_back_to(source: Source) -> None:
    with pytest.raises(Refused, match="no earlier generation"):
        source.back(None, "asked for")


def test_a_protected_model_is_not_removed_by_going_back(two: Source, tools: Tools) -> None:
    ref = Ref("model", "embed")
    tools.ledger.own(ref, "d", {"source": "file:embed.gguf", "file": "", "sha256": ""})
    tools.ledger.protect({ref: True})
    with pytest.raises(Refused, match="protected") as caught:
        two.back(1, "asked for")
    assert caught.value.exit_code is Exit.DENIED
    assert number(two) == 2


# -- promises and health ----------------------------------------------------------------------------------------------


def test_what_is_not_confirmed_in_time_is_gone_back_from(source: Source, path: Path, tools: Tools) -> None:
    source.read()
    path.write_text(TWO)
    source.apply(path, Ask(confirm=0.05))
    promise = source.generations.promise
    assert promise is not None
    assert (promise.generation, promise.back_to) == (2, 1)
    source.keep_promise()
    assert number(source) == 2, "there is time yet"
    time.sleep(0.06)
    source.keep_promise()
    assert (number(source), names(source), source.generations.promise) == (1, {"chat"}, None)
    source.read()
    source.keep_promise()
    assert number(source) == 1
    assert tools.ledger.events()[-1]["message"] == "generation 2 → 1: generation 2 was not confirmed in time"


def test_a_promise_is_kept_by_the_next_controller(source: Source, path: Path, restarted: Callable[[], Source]) -> None:
    source.read()
    path.write_text(TWO)
    source.apply(path, Ask(confirm=0.01))
    again = restarted()
    again.read()
    time.sleep(0.02)
    again.keep_promise()
    again.read()
    assert (number(again), names(again)) == (1, {"chat"})


def test_a_confirmed_one_stays(source: Source, path: Path) -> None:
    source.read()
    with pytest.raises(Refused, match="nothing waits to be confirmed"):
        source.confirm()
    path.write_text(TWO)
    source.apply(path, Ask(confirm=0.01))
    assert source.confirm().number == 2
    time.sleep(0.02)
    source.keep_promise()
    assert number(source) == 2


def test_a_promise_needs_something_to_go_back_to(source: Source, path: Path) -> None:
    with pytest.raises(Refused, match="no earlier generation") as caught:
        source.apply(path, Ask(confirm=60))
    assert "--confirm-within" in caught.value.diagnostics[0].hint
    assert number(source) == 0
    source.read()
    source.apply(path, Ask(confirm=60))
    assert source.generations.promise is None, "it was in force before: nothing is to be confirmed"


ROLLBACK = TWO + "on_failure: rollback\n"


def test_one_that_becomes_ready_is_noted(source: Source, tools: Tools) -> None:
    source.read()
    source.judge_health(ready=False, settled=False, routes="", failed="")
    assert states(source) == ["applying"]
    become_ready(source)
    assert states(source) == ["ready"]
    now = source.generation
    assert now is not None
    assert now.routes == "r"
    fail(source)
    assert states(source) == ["ready"], "what breaks later is no fault of the generation"
    assert events(tools) == ["Accepted", "GenerationReady"]


def test_one_that_fails_stays_unless_the_manifest_says_otherwise(two: Source, tools: Tools) -> None:
    fail(two)
    assert (number(two), states(two)) == (2, ["ready", "failed"])
    fail(two)
    assert events(tools)[-1] == "GenerationFailed"


def test_one_that_fails_goes_back_to_the_last_ready_one(source: Source, path: Path, tools: Tools) -> None:
    source.read()
    become_ready(source)
    path.write_text(TWO)
    source.read()
    fail(source)
    path.write_text(ROLLBACK)
    source.read()
    assert number(source) == 3
    fail(source, "server/embed: it ended")
    assert (number(source), names(source), states(source)) == (1, {"chat"}, ["ready", "failed", "failed"])
    source.read()
    assert number(source) == 1
    assert events(tools)[-2:] == ["GenerationFailed", "RolledBack"]
    for told in tools.ledger.events()[-2:]:
        assert told["message"].endswith("generation 3 did not become ready: server/embed: it ended")


def test_one_that_fails_stays_where_none_was_ever_ready(source: Source, path: Path) -> None:
    source.read()
    path.write_text(ROLLBACK)
    source.read()
    fail(source)
    assert (number(source), states(source)) == (2, ["superseded", "failed"])


def test_applying_a_failed_one_again_gives_it_another_chance(source: Source, path: Path) -> None:
    source.read()
    fail(source)
    assert source.apply(path, Ask()).number == 1
    assert states(source) == ["applying"]
    become_ready(source)
    assert states(source) == ["ready"]


# -- the lock ---------------------------------------------------------------------------------------------------------


def pinned(path: Path) -> dict[str, str]:
    return {key: str(facts["sha256"]) for key, facts in read(beside(path).read_bytes(), "stack.lock").pins.items()}


def test_what_was_found_is_written_beside_the_manifest_and_into_the_generation(
    source: Source, path: Path, tools: Tools
) -> None:
    source.read()
    source.learn()
    assert not beside(path).exists(), "nothing was found yet"
    tools.ledger.pin(KEY, {"sha256": A, "size": 4})
    tools.ledger.pin('["file:unasked","",""]', {"sha256": B})
    source.learn()
    assert pinned(path) == {KEY: A}
    assert beside(path).stat().st_mode & 0o777 == 0o644
    assert source.generations.texts(1).lock == beside(path).read_text()
    assert source.wanted.resources[CHAT].spec.locked == A
    assert not source.read(), "our own writing is no change"
    assert number(source) == 1
    written = beside(path).stat().st_mtime_ns
    tools.ledger.pin(KEY, {"sha256": B})
    source.learn()
    assert (pinned(path), beside(path).stat().st_mtime_ns) == ({KEY: A}, written), "what is pinned stays"


def test_nothing_is_learned_while_the_file_is_broken_or_held_back(two: Source, path: Path, tools: Tools) -> None:
    tools.ledger.pin(KEY, {"sha256": A})
    path.write_text(BROKEN)
    two.read()
    two.learn()
    assert not beside(path).exists()
    two.back(1, "asked for")
    two.learn()
    assert not beside(path).exists()


def test_a_lock_that_somebody_else_extended_keeps_the_number(source: Source, path: Path) -> None:
    source.read()
    beside(path).write_text(Lock({KEY: {"sha256": A}}).text())
    assert source.read()
    assert number(source) == 1
    assert source.wanted.resources[CHAT].spec.locked == A
    assert source.generations.texts(1).lock == beside(path).read_text()


def test_a_lock_that_somebody_else_changed_is_another_generation(
    source: Source, path: Path, restarted: Callable[[], Source]
) -> None:
    beside(path).write_text(Lock({KEY: {"sha256": A}}).text())
    source.read()
    beside(path).write_text(Lock({KEY: {"sha256": B}}).text())
    source.read()
    assert (number(source), source.wanted.resources[CHAT].spec.locked) == (2, B)
    source.back(1, "asked for")
    assert source.wanted.resources[CHAT].spec.locked == A, "the lock goes back, too"
    again = restarted()
    again.read()
    assert (number(again), again.wanted.resources[CHAT].spec.locked) == (1, A)


def test_a_broken_lock_is_refused_and_keeps_the_last(source: Source, path: Path) -> None:
    beside(path).write_text(Lock({KEY: {"sha256": A}}).text())
    source.read()
    beside(path).write_text("<<<<<<< HEAD\n")
    source.read()
    assert "conflict markers" in source.faults[0].summary
    assert (number(source), source.wanted.resources[CHAT].spec.locked) == (1, A)


def test_a_lock_that_cannot_be_written_is_told_once_and_the_pins_count_all_the_same(
    source: Source, path: Path, tools: Tools, effects: Breakable
) -> None:
    source.read()
    tools.ledger.pin(KEY, {"sha256": A})
    effects.broken["write stack.lock"] = errno.EROFS
    for _ in range(3):
        source.learn()
    told = [e for e in tools.ledger.events() if e["type"] == "LockNotWritten"]
    assert len(told) == 1
    assert "stack.lock cannot be written" in told[0]["message"]
    assert source.wanted.resources[CHAT].spec.locked == A
    assert not beside(path).exists()
    path.write_text(TWO)
    source.read()
    source.learn()
    assert len([e for e in tools.ledger.events() if e["type"] == "LockNotWritten"]) == 1
    effects.broken.clear()
    path.write_text(ONE)
    source.read()
    source.learn()
    assert pinned(path) == {KEY: A}


def test_a_locked_apply_needs_every_pin(source: Source, path: Path) -> None:
    with pytest.raises(Refused, match="not pinned"):
        source.apply(path, Ask(locked=True))
    key = next(key for key in keys_of(source, path) if key != KEY)
    beside(path).write_text(Lock({KEY: {"sha256": A}, key: {"sha256": B}}).text())
    assert source.apply(path, Ask(locked=True)).number == 1
    assert {ref for ref in source.wanted.resources if ref.kind == "gateway"} == {GATEWAY}


def keys_of(source: Source, path: Path) -> set[str]:
    source.peek()
    assert source.held is not None
    return set(source.held.pins)
