"""What the name of a model file says: quantization, flavour, part of a split model, role. Hints, all of them.

A name is written by whoever uploaded the file, in one of a dozen house styles. It serves to choose and to group files
before any byte is fetched; `verdict.judge` and `roles.role` say what a file really is.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.gguf.quant import Family, Quant, parse

# What other programs call a file that they have not finished.
_UNFINISHED = r"incomplete|part|partial|download|crdownload|opdownload|tmp|temp|!qb|!ut|aria2|filepart"
_PARTIAL = re.compile(
    rf"\.(?:{_UNFINISHED})$|[-._](?:part|split)[-_.]?(?:[0-9]+of[0-9]+|[0-9]+|[a-z]{{1,2}})$", re.IGNORECASE
)
_SHARD = re.compile(r"[-._]([0-9]{1,6})-of-([0-9]{1,6})$", re.IGNORECASE)
_SUFFIXES = 3  # model.gguf.part1of2.incomplete
_EDGE, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
_TOKEN = re.compile(
    rf"{_EDGE}(?P<before>(?:(?:UD|i1)[-_.]){{0,3}})"
    r"(?P<token>(?:I|T)?Q[1-9](?:[-_]?(?:KSS|KS|KT|KL|K|NL|XXS|XS|XXL|XL|S|M|L|P|H)|_?[01]|_[48]|_R[0-9]{1,2}){0,5}"
    rf"|I[1-9]_S|MXFP4(?:[-_]?MOE)?|NVFP4|BF16|F16|F32|FP16|FP32){_END}",
    re.IGNORECASE,
)
_FLAVOUR = re.compile(r"[-_]?(?:XXL|XL|L|XXS|XS|P|H)$", re.IGNORECASE)
_ROLES = {
    "mmproj": "mmproj", "lora": "lora", "adapter": "lora", "draft": "draft", "eagle": "draft", "eagle3": "draft",
    "mtp": "mtp", "vocab": "vocab", "cvector": "control-vector",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` (from 1) of `of`, as the name counts; `number` may be wrong."""

    number: int
    of: int


@dataclass(frozen=True, slots=True)
class Named:
    """What a name says.

    quant    the canonical quantization that is meant; for a mixed flavour, the one it is built on; None where the name
             says none, or one that llama.cpp does not have
    label    the quantization as it is written, with its prefix: "UD-Q4_K_XL", "q4_k_m", ""
    mixed    the flavour is a mixture by design (UD-…, …_L, …_XL), which differs from what its name says
    imatrix  it was made with an importance matrix, says the name
    stem     the name without folder, quantization, part and suffix: files of one model have it in common
    partial  a download that is not finished, or a piece cut by hand: never a model
    role     mmproj | lora | draft | mtp | vocab | imatrix | control-vector, or "" for none of them
    """

    name: str
    quant: Quant | None
    label: str
    mixed: bool
    imatrix: bool
    shard: Shard | None
    stem: str
    partial: bool
    role: str


def from_filename(name: str) -> Named:
    """Read a file's name, or its path in a repository. A folder's name counts where the file's says no quantization."""
    plain = unicodedata.normalize("NFC", name)
    *folders, base = re.split(r"[/\\]", plain)
    partial = bool(_PARTIAL.search(base))
    for _ in range(_SUFFIXES):
        base = _PARTIAL.sub("", base)
    body = re.sub(r"\.gguf$", "", base, flags=re.IGNORECASE)
    shard = _SHARD.search(body)
    body = body[: shard.start()] if shard else body
    found = _token(body)
    stem = body[: found.start()].rstrip(" -_.") + body[found.end() :] if found else body
    if found is None:
        found = next((hit for hit in map(_token, reversed(folders)) if hit), None)
    label, quant, mixed = _read(found)
    words = {word.lower() for word in re.split(r"[^A-Za-z0-9]+", base)}
    made_with = bool(found and "i1" in found["before"].lower()) or bool(quant and words & {"imat", "imatrix"})
    return Named(
        name=name,
        quant=quant,
        label=label,
        mixed=mixed,
        imatrix=made_with,
        shard=Shard(int(shard[1]), int(shard[2])) if shard else None,
        stem=stem.strip(" -_."),
        partial=partial,
        role=_role(base, words, quant),
    )


