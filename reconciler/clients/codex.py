"""Codex: a profile of its own, `codex --profile reconciler`, which is a file beside config.toml since 0.134."""

from __future__ import annotations

import json

from reconciler.clients.blocks import Mark
from reconciler.clients.client import Client, Target
from reconciler.clients.forms import Lines
from reconciler.clients.offer import Key, Offer, Places
from reconciler.clients.shells import printing

NAME = "reconciler"


def _config(offer: Offer | None, places: Places) -> Target:
    path = places.named("CODEX_HOME", places.home / ".codex") / f"{NAME}.config.toml"
    body = _body(offer) if offer is not None else ()
    secret = offer is not None and bool(offer.key.value)
    # At the top, and without a table of its own: keys that follow would fall into that.
    return Target(path, Lines(Mark("codex", str(path)), "toml", body, top=True, holds_secret=secret))


def _body(offer: Offer) -> tuple[str, ...]:
    window = (f"model_context_window = {offer.model.context}",) if offer.model.context else ()
    fields = {"name": "Reconciler", "base_url": offer.url, "wire_api": "responses"}
    inner = ", ".join([*(f"{key} = {_text(value)}" for key, value in fields.items()), *_key(offer.key)])
    return (
        f"model = {_text(offer.model.name)}",
        *window,
        f"model_provider = {_text(NAME)}",
        f"model_providers.{NAME} = {{ {inner} }}",
    )


def _key(key: Key) -> list[str]:
    if not key.reference:
        return []
    if key.value:
        return [f"experimental_bearer_token = {_text(key.value)}"]
    if key.variable:
        return [f"env_key = {_text(key.variable)}"]
    return [f'auth = {{ command = "sh", args = ["-c", {_text(printing(key))}] }}']


def _text(value: str) -> str:
    """A basic string of TOML: the escapes of JSON are among its own, but for one character."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def _notes(offer: Offer, in_file: bool) -> tuple[str, ...]:
    return (f"use it with `codex --profile {NAME}`",)


CLIENT = Client("codex", "Codex", None, _config, notes=_notes)
