"""Bridges: which translator an exchange needs, if any. PURE.

A target that speaks the client's dialect is spoken to in it, byte for byte; a llama-server's answers are then mended
where they are not what the dialect says.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.bridge import Bridge
from reconciler.gateway import errors
from reconciler.gateway.operations import Operation
from reconciler.gateway.routes import Target


def bridge(operation: Operation, document: dict[str, Any], target: Target, request_id: str) -> tuple[str, Bridge]:
    """(the API to speak there, the translator); raises `Refusal` where there is none, `Unmappable` for a field."""
    raise errors.cannot_do(target.label, operation.path)


def mend(operation: Operation, document: dict[str, Any], target: Target, request_id: str) -> Bridge | None:
    """What mends the answers of a target that speaks the dialect itself, not quite rightly; mostly nothing."""
    return None


def error(status: int, body: bytes, dialect: str, request_id: str) -> bytes:
    """A target's error as the client's dialect tells it; the same bytes where they are that already."""
    return body
