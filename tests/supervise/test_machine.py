"""The phase of a process follows from facts alone."""

from __future__ import annotations

import pytest

from reconciler.supervise.machine import SILENCES, Facts, Phase, phase


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(alive=True, ready=False, retiring=False), Phase.STARTING),
        (Facts(alive=True, ready=False, retiring=False, silences=SILENCES), Phase.STARTING),
        (Facts(alive=True, ready=True, retiring=False), Phase.READY),
        (Facts(alive=True, ready=True, retiring=False, silences=SILENCES - 1), Phase.READY),
        (Facts(alive=True, ready=True, retiring=False, silences=SILENCES), Phase.UNRESPONSIVE),
        (Facts(alive=True, ready=True, retiring=False, silences=SILENCES + 100), Phase.UNRESPONSIVE),
        (Facts(alive=True, ready=True, retiring=True), Phase.RETIRING),
        (Facts(alive=True, ready=True, retiring=True, silences=SILENCES), Phase.RETIRING),
        (Facts(alive=True, ready=False, retiring=True), Phase.RETIRING),
    ],
)
def test_a_living_process_has_the_phase_of_its_facts(facts: Facts, expected: Phase) -> None:
    assert phase(facts) is expected


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("retiring", [True, False])
@pytest.mark.parametrize("silences", [0, SILENCES])
def test_a_process_that_is_gone_is_gone_whatever_else_is_known(ready: bool, retiring: bool, silences: int) -> None:
    assert phase(Facts(False, ready, retiring, silences)) is Phase.GONE


def test_an_answer_makes_a_silent_process_ready_again() -> None:
    silent = Facts(alive=True, ready=True, retiring=False, silences=SILENCES)
    assert phase(silent) is Phase.UNRESPONSIVE
    assert phase(Facts(alive=True, ready=True, retiring=False, silences=0)) is Phase.READY
