"""Mask: text without what looks like a key. PURE.

What is known to be a secret is taken out wherever it stands; what has the form of one (a vendor's prefix, a bearer
token, a private key) is taken out, too. In a stream of events a key may come in pieces: texts of the same place in
consecutive events are looked at as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

MASKED = "[masked]"
SHORTEST = 6  # characters of a secret that is known; a shorter one would mask ordinary words
_DEPTH = 64
_FORMS = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|nvapi|tgp|fw|pplx|r8|hf|ghp|gho|ghu|ghs|ghr|github_pat|glpat|npm|pypi|dop_v1|shpat|xox[abeoprs])"
    r"[-_][A-Za-z0-9_-]{6,}[A-Za-z0-9_.=/+-]*"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|\bAIza[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*"
    r"|\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_SECRET_HEADER = re.compile(r"auth|key|token|cookie|secret|password|credential|signature", re.IGNORECASE)


class Mask:
    """Masks what looks like a key, and these `secrets`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({one for one in secrets if len(one) >= SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(MASKED, text)
        return _FORMS.sub(MASKED, text)

    def value(self, value: Any) -> Any:
        """A JSON value without them, in its keys, too."""
        return self._value(value, _DEPTH)

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict | list) and not depth:
            return MASKED
        if isinstance(value, dict):
            return {self.text(key): self._value(each, depth - 1) for key, each in value.items()}
        if isinstance(value, list):
            return [self._value(each, depth - 1) for each in value]
        return value

    def headers(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Those whose name speaks of no secret."""
        return {name.lower(): self.text(value) for name, value in headers if not _SECRET_HEADER.search(name)}

    def body(self, data: bytes, *, cut: bool = False) -> Any:
        """A body as a JSON value; a stream as the list of its events' data, anything else as text.

        Of one that was `cut`, what stands at the cut is left out, since a piece of a key looks like none.
        """
        text = data.decode("utf-8", "replace")
        if text.lstrip().startswith(("data:", "event:", "id:", ":")):
            return self._events(text.rpartition("\n\n")[0] if cut else text)
        if not cut:
            try:
                return self.value(json.loads(text))
            except (ValueError, RecursionError):
                pass
        return self.text(text[:-256] if cut else text)

    def _events(self, text: str) -> list[Any]:
        events: list[Any] = []
        for line in text.splitlines():
            if line.startswith("data:"):
                try:
                    events.append(json.loads(line[5:]))
                except (ValueError, RecursionError):
                    events.append(line[5:].strip())
        places: dict[tuple[object, ...], list[tuple[Any, Any]]] = {}
        for number, event in enumerate(events):
            _gather(event, events, number, (), places)
        for pieces in places.values():
            self._pieces(pieces)
        return events

    def _pieces(self, pieces: list[tuple[Any, Any]]) -> None:
        """Mask texts that follow one another as if they were one; what of a secret stands in later ones is left out."""
        texts = [holder[at] for holder, at in pieces]
        for form in filter(None, (self._known, _FORMS)):
            spans = [match.span() for match in form.finditer("".join(texts))]
            if spans:
                texts = _without(texts, spans)
        for (holder, at), text in zip(pieces, texts, strict=True):
            holder[at] = text


def _gather(
    value: Any, holder: Any, at: Any, path: tuple[object, ...], places: dict[tuple[object, ...], list[tuple[Any, Any]]]
) -> None:
    """Note where each text stands, by its path within its event."""
    if isinstance(value, str):
        places.setdefault(path, []).append((holder, at))
    elif isinstance(value, dict | list) and len(path) >= _DEPTH:
        holder[at] = MASKED
    elif isinstance(value, dict):
        for key, each in value.items():
            _gather(each, value, key, (*path, key), places)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _gather(each, value, number, (*path, number), places)


def _without(texts: list[str], spans: list[tuple[int, int]]) -> list[str]:
    """The texts without the spans, which are counted over all of them; the mark stands where one begins."""
    out, start = [], 0
    for text in texts:
        end, kept, place = start + len(text), "", start
        for low, high in spans:
            if high <= start or low >= end:
                continue
            kept += text[place - start : max(low, start) - start]
            kept += MASKED if low >= start else ""
            place = min(high, end)
        out.append(kept + text[place - start :])
        start = end
    return out


def secret_values(headers: Mapping[str, str]) -> list[str]:
    """What a request shows in the headers that are left out: whole, and without the scheme before it."""
    values = [value for name, value in headers.items() if _SECRET_HEADER.search(name)]
    return [*values, *(value.partition(" ")[2].strip() for value in values)]
