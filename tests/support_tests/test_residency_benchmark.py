"""The replayed traces: every policy keeps to the budget and cuts nobody off, and ours lets nobody starve."""

from __future__ import annotations

import pytest

from benchmarks.residency import POLICIES, cases
from reconciler.core.residency import PATIENCE
from tests.core.residency import Report, play

PART = 0.05  # of an hour


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Report]]:
    return {
        case.name: {name: play(case.trace, case.models, case.budget, policy) for name, policy in POLICIES.items()}
        for case in cases(PART)
    }


def test_every_policy_keeps_to_the_budget_and_cuts_nobody_off(reports: dict[str, dict[str, Report]]) -> None:
    for case in cases(PART):
        for name, report in reports[case.name].items():
            assert report.most <= case.budget, f"{case.name}: {name}"
            assert report.cut == 0, f"{case.name}: {name}"


def test_ours_serves_everybody_in_every_trace(reports: dict[str, dict[str, Report]]) -> None:
    assert {c.name: reports[c.name]["ours"].answered for c in cases(PART)} == {
        c.name: len(c.trace) for c in cases(PART)
    }


def test_ours_lets_nobody_wait_for_a_hot_model_to_become_cold(reports: dict[str, dict[str, Report]]) -> None:
    hot = reports["two hot, room for one"]
    assert hot["ours"].longest_wait < 2 * PATIENCE
    assert hot["LRU"].longest_wait > 0.8 * PART * 3600, "which plain LRU does not keep from"


def test_a_trace_is_the_same_each_time() -> None:
    assert cases(PART) == cases(PART)
