"""Secrets by reference, resolved at the moment of use; they are never written down, and no message holds one.

`env:NAME`, `file:PATH`, `keyring:NAME` (of the service "reconciler"), `keyring:SERVICE/NAME`, and `command:ARGV`, whose
first line of output it is. The last two are slow, and may ask a person: what they gave is remembered for a minute, in
memory only.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass

SERVICE = "reconciler"
KEPT = 60.0  # seconds that an answer of a keyring or command, good or bad, is remembered
BUDGET = 10.0  # seconds that a command may take
MAX_OUTPUT = 1 << 20  # bytes of a command's output

_kept: dict[tuple[str, Path], tuple[float, str | Fault]] = {}
_lock = threading.Lock()  # held while a command runs: two looks at once must not start it twice


def resolve(reference: str, base: Path) -> str:
    """The secret itself; `file:` paths are relative to `base`, and commands run there. Raises Fault, which names only
    the reference (of a command: its program)."""
    scheme, _, rest = reference.partition(":")
    match scheme:
        case "env":
            return _from_environment(rest)
        case "file":
            return _from_file(rest, base)
        case "keyring" | "command":
            return _remembered(scheme, rest, base)
    raise _missing(f"{scheme}:", "is not a kind of reference", "use env:, file:, keyring: or command:")


def forget() -> None:
    """Have keyrings and commands asked anew."""
    with _lock:
        _kept.clear()


def _remembered(scheme: str, rest: str, base: Path) -> str:
    key = (f"{scheme}:{rest}", base)
    with _lock:
        at, found = _kept.get(key, (0.0, ""))
        if key not in _kept or time.monotonic() - at > KEPT:
            try:
                found = _from_keyring(rest) if scheme == "keyring" else _from_command(rest, base)
            except Fault as fault:
                found = fault
            _kept[key] = (time.monotonic(), found)
    if isinstance(found, Fault):
        raise Fault(found.code, found.message, hint=found.hint, kind=found.kind)
    return found


def _missing(what: str, problem: str, hint: str) -> Fault:
    return Fault("SECRET_MISSING", f"{what} {problem}", hint=hint, kind=FaultClass.NEEDS_HUMAN)


def _from_environment(name: str) -> str:
    if value := os.environ.get(name, ""):
        return value
    hint = f"export {name} before `reconcile apply` starts the controller, or use file:PATH"
    raise _missing(f"env:{name}", "is not set in the controller's environment", hint)


def _from_file(name: str, base: Path) -> str:
    path = base / os.path.expanduser(name)  # noqa: PTH111  (pathlib's raises where there is no such user)
    hint = "put the key into the file"
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise _missing(f"file:{name}", f"cannot be read: {why}", hint) from None
    if not value:
        raise _missing(f"file:{name}", "is empty", hint)
    return value


def _from_keyring(entry: str) -> str:
    import keyring
    from keyring.errors import KeyringError, KeyringLocked, NoKeyringError

    service, _, name = entry.rpartition("/")
    service = service or SERVICE
    what = f"keyring:{entry}"
    try:
        value = keyring.get_password(service, name)
    except NoKeyringError:
        hint = "there is none without a desktop session: use file:PATH or command:ARGV, or install a keyring backend"
        raise _missing(what, "cannot be looked up: this machine has no keyring", hint) from None
    except KeyringLocked:
        raise _missing(what, "cannot be looked up: the keyring is locked", "unlock it") from None
    except KeyringError as error:
        raise _missing(what, f"cannot be looked up: {type(error).__name__}", "see `keyring diagnose`") from None
    except Exception as error:  # noqa: BLE001  (each backend has errors of its own, and they may quote what they read)
        raise _missing(what, f"cannot be looked up: {type(error).__name__}", "see `keyring diagnose`") from None
    if not value:
        hint = f"store it with `keyring set {shlex.quote(service)} {shlex.quote(name)}`"
        raise _missing(what, "is not in the keyring", hint)
    return value


def _from_command(line: str, base: Path) -> str:
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise _missing("command:", f"cannot be split into words: {error}", "close the quotes") from None
    if not argv or not argv[0]:
        raise _missing("command:", "names no program", "write it as in `command:pass show gateway`")
    what = f"command:{argv[0]}"
    by_hand = f"run it by hand in {base}; it must print the secret, and ask nothing"
    try:
        code, output = _run(argv, base)
    except FileNotFoundError:
        hint = "install it, or write its whole path; the controller's PATH is that of the shell which started it"
        raise _missing(what, "is not found", hint) from None
    except OSError as error:
        raise _missing(what, f"cannot be started: {error.strerror}", by_hand) from None
    if code is None:
        raise _missing(what, f"did not end within {BUDGET:.0f} s", by_hand)
    if len(output) > MAX_OUTPUT:
        raise _missing(what, f"printed more than {MAX_OUTPUT} bytes", by_hand)
    if code:
        raise _missing(what, f"was ended by signal {-code}" if code < 0 else f"exited with code {code}", by_hand)
    try:
        value = output.decode().strip("\r\n").partition("\n")[0].strip()
    except UnicodeDecodeError:
        raise _missing(what, "printed something that is not text", by_hand) from None
    if not value:
        raise _missing(what, "printed nothing", by_hand)
    return value


def _run(argv: list[str], base: Path) -> tuple[int | None, bytes]:
    """(exit code, output); the code is None where time ran out. Raises OSError where it cannot be started."""
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    # A session of its own: it cannot ask on the terminal, and all that it started ends with it.
    with subprocess.Popen(
        argv,
        cwd=base,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(BUDGET, end)
        timer.start()
        try:
            output = process.stdout.read(MAX_OUTPUT + 1)
            if len(output) > MAX_OUTPUT:
                process.kill()
            code = process.wait()
        finally:
            timer.cancel()
    return (None if overdue.is_set() else code), output
