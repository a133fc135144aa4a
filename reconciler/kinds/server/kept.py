"""What the KV cache of a server holds, kept on disk while the server is not in memory: which servers, and where. Pure.

llama-server writes the tokens of a slot with their keys and values into a file (`POST /slots/ID?action=save`), and
reads them back. It does not check what the file was made with, beyond sizes; hence each folder is named by all that
the content depends on, and nothing is ever read into anything else.

Sliding windows and recurrent states are saved with their checkpoints by engines of today; one that does not do so
computes a prompt anew where it cannot wind back, and answers the same. The cache of a draft model is filled again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.ids import canonical, digest_of
from reconciler.kinds.fit import Demand, shape_from, use_of
from reconciler.kinds.flags import FlagSet
from reconciler.kinds.server.spec import ServerSpec

FLAG = "--slot-save-path"
LEAST = 64  # tokens below which a slot is not worth a file: they are read again in no time


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the cache of a process is kept: the folder's name, how many slots it has, and bytes that they take at
    most."""

    folder: str
    slots: int
    most: int


def unkept(spec: ServerSpec, shape: str, projector: bool, flags: FlagSet | None) -> str:
    """Why the cache of this server cannot be kept, as the end of a sentence; empty where it can.

    `shape` is the model's (JSON), `flags` the engine's (None: not known yet).
    """
    made = shape_from(shape) if len(shape) > 2 else None
    if spec.task != "chat" or (made is not None and not made.cached):
        return "only models that generate text have one"
    if projector:
        return "images and sounds are not saved with a slot"
    if flags is not None and not flags.has(FLAG):
        return f"the engine has no {FLAG}" if flags.known else "what flags the engine has is not known"
    return ""


def kept(spec: ServerSpec, sha256s: Iterable[str], engine: str, demand: Demand, shape: str, layers: int) -> Kept:
    """`spec` is as it is run, `sha256s` are of every file that it is made from, `engine` names the engine's bytes,
    `layers` is how many are on a GPU."""
    key = digest_of(
        {
            "spec": spec.digest,
            "settings": [spec.context, spec.parallel, spec.cache_k, spec.cache_v, layers],
            "files": list(sha256s),
            "engine": engine,
        }
    )
    return Kept(key[:32], spec.parallel, _most(demand, shape))


def _most(demand: Demand, shape: str) -> int:
    from reconciler.gguf.memory import estimate

    made = shape_from(shape) if len(shape) > 2 else None
    need = estimate(made, use_of(demand)) if made is not None else None
    return need.cache + need.state if need is not None else 0


def told(one: Kept) -> str:
    """What a process carries of it (JSON)."""
    return canonical({"folder": one.folder, "slots": one.slots, "most": one.most})


def read(inputs: Mapping[str, str], key: str) -> Kept | None:
    """The reverse; None where the process keeps none."""
    try:
        data: Any = json.loads(inputs.get(key, "{}"))
        folder = str(data["folder"])
        return Kept(folder, int(data["slots"]), int(data["most"])) if folder.isalnum() else None
    except (ValueError, KeyError, TypeError):
        return None
