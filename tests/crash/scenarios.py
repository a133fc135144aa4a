"""What the controller is doing when something happens to it. A scenario is data; adding one is adding it to the list.

Manifests are templates: `$hub` is the address of a file server with /big.gguf and /small.gguf, `$small` the path of a
small model on this machine, `$port` the gateway's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from reconciler.client import Client
from reconciler.core.diagnostics import Refused


@dataclass(frozen=True)
class Scenario:
    """`setup` manifests are applied one after the other, undisturbed. Then `step` is saved, and a controller started:
    that one is disturbed. `ask` is what it is asked, beside that, as soon as it answers (again after a crash, so it
    must be something that may be asked twice). In the end `names` answer through the gateway.
    """

    name: str
    setup: tuple[str, ...]
    step: str
    names: tuple[str, ...] = ("chat", "code")
    servers: int = 2
    ask: Callable[[Client], object] | None = None


def _stack(chat: str, code: str) -> str:
    return (
        "version: 1\nengines: {fake: {type: llama.cpp, path: ./engine}}\nmodels:\n"
        f"  chat: {{engine: fake, {chat}}}\n  code: {{engine: fake, {code}}}\ngateway: {{port: $port}}\n"
    )


REMOTE, LOCAL = 'source: "$hub/small.gguf"', 'source: "file:$small"'
BEFORE = _stack(f"{REMOTE}, context: 1k", f"{LOCAL}, context: 1k")
AFTER = _stack(f"{REMOTE}, context: 2k", f"{LOCAL}, context: 3k, aliases: [coder]")


def _go_back(client: Client) -> None:
    with suppress(Refused):  # it is in force already: the one that was disturbed got that far
        client.rollback(1)


SCENARIOS = (
    Scenario("first apply", (), _stack('source: "$hub/big.gguf"', LOCAL)),
    Scenario("edit", (BEFORE,), AFTER, ("chat", "code", "coder")),
    Scenario("routes", (BEFORE,), _stack(f"{REMOTE}, context: 1k, aliases: [talk]", f"{LOCAL}, context: 1k"),
             ("chat", "talk", "code")),
    Scenario("rollback", (BEFORE, AFTER), AFTER, ask=_go_back),
)  # fmt: skip
