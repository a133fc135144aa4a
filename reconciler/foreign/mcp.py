"""MCP servers as other clients write them (`mcpServers`, or `servers` in VS Code): JSON that is much the same.

The manifest has no secrets and fills in no variables outside `env` and `headers`: a server whose arguments or address
need either is left out, and it is said why.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from reconciler.core.diagnostics import Where
from reconciler.core.section import HEADER, VALUE
from reconciler.foreign.draft import Draft, is_secret, seconds
from reconciler.foreign.secrets import holds_secret, referenced, references, says_secret
from reconciler.foreign.text import Text, listed, mapping, word

_KNOWN = {
    "command", "args", "env", "cwd", "url", "serverUrl", "httpUrl", "headers", "type", "transport", "timeout", "active",
    "disabled", "enabled", "official", "name", "description", "disabledTools", "excludeTools", "includeTools",
    "enabledTools",
}  # fmt: skip
_HARMLESS = {"accept", "accept-language", "content-type", "user-agent"}
_SECRET_REMEDY = "have the server read it from its environment, and write `env: {NAME: env:NAME}`"  # noqa: S105


def take(draft: Draft, text: Text, path: Sequence[str], timeout: bool = False) -> None:
    """Add the servers of the mapping at `path`. `timeout`: it counts in seconds there, and is for the connection."""
    values: Any = text.values
    for key in path:
        values = mapping(values).get(key)
    for name, entry in mapping(values).items():
        where = text.where(*path, name)
        what = f"the MCP server {name}"
        if not isinstance(entry, dict):
            draft.leave(what, "it is not a mapping", "", where)
        elif entry.get("active") is False or entry.get("disabled") is True or entry.get("enabled") is False:
            draft.leave(what, "it is switched off there", "copy it by hand if you want it", where)
        else:
            _add(draft, name, entry, where, timeout)


def _add(draft: Draft, name: str, entry: dict[str, Any], where: Where, timeout: bool) -> None:
    what = f"the MCP server {name}"
    kind = (word(entry.get("type")) or word(entry.get("transport"))).lower()
    url = word(entry.get("url")) or word(entry.get("serverUrl")) or word(entry.get("httpUrl"))
    out = _remote(draft, name, entry, url, kind, where) if url else _local(draft, name, entry, where)
    if out is None:
        return
    allow, deny = _tools(entry, "includeTools", "enabledTools"), _tools(entry, "excludeTools", "disabledTools")
    if allow or deny:
        out["tools"] = {k: v for k, v in (("allow", allow), ("deny", deny)) if v}
    if isinstance(at := entry.get("timeout"), int | float) and not isinstance(at, bool) and at > 0:
        if timeout:
            out["timeout"] = {"start": seconds(min(at, 86400))}
        else:
            draft.leave(f"`timeout` of {what}", "tools count it in different units", "write `timeout:`", where)
    if rest := sorted(set(entry) - _KNOWN):
        draft.leave(f"{', '.join(rest[:8])} of {what}", "the manifest has no such keys", "", where)
    draft.add("mcp_servers", name, out)


def _tools(entry: dict[str, Any], *keys: str) -> list[str]:
    named = [name for key in keys for name in listed(entry.get(key))]
    return [name for name in named if isinstance(name, str) and re.fullmatch(r"[!-~]{1,128}", name)]


def _local(draft: Draft, name: str, entry: dict[str, Any], where: Where) -> dict[str, Any] | None:
    what = f"the MCP server {name}"
    argv = _argv(entry)
    if not argv:
        draft.leave(what, "it has neither a command nor an address", "", where)
        return None
    given = mapping(entry.get("env"))
    if problem := _unfit(argv, set(given)):
        _hide(draft, argv)
        draft.leave(what, problem, _SECRET_REMEDY if "secret" in problem else "write what is meant", where)
        return None
    out: dict[str, Any] = {"command": argv[0]}
    if argv[1:]:
        out["args"] = argv[1:]
    if env := _values(draft, name, given, "env", where):
        out["env"] = env
    if cwd := word(entry.get("cwd")):
        if references(cwd):
            draft.leave(f"`cwd` of {what}", "nothing is filled in there", "write the folder", where)
        else:
            out["cwd"] = cwd
    return out


def _argv(entry: dict[str, Any]) -> list[str]:
    command = word(entry.get("command"))
    args = [word(arg) for arg in listed(entry.get("args"))]
    if command and not args and " " in command and not command.startswith("/"):
        try:
            return shlex.split(command)
        except ValueError:
            return [command]
    return [command, *args] if command else []


def _unfit(argv: list[str], given: set[str]) -> str:
    """Why these words cannot stand in a manifest; empty where they can. What the server's own `env` holds may be
    named: programs that fill that in do so themselves."""
    for before, one in zip(["", *argv], argv, strict=False):
        name, equals, value = one.partition("=")
        said = value if equals and name.startswith("-") else one
        after = before.startswith("-") and "=" not in before and not one.startswith("-")
        filled = [ref for ref in references(one) if ref not in given]
        if filled:
            return f"nothing is filled in for {filled[0]!r} in arguments"
        own = bool(references(one))
        named = (after and says_secret(before)) or (equals and name.startswith("-") and says_secret(name))
        if not own and said and (holds_secret(said) or (named and not said.startswith("/"))):
            return "a secret is among its arguments, which every process of the machine can read"
    return ""


def _hide(draft: Draft, argv: list[str]) -> None:
    for before, one in zip(["", *argv], argv, strict=False):
        name, _, value = one.partition("=")
        draft.hide(one if says_secret(before) and not one.startswith("-") else value if says_secret(name) else "")
        for part in re.split(r"[=\s]+", one):
            draft.hide(part if holds_secret(part) else "")


def _remote(draft: Draft, name: str, entry: dict[str, Any], url: str, kind: str, where: Where) -> dict[str, Any] | None:
    what = f"the MCP server {name}"
    if references(url) or holds_secret(url) or not re.fullmatch(r"https?://[^\s@/?]+(/\S*)?(\?\S*)?", url):
        draft.hide(url if holds_secret(url) else "")
        why = "its address holds a secret" if holds_secret(url) else "its address is not a plain http(s) address"
        draft.leave(what, why, "give the secret as a header: `headers: {Authorization: env:NAME}`", where)
        return None
    out: dict[str, Any] = {"url": url}
    if kind == "sse" or (not kind and url.rstrip("/").endswith("/sse")):
        out["transport"] = "sse"
    if headers := _values(draft, name, mapping(entry.get("headers")), "headers", where):
        out["headers"] = headers
    return out


def _values(draft: Draft, server: str, given: dict[str, Any], key: str, where: Where) -> dict[str, str]:
    """Variables or headers: what may be a secret becomes a reference."""
    out: dict[str, str] = {}
    for name, raw in given.items():
        value, what = word(raw), f"`{name}` of the MCP server {server}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*" if key == "env" else HEADER, name):
            draft.leave(what, f"this cannot be a name in `{key}`", "", where)
        elif own := referenced(value):
            out[name] = draft.variable(own, what, where)
        elif key == "headers" and name.lower() not in _HARMLESS:
            purpose = f"{what}: all of the header" + (", with `Bearer ` in front" if _bearer(value) else "")
            out[name] = draft.secret(value, f"{server}_{name}".upper(), purpose, where)
        elif references(value) or is_secret(name, value) or not re.fullmatch(VALUE, value):
            out[name] = draft.secret(value, name if key == "env" else f"{server}_{name}".upper(), what, where)
        else:
            out[name] = value
    return out


def _bearer(value: str) -> bool:
    return value.lower().startswith("bearer ")
