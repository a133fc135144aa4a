"""Ids: tool call ids that survive a dialect which allows fewer characters, with what has to come back with them.

PURE. Anthropic allows letters, digits, _ and -. An id with others, or one that has a thought signature to carry
(Gemini wants it back with the call; Anthropic's shape has no place for it), becomes a marked one that says the same
in base64, so nothing has to be stored, and another worker or another day can read it.
"""

from __future__ import annotations

import base64
import binascii
import re

from reconciler.dialects.text import decode, encode

_MARK = "rcid_"
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def pack(ident: str, signature: str = "") -> str:
    """An id that Anthropic's clients take; `unpack` gives both back."""
    if not signature and _PLAIN.fullmatch(ident) and not ident.startswith(_MARK):
        return ident
    packed = base64.urlsafe_b64encode(encode([ident, signature])).decode()
    return _MARK + packed.rstrip("=")


def unpack(ident: str) -> tuple[str, str]:
    """(id, thought signature or "") as they were before `pack`; any other id as it is."""
    if ident.startswith(_MARK):
        packed = ident.removeprefix(_MARK)
        try:
            said = decode(base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True))
        except (ValueError, binascii.Error):
            return ident, ""
        if isinstance(said, list) and len(said) == 2 and all(isinstance(part, str) for part in said):
            return said[0], said[1]
    return ident, ""


def safe(ident: str) -> str:
    """An id for an Anthropic upstream: one that came from there stays as it is, others are packed."""
    return ident if _PLAIN.fullmatch(ident) else pack(ident)
