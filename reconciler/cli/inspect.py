"""`reconcile inspect FILE | SOURCE`."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from reconciler.app import inspect
from reconciler.cli.place import Place, verb
from reconciler.cli.render import columns, show_json
from reconciler.core.plan import human_bytes
from reconciler.gguf.memory import amount

COLOURS = {"GREEN": "green", "YELLOW": "yellow", "RED": "red"}


@click.argument("what")
@click.option("--quant", help="Which one, where the source holds several.")
@click.option("--glob", "pattern", default="", help="Which file, as a glob.")
@click.option("--context", default="4096", show_default=True, help="Tokens that one request may use, such as 16k.")
@click.option("--parallel", default=1, show_default=True, help="Requests at the same time.")
@click.option("--cache-type", default="f16", show_default=True, help="Number format of the KV cache.")
@click.option("--token", help="A token for the source, as a reference such as env:HF_TOKEN.")
@verb("inspect")
def command(
    place: Place,
    what: str,
    quant: str | None,
    pattern: str,
    context: str,
    parallel: int,
    cache_type: str,
    token: str | None,
) -> None:
    """WHAT is a GGUF file here, or a source: hf:owner/name, https://…, file:… ."""
    tokens = int(context) if context.isdecimal() else context
    settings: dict[str, Any] = {"quant": quant, "file": pattern, "context": tokens, "parallel": parallel}
    settings |= {"cache_type": {"k": cache_type, "v": cache_type}, "token": token}
    told = asyncio.run(inspect(what, settings, place.manifest))
    if place.json:
        show_json(told)
    else:
        click.echo("\n".join(_lines(told)))


def _lines(told: dict[str, Any]) -> list[str]:
    model = told["model"]
    lines = [click.style(told["resolved"] or told["source"], bold=True)]
    if model is not None:
        return lines + _model(model, told)
    rows = []
    for offer in told["offers"]:
        fit = offer["fit"]
        size = human_bytes(offer["size"]) if offer["size"] else "?"
        verdict = fit["verdict"] if fit else ""
        whole = "" if offer["whole"] else "parts are missing; "
        rows.append((offer["label"], size, str(len(offer["files"])), verdict, whole + (fit["reason"] if fit else "")))
    if rows:
        lines += columns(("QUANT", "SIZE", "FILES", "FIT", ""), rows)
    return lines + ([told["note"]] if told.get("note") else [])


def _model(model: dict[str, Any], told: dict[str, Any]) -> list[str]:
    files = model["files"]
    size = sum(f["size"] or 0 for f in files)
    mixture = ", ".join(f"{share:.0%} {name}" for name, share in model["mixture"].items() if share >= 0.005)
    rows = [
        ("file", files[0]["name"] + (f" and {len(files) - 1} more parts" if len(files) > 1 else "")),
        ("size", human_bytes(size) if size else "not known"),
        *((key, str(model[key])) for key in ("role", "name", "architecture", "task") if model.get(key)),
        ("parameters", f"{model['parameters']:,}" if model["parameters"] else ""),
        ("quantization", f"{model['quant']}, {model['bits']} bits a weight ({mixture})" if mixture else ""),
        ("trained for", f"{model['context']:,} tokens" if model.get("context") else ""),
        ("licence", told["licence"] or model.get("licence") or ""),
        ("projectors", ", ".join(told.get("projectors", ()))),
        ("note", model["note"] or ""),
    ]
    lines = [f"  {click.style((name + ':').ljust(14), dim=True)}{text}" for name, text in rows if text]
    if fit := model["fit"]:
        verdict = click.style(fit["verdict"], fg=COLOURS[fit["verdict"]], bold=True)
        lines.append(f"  {click.style('fit:'.ljust(14), dim=True)}{verdict}: {fit['reason']}")
        if fit["longer_than_trained"]:
            lines.append(" " * 16 + "this context is longer than what the model was trained for")
        if fit["remedy"]:
            lines.append(" " * 16 + f"what would help: {fit['remedy']}")
        table = [(d["name"], *(amount(d[k]) for k in ("takes", "free", "total"))) for d in fit["devices"]]
        lines += ["    " + line for line in columns(("DEVICE", "TAKES", "FREE", "TOTAL"), table)] if table else []
    return lines
