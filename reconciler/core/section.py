"""The bricks of the manifest language: strict sections, names, quantities with units, references to secrets."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"
FAMILY = r"^(\*|[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\*?)$"  # an alias, or the beginning of some and a `*`
SHA256 = r"^[0-9a-f]{64}$"
REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|keyring:[^/\s]+(/[^/\s]+)?|command:.*\S.*)$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"  # a token of RFC 9110

# The same expressions check here and in editors; `(?=.*[1-9])` refuses an amount of nothing.
DURATION = r"^(?=.*[1-9])([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,9}s)?([0-9]{1,9}ms)?$"
SIZE = r"^(?=.*[1-9])([0-9]{1,15}B|[0-9]{1,9}(\.[0-9]{1,3})?(kB|KiB|[MGT]i?B))$"
BANDWIDTH = SIZE.removesuffix("$") + "(/s)?$"
SHARE = r"^([1-9][0-9]?|100)%$"
RATE = r"^[1-9][0-9]{0,8}/(s|min|h)$"
BUDGET = r"^[1-9][0-9]{0,11}[kMG]?/(min|h|day)$"
VALUE = r"^(?!(env|file|keyring|command):)[^\r\n\u0000]*$"

_COUNT = re.compile(r"([0-9]+)\s*([kKmM]?)")
_FACTOR = {"": 1, "k": 1024, "m": 1024 * 1024}
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES: dict[str, int] = {"B": 1} | {
    prefix + unit: base ** (power + 1)
    for unit, base, letters in (("B", 1000, "kMGT"), ("iB", 1024, "KMGT"))
    for power, prefix in enumerate(letters)
}
_PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": 86400.0}
_AMOUNTS = {"k": 10**3, "M": 10**6, "G": 10**9}


Truth = Annotated[bool, Field(strict=True)]


class Section(BaseModel):
    """A mapping of the manifest: unknown keys are errors, and nothing changes after reading."""

    # Every command imports all sections: what is built of them, is built when it is first used.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)


class Entry(Section):
    """What every named entry may say besides: where it counts, whose word counts, and how it is kept."""

    when: str = ""
    """A CEL condition over facts of this machine, `host.memory_gib >= 16`; where it does not hold, the entry is
    left out."""
    override: Truth = False
    """Whether the keys of this entry win over the same entry in another file."""
    protect: Truth = False
    """Whether it stays when the manifest no longer names it."""
    drift: Literal["correct", "warn", "ignore"] | None = None
    """What to do when the machine changed and the manifest did not. Default: what suits the kind."""


class Later:
    """Marks a key whose meaning has yet to be built: it is part of the language, but refused for now.

    `Later()` refuses whatever is not the default, `Later("a", "b")` these values only, `Later(predicate)` those that
    the predicate finds, be they the default; then `says` is how the refusal calls them.
    """

    def __init__(self, *refused: str | Callable[[Any], bool], says: str = "") -> None:
        self.refused, self.says = refused, says

    def refuses(self, value: Any, default: Any) -> bool:
        if not self.refused:
            return bool(value != default)
        return any(r(value) if callable(r) else value == r for r in self.refused)


def default(text: str, read: Callable[[str], Any]) -> Any:
    """The default of a field whose values are written as text: what it means to us, what it looks like to editors."""
    return Field(default=read(text), json_schema_extra={"default": text})


def count(value: Any) -> Any:
    """`16k` → 16384: k and m are binary, as context lengths are spoken of."""
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        return int(match[1]) * _FACTOR[match[2].lower()]
    if isinstance(value, str):
        raise ValueError("not a count; write a whole number such as 4096, or 4k")
    return value


def duration(value: Any) -> float:
    """`1h30m` → 5400.0 seconds. Each unit (d, h, m, s, ms) at most once, the longest first."""
    if not isinstance(value, str) or not re.fullmatch(DURATION, value):
        _malformed("a duration such as 30s, 5m or 1h30m", value, ("s", "m", "h", "d", "ms"))
    return sum((int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([a-z]+)", value)), 0.0)


def quiet(value: Any) -> float:
    """A duration in seconds, or `never` → 0.0."""
    return 0.0 if value == "never" else duration(value)


def size(value: Any) -> int:
    """`6GiB` → bytes: binary with an i (KiB, MiB, GiB, TiB), decimal without (kB, MB, GB, TB)."""
    if not isinstance(value, str) or not re.fullmatch(SIZE, value):
        _malformed("a size such as 500MB or 6GiB", value, ("MiB", "GiB", "TiB", "KiB", "MB", "GB", "TB", "kB", "B"))
    number, unit = re.findall(r"([0-9.]+)([a-zA-Z]+)", value)[0]
    return round(Decimal(number) * _BYTES[unit])


def bandwidth(value: Any) -> int:
    """`10MB/s` or `10MB` → bytes a second."""
    if not isinstance(value, str) or not re.fullmatch(BANDWIDTH, value):
        _malformed("an amount a second such as 10MB/s", value, ("MB/s", "MiB/s", "kB/s", "KiB/s", "GB/s", "GiB/s"))
    return size(value.removesuffix("/s"))


def share(value: Any) -> float:
    """`80%` → 0.8."""
    if not isinstance(value, str) or not re.fullmatch(SHARE, value):
        _malformed("a share such as 80%", value, ("%",))
    return int(value.removesuffix("%")) / 100


def rate(value: Any) -> tuple[int, float]:
    """`60/min` → (60, 60.0): so many in so many seconds; a period is s, min or h."""
    if not isinstance(value, str) or not re.fullmatch(RATE, value):
        _malformed("a rate such as 60/min", value, ("/s", "/min", "/h"))
    number, _, period = value.partition("/")
    return int(number), _PERIODS[period]


def budget(value: Any) -> tuple[int, float]:
    """`1M/day` → (1000000, 86400.0): so much in so many seconds; k, M and G are decimal, a period is min, h or day."""
    if not isinstance(value, str) or not re.fullmatch(BUDGET, value):
        _malformed("an amount of tokens such as 100k/h or 1M/day", value, ("/day", "/h", "/min"))
    number, _, period = value.partition("/")
    return int(number.rstrip("kMG")) * _AMOUNTS.get(number[-1], 1), _PERIODS[period]


def _malformed(what: str, value: Any, units: tuple[str, ...]) -> NoReturn:
    """Say what is expected; where only the unit is missing or misspelt, how to write it."""
    match = re.fullmatch(r"([0-9]+)(?:\.0)?\s*([A-Za-z%/]*)", "" if isinstance(value, bool) else str(value).strip())
    hint = ""
    if match and (close := [u for u in units if u.casefold().startswith(match[2].casefold())]):
        spelt = [repr(f"{match[1]}{unit}") for unit in close[:3]]
        hint = f"did you mean {spelt[0]}?" if match[2] or len(spelt) == 1 else f"say the unit: {', '.join(spelt)}"
        hint = hint if int(match[1]) else "it must be more than nothing"
    raise PydanticCustomError("malformed", "must be {what}", {"what": what, "hint": hint})


def _value(text: str) -> str:
    if re.match(r"(env|file|keyring|command):", text):
        if not re.fullmatch(REFERENCE, text):
            raise PydanticCustomError("reference", "is no reference to a secret", {"hint": REFERENCE_HINT})
    elif not re.fullmatch(VALUE, text):
        raise PydanticCustomError("malformed", "must be one line of text", {"hint": ""})
    return text


def _family(text: str) -> str:
    if not re.fullmatch(FAMILY, text):
        raise ValueError("a name is of letters, digits and ._:/@-, and may have a `*` at its end only")
    return text


def address(text: str) -> str:
    """An http: or https: address as it is, if it names a host and holds no credentials."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError("an address begins with https:// or http://")
    if not parts.hostname or parts.port == 0:  # .port raises for impossible ones
        raise ValueError("the address has no host")
    if parts.username or parts.password:
        raise ValueError("credentials do not belong in an address that is kept in a file")
    return text


