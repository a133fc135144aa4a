"""The tiny models are what their arguments say, to the gguf library and to a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_gguf import DEFAULT_REPLY, Kind, tiny_gguf

REPO = Path(__file__).parents[2]

ENGINE = """
import json, os, sys, urllib.request
import xllamacpp
port, jobs = json.loads(sys.argv[1])
for job in jobs:
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.hostnames = job["model"], port, ["127.0.0.1"]
    params.n_ctx, params.n_parallel, params.api_keys, params.ui = 512, 1, ["k"], False
    params.cpuparams.n_threads = 1
    params.embedding = job["kind"] in ("bert", "rerank")
    if job["kind"] == "rerank":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if "mmproj" in job:
        params.mmproj.path = job["mmproj"]
    server = xllamacpp.Server(params)
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{job['path']}", json.dumps(job["body"]).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        print("ANSWER", response.read().decode(), flush=True)
    del server
os._exit(0)
"""


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    one = tiny_gguf(tmp_path / "one.gguf", kind="random", seed=3).read_bytes()
    assert tiny_gguf(tmp_path / "two.gguf", kind="random", seed=3).read_bytes() == one
    assert tiny_gguf(tmp_path / "three.gguf", kind="random", seed=4).read_bytes() != one


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quant_is_that_of_the_matrices(tmp_path: Path, quant: str) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(tiny_gguf(tmp_path / "m.gguf", quant=quant, layers=2))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.1.attn_q.weight"] == quant
    assert types["output_norm.weight"] == "F32"


def test_header_says_what_was_asked_for(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = tiny_gguf(tmp_path / "m.gguf", ctx=4096, layers=3, dim=128, heads=8, heads_kv=4, name="mine", reply="")
    fields = GGUFReader(path).fields
    expected = {
        "general.architecture": "llama",
        "general.name": "mine",
        "llama.context_length": 4096,
        "llama.block_count": 3,
        "llama.embedding_length": 128,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
    }
    assert {key: fields[key].contents() for key in expected} == expected


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Q9"):
        tiny_gguf(tmp_path / "m.gguf", quant="Q9")


def test_module_is_a_program(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    command = [sys.executable, "-W", "error", "-m", "tests.support.tiny_gguf", str(out), "--quant", "Q8_0", "--loop"]
    subprocess.run(command, check=True, cwd=REPO, capture_output=True, timeout=30)
    assert out.read_bytes() == tiny_gguf(tmp_path / "same.gguf", quant="Q8_0", loop=True).read_bytes()


def test_every_kind_works_in_a_real_engine(tmp_path: Path) -> None:
    """One child process for all: loading the library takes longer than the models."""
    from tests.support.processes import free_port

    kinds: tuple[Kind, ...] = ("chat", "random", "bert", "rerank", "mmproj")
    files = {kind: str(tiny_gguf(tmp_path / f"{kind}.gguf", kind=kind)) for kind in kinds}
    looping = str(tiny_gguf(tmp_path / "loop.gguf", quant="Q4_0", reply="One two.", loop=True))
    chat = {"path": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 14}}
    embed = {"path": "/v1/embeddings", "body": {"input": ["a", "b"]}}
    rerank = {"path": "/v1/rerank", "body": {"query": "a", "documents": ["a", "b c"]}}
    jobs = [
        {"kind": "chat", "model": files["chat"], **chat},
        {"kind": "chat", "model": looping, **chat},
        {"kind": "chat", "model": files["chat"], "mmproj": files["mmproj"], **chat},
        {"kind": "random", "model": files["random"], **chat},
        {"kind": "bert", "model": files["bert"], **embed},
        {"kind": "rerank", "model": files["rerank"], **rerank},
    ]
    argument = json.dumps([free_port(), jobs])
    child = subprocess.run(
        [sys.executable, "-c", ENGINE, argument],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    answers = [json.loads(line[7:]) for line in child.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == len(jobs), child.stderr[-2000:]
    said = [
        (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) for answer in answers[:3]
    ]
    assert said == [(DEFAULT_REPLY, "stop"), ("One two." * 7, "length"), (DEFAULT_REPLY, "stop")]
    assert [len(entry["embedding"]) for entry in answers[4]["data"]] == [64, 64]
    assert {entry["index"] for entry in answers[5]["results"]} == {0, 1}
