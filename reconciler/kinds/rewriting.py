"""What the manifest may say of the requests that go to a model or provider: fields to set, to fill in, to leave out,
and how many go at once.

Pure. A field is one of the request's outermost object.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from reconciler.core.ids import canonical
from reconciler.core.section import Section

OURS = ("model", "stream")  # by which the gateway routes and answers


def _free(name: str) -> str:
    if name in OURS:
        raise ValueError(f"`{name}` is what requests are routed and answered by; it cannot be rewritten")
    return name


Parameter = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"), AfterValidator(_free)]


class RequestSection(Section):
    """Changes to each request before it is sent on, and how many are sent at once."""

    set: dict[Parameter, Any] = {}
    """Fields and their values, whatever the client says: `{temperature: 0}`."""
    default: dict[Parameter, Any] = {}
    """Fields and their values where the client says nothing of them: `{max_tokens: 2048}`."""
    strip: tuple[Parameter, ...] = ()
    """Fields that are left out."""
    at_once: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    """How many are sent on at the same time; further ones wait for their turn, key by key, those of keys with a higher
    `priority` first. Default: as many as come."""
    queue: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 128
    """How many may wait for their turn; further ones are refused."""

    @model_validator(mode="after")
    def _once(self) -> RequestSection:
        groups = [*self.set, *self.default, *dict.fromkeys(self.strip)]
        twice = sorted({name for name in groups if groups.count(name) > 1})
        if twice:
            raise ValueError(f"`{twice[0]}` is here twice: it can be set, filled in or left out")
        return self


def rewriting(section: RequestSection) -> str:
    """The one text (JSON) of what is changed; empty where nothing is."""
    said: dict[str, Any] = {"set": section.set, "default": section.default, "strip": list(section.strip)}
    if section.at_once is not None:
        said |= {"at_once": section.at_once, "queue": section.queue}
    kept = {key: value for key, value in said.items() if value or key == "queue"}
    return canonical(kept) if kept else ""
