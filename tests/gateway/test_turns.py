"""Turns at a target that takes only so many at once: in order, fair among keys, bounded, and lost by nobody."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamWriter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.gateway.errors import Refusal
from reconciler.gateway.routes import Bound
from reconciler.gateway.turns import Turns
from tests.gateway.harness import Asked, Gateway, model, response, stub, target
from tests.gateway.test_exchange import client_key
from tests.gateway.test_proxy import post


class Scene:
    """Clients at one target; `order` is who got a turn."""

    def __init__(self, bound: Bound | None) -> None:
        self.turns, self.bound = Turns(), bound
        self.order: list[str] = []
        self.inside = self.most = 0
        self.doors: dict[str, asyncio.Event] = {}

    async def come(self, name: str, key: str = "", priority: int = 0) -> None:
        door = self.doors.setdefault(name, asyncio.Event())
        async with self.turns.turn("server/chat", self.bound, key, priority):
            self.order.append(name)
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await door.wait()
            finally:
                self.inside -= 1


async def settle() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


async def test_keys_take_turns_and_the_more_important_go_first() -> None:
    scene = Scene(Bound(1, 100))
    names = ["a1", "a2", "a3", "b1", "c1", "a4", "b2", "x1"]
    tasks = []
    for name in names:
        tasks.append(asyncio.ensure_future(scene.come(name, name[0], 5 if name[0] == "x" else 0)))
        await settle()
    for _ in names:
        scene.doors[scene.order[-1]].set()
        await settle()
    await asyncio.gather(*tasks)
    assert scene.order == ["a1", "x1", "a2", "b1", "c1", "a3", "b2", "a4"]
    assert scene.most == 1
    assert scene.turns._lines == {}, "nothing is left of it"


async def test_a_full_line_refuses_and_without_a_bound_there_is_none() -> None:
    scene = Scene(Bound(2, 3))
    tasks = [asyncio.ensure_future(scene.come(str(n))) for n in range(5)]
    await settle()
    assert scene.turns.waiting() == {"server/chat": 3}
    with pytest.raises(Refusal, match="3 requests wait for server/chat") as caught:
        await scene.come("late")
    assert (caught.value.status, caught.value.trouble, caught.value.headers) == (
        503,
        "overloaded",
        {"Retry-After": "5"},
    )
    free = Scene(None)
    many = [asyncio.ensure_future(free.come(str(n))) for n in range(50)]
    await settle()
    assert free.inside == 50
    for task in [*tasks, *many]:
        task.cancel()
    await asyncio.gather(*tasks, *many, return_exceptions=True)
    assert scene.turns._lines == {}


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["come", "leave", "go away"]), st.integers(0, 30), st.integers(0, 2)), max_size=60
    )
)
def test_no_turn_is_lost_and_none_is_given_twice(steps: list[tuple[str, int, int]]) -> None:
    async def play() -> None:
        scene, tasks = Scene(Bound(2, 1000)), dict[str, asyncio.Task[None]]()
        for number, (what, which, priority) in enumerate(steps):
            living = [name for name, task in tasks.items() if not task.done()]
            if what == "come":
                name = f"{number}"
                tasks[name] = asyncio.ensure_future(scene.come(name, str(which % 3), priority))
            elif living and what == "leave":
                scene.doors.setdefault(living[which % len(living)], asyncio.Event()).set()
            elif living:
                tasks[living[which % len(living)]].cancel()
            if which % 2:
                await settle()
        await settle()
        living = [task for task in tasks.values() if not task.done()]
        assert scene.most <= 2
        assert scene.inside == min(2, len(living)), "who waits has a turn as soon as there is room"
        for door in scene.doors.values():
            door.set()
        await asyncio.wait_for(asyncio.gather(*tasks.values(), return_exceptions=True), 5)
        assert (scene.inside, scene.turns._lines) == (0, {})

    asyncio.run(play())


async def test_the_gateway_sends_no_more_at_once_than_a_model_takes(gateway: Gateway) -> None:
    inside = most = 0

    async def answer(asked: Asked, writer: StreamWriter) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.05)
        inside -= 1
        writer.write(response(b"{}"))

    async with stub(answer) as upstream:
        one = model(target(upstream.port)) | {"request": {"at_once": 2, "queue": 5, "set": {"seed": 1}}}
        gateway.use({"chat": one}, api_keys=[client_key("me", "k-me", priority=3)])
        got = await asyncio.gather(*(post(gateway, authorization="Bearer k-me") for _ in range(10)))
        codes = sorted(one.status_code for one in got)
        assert codes == [200] * 7 + [503] * 3
        assert most == 2
        assert json.loads(upstream.asked[0].body)["seed"] == 1
