"""Who is loaded and who is let go: single decisions, and whole traces of requests played against the same function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.ids import Ref
from reconciler.core.residency import GIB, PATIENCE, Resident, Standing, decide
from tests.core.residency import Load, Report, play

NOW = 10_000.0


def ref(name: str) -> Ref:
    return Ref("server", name)


def one(name: str, **facts: Any) -> Resident:
    return replace(Resident(ref(name), "on_demand", GIB, used=NOW - 60, reload=5.0), **facts)


def running(name: str, **facts: Any) -> Resident:
    return one(name, living=True, ready=True, **facts)


def asked(name: str, seconds: float = 1.0, **facts: Any) -> Resident:
    return one(name, waiting=1, since=NOW - seconds, **facts)


def standing(*residents: Resident, budget: int = 0) -> dict[str, Standing]:
    return {r.name: s for r, s in decide(residents, budget, NOW).items()}


def wanted(*residents: Resident, budget: int = 0) -> set[str]:
    return {name for name, s in standing(*residents, budget=budget).items() if s.wanted}


@pytest.mark.parametrize(
    ("resident", "is_wanted"),
    [
        (one("a"), False),
        (asked("a"), True),
        (running("a"), True),
        (running("a", used=NOW - 601), False),
        (running("a", used=NOW - 601, idle_timeout=float("inf")), True),
        (running("a", used=NOW - 601, busy=1), True),
        (running("a", used=NOW - 601, waiting=1, since=NOW), True),
        (one("a", living=True, used=0.0), True),  # it is loading: nobody asks any more, but it comes
        (one("a", start="always"), True),
        (one("a", start="manual"), False),
        (one("a", start="manual", waiting=1, since=NOW), False),
        (running("a", start="manual"), False),
        (running("a", start="manual", busy=1), True),
        (one("a", start="manual", kept=True), True),
        (running("a", kept=True, used=0.0), True),
        (running("a", dropped=True, busy=1), False),
        (asked("a", dropped=True), False),
        (running("a", leaving=True), False),
        (running("a", leaving=True, waiting=1, since=NOW), True),
    ],
)
def test_each_by_itself(resident: Resident, is_wanted: bool) -> None:
    found = standing(resident, budget=8 * GIB)["a"]
    assert found.wanted is is_wanted
    assert found.hold == ""


def test_with_room_nobody_is_let_go() -> None:
    assert wanted(running("a"), running("b"), asked("c"), budget=3 * GIB) == {"a", "b", "c"}


def test_where_nothing_is_known_of_the_memory_all_have_room() -> None:
    assert wanted(running("a"), asked("b", need=1 << 60)) == {"a", "b"}


def test_the_one_longest_quiet_goes_for_what_is_asked_for() -> None:
    found = standing(running("a", used=NOW - 10), running("b", used=NOW - 20), asked("c"), budget=2 * GIB)
    assert not found["b"].wanted
    assert found["b"].why == "it is let go: server/c needs the memory"
    assert found["a"].wanted
    assert found["c"] == Standing(True, "it is asked for", "waits for the memory of server/b")


@pytest.mark.parametrize(
    ("kept", "gone"),
    [
        ({"priority": 1, "used": NOW - 500}, {"used": NOW - 1}),
        ({"reload": 100.0, "used": NOW - 60}, {"reload": 1.0, "used": NOW - 30}),
    ],
    ids=["priority before quiet", "what loads slowly stays longer"],
)
def test_who_goes_first(kept: dict[str, float], gone: dict[str, float]) -> None:
    assert wanted(running("a", **kept), running("b", **gone), asked("c"), budget=2 * GIB) == {"a", "c"}


def test_no_more_go_than_are_needed() -> None:
    small, large = running("a", need=GIB, used=NOW - 300), running("b", need=3 * GIB, used=NOW - 200)
    assert wanted(small, large, asked("c", need=3 * GIB), budget=4 * GIB) == {"a", "c"}


def test_nobody_goes_where_all_together_are_too_few() -> None:
    found = standing(running("a"), running("b", busy=1), asked("c", need=2 * GIB), budget=2 * GIB)
    assert (found["a"].wanted, found["b"].wanted) == (True, True)
    assert found["c"].hold == "waits for 2.1 GB of memory: what has it is busy or stays loaded"


def test_a_busy_one_is_closed_to_new_requests_once_somebody_has_waited_long() -> None:
    busy = running("a", busy=3, used=NOW)
    assert wanted(busy, asked("b", PATIENCE - 1), budget=GIB) == {"a", "b"}
    found = standing(busy, asked("b", PATIENCE + 1), budget=GIB)
    assert found["a"] == Standing(False, "it is closed to new requests: server/b needs the memory")
    assert found["b"].hold == "waits for the memory of server/a"


def test_what_is_leaving_is_waited_for_and_nobody_else_goes() -> None:
    found = standing(running("a", leaving=True), running("b", used=0.0, idle_timeout=1e9), asked("c"), budget=2 * GIB)
    assert found["b"].wanted
    assert found["c"].hold == "waits for the memory of server/a"


def test_what_a_person_keeps_or_what_always_runs_is_never_let_go() -> None:
    fixed = running("a", kept=True, used=0.0), running("b", start="always", used=0.0)
    assert wanted(*fixed, asked("c", 1000.0), budget=2 * GIB) == {"a", "b", "c"}


def test_where_what_stays_leaves_no_room_that_is_said_and_nobody_goes() -> None:
    found = standing(running("a", kept=True), running("b", used=0.0, idle_timeout=1e9), asked("c", 90), budget=GIB)
    assert found["b"].wanted
    assert found["c"].never
    assert found["c"].hold == "it needs 1.1 GB, for which there is no room while server/a stays loaded"


def test_what_always_runs_has_others_leave_for_it_but_starts_all_the_same() -> None:
    found = standing(running("a", busy=1), one("b", start="always"), budget=GIB)
    assert not found["a"].wanted
    assert found["b"].hold == "waits for the memory of server/a"
    assert standing(one("b", start="always", need=2 * GIB), budget=GIB)["b"] == Standing(True, "it always runs")


def test_what_is_larger_than_the_whole_budget_lets_nobody_go() -> None:
    found = standing(running("a"), asked("b", need=3 * GIB), budget=2 * GIB)
    assert found["a"].wanted
    assert found["b"].hold == "it needs 3.2 GB, and all servers together may take 2.1 GB"


def test_who_has_waited_beyond_all_patience_goes_before_the_more_important() -> None:
    first = standing(asked("a", 5), asked("b", 1, priority=5), budget=GIB)
    assert (first["a"].hold != "", first["b"].hold) == (True, "")
    late = standing(asked("a", PATIENCE + 1), asked("b", 1, priority=5), budget=GIB)
    assert (late["a"].hold, late["b"].hold != "") == ("", True)


# -- traces -----------------------------------------------------------------------------------------------------------

MODELS = {
    name: Load(need=size * GIB, reload=float(2 * size)) for name, size in {"a": 1, "b": 2, "c": 3, "d": 4}.items()
}


@st.composite
def traces(draw: st.DrawFn) -> list[tuple[float, str, float]]:
    """(when, model, seconds that answering takes)"""
    steps = st.tuples(st.floats(0, 30), st.sampled_from(sorted(MODELS)), st.floats(0.1, 40))
    at, out = 0.0, []
    for pause, name, takes in draw(st.lists(steps, max_size=40)):
        at += pause
        out.append((at, name, takes))
    return out


@settings(max_examples=200, deadline=None)
@given(traces(), st.integers(4, 10))
def test_whatever_is_asked_for_is_answered(trace: list[tuple[float, str, float]], gib: int) -> None:
    report = play(trace, MODELS, gib * GIB)
    assert report.answered == len(trace)
    assert report.most <= gib * GIB
    assert report.cut == 0
    # Everybody before it may have to be loaded, answer, and be waited for in turn.
    longest = max((takes for _, _, takes in trace), default=0.0)
    assert report.longest_wait <= len(MODELS) * (PATIENCE + longest + 2 * 8 + 5)


def test_one_that_is_asked_for_all_the_time_starves_nobody() -> None:
    """Three clients keep one model busy; another model that needs its room is asked for once."""
    hot = [(at / 10, "c", 0.35) for at in range(3000)]
    report = play(sorted([*hot, (10.0, "d", 1.0)]), MODELS, 4 * GIB)
    assert report.waits["d"][0] < PATIENCE + 0.35 + 8 + 5
    assert report.answered == len(hot) + 1


def test_two_that_do_not_fit_together_do_not_thrash() -> None:
    trace = [(at / 2, "cd"[at % 2], 1.5) for at in range(1200)]  # ten minutes, each busy all the time
    report = play(trace, MODELS, 4 * GIB)
    assert report.answered == len(trace)
    assert report.loads <= 2 * 600 / PATIENCE


def test_quiet_models_are_unloaded_and_loaded_again() -> None:
    report = play([(0.0, "a", 1.0), (700.0, "a", 1.0)], MODELS, 8 * GIB)
    assert report == replace(report, loads=2, evictions=2, answered=2, cut=0)


def test_the_report_is_of_what_happened() -> None:
    report = play([(0.0, "a", 1.0), (1.0, "a", 1.0)], MODELS, 8 * GIB)
    assert isinstance(report, Report)
    assert (report.loads, report.evictions, report.answered) == (1, 1, 2)
    assert report.waits["a"] == pytest.approx([2.0, 1.0], abs=0.3)
