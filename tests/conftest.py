"""The summary of the crash campaigns and of the generated tests.

It stands here because only this file is read by the process that reports.
"""

from __future__ import annotations

import json
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The counts of the crash campaigns, wherever their workers ran."""
    tallies: dict[str, dict[str, Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", []):
                if name.startswith("crash:") and getattr(report, "when", "") == "call":
                    _add(tallies.setdefault(name.removeprefix("crash:"), {}), json.loads(text))
    for name, tally in sorted(tallies.items()):
        terminalreporter.write_sep("-", f"crash harness: {name}")
        effects = tally.pop("by_effect")
        terminalreporter.write_line(", ".join(f"{k} {v}" for k, v in tally.items()))
        terminalreporter.write_line("killed at: " + ", ".join(f"{k} {v}" for k, v in sorted(effects.items())))
    _write_counts(terminalreporter)


def _write_counts(terminalreporter: Any) -> None:
    """How much the model-based and fuzz tests have tried."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for name, text in getattr(report, "user_properties", []):
                if name.startswith("count:") and report.when == "call":
                    counts = ", ".join(f"{k} {v}" for k, v in json.loads(text).items())
                    terminalreporter.write_line(f"{name.removeprefix('count:')}: {counts}")


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
