"""Models that are folders of weights, for engines that load such: brought, pinned, proved, shown by their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.stage import Stage
from tests.e2e.test_templates import told
from tests.support.hub import Hub
from tests.support.weights import KEPT, folder_of_weights

ARGV = "[./own, --at, '{host}:{port}', --weights, '{model_path}']"


def manifest(stage: Stage, source: str, more: str = "", engine: str = "") -> str:
    engine = engine or f"{{type: command, argv: {ARGV}, ready: {{http: /up}}}}"
    return (
        f"version: 1\nengines: {{own: {engine}}}\n{more}"
        f"models: {{chat: {{source: '{source}', engine: own}}}}\ngateway: {{port: {stage.port}}}\n"
    )


def put(folder: Path) -> None:
    folder.mkdir()
    for name, data in folder_of_weights().items():
        (folder / name).write_bytes(data)


def seen(stage: Stage) -> dict[str, bytes]:
    """What the server sees where it is told that its model lies."""
    folder = Path(told(stage)["weights"])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WHOLE = {name: data for name, data in folder_of_weights().items() if name in KEPT}


def test_a_folder_of_this_machine_is_served_kept_and_locked(own: Stage) -> None:
    put(own.folder / "m")
    own.write(manifest(own, "file:m"))
    assert "by the size of its files alone" in own.run("plan", code=2).stdout
    own.run("apply")
    assert seen(own) == WHOLE
    (pin,) = json.loads((own.folder / "stack.lock").read_text())["pins"]
    assert pin["name"] == KEPT[0]
    assert [one["name"] for one in pin["also"]] == list(KEPT[1:])
    assert all(len(one["sha256"]) == 64 for one in pin["also"])
    assert "nothing to do" in own.run("plan").stdout
    own.run("gc")
    assert seen(own) == WHOLE, "each of its files is needed"
    own.run("down", "--purge")
    assert own.blobs() == []
    own.run("apply", "--locked")
    assert seen(own) == WHOLE


def test_one_of_a_hub_is_pinned_and_proved(own: Stage) -> None:
    with Hub() as hub:
        hub.add("lab/m-mlx", folder_of_weights(), licence="mit")
        hub.add("lab/broken", {**folder_of_weights(), "config.json": b"{"})
        own.environment |= {"HF_TOKEN": "", "HF_ENDPOINT": "", "HF_HOME": str(own.folder / "hf")}
        more = f"hub: {{endpoint: {hub.url}}}\n"
        own.write(manifest(own, "hf:lab/m-mlx", more))
        own.run("apply")
        assert seen(own) == WHOLE
        (pin,) = json.loads((own.folder / "stack.lock").read_text())["pins"]
        assert (pin["licence"], pin["resolved"].partition("@")[0]) == ("mit", "hf:lab/m-mlx")
        server = own.server()
        own.write(manifest(own, "hf:lab/broken", more))
        own.run("apply", "--timeout", "10s", code=None)
        assert any("config.json is not JSON" in said for said in own.happened("model/chat", "Failed"))
        assert own.server() == server, "what serves goes on"


def test_it_is_denied_where_the_engine_loads_something_else(own: Stage) -> None:
    put(own.folder / "m")
    own.write(manifest(own, "file:m", engine="{type: llama.cpp, path: ./engine}"))
    assert "is a folder, not a file" in own.run("plan", code=None).stdout
    own.write(manifest(own, "file:models/hello.gguf", engine="{type: mlx}"))
    done = own.run("plan", code=1)
    assert "Apple silicon only" in done.stdout
    assert own.run("apply", code=1).stderr.count("Apple silicon only") == 1
    assert not own.blobs()


@pytest.mark.parametrize("key", ["quant: Q8_0", "file: '*.safetensors'"])
def test_what_chooses_among_ggufs_chooses_nothing_of_a_folder(own: Stage, key: str) -> None:
    put(own.folder / "m")
    own.write(manifest(own, "file:m").replace("engine: own}", f"engine: own, {key}}}"))
    assert f"of which `{key.partition(':')[0]}` chooses nothing" in own.run("plan", code=1).stdout
