"""When to try again after a failure."""

from __future__ import annotations

import pytest

from reconciler.core.diagnostics import FaultClass
from reconciler.core.ids import Ref
from reconciler.core.retry import wait_for
from reconciler.core.state import Trouble, World

CHAT = Ref("server", "chat")
FAILED = 1_700_000_000.0


def waiting(now: float, count: int = 3, kind: FaultClass = FaultClass.TRANSIENT) -> float:
    trouble = Trouble("", count, FAILED, "PROCESS_EXITED", "it ended", "", kind)
    return wait_for(CHAT, World(troubles={CHAT: trouble}, now=now))


def test_it_waits_at_first_and_then_no_longer() -> None:
    assert 3.2 <= waiting(FAILED) <= 4.0
    assert waiting(FAILED + 4) == 0


def test_the_gateway_comes_back_sooner_and_is_not_hammered_either() -> None:
    gateway = Ref("gateway", "main")
    for count, most in ((1, 0.25), (2, 0.5), (6, 8.0), (20, 60.0)):
        trouble = Trouble("", count, FAILED, "PROCESS_EXITED", "it ended", "", FaultClass.TRANSIENT)
        assert 0.8 * most <= wait_for(gateway, World(troubles={gateway: trouble}, now=FAILED)) <= most


@pytest.mark.parametrize("back", [1.0, 3600.0, 10 * 365 * 86400.0])
def test_a_clock_that_was_set_back_makes_nothing_wait(back: float) -> None:
    assert waiting(FAILED - back) == 0
    assert waiting(FAILED - back, kind=FaultClass.NEEDS_HUMAN) == 0


def test_a_clock_that_was_set_back_does_not_mend_what_only_an_edit_can() -> None:
    assert waiting(FAILED - 3600, kind=FaultClass.PERMANENT) == float("inf")
