"""A client of the controller's control API, as the command line uses it. Blocking, standard library only.

    with Client(Layout(Path("state"))) as client:
        print(client.status()["ready"])

What the controller refuses is raised as Refused, with its diagnostics and exit code.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Exit, Refused
from reconciler.host.layout import Layout

API = 1


class NoController(Exception):
    """Nobody answers on the control socket."""


def _mute(why: object) -> NoController:
    return NoController(f"the controller does not answer: {why}")


class Client:
    """One connection. Use as a context manager. Raises NoController where none answers, or when it goes away."""

    def __init__(self, layout: Layout, timeout: float | None = 10.0) -> None:
        self._layout, self._timeout = layout, timeout

    def __enter__(self) -> Client:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(str(self._layout.control_socket))
        except OSError as error:
            self._socket.close()
            from reconciler.store.lock import owner  # most commands find a controller, or need none

            raise (_mute(error) if owner(self._layout) else NoController("no controller runs")) from error
        self._lines = self._socket.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def hello(self) -> dict[str, Any]:
        """Who answers: api, version, pid, and the manifest's path."""
        return self._ask("hello")

    def status(self) -> dict[str, Any]:
        """The snapshot of everything."""
        return self._ask("status")

    def plan(self, manifest: Path) -> dict[str, Any]:
        """What applying the manifest would do now; changes nothing."""
        return self._ask("plan", manifest=_named(manifest))

    def apply(
        self,
        manifest: Path,
        *,
        allow_empty: bool = False,
        targets: Iterable[str] = (),
        locked: bool = False,
        confirm_within: float = 0.0,
        binding: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Have the manifest taken over now → the snapshot of the turn that did, with its number as `turn`.

        `targets` are resources (`server/chat`) to limit it to; `confirm_within` seconds after which the generation
        before comes back; `binding` what a saved plan was made from.
        """
        return self._ask(
            "apply",
            manifest=_named(manifest),
            allow_empty=allow_empty,
            targets=sorted(targets),
            locked=locked,
            confirm_within=confirm_within,
            binding=binding,
        )

    def rollback(self, generation: int | None = None) -> dict[str, Any]:
        """Put an earlier generation in force (None: the last good one before) → as `apply` does."""
        return self._ask("rollback", generation=generation)

    def confirm(self) -> int:
        """Keep the generation that was applied with `confirm_within` → its number."""
        return int(self._ask("confirm")["confirmed"])

    def lock(self, upgrade: Iterable[str] | None = None) -> dict[str, Any]:
        """Pin what is not pinned; look anew at what `upgrade` names (empty: at everything). Has no time limit."""
        self._socket.settimeout(None)
        return self._ask("lock", upgrade=list(upgrade) if upgrade is not None else None)

    def gc(self, *, yes: bool = False, older: float = 604_800.0, keep_generations: int | None = None) -> dict[str, Any]:
        """What nobody needs any more; with `yes` it is removed. Has no time limit.

        `older` (seconds) is for quarantine and parts of downloads; `keep_generations` lets older ones go first.
        """
        self._socket.settimeout(None)
        return self._ask("gc", yes=yes, older=older, keep_generations=keep_generations)

    def suspect(self, digests: Iterable[str]) -> list[str]:
        """Have these files of the store proved, and mended where they are damaged → those that this concerns."""
        return list(self._ask("suspect", digests=sorted(digests))["suspected"])

    def pause(self, refs: Iterable[str] = (), *, discard: bool = False) -> dict[str, Any]:
        """Begin nothing for these resources (`model/chat`, or the plain name) until they are resumed; what is being
        fetched stops. None: suspend the controller. With `discard` what has come is thrown away. Has no time limit.

        → `changed` by it, `stopping` (ends with the step in hand), `discarded`; and all that is `paused`, `suspended`.
        """
        self._socket.settimeout(None)
        return self._ask("pause", refs=list(refs), discard=discard)

    def resume(self, refs: Iterable[str] = ()) -> dict[str, Any]:
        """Go on with these resources; none: with the controller → as `pause` does."""
        return self._ask("resume", refs=list(refs))

    def ensure_ready(self, model: str, timeout: float = 600.0) -> dict[str, Any]:
        """Wait (seconds) until the model that clients call so can be asked → `ready` and its conditions."""
        self._socket.settimeout(timeout + 10.0)
        return self._ask("ensure_ready", model=model, timeout=timeout)

    def load(self, model: str, timeout: float = 600.0) -> dict[str, Any]:
        """Load a model and keep it loaded until `unload` → as `ensure_ready`."""
        self._socket.settimeout(timeout + 10.0)
        return self._ask("load", model=model, timeout=timeout)

    def unload(self, model: str, timeout: float = 600.0) -> dict[str, Any]:
        """Let a model go once it has answered what it is answering → `unloaded`, and its conditions."""
        self._socket.settimeout(timeout + 10.0)
        return self._ask("unload", model=model, timeout=timeout)

    def shutdown(self) -> dict[str, Any]:
        """Stop the controller; workloads go on."""
        return self._ask("shutdown")

    def follow(self) -> Iterator[dict[str, Any]]:
        """Snapshots and events as they come; ends when the controller does."""
        return self._stream("follow")

    def events(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """Events with a sequence number above `after`, and then those to come."""
        return self._stream("events", after=after)

    def down(self, *, purge: bool) -> Iterator[dict[str, Any]]:
        """Stop everything that is owned, then the controller; yields as `follow` does."""
        return self._stream("down", purge=purge)

    def _send(self, method: str, **values: Any) -> None:
        try:
            self._socket.sendall(json.dumps({"api": API, "method": method, **values}).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it closed: reading tells
        except OSError as error:
            raise _mute(error) from error

    def _line(self) -> dict[str, Any] | None:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise _mute(error) from error
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None  # else it was cut off
        return answer

    def _ask(self, method: str, **values: Any) -> dict[str, Any]:
        self._send(method, **values)
        answer = self._line()
        if answer is None:
            raise _mute("it went away without an answer")
        return _value(answer)

    def _stream(self, method: str, **values: Any) -> Iterator[dict[str, Any]]:
        self._send(method, **values)
        self._socket.settimeout(None)
        while (message := self._line()) is not None:
            yield _value(message)


def _named(manifest: Path) -> str:
    """The controller has another working directory."""
    return str(Path(manifest).expanduser().absolute())


def _value(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, unless it says that the request was refused."""
    if "error" not in answer:
        return answer
    found = [Diagnostic.from_json(d) for d in answer.get("diagnostics", ())]
    raise Refused(found or str(answer["error"]), exit_code=Exit(answer.get("exit_code", Exit.ERROR)))
