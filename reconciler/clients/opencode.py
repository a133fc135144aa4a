"""opencode: a provider in opencode.json, which may have comments."""

from __future__ import annotations

import re
import shlex
from typing import Any

from reconciler.clients.blocks import Mark
from reconciler.clients.client import Client, Target, export_note, named_key
from reconciler.clients.json_forms import Commented
from reconciler.clients.offer import Key, Model, Offer, Places
from reconciler.core.diagnostics import Refused

NAME = "reconciler"
SKELETON = b'{\n  "$schema": "https://opencode.ai/config.json"\n}\n'  # a line that it would put there itself
_FILLED = re.compile(r"\{(env|file):")


def _config(offer: Offer | None, places: Places) -> Target:
    path = places.settings / "opencode" / "opencode.json"
    secret = offer is not None and bool(offer.key.value)
    value = _provider(offer) if offer is not None else None
    return Target(path, Commented(Mark("opencode", str(path), "//"), ("provider",), NAME, value, secret, SKELETON))


def _provider(offer: Offer) -> dict[str, Any]:
    """It fills in `{env:…}` and `{file:…}` wherever they stand: what is called so cannot be named in its file."""
    for text in (offer.model.name, offer.key.value):
        if _FILLED.search(text):
            raise Refused("opencode would fill in what stands in braces in the model's name or the key",
                          hint="choose another model with --model")  # fmt: skip
    return {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Reconciler",
        "options": {"baseURL": offer.url, "apiKey": _key(offer.key)},
        "models": {model.name: _model(model) for model in offer.of("chat") if not _FILLED.search(model.name)},
    }


def _model(model: Model) -> dict[str, Any]:
    """A window that is known is told, so that long conversations are shortened in time."""
    limit = {"limit": {"context": model.context, "output": max(1, model.context // 4)}} if model.context else {}
    return {"name": model.name, **limit}


def _key(key: Key) -> str:
    if key.literal:
        return key.literal
    return f"{{file:{key.file}}}" if _reads_file(key) else f"{{env:{named_key(key)}}}"


def _reads_file(key: Key) -> bool:
    """It puts the name into JSON before that is read: one that needs escapes there would not be found."""
    return bool(key.file) and not re.search(r'["\\{}]|[^ -~]', key.file)


def _notes(offer: Offer, in_file: bool) -> tuple[str, ...]:
    more = () if _reads_file(offer.key) else export_note(offer.key)
    chosen = shlex.quote(f"{NAME}/{offer.model.name}")
    return (f"choose it with /models, or `opencode -m {chosen}`", *more)


CLIENT = Client("opencode", "opencode", None, _config, notes=_notes)
