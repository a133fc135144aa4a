"""What a client may ask of the controller, one type a method; schemas/control.schema.json describes them.

Nothing is taken for something else: a wrong type, an unknown key or a number out of range is refused, because a
misspelt `locked` must not be an ordinary apply.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reconciler.core.diagnostics import Diagnostic, Refused

API = 1
SHOWN = 20  # faults of one request that are told
_YEAR = 31_536_000
_HIGHEST = (1 << 63) - 1  # the ledger counts so far
_SEE = "`reconcile schema control` prints what may be asked"

FilePath = Annotated[str, Field(pattern=r"^/[^\x00]*$")]
Name = Annotated[str, Field(pattern=r"^[a-z]+/[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=200)]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=200)]
Words = Annotated[tuple[Word, ...], Field(max_length=10_000)]
Seconds = Annotated[float, Field(ge=0, le=_YEAR, allow_inf_nan=False)]


class Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: str
    api: int = API


class Plan(Request):
    manifest: FilePath


class Apply(Request):
    manifest: FilePath
    allow_empty: bool = False
    targets: Names = ()
    locked: bool = False
    confirm_within: Seconds = 0.0
    binding: dict[str, Any] | None = None


class Rollback(Request):
    generation: Annotated[int, Field(ge=1, le=_HIGHEST)] | None = None


class Lock(Request):
    upgrade: Names | None = None


class Pause(Request):
    refs: Words = ()
    discard: bool = False


class Resume(Request):
    refs: Words = ()


class EnsureReady(Request):
    model: str
    timeout: Seconds = 600.0


class Load(Request):
    model: str
    timeout: Seconds = 600.0


class Unload(Request):
    model: str
    timeout: Seconds = 600.0


class Events(Request):
    after: Annotated[int, Field(ge=0, le=_HIGHEST)] = 0


class Down(Request):
    purge: bool = False


class Gc(Request):
    yes: bool = False
    older: Seconds = 604_800.0
    keep_generations: Annotated[int, Field(ge=1, le=_HIGHEST)] | None = None


class Suspect(Request):
    digests: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(max_length=10_000)]


METHODS: dict[str, type[Request]] = {
    "hello": Request,
    "status": Request,
    "plan": Plan,
    "apply": Apply,
    "rollback": Rollback,
    "confirm": Request,
    "lock": Lock,
    "gc": Gc,
    "suspect": Suspect,
    "pause": Pause,
    "resume": Resume,
    "ensure_ready": EnsureReady,
    "load": Load,
    "unload": Unload,
    "follow": Request,
    "events": Events,
    "down": Down,
    "shutdown": Request,
}


class _Head(BaseModel):
    """What is looked at first: another version of the API may have other keys."""

    model_config = ConfigDict(strict=True)

    method: str
    api: int = API


def parse(line: bytes) -> Request:
    """One line of JSON → the request that it is. Raises Refused with what is wrong with it."""
    try:
        head = _Head.model_validate_json(line)
        if head.api != API:
            hint = "use the same version of reconciler on both sides"
            raise Refused(f"this controller speaks version {API} of the API, not {head.api}", hint=hint)
        if head.method not in METHODS:
            raise Refused(f"there is no method {head.method!r}", hint=f"there are: {', '.join(METHODS)}")
        return METHODS[head.method].model_validate_json(line)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = [Diagnostic(f"not a request: {f['msg']}", path=".".join(map(str, f["loc"])), hint=_SEE) for f in faults]
        raise Refused(told[:SHOWN]) from None
