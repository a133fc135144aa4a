"""What `reconcile explain models.NAME.options` says: the flags of the engine that the model is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reconciler.cli.place import Place
from reconciler.core.diagnostics import Refused

if TYPE_CHECKING:
    from reconciler.kinds.flags import Flag
    from reconciler.manifest.parse import Manifest

WIDTH = 100  # columns of a flag's line


def flags_told(key: str, manifest: Manifest, place: Place) -> dict[str, Any]:
    """Of `models.chat.options` all flags that may be set, of one option below it that flag; else nothing.

    Raises Refused for an option that the engine does not take.
    """
    name, option = _asked(key, manifest)
    if not name:
        return {}
    from reconciler import app
    from reconciler.kinds.flags import rendered, unfit
    from reconciler.kinds.options import refused

    engine = f"engine/{manifest.stack.models[name].engine}"
    flags = app.flags_of(name, place.read(), place.layout(manifest))
    if flags is None or not flags.known:
        return {"engine": engine, "flags": [], "unknown": flags.why if flags else "the engine is not here yet"}
    label = f"{engine} ({flags.version})" if flags.version else engine
    if not option:
        open_ = [flag for flag in flags.flags if not flag.removed and not any(map(refused, _words(flag)))]
        return {"engine": label, "flags": [_flag(flag) for flag in open_]}
    if why := refused(option):
        raise Refused(f"--{option.replace('_', '-')} {why}")
    given = dict(manifest.stack.models[name].options)
    if option in given:
        value = ((option, given[option]),)
        if problems := unfit(value, flags, engine):
            raise Refused("; ".join(problems))
        words = rendered(value, flags)
        found = flags.spelled.get(words[0]) if words else flags.lookup(option)
        return {"engine": label, "flags": [_flag(found[0])] if found else [], "passed_as": words}
    found = flags.lookup(option)
    if found is None:
        raise Refused("; ".join(unfit(((option, True),), flags, engine)) or f"{label} has no such flag")
    return {"engine": label, "flags": [_flag(found[0])]}


def lines(told: dict[str, Any]) -> list[str]:
    """The same for people."""
    out = [f"  engine:   {told['engine']}"]
    if "unknown" in told:
        out.append(f"            nothing is known of its flags: {told['unknown']}")
    if "passed_as" in told:
        out.append(f"  passed:   {' '.join(told['passed_as']) or 'not at all: it is so anyway'}")
    if told["flags"]:
        out.append("  flags:")
    for flag in told["flags"]:
        text = f"    {flag['flag']}  {flag['text']}"
        out.append(text if len(told["flags"]) == 1 or len(text) <= WIDTH else f"{text[: WIDTH - 2]} …")
    return out


def _asked(key: str, manifest: Manifest) -> tuple[str, str]:
    """(model, option) of a key; empty where it is about something else."""
    for name in manifest.stack.models:
        rest = key.strip().removeprefix(f"models.{name}.options")
        if rest != key.strip() and rest[:1] in ("", "."):
            return name, rest.lstrip(".")
    return "", ""


def _words(flag: Flag) -> list[str]:
    return [name.lstrip("-") for name in (*flag.names, *flag.negations)]


def _flag(flag: Flag) -> dict[str, Any]:
    option = flag.long.lstrip("-").replace("-", "_")
    return {
        "option": option,
        "flag": flag.form(),
        "kind": flag.kind,
        "choices": list(flag.choices),
        "default": flag.default,
        "env": flag.env,
        "text": flag.text,
    }
