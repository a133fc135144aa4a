"""How tests are generated, and the summary of the crash campaigns and of the generated tests.

It stands here because only this file is read by the process that reports, and before any test.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

from hypothesis import settings

# The same tests for the same code; what is new is looked for at night.
settings.register_profile("every day", derandomize=os.environ.get("RECONCILER_NIGHTLY") != "1")
settings.load_profile("every day")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    _write_campaigns(terminalreporter)
    _write_counts(terminalreporter)


def _write_counts(terminalreporter: Any) -> None:
    """How much the model-based and fuzz tests have tried."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for name, text in getattr(report, "user_properties", []):
                if name.startswith("count:") and getattr(report, "when", "") == "call":
                    counts = ", ".join(f"{k} {v}" for k, v in json.loads(text).items())
                    terminalreporter.write_line(f"{name.removeprefix('count:')}: {counts}")


def _write_campaigns(terminalreporter: Any) -> None:
    """The counts of the crash campaigns, wherever their workers ran."""
    campaigns: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", []):
                if name.startswith("crash:") and getattr(report, "when", "") == "call":
                    tally = json.loads(text)
                    counts, effects = campaigns.setdefault(name.removeprefix("crash:"), (Counter(), Counter()))
                    effects.update(tally.pop("by_effect"))
                    counts.update(tally)
    if not campaigns:
        return
    from tests.crash.harness import NIGHTLY, SEED

    which = "every point" if NIGHTLY else f"RECONCILER_SEED={SEED}; every point with RECONCILER_NIGHTLY=1"
    terminalreporter.write_sep("-", f"crash harness: {which}")
    for name, (counts, effects) in sorted(campaigns.items()):
        terminalreporter.write_line(f"{name}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
        terminalreporter.write_line("    at: " + ", ".join(f"{k} {v}" for k, v in sorted(effects.items())))
    total = sum((counts for counts, _ in campaigns.values()), Counter[str]())
    terminalreporter.write_line("in all: " + ", ".join(f"{k} {v}" for k, v in total.items()))
