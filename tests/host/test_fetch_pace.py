"""One budget for all downloads, and slots with priorities: judged by counts, not by how long anything took."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reconciler.host.effects import Effects
from reconciler.host.fetch import Fetch, Slots
from reconciler.host.fetch.pace import BURST, Lane, Pace
from reconciler.host.files import Files
from tests.support.downloads import quiet, whole
from tests.support.fileserver import FileServer

PIECE = 1 << 18
DATA = random.Random(8).randbytes(3 << 20)


@pytest.fixture
async def fetch(files: Files) -> AsyncIterator[Fetch]:
    made = Fetch(files, Effects())
    yield made
    await made.close()


# --- the budget -----------------------------------------------------------------------------------------------------


async def test_no_more_comes_than_the_budget_allows(fetch: Fetch, tmp_path: Path) -> None:
    fetch.bandwidth = rate = 4e6
    began = time.monotonic()
    over = []

    def told(name: str, done: int) -> None:
        counted[name] = done
        allowed = rate * (time.monotonic() - began + BURST) + 2 * PIECE
        over.append(sum(counted.values()) - allowed)

    counted: dict[str, int] = {}
    with FileServer({"/m": DATA, "/n": DATA}) as server:
        got = await asyncio.gather(
            fetch.get(server.url("/m"), tmp_path / "p", lambda done, total: told("m", done)),
            fetch.get(server.url("/n"), tmp_path / "q", lambda done, total: told("n", done)),
        )
    assert got == [whole(DATA), whole(DATA)]
    assert max(over) <= 0


async def test_a_budget_may_change_while_one_waits_for_it(fetch: Fetch, tmp_path: Path) -> None:
    fetch.bandwidth = 10.0  # three days for this file
    first = asyncio.Event()

    def told(done: int, total: int | None) -> None:
        first.set()

    with FileServer({"/m": DATA}) as server:
        task = asyncio.create_task(fetch.get(server.url("/m"), tmp_path / "p", told))
        await first.wait()
        await asyncio.sleep(0.05)
        assert server.sent["/m"] > 0
        assert not task.done()
        fetch.bandwidth = 1e9
        assert await task == whole(DATA)
        assert fetch.bandwidth == 1e9
        fetch.bandwidth = None
        assert await fetch.get(server.url("/m"), tmp_path / "q", quiet) == whole(DATA)


async def test_each_download_gets_the_same_however_many_connections_it_has() -> None:
    pace = Pace(1e6)
    many, one = Lane(pace), Lane(pace)
    counts = {"many": 0, "one": 0}

    async def take(name: str, lane: Lane) -> None:
        while sum(counts.values()) < 60:
            await lane.take(1000)
            counts[name] += 1

    await asyncio.gather(*(take("many", many) for _ in range(5)), take("one", one))
    assert abs(counts["many"] - counts["one"]) <= 6


async def test_the_budget_is_kept_on_any_clock() -> None:
    now = 0.0
    pace = Pace(1e6, clock=lambda: now)
    await pace.take(0)
    now = 1000.0  # nobody read for long: a burst is saved up, no more
    await pace.take(int(1e6 * BURST))
    waiting = asyncio.ensure_future(pace.take(50_000))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    now += 0.05
    pace.rate = 1e6  # look at the clock again
    await asyncio.wait_for(waiting, 10)


async def test_who_is_cancelled_while_waiting_does_not_hold_up_the_others() -> None:
    pace = Pace(10.0)
    lane = Lane(pace)
    first = asyncio.create_task(lane.take(1000))
    second = asyncio.create_task(Lane(pace).take(1))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    pace.rate = None
    await asyncio.wait_for(second, 10)
    with pytest.raises(ValueError, match="more than 0"):
        pace.rate = 0


# --- slots ----------------------------------------------------------------------------------------------------------


class Crowd:
    """Those who want a slot: in the order in which they got one."""

    def __init__(self, slots: Slots) -> None:
        self.slots, self.order, self.inside = slots, list[str](), 0
        self.most = 0
        self.leave = asyncio.Semaphore(0)

    async def enter(self, name: str, priority: int = 0) -> None:
        async with self.slots(priority):
            self.order.append(name)
            self.inside += 1
            self.most = max(self.most, self.inside)
            await self.leave.acquire()
            self.inside -= 1


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_higher_priorities_go_first_and_equals_in_their_order() -> None:
    crowd = Crowd(Slots(1))
    async with asyncio.TaskGroup() as group:
        group.create_task(crowd.enter("first"))
        await settle()
        for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)]:
            group.create_task(crowd.enter(name, priority))
        await settle()
        assert crowd.slots.waiting == 5
        for _ in range(6):
            crowd.leave.release()
            await settle()
    assert crowd.order == ["first", "b", "d", "a", "c", "e"]
    assert crowd.most == 1


async def test_slots_grow_and_shrink_while_in_use() -> None:
    crowd = Crowd(Slots(1))
    async with asyncio.TaskGroup() as group:
        for name in "abcdefgh":
            group.create_task(crowd.enter(name))
        await settle()
        assert crowd.inside == 1
        crowd.slots.resize(4)
        await settle()
        assert crowd.inside == 4
        crowd.slots.resize(2)
        for left in (3, 2, 2, 2):
            crowd.leave.release()
            await settle()
            assert crowd.inside == left
        crowd.slots.resize(0)
        crowd.leave.release()
        crowd.leave.release()
        await settle()
        assert (crowd.inside, crowd.slots.waiting) == (0, 2)
        crowd.slots.resize(9)
        crowd.leave.release()
        crowd.leave.release()
    assert crowd.order == list("abcdefgh")


async def test_the_cancelled_give_their_place_away_and_lose_no_slot() -> None:
    crowd = Crowd(Slots(1))
    holder = asyncio.create_task(crowd.enter("holder"))
    await settle()
    waiting = [asyncio.create_task(crowd.enter(name)) for name in "abc"]
    await settle()
    waiting[0].cancel()
    await settle()
    crowd.leave.release()
    await asyncio.sleep(0)  # the slot is on its way to b, who is cancelled at this moment
    waiting[1].cancel()
    await settle()
    crowd.leave.release()
    await asyncio.gather(holder, waiting[2])
    assert crowd.order in (["holder", "c"], ["holder", "b", "c"])
    assert (crowd.slots.busy, crowd.slots.waiting) == (0, 0)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_random_coming_and_going_never_breaks_the_count() -> None:
    dice, slots = random.Random(9), Slots(3)
    inside = 0

    async def one() -> None:
        nonlocal inside
        async with slots(dice.randrange(3)):
            inside += 1
            assert inside <= 5
            try:
                await asyncio.sleep(dice.random() / 1000)
            finally:
                inside -= 1

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(one()))
        if dice.random() < 0.4:
            dice.choice(tasks).cancel()
        if dice.random() < 0.1:
            slots.resize(dice.randrange(1, 6))
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)
    assert (slots.busy, slots.waiting, inside) == (0, 0, 0)


async def test_plain_slots_are_of_priority_zero() -> None:
    slots = Slots(1)
    async with slots:
        assert slots.busy == 1
    assert slots.busy == 0