def shape(value: Any) -> str:
    """`mapping`, `list` or `plain`: what tells the ways apart in which one key may be written (see `By`)."""
    return "mapping" if isinstance(value, dict | Section) else "list" if isinstance(value, list | tuple) else "plain"


REFERENCE_HINT = "a secret is written as a reference: env:NAME, file:PATH, keyring:NAME or command:PROGRAM"

SHAPE = Discriminator(shape)
"""Chooses between members of a union that are tagged `plain`, `list` and `mapping`, so that a fault is a fault of
the one that was meant."""


def _text(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


Name = Annotated[str, Field(pattern=NAME)]
Alias = Annotated[str, Field(pattern=ALIAS)]
Family = Annotated[str, AfterValidator(_family), _text(FAMILY, "smart", "claude-*")]
Text = Annotated[str, Field(min_length=1)]
Variable = Annotated[str, Field(pattern=VARIABLE)]
Header = Annotated[str, Field(pattern=HEADER)]
Sha256 = Annotated[str, Field(pattern=SHA256)]
Reference = Annotated[str, Field(pattern=REFERENCE, examples=["env:API_KEY", "file:~/.config/api.key", "keyring:api"])]
Value = Annotated[
    str,
    AfterValidator(_value),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": VALUE}, {"type": "string", "pattern": REFERENCE}]}),
]
Address = Annotated[str, AfterValidator(address), _text(r"^https?://", "https://host/path")]
Duration = Annotated[float, PlainValidator(duration), _text(DURATION, "30s", "5m", "1h30m")]
Quiet = Annotated[float, PlainValidator(quiet), _text(f"{DURATION}|^never$", "10m", "never")]
Size = Annotated[int, PlainValidator(size), _text(SIZE, "500MB", "6GiB")]
Bandwidth = Annotated[int, PlainValidator(bandwidth), _text(BANDWIDTH, "10MB/s")]
Share = Annotated[float, PlainValidator(share), _text(SHARE, "80%")]
Rate = Annotated[tuple[int, float], PlainValidator(rate), _text(RATE, "60/min", "10/s")]
Budget = Annotated[tuple[int, float], PlainValidator(budget), _text(BUDGET, "1M/day", "100k/h")]
Count = Annotated[
    int,
    BeforeValidator(count),
    Field(strict=True, ge=1, le=1 << 31),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+[kKmM]?$"}]}),
]
