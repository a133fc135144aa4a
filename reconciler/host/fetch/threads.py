"""The threads that downloads write and hash in: their own, so that no download waits behind the re-hash of a store.

A piece of work lasts milliseconds. It is never left behind: who is cancelled while one runs leaves when it has ended,
so that no thread writes to a file that is closed already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_POOL = ThreadPoolExecutor(max_workers=4, thread_name_prefix="fetch")


def begin(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Start blocking work in a thread."""
    return asyncio.get_running_loop().run_in_executor(_POOL, lambda: work(*args, **kwargs))


async def ended(job: asyncio.Future[T]) -> T:
    """The result of what was begun; a cancellation is passed on only once the thread has ended."""
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        while not job.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([job])
        if not job.cancelled():
            job.exception()
        raise


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await ended(begin(work, *args, **kwargs))
