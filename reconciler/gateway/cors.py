"""CORS: which web pages of other origins may read what is answered here.

PURE. Only origins that are named in the manifest; what is answered is the name from there, never the bytes that came.
`null` and `*` are no origins, credentials (cookies) are never allowed: a page has to hold a key of its own.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence

# What the clients of the two dialects send from a browser; `x-stainless-` are those that their makers' SDKs add.
_HEADERS = frozenset(
    (
        "accept", "accept-language", "content-type", "authorization", "x-api-key", "anthropic-version",
        "anthropic-beta", "anthropic-dangerous-direct-browser-access", "openai-organization", "openai-project",
        "openai-beta", "x-request-id", "idempotency-key", "user-agent", "x-title", "http-referer",
    )
)  # fmt: skip
_PREFIXES = ("x-stainless-",)
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_MOST_HEADERS = 64
_EXPOSED = (
    "x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, x-reconciler-target, "
    "x-reconciler-attempts, x-reconciler-ignored, openai-processing-ms, openai-version"
)
ASKED_HEADERS = "Access-Control-Request-Headers"
MAX_AGE = 600  # seconds that a browser may keep a preflight's answer


def readable(origin: str) -> bytes:
    """Header lines that let a page of that origin, which is one of those named, read the answer."""
    return f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Expose-Headers: {_EXPOSED}\r\n".encode()


def is_preflight(method: str, headers: Container[str]) -> bool:
    """Whether a browser asks what it may ask."""
    return method == "OPTIONS" and "Access-Control-Request-Method" in headers


def preflight(methods: Sequence[str], asked: Iterable[str]) -> bytes:
    """Header lines for a preflight: what may be done at a path, and which of the headers `asked` for may be sent."""
    headers = [name for name in _names(asked) if name in _HEADERS or name.startswith(_PREFIXES)]
    lines = [f"Access-Control-Allow-Methods: {', '.join(methods)}"]
    if headers:
        lines.append(f"Access-Control-Allow-Headers: {', '.join(headers)}")
    lines.append(f"Access-Control-Max-Age: {MAX_AGE}")
    return "".join(f"{line}\r\n" for line in lines).encode()


def _names(values: Iterable[str]) -> list[str]:
    """The header names in a list, lower case; what is no name is left out, for it would be said back."""
    names = (name.strip(" \t").lower() for value in values for name in value.split(",")[:_MOST_HEADERS])
    return list(dict.fromkeys(name for name in names if _TOKEN.fullmatch(name)))[:_MOST_HEADERS]
