"""Parts of split models: those that belong together are put in order, all others are told apart."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from typing import Any

import pytest

from reconciler.gguf.header import Header, NotGguf, Share, assemble, histogram, parse
from tests.support.gguf_header import Spec, Typed, header

U16, I32 = 2, 5
SPECS = [Spec(f"blk.{i}.w", (32, 4), 8) for i in range(5)] + [Spec("norm", (32,), 0)]


def part(number: int, of: int, *names: str, total: int = 6, **keys: Any) -> Header:
    """A part as llama.cpp's splitter writes it: only the first has the keys of the model."""
    split = {
        "split.no": Typed(U16, number),
        "split.count": Typed(U16, of),
        "split.tensors.count": Typed(I32, total),
    }
    own = {"general.architecture": "llama", "general.name": "whole"} if number == 0 else {}
    return parse(header({**own, **keys, **split}, [spec for spec in SPECS if spec.name in names]))


THREE = [part(0, 3), part(1, 3, "blk.0.w", "blk.1.w", "norm"), part(2, 3, "blk.2.w", "blk.3.w", "blk.4.w")]


def test_parts_are_put_in_order() -> None:
    for order in permutations(THREE):
        assert assemble(order) == tuple(THREE)


def test_shares_are_counted_over_all_parts() -> None:
    assert histogram(THREE) == {8: Share(5, 5 * 128, 5 * 136), 0: Share(1, 32, 128)}
    assert list(histogram(THREE)) == [8, 0]


@pytest.mark.parametrize("keys", [{}, {"split.count": 0}, {"split.count": 1}, {"split.count": "two"}])
def test_one_file_is_a_whole_model(keys: dict[str, Any]) -> None:
    single = parse(header(keys, SPECS))
    assert assemble([single]) == (single,)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "no part at all"),
        (THREE[:2], "say that there are 3 of them, but 2 are here"),
        (THREE[1:2], "say that there are 3 of them, but 1 are here"),
        ([*THREE, THREE[0]], "3 of them, but 4 are here"),
        ([THREE[0], THREE[1], THREE[1]], "numbered 0, 1, 1, not 0 to 2"),
        ([part(0, 2, total=1), part(1, 3, "norm", total=1)], "there are 2 and 3 of them"),
        ([part(0, 2, total=1), parse(header({}, SPECS[:1]))], "there are 1 and 2 of them"),
        ([part(1, 2, total=1), part(2, 2, "norm", total=1)], "numbered 1, 2, not 0 to 1"),
        ([part(0, 2, "norm", total=2), part(1, 2, "norm", total=2)], "tensor 'norm' is in more than one"),
        ([part(0, 2, total=2), part(1, 2, "norm", total=2)], "part 1 says 2 tensors in all, its parts have 1"),
        ([part(0, 2, total=1), part(1, 2, "norm", total=-1)], "part 2 says an unknown number of tensors in all"),
        (
            [part(0, 2, total=1), part(1, 2, "norm", total=1, **{"general.architecture": "qwen3"})],
            "different models: llama, qwen3",
        ),
    ],
)
def test_what_does_not_belong_together_is_told(parts: list[Header], said: str) -> None:
    with pytest.raises(NotGguf, match=said):
        assemble(parts)


def test_the_fuzzer_runs_or_says_that_it_cannot() -> None:
    argv = [sys.executable, "-m", "tests.gguf.fuzz_header", "--runs", "200"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "skipped: atheris is not installed" in done.stdout or "Done 200 runs" in done.stderr
