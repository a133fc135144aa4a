"""Who is loaded and who is let go: single decisions, and whole traces of requests played against the same function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.ids import Ref
from reconciler.core.residency import (
    CALM,
    GIB,
    MIB,
    PATIENCE,
    Amount,
    Resident,
    Standing,
    decide,
    excess,
    only,
    pressure,
    total,
)
from tests.core.residency import Load, Report, play

NOW = 10_000.0


def ref(name: str) -> Ref:
    return Ref("server", name)


def one(name: str, need: int | Amount = GIB, **facts: Any) -> Resident:
    taken = need if isinstance(need, tuple) else (need,)
    return replace(Resident(ref(name), "on_demand", taken, used=NOW - 60, reload=5.0), **facts)


def running(name: str, need: int | Amount = GIB, **facts: Any) -> Resident:
    return one(name, need, **{"living": True, "ready": True, **facts})


def asked(name: str, seconds: float = 1.0, **facts: Any) -> Resident:
    return one(name, waiting=1, since=NOW - seconds, **facts)


def standing(*residents: Resident, budget: int | Amount = 0) -> dict[str, Standing]:
    bound = budget if isinstance(budget, tuple) else (budget,)
    return {r.name: s for r, s in decide(residents, bound, NOW).items()}


def wanted(*residents: Resident, budget: int | Amount = 0) -> set[str]:
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
    idle, large = running("b", used=0.0, idle_timeout=1e9), asked("c", 90, need=2 * GIB)
    found = standing(running("a", kept=True), idle, large, budget=2 * GIB)
    assert found["b"].wanted
    assert found["c"].never
    assert found["c"].hold == "it needs 2.1 GB of memory, for which there is no room while server/a stays loaded"


def test_what_never_fits_keeps_nobody_else_from_being_loaded() -> None:
    found = standing(asked("a", 90, need=3 * GIB), asked("b", 1), running("c"), budget=2 * GIB)
    assert found["a"].never
    assert (found["b"].wanted, found["b"].hold, found["c"].wanted) == (True, "", True)


def test_what_always_runs_has_others_leave_for_it_but_starts_all_the_same() -> None:
    found = standing(running("a", busy=1), one("b", start="always"), budget=GIB)
    assert not found["a"].wanted
    assert found["b"].hold == "waits for the memory of server/a"
    assert standing(one("b", start="always", need=2 * GIB), budget=GIB)["b"] == Standing(True, "it always runs")


def test_what_is_larger_than_the_whole_budget_lets_nobody_go() -> None:
    found = standing(running("a"), asked("b", need=3 * GIB), budget=2 * GIB)
    assert found["a"].wanted
    assert found["b"].hold == "it needs 3.2 GB of memory, and all servers together may take 2.1 GB of memory"


def test_who_has_waited_beyond_all_patience_goes_before_the_more_important() -> None:
    first = standing(asked("a", 5), asked("b", 1, priority=5), budget=GIB)
    assert (first["a"].hold != "", first["b"].hold) == (True, "")
    late = standing(asked("a", PATIENCE + 1), asked("b", 1, priority=5), budget=GIB)
    assert (late["a"].hold, late["b"].hold != "") == ("", True)


# -- GPUs -------------------------------------------------------------------------------------------------------------


def on(gpu: int, size: int = GIB, main: int = MIB) -> Amount:
    """A little of main memory, and `size` of one GPU."""
    return (main, *(size if at == gpu else 0 for at in (1, 2)))


TWO_GPUS = (8 * GIB, 2 * GIB, 2 * GIB)


def test_only_what_has_memory_of_the_gpu_that_is_short_goes_for_it() -> None:
    elsewhere, beside = running("a", on(2), used=NOW - 500), running("b", on(1), used=NOW - 10)
    found = standing(elsewhere, beside, asked("c", need=on(1, 2 * GIB)), budget=TWO_GPUS)
    assert found["a"].wanted
    assert not found["b"].wanted
    assert found["c"].hold == "waits for the memory of server/b"


def test_a_gpu_that_is_full_holds_up_nobody_who_needs_another_one() -> None:
    full = running("a", on(1, 3 * GIB), start="always")
    assert standing(full, asked("b", need=on(2)), budget=TWO_GPUS)["b"] == Standing(True, "it is asked for")


def test_who_waits_for_a_gpu_is_told_which() -> None:
    found = standing(running("a", on(1, 2 * GIB), busy=1), asked("b", need=on(1)), budget=TWO_GPUS)
    assert found["b"].hold == "waits for 1.1 GB on GPU 1: what has it is busy or stays loaded"
    large = standing(asked("b", need=on(2, 3 * GIB)), budget=TWO_GPUS)["b"]
    assert (large.never, large.hold) == (
        True,
        "it needs 3.2 GB on GPU 2, and all servers together may take 2.1 GB on GPU 2",
    )


def test_one_that_frees_both_what_is_short_is_enough() -> None:
    both, main = running("a", (GIB, GIB), used=NOW - 50), running("b", (GIB, 0), used=NOW - 500)
    gpu = running("c", (0, GIB), used=NOW - 500)
    found = standing(both, main, gpu, asked("d", need=(GIB, GIB)), budget=(2 * GIB, 2 * GIB))
    assert {name for name, s in found.items() if not s.wanted} == {"b", "c"}, "the least useful first"
    found = standing(both, main, asked("d", need=(GIB, GIB)), budget=(2 * GIB, GIB))
    assert {name for name, s in found.items() if not s.wanted} == {"a"}, "and nobody whose going does not help"


def test_memory_that_a_gpu_shares_with_the_machine_is_bounded_by_both() -> None:
    """As on processors with one memory for both: what the GPU has is main memory, and there is a bound for it."""
    shared = (12 * GIB, 8 * GIB)
    found = standing(running("a", (5 * GIB, 5 * GIB)), asked("b", need=(4 * GIB, 4 * GIB)), budget=shared)
    assert not found["a"].wanted, "12 GiB have room for both, 8 GiB for the GPU do not"
    assert standing(running("a", (5 * GIB, 5 * GIB)), asked("b", need=(4 * GIB, 0)), budget=shared)["b"].hold == ""


# -- pressure ---------------------------------------------------------------------------------------------------------


def pressed(*residents: Resident, budget: Amount, before: bool = False) -> str:
    return pressure(residents, budget, decide(residents, budget, NOW), before)


def test_where_more_is_taken_than_there_is_idle_ones_go_though_nobody_asks() -> None:
    grown = running("a", 3 * GIB, busy=1), running("b", used=NOW - 100), running("c", used=NOW - 200)
    assert wanted(*grown, budget=5 * GIB) == {"a", "b", "c"}
    assert wanted(*grown, budget=4 * GIB) == {"a", "b"}
    assert wanted(*grown, budget=3 * GIB) == {"a"}
    assert standing(*grown, budget=4 * GIB)["c"].why.startswith("it is let go: servers and other programs have taken")


def test_pressure_on_one_gpu_lets_nobody_go_from_another() -> None:
    here, there = running("a", on(1)), running("b", on(2), used=0.0, idle_timeout=1e9)
    assert wanted(here, there, running("c", on(1, 2 * GIB), busy=1), budget=TWO_GPUS) == {"b", "c"}


@pytest.mark.parametrize(
    "facts",
    [
        {"busy": 1},
        {"waiting": 1, "since": NOW},
        {"start": "always"},
        {"kept": True},
        {"ready": False},
        {"loaded": NOW - 1},
    ],
    ids=["busy", "waited for", "always runs", "kept by a person", "loading", "only just loaded"],
)
def test_pressure_never_stops(facts: dict[str, Any]) -> None:
    assert wanted(running("a", 2 * GIB, **facts), budget=GIB) == {"a"}


def test_pressure_is_said_while_nothing_more_can_go() -> None:
    fixed = running("a", 3 * GIB, start="always")
    assert pressed(fixed, running("b", used=0.0, idle_timeout=1e9), budget=(3 * GIB,)) == "", "the idle one goes"
    assert pressed(fixed, running("b", busy=1), budget=(3 * GIB,)) == (
        "server/a and server/b take 4.3 GB of memory, and there is room for 3.2 GB of memory"
    )
    assert pressed(running("a", on(2, 3 * GIB), start="always"), budget=TWO_GPUS) == (
        "server/a takes 3.2 GB on GPU 2, and there is room for 2.1 GB on GPU 2"
    )
    assert pressed(fixed, running("b", busy=1, leaving=True), budget=(3 * GIB,)) == "", "what leaves is as good as gone"


def test_pressure_does_not_come_and_go_with_every_page() -> None:
    """A busy server breathes around the budget for an hour: that is one episode."""
    before, episodes = False, 0
    for step in range(3600):
        need = 3 * GIB + (step % 7 - 3) * MIB
        now = bool(pressed(running("a", need, busy=1), budget=(3 * GIB,), before=before))
        episodes += now and not before
        before = now
    assert episodes == 1
    assert pressed(running("a", 3 * GIB - 3 * GIB // CALM, busy=1), budget=(3 * GIB,), before=True) == ""


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(st.tuples(*[st.integers(0, 4)] * 3), st.sampled_from(["idle", "busy", "always", "asked"]))))
def test_nobody_is_let_go_who_need_not_be_and_nothing_is_begun_beyond_any_budget(
    given: list[tuple[Amount, str]],
) -> None:
    facts: dict[str, dict[str, Any]] = {
        "idle": {"living": True, "ready": True},
        "busy": {"living": True, "ready": True, "busy": 1},
        "always": {"living": True, "ready": True, "start": "always"},
        "asked": {"waiting": 1, "since": NOW - 1},
    }
    every = [one(f"r{at}", need, **facts[kind]) for at, (need, kind) in enumerate(given)]
    budget = (6, 5, 4)
    found = decide(every, budget, NOW)
    begun = [r for r in every if not r.living and found[r.ref].wanted and not found[r.ref].hold]
    there = total(r.need for r in every if r.living)
    for r in begun:
        assert not any(only(excess(total((there, *(b.need for b in begun))), budget), r.need))
    stopped = [r for r in every if r.living and not found[r.ref].wanted]
    assert not any(r.busy or r.fixed for r in stopped)
    stays = total(r.need for r in every if r.living and found[r.ref].wanted)
    wait = [r for r in every if not r.living and found[r.ref].wanted and not found[r.ref].never]
    for r in stopped:  # with it something would be beyond the budget, now or for those who wait
        assert any(only(excess(total((stays, r.need, *(w.need for w in wait))), budget), r.need))


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
