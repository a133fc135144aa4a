"""What is shown while the controller works: rates and what is left, in the live table, in lines and in status."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from reconciler.cli.live import _lines, _table
from reconciler.cli.render import status_lines

MODEL = "model/chat"


def snapshot(ready: str = "NotFetched", progress: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "False", "reason": ready, "message": "", "since": 0.0, "generation": 1}
    manifest = {"generation": 1, "held_back": False, "targets": [], "confirm_by": None, "faults": [], "path": "/s.yaml"}
    return {
        "type": "status",
        "resources": [{"ref": MODEL, "conditions": [condition]}],
        "working": {MODEL: "fetch it"} if progress else {},
        "progress": {MODEL: progress} if progress else {},
        "paused": {},
        "suspended": None,
        "manifest": manifest,
        "controller": {"pid": 5, "fault": ""},
        "outside_targets": 0,
        **more,
    }


def going(total: int | None, rate: float | None, eta: float | None, done: int = 38_300_000) -> dict[str, Any]:
    return {"what": "fetching", "done": done, "total": total, "seconds": 9.0, "rate": rate, "eta_seconds": eta}


def table(shown: dict[str, Any]) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(_table(shown))
    return capture.get()


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (going(98_400_000, 24e6, 2.5), "fetching 38.3 MB of 98.4 MB · 24.0 MB/s · 2.5 s left"),
        (going(98_400_000, None, None), "fetching 38.3 MB of 98.4 MB\n"),
        (going(98_400_000, 0.0, None), "fetching 38.3 MB of 98.4 MB · stands still"),
        (going(None, 24e6, None), "fetching 38.3 MB · 24.0 MB/s\n"),
        (going(None, None, None, done=0), "fetching\n"),
    ],
)
def test_a_download_in_the_live_table(progress: dict[str, Any], text: str) -> None:
    assert text in "\n".join(line.rstrip() for line in table(snapshot(progress=progress)).splitlines()) + "\n"


def test_what_is_paused_has_a_mark_of_its_own() -> None:
    assert "‖ " in table(snapshot("Paused"))
    assert "‖ " not in table(snapshot())


def test_status_tells_how_far_it_is_and_what_is_held() -> None:
    lines = "\n".join(status_lines(snapshot(progress=going(98_400_000, 24e6, 190.0)), True))
    assert "fetch it: 38.3 MB of 98.4 MB · 24.0 MB/s · 3 min 10 s left" in lines
    lines = "\n".join(status_lines(snapshot(paused={MODEL: 0.0}, suspended=0.0), True))
    assert "model/chat is paused since 19" in lines
    assert "suspended since 19" in lines


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    event = {"seq": 0, "at": 1.0, "ref": MODEL, "type": "Progress", "message": "fetching 1.0 MB"}
    _lines({"type": "event", "event": event})
    _lines(snapshot())
    assert capsys.readouterr().out == "  model/chat: Progress: fetching 1.0 MB\n"
