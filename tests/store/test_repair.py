"""A damaged file is mended by fetching what differs, from a real server; where that cannot be, it is set aside."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reconciler.app import tools_for
from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.host.digest import BLOCK
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.model.repair import Patch, Span, Verdict, damaged, differing, joined, restore
from reconciler.kinds.registry import KINDS
from reconciler.store.blobs import prove, token
from reconciler.store.ledger import Ledger
from tests.controller.conftest import Breakable
from tests.store.harm import flip
from tests.support.fileserver import FileServer

CHAT = Ref("model", "chat")
SIZE = 5 * BLOCK + 12_345
GOOD = (os.urandom(1 << 16) * (SIZE // (1 << 16) + 1))[:SIZE]
DIGEST = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture
def tools(layout: Layout, effects: Effects) -> Iterator[Tools]:
    with Ledger.write(layout.ledger, effects) as ledger:
        yield tools_for(layout, layout.root, effects, ledger, KINDS)


@pytest.fixture
def blob(tools: Tools) -> Path:
    part = tools.layout.partial / "p"
    tools.files.write(part, GOOD)
    tools.blobs.take(part, DIGEST, prove(part).blocks)
    return tools.layout.blob(DIGEST)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/m.gguf": GOOD}) as server:
        yield server


def from_(server: FileServer, tools: Tools) -> Patch:
    """Fetches spans, one request each."""

    async def patch(path: Path, spans: Sequence[Span], size: int) -> None:
        try:
            with path.open("r+b") as out:
                for start, length in spans:
                    data = await tools.fetch.read(server.url("/m.gguf"), start, length)
                    assert len(data) == length
                    out.seek(start)
                    out.write(data)
        finally:
            await tools.fetch.close()

    return patch


def events(tools: Tools) -> list[tuple[str, str]]:
    return [(e["type"], e["message"]) for e in tools.ledger.events()]


async def test_only_the_damaged_blocks_are_fetched(tools: Tools, blob: Path, server: FileServer) -> None:
    before, reader = token(blob), blob.open("rb")
    flip(blob, BLOCK + 1)
    flip(blob, SIZE - 1)
    with reader:
        assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.MENDED
        reader.seek(SIZE - 1)
        assert reader.read() != GOOD[-1:], "who has the old file open keeps it as it was"
    assert blob.read_bytes() == GOOD
    assert server.sent["/m.gguf"] == BLOCK + 12_345
    assert tools.blobs.holds(DIGEST)
    assert token(blob) != before, "so that a server which was made from it is replaced"
    assert blob.stat().st_mode & 0o777 == 0o444
    assert len(tools.ledger.blocks(DIGEST)) == 6
    assert list(tools.layout.partial.iterdir()) == []
    assert not tools.layout.quarantine.exists()
    assert events(tools) == [("Mended", "2 of 6 blocks were damaged: fetched 16.8 MB of 83.9 MB again")]


@pytest.mark.parametrize("size", [SIZE - 1, 4 * BLOCK, 3 * BLOCK + 1, SIZE + 1])
async def test_a_file_that_was_cut_or_grew_is_mended(tools: Tools, blob: Path, server: FileServer, size: int) -> None:
    blob.chmod(0o644)
    os.truncate(blob, size)
    assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.MENDED
    assert blob.read_bytes() == GOOD


async def test_what_was_only_touched_is_good(tools: Tools, blob: Path, server: FileServer) -> None:
    blob.chmod(0o644)
    os.utime(blob)
    assert not tools.blobs.holds(DIGEST)
    assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.GOOD
    assert tools.blobs.holds(DIGEST)
    assert blob.stat().st_mode & 0o777 == 0o444
    assert (server.log, events(tools)) == ([], [])


async def test_where_most_is_damaged_it_is_fetched_as_a_whole(tools: Tools, blob: Path, server: FileServer) -> None:
    for number in range(4):
        flip(blob, number * BLOCK)
    assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.SET_ASIDE
    assert not blob.exists()
    assert server.log == []
    assert events(tools)[0][1].startswith("4 of 6 blocks are damaged; moved to ")


@pytest.mark.parametrize("known", [(), ("00000000",)])
async def test_without_its_blocks_it_is_set_aside(
    tools: Tools, blob: Path, server: FileServer, known: tuple[str, ...]
) -> None:
    tools.ledger.forget_artifact(DIGEST)
    tools.blobs.record(DIGEST, known)
    flip(blob, 0)
    assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.SET_ASIDE
    assert len(list(tools.layout.quarantine.iterdir())) == 1


async def test_a_source_that_holds_other_bytes_by_now_mends_nothing(tools: Tools, blob: Path) -> None:
    flip(blob, 0)
    with FileServer({"/m.gguf": bytes(SIZE)}) as other:
        assert await restore(CHAT, DIGEST, tools, from_(other, tools)) is Verdict.SET_ASIDE
    assert not blob.exists()
    assert list(tools.layout.partial.iterdir()) == []


async def test_a_source_without_ranges_mends_nothing(tools: Tools, blob: Path, server: FileServer) -> None:
    server.no_range()
    flip(blob, 0)
    assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.SET_ASIDE
    assert "cannot be mended" in events(tools)[0][1]


async def test_a_source_that_cannot_be_reached_leaves_it_suspect(tools: Tools, blob: Path) -> None:
    flip(blob, 0)
    seen = token(blob)
    assert seen is not None
    tools.blobs.doubt(DIGEST, seen)

    async def patch(path: Path, spans: Sequence[Span], size: int) -> None:
        raise Fault("NETWORK_UNREACHABLE", "no way there")

    with pytest.raises(Fault, match="no way there"):
        await restore(CHAT, DIGEST, tools, patch)
    assert blob.exists()
    assert not tools.blobs.holds(DIGEST)
    assert list(tools.layout.partial.iterdir()) == []
    assert tools.ledger.blocks(DIGEST), "so that the next try can mend it"


async def test_a_disk_without_room_leaves_it_suspect(layout: Layout, server: FileServer) -> None:
    effects = Breakable()
    with Ledger.write(layout.ledger, effects) as ledger:
        tools = tools_for(layout, layout.root, effects, ledger, KINDS)
        part = tools.layout.partial / "p"
        tools.files.write(part, GOOD)
        tools.blobs.take(part, DIGEST, prove(part).blocks)
        flip(layout.blob(DIGEST), 0)
        effects.broken[f"mend {DIGEST}.mend"] = 28
        with pytest.raises(Fault) as caught:
            await restore(CHAT, DIGEST, tools, from_(server, tools))
        assert caught.value.code == "DISK_FULL"
        assert layout.blob(DIGEST).exists()
        assert list(layout.partial.iterdir()) == []
        effects.broken.clear()
        assert await restore(CHAT, DIGEST, tools, from_(server, tools)) is Verdict.MENDED


async def test_a_source_that_offers_no_patch(tools: Tools, blob: Path) -> None:
    flip(blob, 0)
    assert await restore(CHAT, DIGEST, tools) is Verdict.SET_ASIDE


async def test_what_lies_in_its_place_is_set_aside(tools: Tools, blob: Path) -> None:
    away = blob.rename(tools.layout.root / "away")
    blob.symlink_to(away)
    assert await restore(CHAT, DIGEST, tools) is Verdict.SET_ASIDE
    assert away.read_bytes() == GOOD, "what a link led to is not ours"
    blob.mkdir()
    assert await restore(CHAT, DIGEST, tools) is Verdict.SET_ASIDE
    assert await restore(CHAT, DIGEST, tools) is Verdict.GONE
    assert len(list(tools.layout.quarantine.iterdir())) == 2


def test_blocks_as_spans() -> None:
    assert joined([], 5) == []
    assert joined([0], 5) == [(0, 5)]
    assert joined([0, 1, 3], 3 * BLOCK + 1) == [(0, 2 * BLOCK), (3 * BLOCK, 1)]
    assert differing(["a", "b"], ["a"]) == [1]
    assert differing(["a", "b"], ["a", "c", "d"]) == [1]


def test_blocks_that_the_disk_does_not_give_are_damaged(blob: Path) -> None:
    blocks = prove(blob).blocks
    assert damaged(blob, blocks, SIZE) == []
    flip(blob, 2 * BLOCK)
    assert damaged(blob, blocks, SIZE) == [2]
    assert damaged(Path("/proc/self/mem"), blocks[:1], BLOCK) == [0]
