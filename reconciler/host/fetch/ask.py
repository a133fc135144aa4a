"""Questions about a file that bring nothing to disk: what a server says of it, and a few of its bytes."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.fetch.patience import Patience
from reconciler.host.fetch.wire import Access, Place, Wire, body, shown, status_fault

if TYPE_CHECKING:
    import httpx2

_PLAIN = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class About:
    """What a server says of a file without sending it. `size` in bytes, None where it does not say."""

    size: int | None
    validator: str
    ranges: bool


async def about(wire: Wire, url: str, access: Access, patience: Patience) -> About:
    """Ask with HEAD; where that is refused or says too little, with GET for the first byte. Raises Fault."""

    async def attempt() -> About:
        response, _ = await wire.ask("HEAD", Place(url), access, _PLAIN)
        await response.aclose()
        said = response.headers
        if response.status_code == 200 and said.get("content-length", "").isdigit() and "accept-ranges" in said:
            return About(int(said["content-length"]), _validator(response), said["accept-ranges"] == "bytes")
        if response.status_code in (429, 503):
            raise status_fault(url, response.status_code, said)
        response, _ = await wire.ask("GET", Place(url), access, _PLAIN | {"Range": "bytes=0-0"})
        await response.aclose()
        return _of_first_byte(url, response)

    return await patience.with_retries(attempt)


def _of_first_byte(url: str, response: httpx2.Response) -> About:
    status, said = response.status_code, response.headers
    if status == 200:
        length = said.get("content-length", "")
        return About(int(length) if length.isdigit() else None, _validator(response), ranges=False)
    total = said.get("content-range", "").rpartition("/")[2]
    if status == 206 or (status == 416 and total.isdigit()):
        return About(int(total) if total.isdigit() else None, _validator(response), ranges=True)
    raise status_fault(url, status, said)


async def read(wire: Wire, url: str, start: int, length: int, access: Access, patience: Patience) -> bytes:
    """`length` bytes from `start`, fewer only at the file's end, never more. Raises Fault."""
    found, version = bytearray(), ""

    async def attempt() -> bytes:
        nonlocal version
        while len(found) < length:
            at, before = start + len(found), len(found)
            span = {"Range": f"bytes={at}-{start + length - 1}"}
            response, _ = await wire.ask("GET", Place(url), access, _PLAIN | span)
            try:
                total = _judged(url, response, at)
                if total is None:
                    break
                if found and _validator(response) != version:
                    found.clear()
                    raise Fault("SOURCE_CHANGED", f"{shown(url)} changed while it was read")
                version = _validator(response)
                async with aclosing(body(response, url)) as pieces:
                    async for piece in pieces:
                        found.extend(piece[: length - len(found)])
                        if len(found) == length:
                            break
            finally:
                await response.aclose()
            if start + len(found) == total:
                break
            if len(found) == before:
                raise Fault("CUT_SHORT", f"{shown(url)}: the server sent nothing of what was asked for")
        return bytes(found)

    return await patience.with_retries(attempt)


def _judged(url: str, response: httpx2.Response, at: int) -> int | None:
    """The size of the file whose bytes from `at` on follow, -1 if it is not told; None if it ends before them."""
    where, _, total = response.headers.get("content-range", "").rpartition("/")
    if response.status_code == 416 and total.isdigit() and int(total) <= at:
        return None
    if response.status_code == 206 and where.startswith(f"bytes {at}-"):
        return int(total) if total.isdigit() else -1
    if response.status_code in (200, 206, 416):
        raise no_ranges(url)
    raise status_fault(url, response.status_code, response.headers)


def no_ranges(url: str) -> Fault:
    return Fault("NO_RANGES", f"{shown(url)} is to be had as a whole only", kind=FaultClass.PERMANENT)


def _validator(response: httpx2.Response) -> str:
    return str(response.headers.get("etag", ""))
