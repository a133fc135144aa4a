"""What a key may still use, and who has lately failed: both with a handed clock."""

from __future__ import annotations

import pytest

from reconciler.gateway.health import LONGEST, LONGEST_ASKED, MOST, Health
from reconciler.gateway.quota import Quota
from reconciler.gateway.routes import Rate


def test_a_rate_is_kept_over_any_time() -> None:
    bucket = Quota().bucket("ci", "requests", Rate(60, 60.0), 0.0)
    served = 0
    for tenth in range(6000):
        now = tenth / 10
        if bucket.wait(now) == 0:
            bucket.use(1, now)
            served += 1
    assert 60 + 598 <= served <= 60 + 600


def test_who_has_to_wait_is_told_how_long() -> None:
    bucket = Quota().bucket("ci", "requests", Rate(2, 10.0), 100.0)
    bucket.use(1, 100.0)
    bucket.use(1, 100.0)
    assert bucket.wait(100.0) == pytest.approx(5.0)
    assert bucket.wait(104.0) == pytest.approx(1.0)
    assert bucket.wait(105.0) == 0


def test_a_budget_that_was_overdrawn_is_shut_until_it_has_filled_up() -> None:
    bucket = Quota().bucket("ci", "tokens", Rate(1000, 100.0), 0.0)
    bucket.use(3000, 0.0)
    assert bucket.wait(0.0) == pytest.approx(200.1)
    assert bucket.wait(200.2) == 0
    assert bucket.wait(10_000.0) == 0
    bucket.use(1000, 10_000.0)
    assert bucket.wait(10_000.0) == pytest.approx(0.1), "nothing is saved up beyond the rate"


def test_a_changed_rate_begins_anew_and_keys_do_not_share() -> None:
    quota = Quota()
    quota.bucket("a", "requests", Rate(1, 60.0), 0.0).use(1, 0.0)
    assert quota.bucket("a", "requests", Rate(1, 60.0), 1.0).wait(1.0) > 0
    assert quota.bucket("b", "requests", Rate(1, 60.0), 1.0).wait(1.0) == 0
    assert quota.bucket("a", "tokens", Rate(1, 60.0), 1.0).wait(1.0) == 0
    assert quota.bucket("a", "requests", Rate(2, 60.0), 1.0).wait(1.0) == 0


def test_one_that_fails_is_passed_over_longer_and_longer_until_it_succeeds() -> None:
    health, now, times = Health(), 0.0, []
    for _ in range(9):
        health.failed("x", now)
        times.append(health.cools("x", now))
        now += times[-1]
        assert health.cools("x", now) == 0
    assert times == [1, 2, 4, 8, 16, 32, LONGEST, LONGEST, LONGEST]
    health.succeeded("x")
    health.failed("x", now)
    assert health.cools("x", now) == 1
    assert health.cools("y", now) == 0


def test_one_that_says_how_long_is_left_alone_for_so_long() -> None:
    health = Health()
    health.failed("x", 0.0, 30.0)
    health.failed("x", 1.0)
    assert health.cools("x", 1.0) == 29.0, "a later failure does not shorten it"
    health.failed("y", 0.0, 1e9)
    assert health.cools("y", 0.0) == LONGEST_ASKED


def test_names_that_clients_make_up_fill_nothing() -> None:
    health = Health()
    health.failed("first", 0.0, 500.0)
    for number in range(5000):
        health.failed(f"made-up-{number}", number / 10)
    assert len(health._records) <= MOST
    assert health.cools("first", 499.0) > 0
    for number in range(5000):
        health.failed(f"left-alone-{number}", 600.0, 600.0)
    assert len(health._records) <= MOST
