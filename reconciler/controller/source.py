"""The manifest as the controller has it: the last good one, and what is wrong with the file as it is now."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from reconciler.controller.turn import look
from reconciler.core import planner
from reconciler.core.diagnostics import Diagnostic, Fault, Refused, Where
from reconciler.kinds.base import Kind, Tools
from reconciler.kinds.engine.io import python_tag
from reconciler.manifest.parse import Manifest, check
from reconciler.manifest.resolve import resolve

log = logging.getLogger(__name__)


class Source:
    """A file that people edit. `manifest` is None only before there was ever a good one."""

    def __init__(self, path: Path, tools: Tools, kinds: Mapping[str, Kind]) -> None:
        self.path, self._tools, self._kinds = path, tools, kinds
        self.manifest: Manifest | None = None
        self.generation = 0
        self.faults: tuple[Diagnostic, ...] = ()
        self.unkept: Fault | None = None  # why the manifest could not be kept as a generation
        self._seen: tuple[bytes | None] | None = None  # the text when it was last looked at; None inside: no file
        self._allow_empty = False
        self._moved = asyncio.Event()

    @property
    def unread(self) -> bool:
        """Whether a reading that was asked for has yet to happen."""
        return self._seen is None

    def reread(self, path: Path, allow_empty: bool) -> None:
        """Have the next `read` take `path` anew, changed or not; once, it may be one that removes everything."""
        if path != self.path:
            self.path, self._tools.base = path, path.parent
            self._moved.set()
        self._seen, self._allow_empty = None, allow_empty

    def read(self) -> bool:
        """Take the file over if it is right, otherwise keep the last good one; False where it has not changed."""
        try:
            text = self.path.read_bytes() if self.path.is_file() else None  # a pipe would block us for ever
        except OSError:
            text = None
        if self._seen == (text,):
            if self.unkept is not None and self.manifest is not None:
                self._keep(self.manifest)
            return False
        self._seen = (text,)
        try:
            manifest = self._checked(text)
        except Refused as refused:
            self._refuse(refused.diagnostics)
        else:
            self.manifest, self.faults, self._allow_empty = manifest, (), False
            self._keep(manifest)
        return True

    async def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the file changes, for ever. Watches the folder, not the file: editors replace files."""
        from watchfiles import awatch

        while True:
            self._moved.clear()
            try:
                # It looks every `step` ms whether a burst of changes is over: shorter costs processor time all day.
                async for changes in awatch(
                    self.path.parent, recursive=False, debounce=100, step=50, stop_event=self._moved
                ):
                    if any(Path(name).name == self.path.name for _, name in changes):
                        wake()
            except (OSError, RuntimeError) as error:
                # The loop reads the file every few seconds anyway; only the quick answer is lost meanwhile.
                log.warning("cannot watch folder=%s error=%s", self.path.parent, error)
                await asyncio.sleep(2.0)

    def _checked(self, text: bytes | None) -> Manifest:
        if text is None:
            hint = "put it back, or `reconcile down`"
            raise Refused([Diagnostic("the manifest is gone", Where(str(self.path)), hint=hint)])
        manifest = check(text, self.path)
        if not self._allow_empty:
            view = look(resolve(manifest, python_tag()), self._tools, self._kinds)
            planner.refuse_emptying(view.plan, view.world)
        return manifest

    def _refuse(self, faults: tuple[Diagnostic, ...]) -> None:
        self.faults = faults
        self._tools.ledger.event("manifest", "Rejected", str(faults[0]))
        log.warning("manifest rejected: %s", faults[0])
        if self.manifest is None:
            self.manifest = self._last_good()

    def _last_good(self) -> Manifest | None:
        """The newest generation that came from this file, for a controller that starts with a broken one."""
        last = self._tools.ledger.last_generation()
        if last is None or Path(last[2]) != self.path:
            return None
        try:
            manifest = check(self._copy(last[0]).read_bytes(), self.path)
        except (OSError, Refused):
            return None
        self.generation = last[0]
        return manifest

    def _keep(self, manifest: Manifest) -> None:
        """Number it; where the disk does not let us, the next reading tries again."""
        try:
            self.generation, self.unkept = self._numbered(manifest), None
        except Fault as fault:
            if fault.code == "LOCK_LOST":
                raise
            self.unkept = fault

    def _numbered(self, manifest: Manifest) -> int:
        """Keep a copy of an accepted manifest as a generation; the same one again keeps its number."""
        digest = hashlib.sha256(manifest.text).hexdigest()
        number = self._tools.ledger.add_generation(digest, str(manifest.path))
        if not self._copy(number).exists():
            self._tools.files.write(self._copy(number), manifest.text)
            self._tools.ledger.event("manifest", "Accepted", f"generation {number}")
        return number

    def _copy(self, number: int) -> Path:
        return self._tools.layout.generations / f"{number}.yaml"
