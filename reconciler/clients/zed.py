"""Zed: an OpenAI-compatible provider in settings.json, which may have comments."""

from __future__ import annotations

from typing import Any

from reconciler.clients.blocks import Mark
from reconciler.clients.client import Client, Target
from reconciler.clients.json_forms import Commented
from reconciler.clients.offer import DUMMY, VARIABLE, Model, Offer, Places
from reconciler.clients.shells import Variable, exports

NAME = "Reconciler"  # which makes RECONCILER_API_KEY the variable that it reads the key from
CONTEXT = 4096  # tokens, where the window of a model is not known


def _config(offer: Offer | None, places: Places) -> Target:
    folder = places.settings / "zed"
    if places.system == "darwin":
        folder = places.home / ".config" / "zed"
    elif places.system == "windows":
        folder = places.named("APPDATA", places.home / "AppData" / "Roaming") / "Zed"
    path = folder / "settings.json"
    value = None
    if offer is not None:
        value = {"api_url": offer.url, "available_models": [_model(model) for model in offer.of("chat")]}
    return Target(path, Commented(Mark("zed", str(path), "//"), ("language_models", "openai_compatible"), NAME, value))


def _model(model: Model) -> dict[str, Any]:
    can = {"tools": True, "images": False, "parallel_tool_calls": False, "prompt_cache_key": False}
    return {"name": model.name, "display_name": model.name, "max_tokens": model.context or CONTEXT, "capabilities": can}


def _notes(offer: Offer, in_file: bool) -> tuple[str, ...]:
    line = exports((Variable(VARIABLE, secret=True),), offer.key, "sh")[0]
    what = "" if offer.key.reference else f"; {DUMMY!r} will do, since the gateway wants none"
    return (f"it takes its key from its own settings page, or from the environment it is started in: {line}{what}",)


CLIENT = Client("zed", "Zed", None, _config, notes=_notes)
