"""With a real llama-server and the official client."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.gateway.harness import Gateway, model, target
from tests.support.processes import free_port, wait_until
from tests.support.tiny_gguf import tiny_gguf

KEY = "engine-key"
REPLY = "The gateway stands in front of it all."
HOST = Path(__file__).with_name("engine_host.py")


@dataclass
class Engine:
    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except OSError:
            return None
        finally:
            connection.close()

    def busy(self) -> bool:
        return any(slot["is_processing"] for slot in self.get("/slots"))


def run_engine(gguf: Path, name: str, *rest: str) -> Engine:
    port = free_port()
    command = [sys.executable, str(HOST), str(gguf), str(port), name, KEY, *rest]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Engine(port, process)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    folder = tmp_path_factory.mktemp("models")
    running = {
        "chat": run_engine(tiny_gguf(folder / "chat.gguf", reply=REPLY, ctx=4096), "chat"),
        "endless": run_engine(
            tiny_gguf(folder / "endless.gguf", reply="on and off", loop=True, ctx=4096, layers=8, dim=512), "endless"
        ),
        "embed": run_engine(tiny_gguf(folder / "embed.gguf", kind="bert"), "embed", "embedding"),
    }
    try:
        for engine in running.values():
            wait_until(lambda e=engine: e.get("/health"), timeout=30, message="the engine is ready")  # type: ignore[misc]
        yield running
    finally:
        for engine in running.values():
            engine.process.kill()
            engine.process.wait()


@pytest.fixture
def served(gateway: Gateway, engines: dict[str, Engine]) -> Gateway:
    tasks = {"embed": "embedding"}
    gateway.use(
        {
            name: model(target(engine.port, f"{name}#1", KEY), task=tasks.get(name, "chat"))
            for name, engine in engines.items()
        }
    )
    return gateway


def client(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="any", max_retries=0, timeout=10)


async def read_all(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


MESSAGES: Any = [{"role": "user", "content": "hello"}]


async def test_chat(served: Gateway) -> None:
    async with client(served) as api:
        answer = await api.chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
        assert answer.headers["x-reconciler-target"] == "server/chat"
        assert answer.parse().choices[0].message.content == REPLY
        stream = await api.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
        parts = [part async for part in stream]
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == REPLY
        assert parts[-1].choices[0].finish_reason == "stop"
        completion = await api.completions.create(model="chat", prompt="x", max_tokens=4)
        assert completion.usage is not None
        assert completion.usage.completion_tokens <= 4


async def test_many_at_once(served: Gateway) -> None:
    async with client(served) as api:
        began = time.monotonic()
        answers = await asyncio.gather(
            *(api.chat.completions.create(model="chat", messages=MESSAGES) for _ in range(24))
        )
        assert {answer.choices[0].message.content for answer in answers} == {REPLY}
        assert time.monotonic() - began < 4  # 5 s or more: kept connections hold the engine's threads


async def test_embeddings(served: Gateway) -> None:
    async with client(served) as api:
        got = await api.embeddings.create(model="embed", input=["a", "b c"])
        assert len(got.data) == 2
        assert len(got.data[0].embedding) == len(got.data[1].embedding) == 64
        with pytest.raises(openai.BadRequestError, match="does not generate text"):
            await api.chat.completions.create(model="embed", messages=MESSAGES)


async def test_what_the_engine_refuses_reaches_the_client(served: Gateway) -> None:
    nonsense: Any = "nonsense"
    async with client(served) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.chat.completions.create(model="chat", messages=nonsense)
        assert caught.value.status_code in (400, 500)
        assert "x-reconciler-target" in caught.value.response.headers


async def test_a_client_that_goes_frees_the_slot(served: Gateway, engines: dict[str, Engine]) -> None:
    engine = engines["endless"]
    async with client(served) as api:
        stream = await api.chat.completions.create(
            model="endless", messages=MESSAGES, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        assert await asyncio.to_thread(engine.busy)
        await stream.close()
        began = time.monotonic()
        await asyncio.to_thread(wait_until, lambda: not engine.busy(), 2.0, "the slot is free")
        assert time.monotonic() - began < 2


async def test_a_client_that_goes_frees_the_slot_of_a_whole_answer_too(
    served: Gateway, engines: dict[str, Engine]
) -> None:
    engine = engines["endless"]
    body = {"model": "endless", "messages": MESSAGES, "max_tokens": 4000, "ignore_eos": True}
    async with client(served) as api:
        asking = asyncio.create_task(api.post("/chat/completions", body=body, cast_to=object))
        await asyncio.to_thread(wait_until, engine.busy, 5.0, "the engine is at work")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.to_thread(wait_until, lambda: not engine.busy(), 2.0, "the slot is free")


ALIKE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "stream": False}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 0}),
    ("/v1/chat/completions", {"messages": MESSAGES, "stop": ["stands"]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ünïcode 🌍"}], "seed": 7}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "logprobs": True}),  # goes as it is
    ("/v1/chat/completions", {"messages": "nonsense"}),
    ("/v1/chat/completions", {"messages": MESSAGES, "temperature": "hot"}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 4}),
    ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 2}),  # goes as it is
    ("/v1/completions", {"prompt": "x" * 9000, "max_tokens": 4}),  # longer than the context
]


@pytest.mark.parametrize(("path", "more"), ALIKE)
async def test_whole_answers_are_what_the_engine_itself_says(
    served: Gateway, engines: dict[str, Engine], path: str, more: dict[str, Any]
) -> None:
    """The same request to the engine and through the gateway: the same status and the same JSON."""
    body = {"model": "chat", "temperature": 0, "cache_prompt": False, **more}
    async with httpx2.AsyncClient(timeout=20) as http:
        direct = await http.post(
            f"http://127.0.0.1:{engines['chat'].port}{path}", json=body, headers={"Authorization": f"Bearer {KEY}"}
        )
        through = await http.post(f"{served.base}{path}", json=body)
    assert through.status_code == direct.status_code
    assert through.headers["content-type"].partition(";")[0] == direct.headers["content-type"].partition(";")[0]

    def essence(answer: dict[str, Any]) -> dict[str, Any]:
        for passing in ("id", "created", "timings"):
            answer.pop(passing, None)
        return answer

    assert essence(through.json()) == essence(direct.json())
    assert set(through.json()) == set(direct.json())


async def test_an_engine_killed_in_the_middle(served: Gateway, engines: dict[str, Engine], tmp_path: Path) -> None:
    victim = run_engine(tiny_gguf(tmp_path / "v.gguf", reply="a b c", loop=True, ctx=4096, layers=8, dim=512), "victim")
    try:
        await asyncio.to_thread(wait_until, lambda: victim.get("/health"), 30.0, "the engine is ready")
        served.use({"victim": model(target(victim.port, "victim#1", KEY))})
        async with client(served) as api:
            stream = await api.chat.completions.create(model="victim", messages=MESSAGES, stream=True, max_tokens=4000)
            await anext(stream)
            victim.process.kill()
            with pytest.raises(openai.APIError, match="server/victim broke off"):
                await read_all(stream)
            victim.process.wait()
            with pytest.raises(openai.InternalServerError, match="being restarted") as caught:
                await api.chat.completions.create(model="victim", messages=MESSAGES)
            assert caught.value.response.headers["retry-after"] == "1"
    finally:
        victim.process.kill()
        victim.process.wait()
