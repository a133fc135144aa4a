"""Coverage-guided fuzzing of the header parser and of all that reads its headers; needs the `nightly` extra.

    python -m tests.gguf.fuzz_header --runs 1000000

Whatever the bytes, there is a Header, Short or NotGguf, and everything that is computed of a Header has an answer.
Without atheris it says so and ends well. The corpus begins with small headers of every kind and is kept nowhere.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from pathlib import Path


def seeds() -> list[bytes]:
    """Small headers that between them have everything in them that a header can have.

    What writes them imports the parser, so it is imported here: only what atheris imports itself is instrumented.
    """
    from tests.support.gguf_header import SHAPES, Spec, Typed, header

    words = ["<s>", "a", "", "höher"]
    values = {f"k{kind}": Typed(kind, 1) for kind in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)}
    return [
        header({}),
        header({"general.architecture": "llama", **values, "words": words, "nested": [[1, 2], [3]]}),
        header(
            {"general.alignment": 64, "long": list(range(1030))},
            [Spec("t", (3,), 0), Spec("u", (256, 2), 12)],
            alignment=64,
        ),
        header(SHAPES["one-layer"].keys(), list(SHAPES["one-layer"].tensors(8))),
        header({"split.no": Typed(2, 0), "split.count": Typed(2, 2), "split.tensors.count": 1}, [Spec("a", (1,), 99)]),
        header({"general.type": "mmproj", "general.architecture": "clip", "clip.has_vision_encoder": True}),
        header(
            {"tokenizer.ggml.tokens": ["w"] * 1100, "tokenizer.chat_template": "{% if tools %}{{ tools }}{% endif %}"}
        ),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=0, help="end after this time, whatever the runs")
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("skipped: atheris is not installed (pip install '.[nightly]')")
        return 0
    with atheris.instrument_imports(include=["reconciler.gguf"]):
        from reconciler.gguf import header as gguf
        from reconciler.gguf import roles, verdict

    def attempt(data: bytes) -> None:
        try:
            found = gguf.parse(data)
        except gguf.Short as short:
            if short.needed > len(data):
                return
            raise
        except gguf.NotGguf:
            return
        assert found.size >= found.data >= 24
        assert not found.tensors or found.size < 1 << 64
        roles.summary([found])
        str(verdict.judge(None, None, [found], explicit=True))
        try:
            gguf.assemble([found, found])
        except gguf.NotGguf:
            return
        assert not found.tensors

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        flags = [f"-runs={arguments.runs}", "-max_len=16384", "-timeout=20", "-rss_limit_mb=1024"]
        if arguments.seconds:
            flags.append(f"-max_total_time={arguments.seconds}")
        atheris.Setup([sys.argv[0], *flags, corpus], attempt)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
