"""Rates over a window, what is left, and both in words; with a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.pace import SETTLE, WINDOW, Pace, human_seconds, words

MB = 1_000_000


def test_what_was_there_already_does_not_count() -> None:
    pace = Pace("fetching", 900 * MB, 1000 * MB, 50.0)
    assert pace.rate(50.1) is None, "nothing was seen yet"
    for tick in range(1, 21):
        pace.note(50.0 + tick / 10, 900 * MB + tick * MB, 1000 * MB)
    assert pace.rate(52.0) == pytest.approx(10 * MB)
    assert pace.eta(52.0) == pytest.approx(8.0)
    assert pace.summary() == "20.0 MB in 2.0 s (10.0 MB/s)"


def test_the_rate_is_of_the_last_seconds() -> None:
    pace = Pace("fetching", 0, None, 0.0)
    done = 0
    for tick in range(1, 601):  # a minute, ten times as fast in its second half
        done += MB if tick <= 300 else 10 * MB
        pace.note(tick / 10, done, None)
    assert pace.rate(60.0) == pytest.approx(100 * MB, rel=0.05)
    assert pace.eta(60.0) is None, "of how much is not known"
    assert pace.rate(60.0 + WINDOW / 2) == pytest.approx(50 * MB, rel=0.1), "it has stood still for half a window"
    assert pace.rate(60.0 + 2 * WINDOW) == 0.0
    assert len(pace._samples) < 50, "however often it is told"


def test_one_that_begins_again_counts_what_comes_twice_and_never_goes_backwards() -> None:
    pace = Pace("fetching", 0, 10 * MB, 0.0)
    pace.note(1.0, 8 * MB, 10 * MB)
    pace.note(2.0, 0, 10 * MB)  # the file at the source is another one now
    pace.note(3.0, 2 * MB, 10 * MB)
    assert pace.came == 10 * MB
    assert pace.rate(3.0) == pytest.approx(10 * MB / 3)
    assert pace.eta(3.0) == pytest.approx(8 / (10 / 3))


def test_several_things_of_one_work_are_summed_up_together() -> None:
    pace = Pace("fetching", 0, None, 0.0)
    pace.note(2.0, 4 * MB, None)
    following = pace.followed("unpacking", 0, 6 * MB, 10.0)
    following.note(12.0, 6 * MB, 6 * MB)
    assert following.summary() == "10.0 MB in 4.0 s (2.5 MB/s)"
    assert Pace("installing", 0, None, 0.0).summary() == ""


def test_it_is_told_every_few_seconds_or_tenth() -> None:
    pace = Pace("fetching", 0, 100 * MB, 0.0)
    told = []
    for tick in range(1, 401):
        pace.note(tick / 10, tick * 100_000, 100 * MB)  # a megabyte a second
        if pace.due(tick / 10):
            told.append(tick / 10)
    assert told == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0]
    fast = Pace("fetching", 0, 100 * MB, 0.0)
    fast.note(0.5, 60 * MB, 100 * MB)
    assert not fast.due(0.5)
    assert fast.due(1.0)
    assert not fast.due(1.5)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 10**12)), max_size=60), st.floats(0, 100))
def test_whatever_comes_no_rate_or_time_is_negative(steps: list[tuple[float, int]], later: float) -> None:
    pace, now = Pace("fetching", 0, 10**12, 0.0), 0.0
    for after, done in steps:
        now += after
        pace.note(now, done, 10**12)
    rate, eta = pace.rate(now + later), pace.eta(now + later)
    assert rate is None or rate >= 0
    assert eta is None or eta >= 0
    assert rate is not None or now + later < SETTLE or now + later - pace._samples[-1][0] < SETTLE


def test_in_words() -> None:
    assert words(38_300_000, 98_400_000, 24e6, 2.504) == "38.3 MB of 98.4 MB · 24.0 MB/s · 2.5 s left"
    assert words(38_300_000, None, 24e6, None) == "38.3 MB · 24.0 MB/s"
    assert words(0, 98_400_000, None, None) == "0 B of 98.4 MB"
    assert words(1, 2, 0.0, None) == "1 B of 2 B · stands still"
    said = {0.04: "0.0 s", 9.94: "9.9 s", 9.96: "10 s", 59.6: "1 min", 190: "3 min 10 s", 3599.7: "1 h"}
    said |= {5000: "1 h 23 min", 86_400: "1 d", 200_000: "2 d 7 h"}
    assert {seconds: human_seconds(seconds) for seconds in said} == said
