"""The gateway under everything at once, for RECONCILER_SOAK seconds (an hour; CI takes twenty).

    python -m pytest tests/gateway/soak.py

Several clients ask in all dialects, whole and streamed, of an engine and of providers that speak one dialect each, and
of a route over all of them; some leave in the middle, some never finish what they send. Meanwhile the routes are
replaced every few seconds, sometimes by what is no JSON; upstreams hang up, stall, break off, refuse, and are stopped
and started again. What happens when is drawn by RECONCILER_SEED.

Each question has a number, and its answer has to carry it: an answer that is told as good is right and whole, or the
test fails. A request may fail where an upstream does; it may not hang. At the end nothing is in flight, every upstream
has been left, file descriptors are back to what they were, and memory has not grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil
import pytest
from anthropic import AnthropicError, AsyncAnthropic
from openai import AsyncOpenAI, OpenAIError

from tests.gateway.harness import Gateway, model, provider, route, target
from tests.support.fake_provider import Asked, FakeProvider, Reply, Tool, Way
from tests.support.processes import wait_until
from tests.support.streams import chat_stream, messages_stream
from tests.support.streams_responses import responses_stream

SECONDS = float(os.environ.get("RECONCILER_SOAK") or 3600)
SEED = int(os.environ.get("RECONCILER_SEED") or 1)
CLIENTS = 8
STUCK = (
    25.0  # seconds after which a request hangs: every wait of the gateway here is shorter, and few follow on another
)
GROWTH = 16.0  # MiB that memory may grow by between the second quarter and the last one, for an allocator's moods
LIMITS = {"idle_seconds": 1.0, "first_byte_seconds": 1.5, "connect_seconds": 1.0, "header_seconds": 2.0}
NAMES = ("engine", "oa/m", "an/m", "any")
BAD = (
    Way(status=429, headers={"retry-after": "0.1"}),
    Way(status=500, error="html"),
    Way(status=503),
    Way(status=529),
    Way(stall="head"),
    Way(stall="body"),
    Way(stall="stream", after=4),
    Way(cut=4),
    Way(ends=4),
    Way(fails=0),
    Way(fails=5),
    Way(gzip=True),
)
GOOD = (Way(), Way(), Way(), Way(), Way(), Way(split=True), Way(whole=True), Way(drip=0.002))
LEFT = Way(endless=True, drip=0.01)
_QUESTION = re.compile(rb"question (\d+)\b")


class Echo(FakeProvider):
    """An upstream whose answers carry the number of their question, and that has good and bad days."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self.bad = 0.1
        self.served = 0

    def _way(self, asked: Asked) -> Way:
        self.asked.clear()  # in an hour there are too many to keep
        if b"for ever" in asked.raw:
            return LEFT
        return self._random.choice(BAD if self._random.random() < self.bad else GOOD)

    def _document(self, asked: Asked) -> dict[str, Any] | None:
        number = self._said(asked)
        if asked.path.endswith("/embeddings"):
            return {"object": "list", "model": "m", "data": [{"index": 0, "embedding": [number]}], "usage": {}}
        document = super()._document(asked)
        if document is not None and "id" in document:
            document["id"] += str(number)
        return document

    def _events(self, asked: Asked, way: Way) -> Any:
        number = self._said(asked)
        events = super()._events(asked, way)
        if events is None or not asked.path.endswith("/responses"):
            return events
        return _renamed(events, b'"resp_1"', b'"resp_1%d"' % number)

    def _said(self, asked: Asked) -> int:
        """The question's number; what is said next answers it."""
        self.served += 1
        number = int((_QUESTION.findall(asked.raw) or [b"0"])[-1])
        asks_for_tools = isinstance(asked.body, dict) and bool(asked.body.get("tools"))
        tools = (Tool("look", json.dumps({"at": number}), f"call_{number}"),) if asks_for_tools else ()
        # Of responses this upstream does not say how an item of reasoning ended.
        reasoning = "" if asked.path.endswith("/responses") else "Let me see. " * 2
        self.reply = Reply(answer(number), tools=tools, prompt_tokens=number + 3, reasoning=reasoning)
        return number


