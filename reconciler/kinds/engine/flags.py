"""Reads what an engine prints of itself: `--help` → its flags, `--version` → what to call it. Pure.

The layout is that of llama-server since b3000: a flag's spellings at the start of a line, its text from column 40 on,
also on the lines below. Nothing of the text is trusted: names are checked, control characters dropped, sizes bounded.
A text that does not look like a server's help gives no flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from reconciler.kinds.flags import Flag, FlagSet

COLUMN = 40  # where the texts begin
MOST_FLAGS = 2000
MOST_TEXT = 1000  # characters of one flag's text
LEAST = ("--model", "--port")  # a server without them is none that we could start

_NAME = re.compile(r"-{1,2}[A-Za-z0-9][A-Za-z0-9.-]*")
_HEAD = re.compile(rf"\s{{0,4}}({_NAME.pattern}(?:,\s*{_NAME.pattern})*)(?:\s(.*))?")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DEFAULT = re.compile(r"\bdefault: +(\"[^\"]*\"|'[^']*'|[^),]+)")
_ENV = re.compile(r"\(env: ([A-Z_][A-Z0-9_]*)\)")
_ALLOWED = re.compile(r"allowed values: ([\w, .+-]+?)(?= \(|$)")
_REMOVED = re.compile(r"the argument has been removed\.? *(.*)", re.IGNORECASE)
_BUILD = re.compile(r"version: *(\d+) *\((?!xllamacpp)")
_VERSION = re.compile(r"version: *v?([0-9][\w.+-]*)(?: *\((?:build (\d+))?[^)]*\))?")


def parse(text: str, version: str = "") -> FlagSet:
    """The flags that a help text tells of, in its order; none, and why, where it is not such a text."""
    flags: list[Flag] = []
    for head, told in _entries(text):
        if len(flags) < MOST_FLAGS and (flag := _flag(head, told)) is not None:
            flags.append(flag)
    known = {name for flag in flags for name in flag.names}
    if missing := [name for name in LEAST if name not in known]:
        return FlagSet(version=version, why=f"its --help does not tell of {missing[0]}")
    return FlagSet(tuple(flags), version)


def called(text: str) -> str:
    """What `--version` says, for people: `b11434`, `0.6.0-dev`, `b9876`; empty where it says nothing of the kind."""
    text = _CONTROL.sub("", text[:10_000])
    if (build := _BUILD.search(text)) is not None:
        return f"b{build[1]}" if int(build[1]) else ""
    if (found := _VERSION.search(text)) is not None:
        return f"b{found[2]}" if int(found[2] or 0) else found[1][:60]
    return ""


@lru_cache(maxsize=4)
def embedded(version: str) -> FlagSet:
    """The flags of the embedded engine: its program is ours, so that nobody has to run it."""
    from reconciler.kinds.engine.llama_host import usage

    return parse(usage(), f"xllamacpp {version}")


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(how a flag is written, what is said of it), a pair a flag."""
    head, told = "", []
    for line in text.splitlines():
        clean = _CONTROL.sub("", line.expandtabs(8)).rstrip()
        if clean.startswith(" " * 5) or not clean:
            if clean and head:
                told.append(clean.strip())
            continue
        if head:
            yield head, " ".join(told)
        head, told = "", []
        if _HEAD.fullmatch(clean):
            head, rest = _cut(clean)
            told = [rest] if rest else []
    if head:
        yield head, " ".join(told)


def _cut(line: str) -> tuple[str, str]:
    """A flag's line, cut where its text begins."""
    if len(line) > COLUMN and line[COLUMN - 1] == " " and line[COLUMN] != " ":
        return line[:COLUMN].strip(), line[COLUMN:].strip()
    # Names may reach past the column; then nothing but them stands on the line, or two spaces part them.
    match = _HEAD.fullmatch(line)
    behind = match.start(2) if match is not None and match[2] else len(line)
    gap = re.search(r"\s{2,}", line[behind:])
    return (line[: behind + gap.start()].strip(), line[behind + gap.end() :].strip()) if gap else (line.strip(), "")


def _flag(head: str, told: str) -> Flag | None:
    match, env = _HEAD.fullmatch(head), _ENV.search(told)
    if match is None:
        return None
    told = _ENV.sub("", told).strip()[:MOST_TEXT]
    names = tuple(dict.fromkeys(name.strip() for name in match[1].split(",")))
    value = (match[2] or "").strip()[:200]
    removed = _REMOVED.match(told)
    default = _DEFAULT.search(told)
    negations = () if value else _negations(names)
    return Flag(
        tuple(name for name in names if name not in negations),
        negations,
        value,
        _choices(value, told),
        default[1].strip(" '\"")[:100] if default else "",
        env[1] if env else "",
        told,
        (removed[1] or "it was removed")[:200] if removed else "",
    )


def _negations(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of `-kvo, --kv-offload, -nkvo, --no-kv-offload` the latter two; none where there is nothing to switch off."""
    off: list[str] = []
    for i in reversed(range(len(names))):
        behind = names[i + 1] if i + 1 < len(names) else ""
        if names[i].startswith("--no-") or (not names[i].startswith("--") and behind in off):
            off.insert(0, names[i])
    return tuple(off) if len(off) < len(names) else ()


def _choices(value: str, told: str) -> tuple[str, ...]:
    """`{a,b}`, `[a|b]` and `<0|1>` beside the flag, or `allowed values: a, b` in its text."""
    inside = value[1:-1]
    if value[:1] + value[-1:] == "{}" and "{" not in inside:
        found = inside.split(",")
    elif value[:1] + value[-1:] in ("[]", "<>") and "|" in inside and not {"[", "<"} & set(inside):
        found = inside.split("|")
    elif (allowed := _ALLOWED.search(told)) is not None:
        found = allowed[1].split(",")
    else:
        return ()
    return tuple(word.strip() for word in found if word.strip())[:100]
