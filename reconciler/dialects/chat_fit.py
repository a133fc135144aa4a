"""Chat fit: a chat request for a chat upstream that is not quite OpenAI.

PURE. Nothing is translated: a client and an upstream that both speak chat still differ in names, limits and what
they take.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.bridge import Unmappable
from reconciler.dialects.fields import Ignored, clamped
from reconciler.dialects.quirks import EFFORTS, Quirks, fitting_effort

_LIMITS = ("max_completion_tokens", "max_tokens")


def fit_chat(document: dict[str, Any], quirks: Quirks) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the request as the upstream takes it, paths of what was left out or lowered); the same object where it fits.

    Values of a wrong type are left to the upstream. Raises `Unmappable` for what it cannot do.
    """
    ignored = Ignored()
    changed: dict[str, Any] = {}
    _limit(document, quirks, changed)
    _sampling(document, quirks, changed, ignored)
    n, stop = document.get("n"), document.get("stop")
    if quirks.choices and isinstance(n, int) and n > quirks.choices:
        raise Unmappable("n", f"this model's provider gives at most {quirks.choices} at a time")
    if quirks.stop_limit and isinstance(stop, list) and len(stop) > quirks.stop_limit:
        raise Unmappable("stop", f"this model's provider takes at most {quirks.stop_limit}")
    effort = document.get("reasoning_effort")
    if isinstance(effort, str) and effort in EFFORTS and (taken := fitting_effort(effort, quirks)) != effort:
        changed["reasoning_effort"] = taken or None
        ignored.add("reasoning_effort")
    if not quirks.stream_options and document.get("stream_options") is not None:
        changed["stream_options"] = None
        ignored.add("stream_options")
    if not changed:
        return document, ()
    fitted = {key: value for key, value in (document | changed).items() if key not in changed or value is not None}
    return fitted, ignored.paths()


def _limit(document: dict[str, Any], quirks: Quirks, changed: dict[str, Any]) -> None:
    """One limit under the name that the upstream has for it; the newer name counts where both are given."""
    said = next((document[key] for key in _LIMITS if document.get(key) is not None), None)
    other = _LIMITS[1 - _LIMITS.index(quirks.max_tokens)]
    if said is not None and document.get(other) is not None:
        changed |= {quirks.max_tokens: said, other: None}


def _sampling(document: dict[str, Any], quirks: Quirks, changed: dict[str, Any], ignored: Ignored) -> None:
    for key, taken in (("temperature", quirks.sampling), ("top_p", quirks.sampling), ("top_k", quirks.top_k)):
        if not taken and document.get(key) is not None:
            changed[key] = None
            ignored.add(key)
    value = document.get("temperature")
    if quirks.sampling and isinstance(value, int | float) and not isinstance(value, bool):
        kept = clamped(value, *quirks.temperature)
        if kept != value:
            changed["temperature"] = kept
            ignored.add("temperature")
