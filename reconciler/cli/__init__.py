"""The command line: one file a verb, each importing what it needs only when it is called."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from reconciler import __version__
from reconciler.cli.place import common, remember
from reconciler.client import NoController
from reconciler.core.diagnostics import Exit, Fault, Refused

VERBS = {
    "apply": "Make this machine what the manifest says, and keep it so.",
    "plan": "Show what apply would do; changes nothing. Exit code 2 when something would.",
    "watch": "Be the controller, in the foreground.",
    "status": "Show what runs, and what is wrong.",
    "why": "Tell the chain of events that led to how a resource is now.",
    "events": "Show what happened.",
    "logs": "Show the log of a resource.",
    "tap": "Watch requests to a model and their answers as they go by.",
    "history": "List the generations: every manifest that was applied.",
    "diff": "Show what differs between generations, or from the manifest as it is. Exit code 2 when something does.",
    "rollback": "Go back to an earlier generation; it stays until the manifest changes.",
    "confirm": "Keep a generation that was applied with --confirm-within.",
    "lock": "Pin what every source is now, in the lock beside the manifest.",
    "verify": "See whether the files of models are there, and are what they should be.",
    "attest": "State what is installed, and sign it; or check such a statement against this machine.",
    "gc": "Remove what nobody needs any more. Without --yes only say what; exit code 2 when something would go.",
    "bundle": "Put all that a machine without a network needs into one file, or take such a file in.",
    "state": "Look at the ledger, export it, or make it again.",
    "pause": "Begin nothing for a resource, or for anything (suspend), until it is resumed.",
    "resume": "Go on with what was paused.",
    "load": "Load a model now, and keep it loaded until `unload`.",
    "unload": "Free the memory of a model that need not always run.",
    "down": "Stop all that is owned.",
    "validate": "Check the manifest.",
    "schema": "Print the JSON Schema of the manifest, or of what is printed and asked.",
    "fmt": "Tidy the manifest; comments, order and quotes stay.",
    "explain": "Say what a key means, and who set it.",
    "inspect": "Say what a model file or a source is, and whether it fits this machine; only headers are read.",
    "init": "Write a manifest that fits this machine.",
    "env": "Make other programs use the gateway: print what they need, or write it into their own files.",
    "import": "Write a manifest from what another tool has here, and say what could not be carried over.",
}
MODULES = {"import": "imports"}  # verbs that Python has a meaning of its own for


class Verbs(click.Group):
    """Knows its verbs by name and help; imports one when it is called. Turns refusals into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"reconciler.cli.{MODULES.get(name, name)}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def main(self, *args: Any, **settings: Any) -> Any:
        """As click's, but a wrong call exits with 1: 2 means that changes are pending."""
        settings["standalone_mode"] = False
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _end_where_nothing_can_be_raised
        try:
            return super().main(*args, **settings)
        except click.ClickException as error:
            error.show()
            sys.exit(int(Exit.ERROR))
        except click.Abort:
            sys.exit(130)
        finally:
            # From here on only the interpreter shuts down: Ctrl-C now must not make a finished command look cut off.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Refused, Fault, NoController) as error:
            from reconciler.cli.render import show_error

            sys.exit(show_error(error, ctx.obj.output if ctx.obj else "text"))
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(int(Exit.ERROR))


def _end_where_nothing_can_be_raised(told: Any) -> None:
    """Ctrl-C in a destructor or a callback of a weak reference (imports have some) would be printed and forgotten."""
    if isinstance(told.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.__unraisablehook__(told)


@click.group(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@common
@click.option("--dry-run", is_flag=True, help="Only show the plan (as `reconcile plan`).")
@click.version_option(__version__, prog_name="reconcile")
@click.pass_context
def main(ctx: click.Context, /, dry_run: bool, **given: Any) -> None:
    """Write one stack.yaml, and the machine becomes it. Without a command: apply."""
    remember(ctx, given)
    if ctx.invoked_subcommand is None:
        verb = main.get_command(ctx, "plan" if dry_run else "apply")
        assert verb is not None
        ctx.invoke(verb)
    elif dry_run:
        raise click.UsageError("--dry-run stands alone: `reconcile --dry-run`, or use `reconcile plan`")
