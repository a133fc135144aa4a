"""A chat request fits an upstream that is not quite OpenAI."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.chat_fit import fit_chat
from reconciler.dialects.quirks import LOCAL, PLAIN, Quirks

NEWER = replace(PLAIN, max_tokens="max_completion_tokens", sampling=False)


@pytest.mark.parametrize(
    ("quirks", "document"),
    [
        (PLAIN, {"max_tokens": 5, "temperature": 1, "n": 9, "stop": "x", "reasoning_effort": "high"}),
        (PLAIN, {"temperature": "hot", "n": "x", "stop": 7, "reasoning_effort": ["x"], "max_tokens": {}}),
        (PLAIN, {"reasoning_effort": "none", "stop": list("abcd")}),
        (LOCAL, {"top_k": 40, "min_p": 0.1, "stop": list("abcdefgh")}),
        (NEWER, {"max_completion_tokens": 5, "max_tokens": None}),
    ],
)
def test_what_fits_is_the_same_object(quirks: Quirks, document: dict[str, Any]) -> None:
    fitted, ignored = fit_chat(document, quirks)
    assert fitted is document
    assert ignored == ()


@pytest.mark.parametrize(
    ("quirks", "document", "fitted", "ignored"),
    [
        (PLAIN, {"max_completion_tokens": 5}, {"max_tokens": 5}, ()),
        (PLAIN, {"max_completion_tokens": 5, "max_tokens": 6}, {"max_tokens": 5}, ()),
        (NEWER, {"max_tokens": 5}, {"max_completion_tokens": 5}, ()),
        (NEWER, {"temperature": 1, "top_p": 1, "x": None}, {"x": None}, ("temperature", "top_p")),
        (PLAIN, {"temperature": 3, "top_k": 40}, {"temperature": 2.0}, ("temperature", "top_k")),
        (PLAIN, {"reasoning_effort": "xhigh"}, {"reasoning_effort": "high"}, ("reasoning_effort",)),
        (replace(PLAIN, effort=""), {"reasoning_effort": "low"}, {}, ("reasoning_effort",)),
        (replace(PLAIN, stream_options=False), {"stream_options": {}}, {}, ("stream_options",)),
    ],
)
def test_what_does_not_fit(
    quirks: Quirks, document: dict[str, Any], fitted: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    before = dict(document)
    assert fit_chat(document, quirks) == (fitted, ignored)
    assert document == before


@pytest.mark.parametrize(
    ("quirks", "document", "field"),
    [(replace(PLAIN, choices=1), {"n": 2}, "n"), (PLAIN, {"stop": list("abcde")}, "stop")],
)
def test_what_cannot_be_done(quirks: Quirks, document: dict[str, Any], field: str) -> None:
    with pytest.raises(Unmappable) as raised:
        fit_chat(document, quirks)
    assert raised.value.field == field