async def _renamed(events: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    async for event in events:
        yield event.replace(old, new)


def answer(number: int) -> str:
    return f"answer {number}: " + "ünïcode 🌍 and more, " * (number % 7) + f"that was {number}."


class Wrong(AssertionError):
    """An answer that was told as good, and is not."""


def right(number: int, text: object, calls: list[Any]) -> None:
    if text != answer(number):
        raise Wrong(f"question {number} was answered {text!r}")
    if any(call != {"at": number} for call in calls):
        raise Wrong(f"question {number} calls with {calls!r}")


@dataclass
class Tally:
    """What has happened so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Client:
    """Asks one thing after the other until it is told to stop."""

    numbers = count(1)

    def __init__(self, base: str, seed: int, tally: Tally) -> None:
        self._base, self._random, self._tally = base, random.Random(seed), tally
        self._http = httpx2.AsyncClient(base_url=f"{base}/v1", timeout=STUCK)
        self._openai = AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, timeout=STUCK)
        self._anthropic = AsyncAnthropic(base_url=base, api_key="k", max_retries=0, timeout=STUCK)
        self._deeds: dict[str, Callable[[str, int], Any]] = {
            "chat": self.chat,
            "messages": self.messages,
            "responses": self.responses,
            "embeddings": self.embeddings,
            "count": self.count,
            "models": self.models,
            "openai": self.openai,
            "anthropic": self.anthropic,
            "leave": self.leave,
            "half": self.half,
        }

    async def run(self, until: float) -> None:
        async with self._http, self._openai, self._anthropic:
            while time.monotonic() < until:
                deed = self._random.choice([*self._deeds, "chat", "messages", "responses"])
                await self._one(deed, self._random.choice(NAMES), next(self.numbers))

    async def _one(self, deed: str, name: str, number: int) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(STUCK):
                outcome = await self._deeds[deed](name, number) or "good"
        except (httpx2.HTTPError, OpenAIError, AnthropicError, OSError):
            outcome = "failed"
        except TimeoutError:
            outcome = "stuck"
            self._tally.wrong.append(f"{deed} of {name}, question {number}: no end within {STUCK:g} s")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told at the end
            outcome = "wrong"
            self._tally.wrong.append(f"{deed} of {name}, question {number}: {type(error).__name__}: {error}"[:600])
        self._tally.outcomes[f"{deed} {outcome}"] += 1
        self._tally.slowest = max(self._tally.slowest, time.monotonic() - begun)

    async def _ask(self, path: str, name: str, body: dict[str, Any]) -> tuple[bool, bytes]:
        """Whether it is an event stream, and the body; "failed" is told by an exception."""
        got = await self._http.post(path, json={"model": name, **body})
        if got.status_code != 200:
            error = got.json()["error"]
            if not error["message"]:
                raise Wrong(f"an error that says nothing: {got.text}")
            raise httpx2.HTTPError(error["message"])
        return got.headers["content-type"].startswith("text/event-stream"), got.content

    def _asking(self, number: int) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 50}

    def _maybe(self, **more: Any) -> dict[str, Any]:
        return {key: value for key, value in more.items() if self._random.random() < 0.5}

    async def chat(self, name: str, number: int) -> str:
        function = {"name": "look", "parameters": {"type": "object"}}
        more = self._maybe(stream=True, tools=[{"type": "function", "function": function}], temperature=0.5)
        streamed, body = await self._ask("/chat/completions", name, {**self._asking(number), **more})
        if streamed:
            said = chat_stream(body)
            if said.error is not None:
                return "broken"
            right(number, said.text, [json.loads(call.arguments) for call in said.calls])
        else:
            message = json.loads(body)["choices"][0]["message"]
            calls = [json.loads(call["function"]["arguments"]) for call in message.get("tool_calls") or []]
            right(number, message["content"], calls)
        return "good"

    async def messages(self, name: str, number: int) -> str:
        more = self._maybe(stream=True, tools=[{"name": "look", "input_schema": {"type": "object"}}])
        streamed, body = await self._ask("/messages", name, {**self._asking(number), **more})
        if streamed:
            said = messages_stream(body)
            if said.error is not None:
                return "broken"
            right(number, said.text, [json.loads(call.arguments) for call in said.calls])
        else:
            content = json.loads(body)["content"]
            text = "".join(block["text"] for block in content if block["type"] == "text")
            right(number, text, [block["input"] for block in content if block["type"] == "tool_use"])
        return "good"

    async def responses(self, name: str, number: int) -> str:
        asked: dict[str, Any] = {"input": f"question {number}", "store": self._random.random() < 0.5}
        tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}]
        streamed, body = await self._ask("/responses", name, asked | self._maybe(stream=True, tools=tools))
        if streamed and re.search(rb"^event: error$", body, re.MULTILINE):
            return "broken"  # that an engine broke off is said by this event alone
        if streamed:
            said = responses_stream(body)
            if said.finish not in ("completed", "incomplete"):
                return "broken"
            right(number, said.text, [json.loads(arguments) for _, _, arguments in said.calls])
            return "good"
        document = json.loads(body)
        self._right_response(number, document)
        if asked["store"]:
            again = await self._http.get(f"/responses/{document['id']}")
            if again.status_code != 200:
                raise Wrong(f"question {number} was to be kept, and is not: {again.text}")
            self._right_response(number, again.json())
        return "good"

    def _right_response(self, number: int, document: dict[str, Any]) -> None:
        output = document["output"]
        texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
        calls = [json.loads(item["arguments"]) for item in output if item["type"] == "function_call"]
        right(number, "".join(texts), calls)

    async def embeddings(self, name: str, number: int) -> str:
        _, body = await self._ask("/embeddings", name, {"input": f"question {number}"})
        if json.loads(body)["data"][0]["embedding"] != [number]:
            raise Wrong(f"question {number} became {body!r}")
        return "good"

    async def count(self, name: str, number: int) -> str:
        _, body = await self._ask("/messages/count_tokens", name, self._asking(number))
        if json.loads(body)["input_tokens"] != number + 3:
            raise Wrong(f"question {number} was counted {body!r}")
        return "good"

    async def models(self, name: str, number: int) -> str:
        got = (await self._http.get("/models")).json()
        if not {*NAMES} <= {entry["id"] for entry in got["data"]}:
            raise Wrong(f"the models are {got}")
        return "good"

    async def openai(self, name: str, number: int) -> str:
        asked = self._asking(number)
        async with self._openai.chat.completions.stream(model=name, messages=asked["messages"]) as stream:
            done = await stream.get_final_completion()
        right(number, done.choices[0].message.content, [])
        return "good"

    async def anthropic(self, name: str, number: int) -> str:
        async with self._anthropic.messages.stream(model=name, **self._asking(number)) as stream:
            done = await stream.get_final_message()
        right(number, "".join(block.text for block in done.content if block.type == "text"), [])
        return "good"

    async def leave(self, name: str, number: int) -> str:
        """A stream without an end is left in the middle."""
        asks: list[tuple[str, dict[str, Any]]] = [
            ("/chat/completions", {"messages": [{"role": "user", "content": "for ever"}]}),
            ("/messages", {"messages": [{"role": "user", "content": "for ever"}], "max_tokens": 5}),
        ]
        path, body = self._random.choice(asks)
        seen = 0
        stop = self._random.randrange(1, 6)
        async with self._http.stream("POST", path, json={"model": name, "stream": True, **body}) as got:
            async for _ in got.aiter_raw():
                seen += 1
                if seen == stop:
                    return "left"
        return "failed" if got.status_code != 200 or seen < stop else "wrong"

    async def half(self, name: str, number: int) -> str:
        """A request that is never finished; sometimes it is cut, sometimes it just waits to be thrown out."""
        host, _, port = self._base.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 400\r\n\r\n{"
            writer.write(head[: self._random.randrange(1, len(head))])
            await writer.drain()
            if self._random.random() < 0.2:
                await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return "left"


class World:
    """The gateway and its upstreams, and what happens to them."""

    def __init__(self, gateway: Gateway, echoes: dict[str, Echo]) -> None:
        self.gateway, self.echoes, self._random = gateway, echoes, random.Random(SEED)
        assert gateway.process is not None
        self._process = psutil.Process(gateway.process.pid)
        self.reloads = self.stops = 0

    def lead(self) -> None:
        """Other routes to the same upstreams."""
        base = {name: echo.url for name, echo in self.echoes.items()}
        weights: list[Any] = ["oa/m", "an/m", "engine"]
        self._random.shuffle(weights)
        if self._random.random() < 0.5:
            weights = [(name, self._random.randrange(1, 9)) for name in weights]
        self.reloads += 1
        engine = target(self.echoes["engine"].port, f"engine#{self.reloads}")
        self.gateway.use(
            {"engine": model(engine)},
            providers={
                "oa": provider(base["oa"], ["m"]),
                "an": provider("", ["m"], speaks={"anthropic": base["an"]}, auth="x-api-key"),
            },
            secrets={"oa": {"keys": ["k1", "k2"]}, "an": {"keys": ["k1"]}},
            routes={"any": route(*weights)},
            limits=LIMITS,
        )

    def lead_nowhere(self) -> None:
        """Routes that are none: the ones in force stay."""
        self.gateway.write(b'{"format": 2, "serial"')
        assert self.gateway.reload()["error"]
        self.lead()

    def stop_one(self) -> None:
        """One upstream hangs up on everybody, and is back a moment later."""
        echo = self._random.choice(list(self.echoes.values()))
        echo.stop()
        self.stops += 1
        time.sleep(self._random.uniform(0.05, 0.5))
        echo.start()

    def has_bad_days(self) -> None:
        for echo in self.echoes.values():
            echo.bad = self._random.choice((0.0, 0.05, 0.1, 0.3))

    async def happen(self, until: float) -> None:
        deeds = (self.lead, self.lead, self.lead_nowhere, self.stop_one, self.has_bad_days)
        while time.monotonic() < until:
            await asyncio.sleep(self._random.uniform(0.3, 3))
            await asyncio.to_thread(self._random.choice(deeds))

    def descriptors(self) -> int:
        return self._process.num_fds()

    def memory(self) -> float:
        """MiB"""
        return float(self._process.memory_info().rss) / 2**20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    gateway = Gateway(tmp_path, "--kept", str(tmp_path / "kept"))
    gateway.start()
    echoes = {name: Echo(SEED + at) for at, name in enumerate(("engine", "oa", "an"))}
    with contextlib.ExitStack() as stack:
        stack.callback(gateway.stop)
        for echo in echoes.values():
            stack.enter_context(echo)
        yield World(gateway, echoes)


async def _sampled(world: World, until: float) -> list[float]:
    samples = []
    while time.monotonic() < until:
        await asyncio.sleep(max(0.25, SECONDS / 1000))
        samples.append(world.memory())
    return samples


@pytest.mark.timeout(SECONDS + 180)
async def test_soak(world: World) -> None:
    await asyncio.to_thread(world.lead)
    tally = Tally()
    warm = Client(world.gateway.base, SEED, tally)  # opens what is opened once and kept, such as the kept answers
    await asyncio.gather(warm.run(time.monotonic() + 2))
    before = world.descriptors()
    until = time.monotonic() + SECONDS
    clients = [Client(world.gateway.base, SEED + 1 + at, tally) for at in range(CLIENTS)]
    sampling = asyncio.create_task(_sampled(world, until))
    await asyncio.gather(*(client.run(until) for client in clients), world.happen(until))
    samples = await sampling
    print(f"\n{sum(tally.outcomes.values())} requests, {world.reloads} reloads, {world.stops} stops,", end=" ")
    print(f"slowest {tally.slowest:.1f} s, seed {SEED}: {dict(sorted(tally.outcomes.items()))}")

    assert not tally.wrong, "\n".join(tally.wrong[:20])
    good = sum(many for outcome, many in tally.outcomes.items() if outcome.endswith((" good", " left")))
    assert good > 0.5 * sum(tally.outcomes.values()), tally.outcomes
    assert "bug" not in world.gateway.log(), world.gateway.log()[-2000:]

    def quiet() -> bool:
        return not world.gateway.state()["inflight"] and all(echo.running == 0 for echo in world.echoes.values())

    await asyncio.to_thread(wait_until, quiet, 15, "nothing is in flight any more")
    for echo in world.echoes.values():
        await asyncio.to_thread(echo.stop)  # which ends the connections that are kept for the next request
    await asyncio.to_thread(wait_until, lambda: world.descriptors() <= before, 15, f"{before} file descriptors again")
    quarter = len(samples) // 4
    growth = median(samples[-quarter:]) - median(samples[quarter : 2 * quarter])
    print(f"memory {samples[0]:.1f} … {samples[-1]:.1f} MiB, {growth:+.1f} MiB from the second quarter to the last")
    assert growth < GROWTH
