"""Work on bytes in threads of its own: whoever cancels it has the bytes to itself afterwards."""

from __future__ import annotations

import asyncio
import threading

import pytest

from reconciler.host.bulk import in_bulk


async def test_a_cancelled_call_returns_once_its_thread_has_ended() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(20)
        ended.set()

    task = asyncio.create_task(in_bulk(work))
    await asyncio.to_thread(began.wait, 20)
    for _ in range(3):  # asked once or often
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_one_that_has_not_begun_never_does() -> None:
    began, go_on, ran = threading.Semaphore(0), threading.Event(), threading.Event()

    def busy() -> None:
        began.release()
        go_on.wait(20)

    others = [asyncio.create_task(in_bulk(busy)) for _ in range(2)]
    for _ in others:
        await asyncio.to_thread(began.acquire)
    task = asyncio.create_task(in_bulk(ran.set))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.gather(*others)
    assert await in_bulk(lambda: 5) == 5
    assert not ran.is_set()


async def test_what_fails_says_so_and_after_a_cancel_to_nobody() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_bulk(fail)
    began, go_on = threading.Event(), threading.Event()

    def fail_later() -> None:
        began.set()
        go_on.wait(20)
        raise ValueError("too late")

    task = asyncio.create_task(in_bulk(fail_later))
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
