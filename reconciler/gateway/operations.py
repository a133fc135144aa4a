"""Operations: everything that the gateway serves, as one table. PURE: the surface dispatches by it, and the API's
description is made from it, so that nothing is served that is not described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

Dialect = Literal["openai", "anthropic"]
Answers = Literal[
    "front",
    "health",
    "ready",
    "docs",
    "description",
    "models",
    "model",
    "ask",
    "form",
    "kept",
    "kept_items",
    "native",
    "metrics",
]


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked for: one method of one path. GET stands for HEAD, too, but for `native`.

    `path` stands under the prefix, or is whole where it is `rooted`; `{name}` stands for a part that is not empty, one
    that is `wide` may hold slashes. `does` says who answers. `api` is what a target has to speak for
    the request to go to it as it is; errors are told in `dialect`. `generates` says that it makes text, which models
    for other tasks do not. `keyless` ones are answered without a key where there are keys.
    """

    path: str
    api: str
    summary: str
    dialect: Dialect = "openai"
    generates: bool = False
    upstream: str = ""
    method: str = "POST"
    does: Answers = "ask"
    rooted: bool = False
    keyless: bool = False
    wide: tuple[str, ...] = ()
    tag: str = "models"

    @property
    def forwarded(self) -> str:
        """Its path at a target."""
        return self.upstream or self.path

    def whole(self, prefix: str) -> str:
        """Its path as clients ask for it."""
        return self.path if self.rooted else prefix + self.path