def _token(text: str) -> re.Match[str] | None:
    """The quantization in a text: the last that is one, before the last float, before the last that is unknown."""
    best, worth = None, 0
    for hit in _TOKEN.finditer(text):
        quant = _canonical(hit["token"])[0]
        value = 1 if quant is None else 2 if quant.family is Family.FLOAT else 3
        if value >= worth:
            best, worth = hit, value
    return best


def _read(found: re.Match[str] | None) -> tuple[str, Quant | None, bool]:
    if found is None:
        return "", None, False
    quant, mixed = _canonical(found["token"])
    return found[0], quant, mixed or "ud" in found["before"].lower()


def _canonical(token: str) -> tuple[Quant | None, bool]:
    """The Quant of a token, and whether it is a flavour of it: a larger or smaller mixture on the same base."""
    exact = parse(token)
    if exact is not None:
        return exact, False
    base = _FLAVOUR.sub("", token)
    if base == token:
        return None, False
    built_on = parse("Q8_0" if base.upper() in ("Q8_K", "Q8K") else base)
    return built_on, built_on is not None


def _role(base: str, words: set[str], quant: Quant | None) -> str:
    if words & {"imatrix"} and quant is None:
        return "imatrix"
    if re.search(r"control[-_.]?vector", base, re.IGNORECASE):
        return "control-vector"
    return next((role for word, role in _ROLES.items() if word in words), "")


@dataclass(frozen=True, slots=True)
class Group:
    """The files of one model, in order of their parts. `names` are as they were given.

    `missing` are the numbers of parts that are not there; `faults` say in words what is wrong with the names.
    """

    stem: str
    names: tuple[str, ...]
    of: int
    missing: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.missing and not self.faults


def groups(names: Iterable[str]) -> tuple[Group, ...]:
    """Put the parts of split models together, in order of their names. What is no GGUF, or partial, is left out.

    Case and the form of accents do not count, since file systems and hubs differ in them.
    """
    together: dict[tuple[str, str, str, bool], list[Named]] = {}
    for name in sorted(set(names)):
        named = from_filename(name)
        if name.lower().endswith(".gguf") and not named.partial:
            together.setdefault(_group_of(named), []).append(named)
    return tuple(_group(members) for members in together.values())


def _group_of(named: Named) -> tuple[str, str, str, bool]:
    """Folder, name and label without case; a whole file and the parts of another one are never one group."""
    folder = re.sub(r"[^/\\]*$", "", unicodedata.normalize("NFC", named.name))
    return folder.casefold(), named.stem.casefold(), named.label.casefold(), named.shard is not None


def _group(members: list[Named]) -> Group:
    stem, counted = members[0].stem, [(member.shard or Shard(1, 1), member.name) for member in members]
    counts = Counter(shard.of for shard, _ in counted)
    of = max(counts, key=lambda count: (counts[count], count))
    faults = []
    if len(counts) > 1:
        faults.append(f"its parts count {' and '.join(map(str, sorted(counts)))} of them")
    numbers = Counter(shard.number for shard, _ in counted)
    for number, times in sorted(numbers.items()):
        if times > 1:
            same = ", ".join(name for shard, name in counted if shard.number == number)
            faults.append(
                f"part {number} is there {times} times: {same}" if of > 1 else f"one name, {times} files: {same}"
            )
        if not 1 <= number <= of:
            faults.append(f"part {number} of {of} cannot be")
    missing = tuple(number for number in range(1, min(of, _MOST_PARTS) + 1) if number not in numbers)
    if of > _MOST_PARTS:
        faults.append(f"{of} parts are more than the {_MOST_PARTS} that a model may have")
    ordered = tuple(name for _, name in sorted(counted, key=lambda item: (item[0].number, item[1])))
    return Group(stem, ordered, of, missing, tuple(faults))


_MOST_PARTS = 9999  # keeps a name from making us count to a million
