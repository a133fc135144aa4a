"""What llama.cpp's own quantizer gives each tensor of the models in outline, recorded, and how it was recorded.

    python -m tests.gguf.mixtures path/to/llama-quantize > tests/gguf/mixtures.json

The tool only calculates (`--dry-run`), so a sparse file of the right shape is enough. A kind of tensor (its name
without the layer) has its types along the layers, run after run: `12*2 14*30`, by the numbers of ggml.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from reconciler.gguf.header import Header, parse
from reconciler.gguf.quant import FILE_TYPES, Quant
from tests.support.gguf_header import SHAPES, Spec, header, sparse

RECORD = Path(__file__).with_name("mixtures.json")
NUMBERS = {quant: number for number, quant in FILE_TYPES.items()}
_LINE = re.compile(
    r"\] (?P<name>\S+) +- \[.*?\], type = +(?P<now>\w+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<then>\w+)\))?"
)


def kind_of(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name)


@cache
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def tensors(shape: str, quant: str) -> Iterator[Spec]:
    """The tensors of an outline as the quantizer would write them."""
    runs = {kind: _unrolled(text) for kind, text in recorded()["mixtures"][shape][quant].items()}
    for spec in SHAPES[shape].tensors():
        yield Spec(spec.name, spec.shape, next(runs[kind_of(spec.name)]))


@cache
def model(shape: str, quant: str, file_type: int | None = None) -> Header:
    """The header of that model; `file_type` is what it says of itself, without one what is true."""
    number = NUMBERS[Quant(quant)] if file_type is None else file_type
    return parse(header({**SHAPES[shape].keys(), "general.file_type": number}, list(tensors(shape, quant))))


def _unrolled(text: str) -> Iterator[int]:
    for run in text.split():
        kind, _, times = run.partition("*")
        yield from [int(kind)] * int(times or 1)


def _record(tool: str) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    numbers = {kind.name.lower(): int(kind) for kind in GGMLQuantizationType} | {"q2_0": 42}
    out: dict[str, Any] = {"mixtures": {}, "bits": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            path = sparse(Path(folder) / f"{name}.gguf", {**shape.keys(), "general.file_type": 1}, [*shape.tensors()])
            out["mixtures"][name], out["bits"][name] = {}, {}
            for quant in Quant:
                said = subprocess.run(
                    [tool, "--dry-run", str(path), quant.value], capture_output=True, text=True, check=False
                )
                every = said.stdout + said.stderr
                lines = {m["name"]: numbers[(m["then"] or m["now"]).lower()] for m in _LINE.finditer(every)}
                size = re.search(r"quant size .*\(([\d.]+) BPW\)", every)
                if said.returncode or not size or len(lines) != len(list(shape.tensors())):
                    print(name, quant, "not recorded:", every[-300:], file=sys.stderr)
                    continue
                kinds: dict[str, list[int]] = {}
                for spec in shape.tensors():
                    kinds.setdefault(kind_of(spec.name), []).append(lines[spec.name])
                out["mixtures"][name][quant.value] = {kind: _rolled(types) for kind, types in kinds.items()}
                out["bits"][name][quant.value] = float(size[1])
    return out


def _rolled(types: list[int]) -> str:
    return " ".join(f"{kind}*{len(list(same))}" for kind, same in groupby(types))


if __name__ == "__main__":
    json.dump(_record(sys.argv[1]), sys.stdout, indent=1)
    print()
