"""Work that keeps a disk busy for long has threads of its own: looking, probing and routing never wait behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_POOL = ThreadPoolExecutor(max_workers=2, thread_name_prefix="bulk")


async def in_bulk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work on bytes (hashing, copying, unpacking); two at a time.

    A cancelled call returns once its thread is done with the bytes: who comes next has them alone.
    """
    begun = _POOL.submit(work, *args, **kwargs)
    ended = asyncio.wrap_future(begun)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        if not begun.cancel():
            await _outlasted(ended)
        raise


async def in_bulk_until(stop: threading.Event, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for work that ends early once `stop` is set, as a cancelled call does: a large copy, say."""
    begun = asyncio.ensure_future(in_bulk(work, *args, **kwargs))
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        stop.set()
        await _outlasted(begun)
        raise


async def _outlasted(ended: asyncio.Future[Any]) -> None:
    while not ended.done():
        with suppress(asyncio.CancelledError):  # it was heard the first time
            await asyncio.wait([ended])
    if not ended.cancelled():
        ended.exception()  # nobody is left to be told
