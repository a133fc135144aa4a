"""Jan: a provider that is added by hand, since it writes all of its settings anew while it runs."""

from __future__ import annotations

from reconciler.clients.client import Client
from reconciler.clients.offer import Offer


def _steps(offer: Offer) -> str:
    key = offer.key.literal or f"what {offer.key.reference} holds"
    return "\n".join(
        [
            "Settings > Model Providers > Add Provider:",
            "  Name:        Reconciler",
            "  API format:  OpenAI-compatible",
            f"  Base URL:    {offer.url}",
            f"  API Key:     {key}",
            f"  Model:       {offer.model.name}",
        ]
    )


CLIENT = Client(
    "jan",
    "Jan",
    steps=_steps,
    unwritten="Jan keeps its settings in one file that it writes anew while it runs: what others put there is lost",
)
