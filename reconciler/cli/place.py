"""Which manifest and which data root a command is about."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from reconciler.core.diagnostics import Refused
from reconciler.core.ids import Ref
from reconciler.host.layout import Layout

if TYPE_CHECKING:
    from reconciler.manifest.parse import Manifest
    from reconciler.manifest.reading import Reading

DEFAULT = "stack.yaml"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Place:
    """The options that every verb shares."""

    file: str = DEFAULT
    data_root: str = ""
    output: str = "text"

    @property
    def manifest(self) -> Path:
        return Path(self.file).expanduser().absolute()

    @property
    def json(self) -> bool:
        return self.output == "json"

    def refs(self, names: Iterable[str]) -> frozenset[Ref]:
        """Resources by name. Raises Refused for what is not one."""
        try:
            return frozenset(Ref.parse(name) for name in names)
        except ValueError as error:
            raise Refused(str(error)) from error

    def load(self) -> Manifest:
        """Read and check the manifest. Raises Refused."""
        from reconciler.manifest.parse import load

        return load(self.manifest)

    def read(self) -> Reading:
        """The same together with its lock. Raises Refused."""
        from reconciler.manifest.reading import reading

        return reading(self.manifest)

    def layout(self, manifest: Manifest | None = None) -> Layout:
        """The data root: --data-root, RECONCILER_DATA_ROOT, `data_root:` of the manifest, or state/ beside it.

        A manifest that is broken or gone still tells where things are, as far as it can be read.
        """
        chosen = self.data_root or os.environ.get("RECONCILER_DATA_ROOT", "")
        if chosen:
            return Layout(Path(chosen).expanduser().absolute())
        named = manifest.stack.data_root if manifest else self._peek()
        root = self.manifest.parent / Path(named or "state").expanduser()
        return Layout(Path(os.path.normpath(root)))

    def _peek(self) -> str | None:
        from reconciler.manifest.read import read

        try:
            values = read(self.manifest.read_bytes(), str(self.manifest)).values if self.manifest.is_file() else None
        except OSError:
            return None
        named = values.get("data_root") if isinstance(values, dict) else None
        return named if isinstance(named, str) else None


class Seconds(click.ParamType[float]):
    """`30s`, `5m`, `1h`, or a bare number of seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time; write 30s, 5m or 1h", param, ctx)
        return float(match[1]) * {"ms": 0.001, "m": 60.0, "h": 3600.0}.get(match[2], 1.0)


SECONDS = Seconds()


def targets(function: F) -> F:
    """The option that limits a plan to some resources."""
    text = "Only this resource and what it needs (kind/name); may be given again."
    return click.option("--target", multiple=True, metavar="REF", help=text)(function)


def find(name: str, refs: list[Ref]) -> Ref:
    """A resource by what a person calls it: `server/chat`, or `chat` where that names a server or just one thing.

    `gateway` is the one there is. Raises Refused.
    """
    for ref in refs:
        if name in (str(ref), f"{ref.name}") and (str(ref) == name or ref.kind == "server"):
            return ref
    close = [ref for ref in refs if ref.name == name or str(ref) == f"{name}/main"]
    if len(close) == 1:
        return close[0]
    known = ", ".join(str(ref) for ref in refs[:20]) or "none"
    raise Refused(f"nothing is known of {name!r}", hint=f"resources are: {known}")


def common(function: F, file: tuple[str, ...] = ("-f", "--file")) -> F:
    """The options that every verb has; what follows the verb wins over what precedes it."""
    for option in (
        click.option("-o", "--output", type=click.Choice(["text", "json"]), help="How to print.  [default: text]"),
        click.option("--data-root", metavar="DIR", help="Where everything is kept.  [default: state/ by the manifest]"),
        click.option(*file, metavar="FILE", help=f"The manifest.  [default: {DEFAULT}]"),
    ):
        function = option(function)
    return function


def remember(ctx: click.Context, given: dict[str, Any]) -> Place:
    """Note what was given in the context, for this verb and those below it."""
    place: Place = ctx.find_object(Place) or Place()
    chosen = Place(
        given.pop("file") or place.file,
        given.pop("data_root") or place.data_root,
        given.pop("output") or place.output,
    )
    # The group's error handler prints in the form that the verb asked for.
    ctx.obj = ctx.find_root().obj = chosen
    return chosen


def verb(name: str, file: tuple[str, ...] = ("-f", "--file")) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with the common options; its function gets the Place first. `file` names the manifest's option."""
    from reconciler.cli import VERBS

    def make(function: Callable[..., Any]) -> click.Command:
        def run(*args: Any, **given: Any) -> Any:
            return function(remember(click.get_current_context(), given), *args, **given)

        told = "\n\n".join(filter(None, (VERBS[name], inspect.cleandoc(function.__doc__ or ""))))
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        return click.command(name, cls=click.Command, help=told)(common(run, file))

    return make
