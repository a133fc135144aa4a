"""Text: JSON as it goes over the wire.

PURE. What is read can be written again: numbers that JSON cannot say and nesting past what Python follows are
ValueError, never another exception.
"""

from __future__ import annotations

import json
import math
from typing import Any


def decode(data: str | bytes) -> Any:
    """The JSON value; bytes are UTF-8. Raises ValueError."""
    try:
        return _decode(data if isinstance(data, str) else data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(document: object) -> bytes:
    """Compact JSON in UTF-8; a lone surrogate stays an escape. Raises ValueError for what JSON cannot say."""
    try:
        return _encode(document).encode()
    except UnicodeEncodeError:
        return _encode_ascii(document).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(document: object) -> str:
    """As `encode`, but text: what tool arguments are."""
    return encode(document).decode()


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


_decode = json.JSONDecoder(parse_constant=_constant, parse_float=_number).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
