"""Settings of models that their engine would not hear: its servers have flags of their own. Pure.

What is set and would be ignored is a fault, never silence. A default that is written out says nothing, and neither does
what is not for the engine.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.core.diagnostics import Diagnostic
from reconciler.core.section import Entry
from reconciler.kinds.engine.spec import CommandEngine, MlxEngine
from reconciler.kinds.model.spec import ModelSection
from reconciler.manifest.read import Document
from reconciler.manifest.stack import Stack

# What reaches a llama-server as its own flags and files.
OWN = ("parallel", "gpu_layers", "cache_type", "options", "mmproj", "lora", "draft")


def unheard(stack: Stack, document: Document) -> Iterator[Diagnostic]:
    """A fault for each setting that nobody would carry out, at its place."""
    for name, entry in stack.models.items():
        engine = stack.engines.get(entry.engine)
        if not isinstance(engine, CommandEngine | MlxEngine):
            continue
        for key in OWN:
            if _said(entry, key):
                problem = f"`{key}` would not be carried out: engine {entry.engine!r} has flags of its own"
                yield _fault(document, name, key, problem, _instead(engine, "what it says"))
        if "context" in entry.model_fields_set and not told_context(entry, engine):
            problem = f"`context` would not be carried out: engine {entry.engine!r} is not told of it"
            yield _fault(document, name, "context", problem, _instead(engine, "{context}"))


def heard(entry: ModelSection, engine: Entry | None) -> ModelSection:
    """A model as its engine takes it: no projector is looked for where none could be passed on."""
    return entry.model_copy(update={"mmproj": "none"}) if isinstance(engine, CommandEngine | MlxEngine) else entry


def folders(engine: Entry | None) -> str:
    """Whether it loads folders of weights: it `may`, or nothing else (`only`)."""
    return "only" if isinstance(engine, MlxEngine) else "may" if isinstance(engine, CommandEngine) else ""


def told_context(entry: ModelSection, engine: Entry | None) -> int:
    """The context that its server is told of; 0 where it is not told."""
    if isinstance(engine, CommandEngine | MlxEngine) and "context" not in engine.places:
        return 0
    return entry.context


def _said(entry: ModelSection, key: str) -> bool:
    if key == "mmproj":
        return key in entry.model_fields_set and entry.mmproj != "none"
    return bool(getattr(entry, key) != type(entry).model_fields[key].get_default())


def _instead(engine: CommandEngine | MlxEngine, what: str) -> str:
    if isinstance(engine, MlxEngine):
        return "remove it: mlx-lm decides that by itself"
    return f"write {what} into `argv` of the engine, and remove it here"


def _fault(document: Document, name: str, key: str, problem: str, hint: str) -> Diagnostic:
    path = ("models", name, key)
    return Diagnostic(problem, document.where(path, key=True), hint, ".".join(path))
