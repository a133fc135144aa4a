"""Model list: models as Anthropic's clients read them.

PURE. Clients tell this shape from OpenAI's by `display_name`, `has_more` and `first_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from reconciler.dialects.bridge import Unmappable

MOST = 1000
USUAL = 20
_LAST = 253402300800  # the year 10000


def model_object(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One model, from `id` and, where they are known, `display_name`, `created` (seconds since 1970), `context_length`
    and `max_tokens` (both in tokens)."""
    created = entry.get("created")
    seconds = created if isinstance(created, int) and 0 <= created < _LAST else 0
    moment = datetime.fromtimestamp(seconds, UTC)
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry.get("display_name") or entry["id"],
        "created_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": entry.get("context_length"),
        "max_tokens": entry.get("max_tokens"),
    }


def models_page(entries: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the entries (see `model_object`), in their order; `query` holds `limit`, `after_id` or `before_id`.

    Raises `Unmappable` for a query that means nothing.
    """
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise Unmappable("before_id", "cannot be given together with after_id")
    names = [entry["id"] for entry in entries]
    if before:
        end = _place(names, before, "before_id")
        first = max(0, end - limit)
        more = first > 0
    else:
        first = _place(names, after, "after_id") + 1 if after else 0
        end = min(len(names), first + limit)
        more = end < len(names)
    page = [model_object(entry) for entry in entries[first:end]]
    return {
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _limit(text: str | None) -> int:
    if not text:
        return USUAL
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MOST):
        raise Unmappable("limit", f"must be a whole number from 1 to {MOST}")
    return int(text)


def _place(names: list[str], name: str, field: str) -> int:
    if name not in names:
        raise Unmappable(field, f"there is no model '{name[:200]}'")
    return names.index(name)
