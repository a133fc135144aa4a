"""`reconcile explain`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.options import flags_told
from reconciler.cli.options import lines as flag_lines
from reconciler.cli.place import DEFAULT, Place, verb
from reconciler.cli.render import show_json
from reconciler.core.diagnostics import Refused

if TYPE_CHECKING:
    from reconciler.manifest.explain import Meaning
    from reconciler.manifest.parse import Manifest


@verb("explain")
@click.argument("key", default="")
def command(place: Place, key: str) -> None:
    from reconciler.manifest.explain import meaning

    manifest = _manifest(place)
    values = manifest.stack.model_dump(mode="json") if manifest else None
    told = _told(meaning(key, values), manifest, values, place)
    if manifest is not None:
        told |= flags_told(key, manifest, place)
    if place.json:
        show_json(told)
    else:
        click.echo("\n".join(_lines(key, told)))


def _manifest(place: Place) -> Manifest | None:
    """The manifest, if there is a right one: meanings can be told without."""
    if place.file == DEFAULT and not place.manifest.exists():
        return None
    try:
        return place.load()
    except Refused:
        if not place.manifest.exists():
            raise
        click.echo("the manifest has faults (see `reconcile validate`): only what the key means is told", err=True)
        return None


def _told(found: Meaning, manifest: Manifest | None, values: Any, place: Place) -> dict[str, Any]:
    from reconciler.manifest.explain import value_at

    out: dict[str, Any] = {
        "key": found.key,
        "meaning": found.text,
        "type": found.type,
        "required": found.required,
        "default": found.default,
        "keys": dict(found.keys),
    }
    if manifest is None or not found.path:
        return out
    document = manifest.document
    given = found.path in document.keys or found.path in document.places
    where = document.where(found.path, key=True) if given else None
    at = {"file": where.file, "line": where.line, "column": where.column} if where else None
    out |= {"value": value_at(values, found.path), "set_by": at}
    if chosen := _chosen(found, manifest, place):
        out["chosen"] = chosen
    if condition := _left_out(found, manifest, place):
        out["left_out"] = condition
    return out


def _chosen(found: Meaning, manifest: Manifest, place: Place) -> dict[str, Any]:
    """What the lock says was chosen for a quantization, and why; empty where it says nothing."""
    from reconciler.kinds.model.spec import resolve

    match found.path:
        case ("models", str(name), "quant") if name in manifest.stack.models:
            spec = resolve(manifest.stack.models[name], {})[""]
            pin = place.read().lock.pins.get(spec.pin, {})
            return {key: pin[key] for key in ("quant", "name", "bits", "why") if key in pin}
        case ("engines", str(name), "variant" | "version") if name in manifest.stack.engines:
            return _variant(name, place)
    return {}


def _variant(name: str, place: Place) -> dict[str, Any]:
    """Which archive of a release is taken here, and why not the others; empty where that is not pinned yet."""
    from reconciler.app import engine_chosen

    return engine_chosen(name, place.read(), place.layout(place.load()))


def _left_out(found: Meaning, manifest: Manifest, place: Place) -> str:
    """The condition that keeps the entry from this machine; empty where it is for it."""
    from reconciler.host import hardware
    from reconciler.manifest.when import holds

    section, *name = found.path or ("",)
    entries = getattr(manifest.stack, str(section))
    entry = entries.get(name[0]) if name and isinstance(entries, dict) else None
    condition = str(getattr(entry, "when", "") or "")
    labels, _ = hardware.labels(place.layout(manifest).labels)
    return condition if condition and not holds(condition, hardware.facts(labels)) else ""


def _lines(key: str, told: dict[str, Any]) -> list[str]:
    lines = [click.style(key or "the manifest", bold=True), *([f"  {told['meaning']}"] if told["meaning"] else [])]
    rows = [("type", told["type"])]
    if not told["keys"]:
        rows.append(("default", "none: it must be given" if told["required"] else _shown(told["default"])))
    if "value" in told:
        if not told["keys"]:
            rows.append(("value", _shown(told["value"])))
        elif isinstance(told["value"], dict) and all(name.startswith("*.") for name in told["keys"]):
            rows.append(("value", ", ".join(told["value"]) or "none"))
        at = told["set_by"]
        rows.append(("set by", f"{at['file']}:{at['line']}:{at['column']}" if at else "default"))
    if chosen := told.get("chosen"):
        bits = f", {chosen['bits']} bits a weight" if "bits" in chosen else ""
        what = chosen.get("quant") or chosen.get("variant", "unknown")
        rows.append(("chosen", f"{what} ({chosen.get('name', '')}{bits}), {chosen.get('by', 'by the lock')}"))
        rows += [("", line) for line in chosen.get("why", ())]
    if "left_out" in told:
        rows.append(("left out", f"not for this machine: `{told['left_out']}` does not hold here"))
    lines += [f"  {click.style((name + ':' if name else '').ljust(9), dim=True)} {text}" for name, text in rows]
    if "engine" in told:
        lines += flag_lines(told)
    if told["keys"]:
        width = max(len(name) for name in told["keys"])
        lines += ["  keys:", *(f"    {name.ljust(width)}  {text}".rstrip() for name, text in told["keys"].items())]
    return lines


def _shown(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
