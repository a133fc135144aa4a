"""The controller has the gateway keep an access log, and the commands that look on find it, and the gateway."""

from __future__ import annotations

import json
import stat
import urllib.request

from tests.e2e.stage import Stage
from tests.support.processes import wait_until


def test_requests_are_found_by_the_command_line(served: Stage) -> None:
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "what-was-said"}]}).encode()
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions", body, {"Content-Type": "application/json", "x-request-id": "mine-1"}
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    path = served.root / "logs" / "gateway" / "access.jsonl"
    wait_until(lambda: "mine-1" in path.read_text(), message="the line is written")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for since in ((), ("--since", "10m")):
        shown = served.run("logs", "gateway/access", *since).stdout
        (line,) = [json.loads(each) for each in shown.splitlines() if "mine-1" in each]
        assert (line["model"], line["target"], line["status"]) == ("chat", "server/chat", 200)
    assert "what-was-said" not in shown
    assert "reconcile logs gateway/access" in served.run("logs", "gateway").stderr
    assert served.run("tap", "chat", "--seconds", "0.2s").stdout == ""
    assert "does not exist" in served.run("tap", "nobody", code=1).stderr
