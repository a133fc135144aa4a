"""Ctrl-C ends a command wherever it meets it."""

from __future__ import annotations

import signal
import subprocess
import sys

CAUGHT = """
import signal, sys
from reconciler.cli import main

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def gone(*_, **__):
    Last()
    print("went on", flush=True)

import reconciler.cli.plan as plan
plan.command.callback = gone
sys.argv = ["reconcile", "plan"]
main()
"""


def test_ctrl_c_in_a_destructor_is_not_forgotten() -> None:
    done = subprocess.run([sys.executable, "-c", CAUGHT], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGINT, done
    assert "went on" not in done.stdout
    assert "Traceback" not in done.stderr
