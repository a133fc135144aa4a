"""aider: environment variables, or .aider.conf.yml in the home folder."""

from __future__ import annotations

from reconciler.clients.blocks import Mark
from reconciler.clients.client import Client, Target
from reconciler.clients.forms import Lines
from reconciler.clients.offer import Offer, Places
from reconciler.clients.shells import Variable, exports
from reconciler.clients.text import yaml_text


def _variables(offer: Offer) -> tuple[Variable, ...]:
    return (
        Variable("OPENAI_API_BASE", offer.url),
        Variable("OPENAI_API_KEY", secret=True),
        Variable("AIDER_MODEL", _model(offer)),
    )


def _config(offer: Offer | None, places: Places) -> Target:
    path = places.home / ".aider.conf.yml"
    body: tuple[str, ...] = ()
    if offer is not None:
        body = (f"model: {yaml_text(_model(offer))}", f"openai-api-base: {yaml_text(offer.url)}")
        if offer.key.literal:
            body += (f"openai-api-key: {yaml_text(offer.key.literal)}",)
    secret = offer is not None and bool(offer.key.value)
    return Target(path, Lines(Mark("aider", str(path)), "yaml", body, holds_secret=secret))


def _model(offer: Offer) -> str:
    return f"openai/{offer.model.name}"  # its prefix for whatever speaks the OpenAI API


def _notes(offer: Offer, in_file: bool) -> tuple[str, ...]:
    if not in_file or offer.key.literal:
        return ()
    line = exports((Variable("OPENAI_API_KEY", secret=True),), offer.key, "sh")[0]
    return (f"its file takes no references: the key comes from the environment, {line}",)


CLIENT = Client("aider", "aider", _variables, _config, notes=_notes)
