"""What a real engine says when it cannot, and that it is understood."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.core.limits import NO_LIMITS, Limits
from reconciler.host.effects import Effects
from reconciler.host.process import Processes, workload_environment
from reconciler.kinds.engine import io as engine_io
from reconciler.supervise.exits import within
from reconciler.supervise.readiness import wait_ready
from tests.support.processes import free_port
from tests.support.tiny_gguf import tiny_gguf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    whole = tiny_gguf(folder / "ok.gguf").read_bytes()
    (folder / "short.gguf").write_bytes(whole[:-5000])
    (folder / "junk.gguf").write_bytes(b"MZ" + bytes(5000))
    at = whole.index(b"general.architecture") + len(b"general.architecture") + 12
    assert whole[at : at + 5] == b"llama"
    (folder / "arch.gguf").write_bytes(whole[:at] + b"zlama" + whole[at + 5 :])
    return folder


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(Effects(), tmp_path / "ends")
    yield made
    made.close()


NONE = NO_LIMITS


@pytest.mark.parametrize(
    ("model", "flags", "limits", "code", "said"),
    [
        ("short.gguf", [], NONE, "MODEL_LOAD_FAILED", "model loading error"),
        ("junk.gguf", [], NONE, "MODEL_LOAD_FAILED", "model loading error"),
        ("none.gguf", [], NONE, "MODEL_FILE_NOT_FOUND", "exited with code 1"),
        ("arch.gguf", [], NONE, "MODEL_ARCH_NOT_SUPPORTED", "exited with code 1"),
        ("ok.gguf", ["--mmproj", "ok.gguf"], NONE, "MULTIMODAL_PROJECTOR_LOAD_FAILED", "Failed to load CLIP"),
        ("ok.gguf", ["--mmproj", "none.gguf"], NONE, "MULTIMODAL_PROJECTOR_LOAD_FAILED", "Failed to load CLIP"),
        ("ok.gguf", ["--model-draft", "short.gguf"], NONE, "DRAFT_MODEL_LOAD_FAILED", "draft model"),
        ("ok.gguf", ["--model-draft", "none.gguf"], NONE, "DRAFT_MODEL_LOAD_FAILED", "draft model"),
        ("ok.gguf", ["--no-such-flag"], NONE, "INVALID_ARGUMENT", "--no-such-flag"),
        ("ok.gguf", ["--ctx-size", "8000000"], Limits(memory=700 << 20), "OUT_OF_MEMORY", "its limit of 734 MB"),
        ("ok.gguf", [], Limits(memory=60 << 20), "OUT_OF_MEMORY", "its limit of 62.9 MB"),
    ],
    ids=["short", "junk", "no file", "architecture", "projector", "no projector", "draft", "no draft", "flag",
         "memory for the context", "memory for threads"],
)  # fmt: skip
async def test_a_real_engine_is_understood(
    processes: Processes, models: Path, tmp_path: Path, model: str, flags: list[str], limits: Limits, code: str,
    said: str,
) -> None:  # fmt: skip
    port, log = free_port(), tmp_path / "log"
    argv = [sys.executable, str(engine_io.HOST_PROGRAM), "--model", model, "--alias", "m", "--port", str(port)]
    identity = processes.spawn([*argv, *flags], workload_environment({}), log, models, limits)
    with pytest.raises(Fault) as caught:
        await wait_ready(processes, identity, "127.0.0.1", port, 30, log, 0, limits.memory)
    fault = within(caught.value, limits.memory)
    assert fault.code == code, log.read_text()[-2000:]
    assert said in fault.message
    assert fault.hint
