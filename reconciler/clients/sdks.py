"""The official clients of OpenAI and Anthropic, and all that reads their variables. They have no file."""

from __future__ import annotations

from reconciler.clients.client import Client
from reconciler.clients.offer import Offer
from reconciler.clients.shells import Variable


def _openai(offer: Offer) -> tuple[Variable, ...]:
    return (Variable("OPENAI_BASE_URL", offer.url), Variable("OPENAI_API_KEY", secret=True))


def _anthropic(offer: Offer) -> tuple[Variable, ...]:
    return (Variable("ANTHROPIC_BASE_URL", offer.root), Variable("ANTHROPIC_API_KEY", secret=True))


def _model(offer: Offer, in_file: bool) -> tuple[str, ...]:
    return (f"the model is named in each request: {offer.model.name}",)


OPENAI = Client("openai", "programs that use the OpenAI client", _openai, notes=_model)
ANTHROPIC = Client("anthropic", "programs that use the Anthropic client", _anthropic, notes=_model)
