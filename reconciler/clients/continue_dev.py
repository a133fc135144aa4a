"""Continue: entries in the list of models of config.yaml."""

from __future__ import annotations

from reconciler.clients.blocks import Mark
from reconciler.clients.client import Client, Target, export_note, named_key
from reconciler.clients.forms import Items
from reconciler.clients.offer import Key, Offer, Places
from reconciler.clients.text import yaml_text

SKELETON = "name: Local\nversion: 0.0.1\nschema: v1\nmodels:\n"
_ROLES = {"chat": "[chat, edit, apply]", "embedding": "[embed]"}


def _config(offer: Offer | None, places: Places) -> Target:
    path = places.named("CONTINUE_GLOBAL_DIR", places.home / ".continue") / "config.yaml"
    mark = Mark("continue", str(path))
    if offer is None:
        return Target(path, Items(mark, "models", skeleton=SKELETON))
    models = [model for task in _ROLES for model in offer.of(task)]
    items = [line for model in models for line in _item(model.name, _ROLES[model.task], offer)]
    names = tuple(_name(model.name) for model in models)
    return Target(path, Items(mark, "models", tuple(items), SKELETON, bool(offer.key.value), names))


def _name(model: str) -> str:
    return f"Reconciler: {model}"


def _item(model: str, roles: str, offer: Offer) -> list[str]:
    return [
        f"- name: {yaml_text(_name(model))}",
        "  provider: openai",
        f"  model: {yaml_text(model)}",
        f"  apiBase: {yaml_text(offer.url)}",
        f"  apiKey: {_key(offer.key)}",
        f"  roles: {roles}",
    ]


def _key(key: Key) -> str:
    return yaml_text(key.literal) if key.literal else f'"${{{{ secrets.{named_key(key)} }}}}"'


def _notes(offer: Offer, in_file: bool) -> tuple[str, ...]:
    if offer.key.literal:
        return ()
    name = named_key(offer.key)
    return (f"put {name}=… into ~/.continue/.env: editors do not hand it their environment",
            *export_note(offer.key))  # fmt: skip


CLIENT = Client("continue", "Continue", None, _config, notes=_notes)
