"""Environment variables as the text of a shell, and the file that the shell reads them from. Pure.

Values are always quoted: a model may be called anything that a provider calls it, `$(…)` included.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.clients.offer import Key, Places
from reconciler.core.diagnostics import Refused, nearest

Shell = Literal["sh", "bash", "zsh", "fish", "powershell"]
SHELLS: tuple[Shell, ...] = ("sh", "bash", "zsh", "fish", "powershell")
_CALLED: dict[str, Shell] = {**{name: name for name in SHELLS}, "dash": "sh", "ash": "sh", "ksh": "sh", "mksh": "sh",
                             "pwsh": "powershell"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variable:
    """`value` is its text; a `secret` one gets the key, however that is given."""

    name: str
    value: str = ""
    secret: bool = False


def shell_of(places: Places) -> Shell:
    """The shell that a person uses, by SHELL. Raises Refused for one whose language is not known here."""
    path = places.environ.get("SHELL", "")
    if not path:
        return "powershell" if places.system == "windows" else "sh"
    name = re.split(r"[/\\]", path)[-1].removesuffix(".exe").lower()
    if name not in _CALLED:
        hint = f"say which language to write with --shell ({nearest('', SHELLS)}), or have it as data with -o json"
        raise Refused(f"the shell {path!r} (of SHELL) is not one that is known here", hint=hint)
    return _CALLED[name]


def profile(shell: Shell, places: Places) -> Path:
    """The file that a shell reads when it starts."""
    match shell:
        case "sh":
            return places.home / ".profile"
        case "bash":  # the terminals of macOS start login shells
            return places.home / (".bash_profile" if places.system == "darwin" else ".bashrc")
        case "zsh":
            return places.named("ZDOTDIR", places.home) / ".zshenv"
        case "fish":
            return places.settings / "fish" / "conf.d" / "reconciler.fish"
        case "powershell" if places.system == "windows":
            return places.home / "Documents" / "PowerShell" / "profile.ps1"
        case "powershell":
            return places.settings / "powershell" / "profile.ps1"


def exports(variables: tuple[Variable, ...], key: Key, shell: Shell) -> list[str]:
    """One line a variable."""
    return [_export(v.name, _key(key, shell) if v.secret else quoted(v.value, shell), shell) for v in variables]


def printing(key: Key) -> str:
    """A command of sh that prints a key which is given by reference."""
    if key.variable:
        return f'printf %s "${key.variable}"'
    return f"cat {shlex.quote(key.file)}" if key.file else _piped(key)


def quoted(text: str, shell: Shell) -> str:
    """A text that the shell takes as it is."""
    if shell == "fish":
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if shell == "powershell":  # which takes typographic quotes for plain ones
        return "'" + re.sub("(['\u2018-\u201b])", r"\1\1", text) + "'"
    return shlex.quote(text)


def sets(line: str, name: str) -> bool:
    """Whether a line of any of these shells gives the variable a value."""
    word = re.escape(name)
    posix = rf"(?:export\s+|declare\s+(?:-\S+\s+)*|typeset\s+(?:-\S+\s+)*)?(?:[A-Za-z_]\w*=\S*\s+)*{word}="
    fish = rf"set\s+(?:-\S+\s+)*{word}(?:\s|$)"
    return bool(re.match(rf"\s*(?:{posix}|{fish}|\$env:{word}\s*=)", line, re.IGNORECASE if "$" in line[:8] else 0))


def _export(name: str, text: str, shell: Shell) -> str:
    match shell:
        case "fish":
            return f"set -gx {name} {text}"
        case "powershell":
            return f"$env:{name} = {text}"
    return f"export {name}={text}"


def _key(key: Key, shell: Shell) -> str:
    if key.literal:
        return quoted(key.literal, shell)
    if key.variable:
        return f'"${key.variable}"' if shell != "powershell" else f"$env:{key.variable}"
    match shell:
        case "fish":  # whose substitutions run in the shell itself: a `cd` would stay
            return f"(sh -c {quoted(printing(key), shell)})"
        case "powershell" if key.file:
            return f"(Get-Content -TotalCount 1 -LiteralPath {quoted(key.file, shell)})"
        case "powershell":
            asked = f"& {' '.join(quoted(word, shell) for word in key.argv)} | Select-Object -First 1"
            enter = f"Push-Location -LiteralPath {quoted(key.base, shell)}"
            return (
                f"(& {{ {enter}; try {{ {asked} }} finally {{ Pop-Location }} }})" if key.from_command else f"({asked})"
            )
    return f'"$({printing(key)})"'


def _piped(key: Key) -> str:
    """Commands run in the manifest's folder, and only their first line counts, as where the gateway asks them."""
    enter = f"cd {shlex.quote(key.base)} && " if key.from_command else ""
    return f"{enter}{shlex.join(key.argv)} | head -n 1"
