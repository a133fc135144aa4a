"""Folders of weights at their sources: found where an engine loads such, and only what is data of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler import sources
from reconciler.core.diagnostics import Fault, FaultClass
from tests.sources.conftest import Desk
from tests.support.hub import Hub
from tests.support.weights import KEPT, folder_of_weights

GGUF = b"GGUF" + bytes(2000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "login" / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as running:
        running.add("lab/weights", folder_of_weights())
        running.add("lab/both", {**folder_of_weights(), "m.gguf": GGUF})
        running.add("lab/gguf", {"m.gguf": GGUF, "config.json": b"{}"})
        yield running


def desk_for(desk: Desk, folders: str, hub: Hub | None = None) -> Desk:
    at = sources.Hub(hub.url) if hub is not None else desk.tap.hub
    return replace(desk, tap=replace(desk.tap, folders=folders, hub=at))


@pytest.mark.parametrize(
    ("repo", "folders", "names"),
    [
        ("weights", "may", KEPT),
        ("weights", "only", KEPT),
        ("both", "", ("m.gguf",)),
        ("both", "may", ("m.gguf",)),
        ("both", "only", KEPT),
        ("gguf", "may", ("m.gguf",)),
    ],
)
async def test_what_a_repository_holds_for_an_engine(
    desk: Desk, hub: Hub, repo: str, folders: str, names: tuple[str, ...]
) -> None:
    found = await desk_for(desk, folders, hub).find(f"hf:lab/{repo}")
    assert tuple(file.name for file in found.files) == names
    assert found.folder is (names == KEPT)


@pytest.mark.parametrize(("repo", "folders", "code"), [("weights", "", "NO_GGUF"), ("gguf", "only", "NO_WEIGHTS")])
async def test_a_repository_without_it_is_told(desk: Desk, hub: Hub, repo: str, folders: str, code: str) -> None:
    with pytest.raises(Fault) as caught:
        await desk_for(desk, folders, hub).find(f"hf:lab/{repo}")
    assert (caught.value.code, caught.value.kind) == (code, FaultClass.PERMANENT)


async def test_a_folder_of_this_machine(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "m" / "sub").mkdir(parents=True)
    for name, data in folder_of_weights().items():
        (tmp_path / "m" / name).write_bytes(data)
    found = await desk_for(desk, "may").find("file:m")
    assert (tuple(file.name for file in found.files), found.folder) == (KEPT, True)
    for folders, there in (("", True), ("may", False)):
        if not there:
            (tmp_path / "m" / "config.json").unlink()
        with pytest.raises(Fault, match="is a folder, not a file"):
            await desk_for(desk, folders).find("file:m")
