"""Whatever a value is, a shell gets it as it is; and the file that each shell reads is the right one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reconciler.clients.offer import DUMMY, Key, Places
from reconciler.clients.shells import SHELLS, Shell, Variable, exports, profile, quoted, sets, shell_of
from reconciler.core.diagnostics import Refused

NASTY = ["plain", "", "a b", "it's", 'say "hi"', "$(touch gone)", "`touch gone`", "$HOME", "\\", "\\'", "a\\", "!x",
         "*", "~", "lab/{a,b}", "-n", "ü\u2019", "#x", ";ls", "&", "x=y", "%PATH%"]  # fmt: skip


def ran(shell: str, lines: list[str], names: list[str], folder: Path, **environ: str) -> list[str]:
    """The values that variables have in a child of a shell that read these lines."""
    show = "\n".join(f'printf "%s\\0" "${name}"' for name in names)
    done = subprocess.run(
        [shell, "-c", "\n".join([*lines, f"sh -c '{show}'"])],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environ},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_value_is_never_run_nor_changed(shell: str, tmp_path: Path) -> None:
    variables = tuple(Variable(f"V{i}", text) for i, text in enumerate(NASTY))
    lines = exports(variables, Key(), "bash" if shell == "bash" else "sh")
    assert ran(shell, lines, [v.name for v in variables], tmp_path) == NASTY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_key_comes_from_where_the_manifest_says(shell: str, tmp_path: Path) -> None:
    where = tmp_path / "it's a $(folder)"
    where.mkdir()
    file = where / "key"
    file.write_text("sk-file\n")
    keys = {
        "sk-env": Key("env:GATEWAY_KEY"),
        "sk-file": Key("file:key", str(where), file=str(file)),
        "sk 'cmd'": Key("command:printf '%s\\n' \"sk 'cmd'\" second", str(where)),
        "key": Key("command:ls", str(where)),
        DUMMY: Key(),
        "sk'$x": Key("env:GATEWAY_KEY", value="sk'$x"),
    }
    for expected, key in keys.items():
        lines = exports((Variable("K", secret=True),), key, "sh")
        assert key.value or not expected.startswith("sk-") or "sk-" not in lines[0], "by reference, not the key"
        assert ran(shell, lines, ["K"], tmp_path, GATEWAY_KEY="sk-env") == [expected]


def test_a_keyring_is_asked_by_the_interpreter_that_has_one() -> None:
    key = Key("keyring:ci", python="/opt/my python/bin/python")
    (line,) = exports((Variable("K", secret=True),), key, "sh")
    assert line == "export K=\"$('/opt/my python/bin/python' -m keyring get reconciler ci | head -n 1)\""
    assert Key("keyring:team/ci").argv[-2:] == ["team", "ci"]


def test_other_shells_have_other_words() -> None:
    variables = (Variable("A", "it's \\ $x"), Variable("K", secret=True))
    assert exports(variables, Key("env:G"), "fish") == ["set -gx A 'it\\'s \\\\ $x'", 'set -gx K "$G"']
    assert exports(variables, Key("env:G"), "powershell") == ["$env:A = 'it''s \\ $x'", "$env:K = $env:G"]
    assert quoted("\u2019; rm", "powershell") == "'\u2019\u2019; rm'", "it takes typographic quotes for plain ones"
    assert exports(variables[1:], Key("file:k", "/b", file="/b/k"), "fish") == ["set -gx K (sh -c 'cat /b/k')"]
    command = Key("command:pass show x", "/b")
    assert exports(variables[1:], command, "fish") == ["set -gx K (sh -c 'cd /b && pass show x | head -n 1')"]
    assert exports(variables[1:], command, "powershell") == [
        "$env:K = (& { Push-Location -LiteralPath '/b'; try { & 'pass' 'show' 'x' | Select-Object -First 1 }"
        " finally { Pop-Location } })"
    ]


def places(system: str = "linux", **environ: str) -> Places:
    return Places(environ, Path("/home/me"), system)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "shell"),
    [("/bin/bash", "bash"), ("/usr/bin/zsh", "zsh"), ("/usr/local/bin/fish", "fish"), ("/bin/sh", "sh"),
     ("/bin/dash", "sh"), ("C:\\pwsh.exe", "powershell"), ("", "sh")],
)  # fmt: skip
def test_the_shell_is_the_one_that_a_person_uses(path: str, shell: str) -> None:
    assert shell_of(places(SHELL=path)) == shell


@pytest.mark.parametrize("path", ["/bin/tcsh", "/usr/bin/nu", "/usr/bin/xonsh", "/"])
def test_a_shell_that_is_not_known_is_not_taken_for_another(path: str) -> None:
    with pytest.raises(Refused) as caught:
        shell_of(places(SHELL=path))
    assert "--shell" in caught.value.diagnostics[0].hint


def test_each_shell_has_its_file() -> None:
    linux = {shell: str(profile(shell, places())) for shell in SHELLS}
    assert linux == {
        "sh": "/home/me/.profile",
        "bash": "/home/me/.bashrc",
        "zsh": "/home/me/.zshenv",
        "fish": "/home/me/.config/fish/conf.d/reconciler.fish",
        "powershell": "/home/me/.config/powershell/profile.ps1",
    }
    assert str(profile("bash", places("darwin"))) == "/home/me/.bash_profile"
    assert str(profile("powershell", places("windows"))) == "/home/me/Documents/PowerShell/profile.ps1"
    assert str(profile("zsh", places(ZDOTDIR="/z"))) == "/z/.zshenv"
    assert str(profile("fish", places(XDG_CONFIG_HOME="relative"))).startswith("/home/me/.config/")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("export X=1", True), ("X=1", True), ("  export X='a'", True), ("declare -x X=1", True), ("A=1 X=2 cmd", True),
        ("set -gx X 1", True), ("set -Ux X", True), ("$env:X = 'a'", True), ("$Env:x='a'", True),
        ("# export X=1", False), ("echo X=1", False), ("export XY=1", False), ("export MY_X=1", False),
        ("unset X", False),
    ],
)  # fmt: skip
def test_a_line_that_sets_a_variable_is_seen(line: str, found: bool) -> None:
    assert sets(line, "X") is found


def test_every_shell_that_may_be_asked_for_is_known() -> None:
    from reconciler.cli import env

    assert env._SHELLS == SHELLS
    shell: Shell
    for shell in SHELLS:
        assert exports((Variable("A", "b"),), Key(), shell)
