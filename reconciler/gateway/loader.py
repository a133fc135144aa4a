"""Loader: has the controller load a model, once for all who wait for it, and only for as long as somebody does.

One connection to the controller's socket says that a model is asked for; closing it says that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from reconciler.gateway import errors
from reconciler.gateway.errors import Refusal
from reconciler.gateway.log import log

MOST_WAITING = 128  # requests for one model
AGAIN_SECONDS = 0.5  # between two tries to reach a controller that is not there
ABSENT_SECONDS = 20.0  # that it may be away, as it is while it is replaced
LINE_LIMIT = 1 << 20


class Loading:
    """One model that is being loaded, and how many wait for it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.waiting = 0

    async def ended(self, seconds: float) -> bool:
        """Whether it is loaded, waiting at most so long; raises `Refusal` where it cannot be."""
        done, _ = await asyncio.wait((self.task,), timeout=seconds)
        if done:
            self.task.result()
        return bool(done)


class Loader:
    """Loads models through the controller at `path`; without one nothing can be loaded."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._under_way: dict[str, Loading] = {}

    def waiting(self) -> dict[str, int]:
        """How many requests wait for each model."""
        return {name: loading.waiting for name, loading in self._under_way.items()}

    @asynccontextmanager
    async def load(self, name: str, seconds: float) -> AsyncIterator[Loading]:
        """Begin to wait for a model, at most `seconds` from the first who asked; raises `Refusal` when too many do."""
        loading = self._under_way.get(name)
        if loading is None or loading.task.done():
            loading = self._under_way[name] = Loading(asyncio.create_task(self._loaded(name, seconds)))
        if loading.waiting >= MOST_WAITING:
            raise errors.too_many_waiting(name, MOST_WAITING)
        loading.waiting += 1
        try:
            yield loading
        finally:
            loading.waiting -= 1
            if not loading.waiting:
                loading.task.cancel()
                if self._under_way.get(name) is loading:
                    del self._under_way[name]

    async def _loaded(self, name: str, seconds: float) -> None:
        """Return once the controller says that the routes lead to it; raises `Refusal`."""
        clock = asyncio.get_running_loop().time
        lost = clock()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        reader, writer = await self._reached(name)
                        try:
                            await _asked(name, seconds, reader, writer)
                        finally:
                            lost = clock()
                            writer.close()
                        return
                    except (OSError, EOFError, ValueError) as error:  # it is being restarted, or there is none
                        log("warning", "controller-unreachable", model=name, reason=error or type(error).__name__)
                        if clock() - lost > ABSENT_SECONDS:
                            raise errors.model_not_loaded(name, "no controller runs that could load it", 30) from None
                        await asyncio.sleep(AGAIN_SECONDS)
        except TimeoutError:
            raise errors.model_not_loaded(name, f"it was not ready within {seconds:g} s", 5) from None

    async def _reached(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the controller; raises OSError, and `Refusal` where there is none to know of."""
        if self._path is None:
            raise errors.model_not_loaded(name, "this gateway knows no controller", 60)
        return await asyncio.open_unix_connection(str(self._path), limit=LINE_LIMIT)


async def _asked(name: str, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One question and its answer. Raises `Refusal`, or OSError, EOFError or ValueError where it broke off."""
    question = {"api": 1, "method": "ensure_ready", "model": name, "timeout": seconds}
    writer.write(json.dumps(question).encode() + b"\n")
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("it went away without an answer")
    answer = json.loads(line)
    if "error" in answer:
        raise _refusal(name, str(answer["error"]), 5)
    if answer.get("ready") is not True:
        raise _refusal(name, str(answer.get("why") or "it is not ready"), float(answer.get("retry_after", 2.0)))


def _refusal(name: str, why: str, after: float) -> Refusal:
    log("warning", "not-loaded", model=name, reason=why)
    return errors.model_not_loaded(name, why, after)
