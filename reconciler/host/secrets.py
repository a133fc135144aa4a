"""Secrets by reference (`env:NAME`, `file:PATH`), resolved at the moment of use and never kept."""

from __future__ import annotations

import os
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass


def resolve(reference: str, base: Path) -> str:
    """The secret itself; `file:` paths are relative to `base`. Raises Fault, which names only the reference."""
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(rest, "")
        problem = "is not set in the controller's environment"
        hint = f"export {rest} before `reconcile apply` starts the controller, or use file:PATH"
    else:
        path = base / os.path.expanduser(rest)  # noqa: PTH111  (pathlib's raises where there is no such user)
        problem, hint = "is empty", "put the key into the file"
        try:
            value = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            value, problem = "", f"cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}"
    if not value:
        raise Fault("SECRET_MISSING", f"{reference} {problem}", hint=hint, kind=FaultClass.NEEDS_HUMAN)
    return value
