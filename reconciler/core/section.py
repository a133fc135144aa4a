"""The bricks of the manifest language: strict sections, names, counts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"
SHA256 = r"^[0-9a-f]{64}$"
REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$"

_COUNT = re.compile(r"([0-9]+)\s*([kKmM]?)")
_FACTOR = {"": 1, "k": 1024, "m": 1024 * 1024}


class Section(BaseModel):
    """A mapping of the manifest: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def count(value: Any) -> Any:
    """`16k` → 16384: k and m are binary, as context lengths are spoken of."""
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        return int(match[1]) * _FACTOR[match[2].lower()]
    if isinstance(value, str):
        raise ValueError("not a count; write a whole number such as 4096, or 4k")
    return value


Name = Annotated[str, Field(pattern=NAME)]
Alias = Annotated[str, Field(pattern=ALIAS)]
Count = Annotated[
    int,
    BeforeValidator(count),
    Field(strict=True, ge=1, le=1 << 31),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+[kKmM]?$"}]}),
]
