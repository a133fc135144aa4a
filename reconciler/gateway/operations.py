"""Operations: what clients may ask for, as one table. PURE: the surface dispatches by it, and the API's description is
made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dialect = Literal["openai", "anthropic"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a model does.

    `path` stands under the prefix; `api` is what a target has to speak for the request to go to it as it is; errors
    are told in `dialect`. `generates` says that it makes text, which models for other tasks do not.
    """

    path: str
    api: str
    summary: str
    dialect: Dialect = "openai"
    generates: bool = False
    upstream: str = ""

    @property
    def forwarded(self) -> str:
        """Its path at a target."""
        return self.upstream or self.path


OPERATIONS = {
    each.path: each
    for each in (
        Operation("/chat/completions", "openai", "Answer a conversation", generates=True),
        Operation("/completions", "openai", "Continue a text", generates=True),
        Operation("/embeddings", "openai", "Make vectors of texts"),
        Operation("/rerank", "openai", "Order documents by how well they answer a query"),
        Operation("/responses", "responses", "Answer, with the conversation kept here if wanted", generates=True),
        Operation("/messages", "anthropic", "Answer a conversation", "anthropic", generates=True),
        Operation("/messages/count_tokens", "anthropic", "Count the tokens of a conversation", "anthropic"),
    )
}