class Place(NamedTuple):
    """What there is at a path: its operations by method, and what stands there for each `{name}`, still encoded."""

    operations: dict[str, Operation]
    parts: dict[str, str]

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order in which an Allow header lists them."""
        found: list[str] = [m for m in ("GET", "POST", "DELETE") if m in self.operations]
        if "GET" in found and self.operations["GET"].does != "native":
            found.insert(1, "HEAD")
        return tuple(found)

    @property
    def dialect(self) -> Dialect:
        """That of whoever asks here, where the request does not say otherwise."""
        return next(iter(self.operations.values())).dialect

    def operation(self, method: str) -> Operation | None:
        """Who answers that method; None where nobody does."""
        if method not in self.methods:
            return None
        return self.operations["GET" if method == "HEAD" else method]


def _rooted(path: str, does: Answers, summary: str, *, keyless: bool = True) -> Operation:
    return Operation(path, "", summary, method="GET", does=does, rooted=True, keyless=keyless, tag="gateway")


def _native(method: str, path: str, summary: str, dialect: Dialect = "openai") -> Operation:
    return Operation(
        f"/upstream/{{model}}{path}",
        "native",
        summary,
        dialect,
        upstream=path,
        method=method,
        does="native",
        rooted=True,
        wide=("model",),
        tag="engines",
    )


# What llama-server serves and a client may have of it. Not: /props by POST and /models/… (they change the server),
# /cors-proxy and /tools (they reach whatever the server reaches), /v1/stream (the streams of others).
_NATIVE = (
    _native("GET", "/health", "Whether the engine is ready"),
    _native("GET", "/v1/health", "Whether the engine is ready"),
    _native("GET", "/props", "What the engine runs with, and the model's chat template"),
    _native("GET", "/slots", "What each slot of the engine does"),
    _native("POST", "/slots/{slot}", "Erase what a slot remembers"),
    _native("GET", "/metrics", "The engine's own figures, as Prometheus reads them"),
    _native("GET", "/lora-adapters", "The adapters that are loaded, and their scales"),
    _native("POST", "/lora-adapters", "Set the scales of adapters that are loaded"),
    _native("GET", "/models", "The engine's own list"),
    _native("GET", "/v1/models", "The engine's own list"),
    _native("POST", "/tokenize", "Cut a text into tokens"),
    _native("POST", "/detokenize", "Put tokens together to a text"),
    _native("POST", "/apply-template", "The prompt that a conversation makes"),
    _native("POST", "/infill", "Fill in code between what is before and after"),
    _native("POST", "/completion", "Continue a text, with all of the engine's own options"),
    _native("POST", "/completions", "Continue a text"),
    _native("POST", "/chat/completions", "Answer a conversation"),
    _native("POST", "/chat/completions/input_tokens", "Count the tokens of a conversation"),
    _native("POST", "/embedding", "Make vectors of texts, one for each token if wanted"),
    _native("POST", "/embeddings", "Make vectors of texts, one for each token if wanted"),
    _native("POST", "/rerank", "Order documents by how well they answer a query"),
    _native("POST", "/reranking", "Order documents by how well they answer a query"),
    _native("POST", "/v1/completions", "Continue a text"),
    _native("POST", "/v1/chat/completions", "Answer a conversation"),
    _native("POST", "/v1/chat/completions/input_tokens", "Count the tokens of a conversation"),
    _native("POST", "/v1/embeddings", "Make vectors of texts"),
    _native("POST", "/v1/rerank", "Order documents by how well they answer a query"),
    _native("POST", "/v1/reranking", "Order documents by how well they answer a query"),
    _native("POST", "/v1/responses", "Answer; nothing is kept"),
    _native("POST", "/v1/responses/input_tokens", "Count the tokens of a request for a response"),
    _native("POST", "/v1/messages", "Answer a conversation", "anthropic"),
    _native("POST", "/v1/messages/count_tokens", "Count the tokens of a conversation", "anthropic"),
)

TABLE = (
    Operation("/chat/completions", "openai", "Answer a conversation", generates=True),
    Operation("/completions", "openai", "Continue a text", generates=True),
    Operation("/embeddings", "openai", "Make vectors of texts"),
    Operation("/rerank", "openai", "Order documents by how well they answer a query"),
    Operation("/audio/transcriptions", "openai", "Write down what is said in a recording", does="form"),
    Operation("/responses", "responses", "Answer, with the conversation kept here if wanted", generates=True),
    Operation("/responses/{response_id}", "", "A response that was kept", method="GET", does="kept"),
    Operation("/responses/{response_id}", "", "Keep a response no longer", method="DELETE", does="kept"),
    Operation(
        "/responses/{response_id}/input_items", "", "What a kept response answers", method="GET", does="kept_items"
    ),
    Operation("/messages", "anthropic", "Answer a conversation", "anthropic", generates=True),
    Operation("/messages/count_tokens", "anthropic", "Count the tokens of a conversation", "anthropic"),
    Operation("/models", "", "All models that may be asked for", method="GET", does="models"),
    Operation("/models/{model}", "", "One model", method="GET", does="model", wide=("model",)),
    *_NATIVE,
    _rooted("/", "front", "What this is"),
    _rooted("/health", "health", "Whether the gateway runs"),
    _rooted("/ready", "ready", "Whether every model that always runs can be asked"),
    _rooted("/metrics", "metrics", "Figures of the gateway, as Prometheus reads them", keyless=False),
    _rooted("/openapi.json", "description", "This description", keyless=False),
    _rooted("/docs", "docs", "A page to read this description and to try it"),
    _rooted("/docs/{file}", "docs", "What that page needs"),
)


def served(keep_responses: bool) -> tuple[Operation, ...]:
    """What is served: without what is kept where nothing is."""
    return tuple(each for each in TABLE if keep_responses or each.does not in ("kept", "kept_items"))


@lru_cache(maxsize=8)
def mapped(prefix: str, keep_responses: bool) -> Map:
    """What is served, by path."""
    return Map(prefix, served(keep_responses))


class Map:
    """The table by path, under one prefix."""

    def __init__(self, prefix: str, table: Sequence[Operation]) -> None:
        self._exact: dict[str, Place] = {}
        self._patterns: dict[str, tuple[list[str], Place]] = {}
        # The longer one first: …/v1/completions is a model's, not the /completions of one whose name ends in v1.
        for operation in sorted(table, key=lambda each: -each.path.count("/")):
            path = operation.whole(prefix)
            if "{" not in path:
                place = self._exact.setdefault(path, Place({}, {}))
            else:
                place = self._patterns.setdefault(path, (path.split("/"), Place({}, {})))[1]
            place.operations[operation.method] = operation

    def find(self, path: str) -> Place | None:
        """What is served at a raw path; None where nothing is."""
        if (place := self._exact.get(path)) is not None:
            return place
        words = path.split("/")
        for pattern, place in self._patterns.values():
            parts = _parts(pattern, words, next(iter(place.operations.values())).wide)
            if parts is not None:
                return Place(place.operations, parts)
        return None


def _parts(pattern: list[str], words: list[str], wide: tuple[str, ...]) -> dict[str, str] | None:
    """What stands for each `{name}`; one that is wide takes all that the others leave over."""
    extra = len(words) - len(pattern)
    if extra < 0 or (extra and not wide):
        return None
    parts, at = {}, 0
    for word in pattern:
        if not word.startswith("{"):
            if words[at] != word:
                return None
            at += 1
            continue
        name = word[1:-1]
        size = 1 + extra if name in wide else 1
        parts[name] = "/".join(words[at : at + size])
        at += size
        if not parts[name]:
            return None
    return parts
