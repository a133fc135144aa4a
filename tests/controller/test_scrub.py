"""The store is read again in the background: damage that no look can see is found, told and made suspect."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.controller import scrub
from reconciler.controller.scrub import Pace, due, one
from reconciler.core.ids import Ref
from reconciler.core.state import Declared
from reconciler.host.digest import BLOCK
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.model.spec import ModelSpec
from reconciler.kinds.registry import KINDS
from reconciler.store.blobs import prove, token
from tests.store.harm import age, flip

CHAT = Ref("model", "chat")
FAST = Pace(1 << 40, busy=False)


def put(tools: Tools, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    part = tools.layout.partial / digest
    tools.files.write(part, data)
    tools.blobs.take(part, digest, prove(part).blocks)
    return digest


@pytest.fixture
def data() -> bytes:
    return os.urandom(1 << 16) * (3 * BLOCK // (1 << 16)) + b"the end"


@pytest.fixture
def digest(tools: Tools, data: bytes) -> str:
    """A file of three blocks and a bit that model/chat needs, and that was checked long ago."""
    found = put(tools, data)
    declared = Declared(CHAT, ModelSpec("file:chat.gguf", "", found))
    tools.desired = lambda: {CHAT: declared}
    age(tools, found, 30)
    return found


def told(tools: Tools) -> list[tuple[str, str, str]]:
    return [(e["ref"], e["type"], e["message"]) for e in tools.ledger.events()]


async def test_what_is_as_it_was_is_noted_and_left_for_a_week(tools: Tools, digest: str) -> None:
    woken: list[int] = []
    assert await one(tools, lambda: FAST, lambda: woken.append(1))
    found = tools.ledger.artifact(digest)
    assert found is not None
    assert time.time() - found.checked < 60
    assert tools.blobs.holds(digest)
    assert not await one(tools, lambda: FAST, lambda: woken.append(1))
    assert (woken, told(tools)) == ([], [])


async def test_a_flipped_bit_that_keeps_size_and_time_is_found(tools: Tools, digest: str) -> None:
    flip(tools.layout.blob(digest), BLOCK + 5)
    assert tools.blobs.holds(digest), "no look can see it"
    woken: list[int] = []
    assert await one(tools, lambda: FAST, lambda: woken.append(1))
    assert woken == [1]
    assert not tools.blobs.holds(digest)
    ((ref, type_, message),) = told(tools)
    assert (ref, type_) == (str(CHAT), "BitRot")
    assert "1 of 4 blocks of 16.8 MB" in message
    state = KINDS["model"].observe([CHAT], tools.desired(), tools)[CHAT].state  # type: ignore[union-attr]
    assert state.suspect
    assert not await one(tools, lambda: FAST, lambda: None), "it is told once"


async def test_what_nobody_needs_is_set_aside(tools: Tools, digest: str) -> None:
    flip(tools.layout.blob(digest), 0)
    tools.desired = dict
    await one(tools, lambda: FAST, lambda: None)
    assert [p.name.partition(".")[0] for p in tools.layout.quarantine.iterdir()] == [digest]
    assert told(tools)[0][:2] == ("store", "BitRot")


async def test_blocks_that_were_not_known_are_learned(tools: Tools, digest: str, data: bytes) -> None:
    known = tools.ledger.blocks(digest)
    tools.ledger.forget_artifact(digest)
    tools.blobs.record(digest)
    assert tools.ledger.blocks(digest) == ()
    age(tools, digest, 8)
    await one(tools, lambda: FAST, lambda: None)
    assert tools.ledger.blocks(digest) == known
    assert len(known) == 4


async def test_the_one_that_waited_longest_is_first_and_a_clock_set_back_harms_nothing(
    tools: Tools, digest: str
) -> None:
    other = put(tools, b"another")
    now = time.time()
    assert due(tools, now, {}) == tools.ledger.artifact(digest)
    age(tools, other, 40)
    assert due(tools, now, {}) == tools.ledger.artifact(other)
    age(tools, digest, 1)
    age(tools, other, 1)
    assert due(tools, now, {}) is None
    age(tools, other, -30)
    assert due(tools, now, {}) == tools.ledger.artifact(other)


async def test_it_keeps_its_pace(tools: Tools, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    rate = 1 << 40
    await one(tools, lambda: Pace(rate, busy=False), lambda: None)
    quick, slept[:] = sum(slept), []
    age(tools, digest, 30)
    rate = 8 << 20
    await one(tools, lambda: Pace(rate, busy=False), lambda: None)
    assert quick == pytest.approx(0, abs=0.01)
    size = 3 * BLOCK + 7
    assert size / rate * 0.3 < sum(slept) <= size / rate, "less what the reading itself took"


async def test_it_gives_way_and_stops_when_told(tools: Tools, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "GIVE_WAY", 0.001)
    asked: list[int] = []

    def pace() -> Pace:
        asked.append(1)
        return (
            FAST if len(asked) < 3 else Pace(FAST.rate, busy=len(asked) < 20) if len(asked) < 25 else Pace(None, False)
        )

    assert not await one(tools, pace, lambda: None)
    assert len(asked) == 25
    found = tools.ledger.artifact(digest)
    assert found is not None
    assert time.time() - found.checked > 86_400, "half a pass is none"


async def test_cancelled_in_the_middle_it_ends(tools: Tools, digest: str) -> None:
    running = asyncio.create_task(one(tools, lambda: Pace(1 << 20, busy=False), lambda: None))
    await asyncio.sleep(0.05)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tools.blobs.holds(digest)


Harm = Callable[[Path], object]


def to_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [Path.unlink, to_link, to_folder, lambda p: os.truncate(p, 5)])
async def test_what_a_look_can_see_is_left_to_the_look(tools: Tools, digest: str, harm: Harm) -> None:
    tools.layout.blob(digest).chmod(0o644)
    harm(tools.layout.blob(digest))
    assert not await one(tools, lambda: FAST, lambda: None)
    assert told(tools) == []


async def test_a_file_that_goes_away_under_it_is_no_damage(tools: Tools, digest: str) -> None:
    def pace() -> Pace:
        asked.append(1)
        if len(asked) == 4:
            tools.layout.blob(digest).unlink()
        return FAST

    asked: list[int] = []
    assert not await one(tools, pace, lambda: None)
    assert told(tools) == []


class Failing(Layout):
    """Its one file is readable to no one: the kernel answers EIO, as it does for a failing disk."""

    def blob(self, digest: str) -> Path:
        return Path("/proc/self/mem")


async def test_a_disk_that_fails_is_told_once_and_ends_nothing(tools: Tools, digest: str) -> None:
    tools.layout = Failing(tools.layout.root)
    seen = token(tools.layout.blob(digest))
    assert seen is not None
    tools.ledger.record_artifact(digest, 0, seen)
    age(tools, digest, 30)
    skipped: dict[str, float] = {}
    assert await one(tools, lambda: FAST, lambda: None, skipped)
    assert not await one(tools, lambda: FAST, lambda: None, skipped)
    ((ref, type_, message),) = told(tools)
    assert (ref, type_) == (str(CHAT), "BitRot")
    assert "the disk failed while reading" in message
    assert not tools.blobs.holds(digest)


async def test_a_ledger_that_cannot_be_written_does_not_end_it(
    tools: Tools, digest: str, effects: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "LOOK", 0.001)
    effects.broken["artifact ledger"] = 28  # type: ignore[attr-defined]
    running = asyncio.create_task(scrub.rounds(tools, lambda: FAST, lambda: None))
    await asyncio.sleep(0.1)
    effects.broken.clear()  # type: ignore[attr-defined]
    for _ in range(500):
        found = tools.ledger.artifact(digest)
        assert found is not None
        if time.time() - found.checked < 60:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("it was not checked")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
