"""The list of models in Anthropic's shape, page by page."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.model_list import model_object, models_page

ENTRIES: list[dict[str, Any]] = [{"id": f"m{number}", "created": 1_795_393_006} for number in range(25)]


def names(page: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in page["data"]]


def test_one_model() -> None:
    assert model_object(
        {"id": "a", "created": 1_795_393_006, "context_length": 4096, "max_tokens": 100, "display_name": "A"}
    ) == {
        "type": "model",
        "id": "a",
        "display_name": "A",
        "created_at": "2026-11-23T00:16:46Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "max_tokens": 100,
    }
    bare = model_object({"id": "a"})
    assert (bare["display_name"], bare["created_at"], bare["max_input_tokens"]) == ("a", "1970-01-01T00:00:00Z", None)
    for odd in (10**20, -(10**20), "x", None, 1.5):
        assert model_object({"id": "a", "created": odd})["created_at"] == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("query", "first", "last", "more"),
    [
        ({}, "m0", "m19", True),
        ({"limit": "5"}, "m0", "m4", True),
        ({"limit": "25"}, "m0", "m24", False),
        ({"limit": "1000"}, "m0", "m24", False),
        ({"after_id": "m4"}, "m5", "m24", False),
        ({"after_id": "m4", "limit": "3"}, "m5", "m7", True),
        ({"before_id": "m4"}, "m0", "m3", False),
        ({"before_id": "m20", "limit": "3"}, "m17", "m19", True),
        ({"after_id": "m24"}, None, None, False),
        ({"before_id": "m0"}, None, None, False),
    ],
)
def test_pages(query: dict[str, str], first: str | None, last: str | None, more: bool) -> None:
    page = models_page(ENTRIES, query)
    assert (page["first_id"], page["last_id"], page["has_more"]) == (first, last, more)
    assert names(page)[:1] == ([first] if first else [])
    assert names(page)[-1:] == ([last] if last else [])


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 30), st.integers(1, 12))
def test_pages_one_after_the_other_are_the_list(count: int, limit: int) -> None:
    entries = [{"id": f"m{number}"} for number in range(count)]
    for key, cursor, step in (("after_id", "last_id", 1), ("before_id", "first_id", -1)):
        found: list[str] = []
        query = {"limit": str(limit)}
        if key == "before_id":
            if not entries:
                continue
            query[key] = entries[-1]["id"]
            found = [entries[-1]["id"]]
        while True:
            page = models_page(entries, query)
            found = found + names(page) if step == 1 else names(page) + found
            if not page["has_more"]:
                break
            query[key] = page[cursor]
        assert found == [entry["id"] for entry in entries]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "²"}, "limit"),
        ({"limit": "9" * 9999}, "limit"),
        ({"after_id": "x"}, "after_id"),
        ({"before_id": "x"}, "before_id"),
        ({"after_id": "m1", "before_id": "m2"}, "before_id"),
    ],
)
def test_a_query_that_means_nothing(query: dict[str, str], field: str) -> None:
    with pytest.raises(Unmappable) as raised:
        models_page(ENTRIES, query)
    assert raised.value.field == field
