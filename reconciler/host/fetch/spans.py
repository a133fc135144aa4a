"""Pieces of a file as sorted, disjoint, half-open spans of byte offsets: pure arithmetic.

A span is (start, end) with start < end. Functions return new tuples and never change what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[int, int]
Spans = tuple[Span, ...]


def joined(spans: Iterable[Span]) -> Spans:
    """The same bytes as few spans as possible, in order; empty ones are left out."""
    found: list[Span] = []
    for start, end in sorted(s for s in spans if s[0] < s[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return tuple(found)


def added(spans: Spans, span: Span) -> Spans:
    return joined((*spans, span))


def total(spans: Iterable[Span]) -> int:
    """How many bytes they are; the spans must not overlap."""
    return sum(end - start for start, end in spans)


def missing(spans: Spans, size: int) -> Spans:
    """What of a file of `size` bytes is in none of the spans."""
    gaps, at = [], 0
    for start, end in spans:
        gaps.append((at, min(start, size)))
        at = max(at, end)
    gaps.append((at, size))
    return tuple(gap for gap in gaps if gap[0] < gap[1])


def run_from(spans: Spans, at: int) -> int:
    """Where the bytes that follow `at` without a gap end; `at` itself if it is in none."""
    return next((end for start, end in spans if start <= at < end), at)
