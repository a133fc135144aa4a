"""The Python client of the control API, against a real controller."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import reconciler
from reconciler.client import Client, NoController
from reconciler.core.diagnostics import Exit, Refused
from reconciler.host.layout import Layout
from tests.api.conftest import ONE, manifest
from tests.api.schemas import check
from tests.e2e.stage import Stage
from tests.support.engines import wrapper
from tests.support.processes import alive, wait_until


def layout(stage: Stage) -> Layout:
    return Layout(stage.root)


def test_who_answers(up: Stage, client: Client) -> None:
    hello = check("control#/$defs/hello.answer", client.hello())
    assert hello == {"api": 1, "version": reconciler.__version__, "pid": up.controller, "path": str(up.manifest)}


def test_status_and_plan(up: Stage, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("control#/$defs/status.answer", client.status())["ready"]
    plan = check("control#/$defs/plan.answer", client.plan(up.manifest))
    assert (plan["changes"], plan["manifest"]) == ([], str(up.manifest))
    monkeypatch.chdir(up.folder)
    assert client.plan(Path("stack.yaml"))["manifest"] == str(up.manifest), "relative to the client's own folder"
    other = up.folder / "other.yaml"
    other.write_text(manifest(up, ONE.replace("1k", "2k")))
    assert check("plan", client.plan(other))["changes"]
    assert client.status()["manifest"]["path"] == str(up.manifest), "a plan changes nothing"


def test_what_is_refused_tells_where_and_why(up: Stage, client: Client) -> None:
    broken = up.folder / "broken.yaml"
    broken.write_text("version: 1\nmodels: {chat: {contxt: 1}}\n")
    for ask in (client.plan, client.apply):
        with pytest.raises(Refused) as refused:
            ask(broken)
        assert [d.where.line for d in refused.value.diagnostics if d.where] == [2, 2]
    with pytest.raises(Refused, match="nothing"):
        client.plan(up.folder / "nothing.yaml")
    binding = client.plan(up.manifest)["binding"]
    with pytest.raises(Refused) as stale:
        client.apply(up.manifest, binding={**binding, "serial": binding["serial"] + 1})
    assert stale.value.exit_code is Exit.STALE
    with pytest.raises(Refused, match="not a saved plan"):
        client.apply(up.manifest, binding={"serial": []})
    with pytest.raises(Refused, match="nothing waits"):
        client.confirm()
    with pytest.raises(Refused, match="no generation 99"):
        client.rollback(99)
    with pytest.raises(Refused, match="nothing is pinned for model/nobody"):
        client.lock(["model/nobody"])
    assert client.status()["ready"], "the connection lives on"


def test_ensure_ready_at_once(client: Client) -> None:
    began = time.monotonic()
    for name in ("chat", "fast", "server/chat"):
        answer = check("control#/$defs/ensure_ready.answer", client.ensure_ready(name))
        assert (answer["ready"], answer["ref"]) == (True, "server/chat")
    assert time.monotonic() - began < 2
    with pytest.raises(Refused) as refused:
        client.ensure_ready("chit")
    assert "no model named 'chit'" in str(refused.value)
    assert refused.value.diagnostics[0].hint == "models are: chat"


def test_ensure_ready_waits_and_gives_up_in_time(stage: Stage) -> None:
    wrapper(stage.folder / "engine", {"FAKE_ENGINE": "slow-ready=4"})
    stage.run("apply", "--no-wait")
    with Client(layout(stage)) as client:
        began = time.monotonic()
        answer = check("control#/$defs/ensure_ready.answer", client.ensure_ready("chat", timeout=0.5))
        assert not answer["ready"]
        assert 0.5 <= time.monotonic() - began < 3
        assert client.ensure_ready("chat", timeout=30)["ready"]
        assert client.status()["resources"]


def test_ensure_ready_does_not_believe_an_earlier_controller(stage: Stage) -> None:
    stage.run("apply")
    stage.run("down")
    wrapper(stage.folder / "engine", {"FAKE_ENGINE": "never-ready"})
    watch = stage.start("watch")
    try:
        answer = wait_until(lambda: _ask_ready(stage), 15, "no controller")
        assert not answer["ready"]
    finally:
        watch.terminate()
        watch.communicate()


def _ask_ready(stage: Stage) -> dict[str, object] | None:
    try:
        with Client(layout(stage)) as client:
            return client.ensure_ready("chat", timeout=0.0)
    except (NoController, Refused):
        return None  # it has not read the manifest yet


def test_apply_rollback_confirm_and_lock(stage: Stage) -> None:
    stage.run("apply")
    with Client(layout(stage)) as client:
        again = check("control#/$defs/apply.answer", client.apply(stage.manifest))
        assert again["manifest"]["generation"] == 1
        other = stage.folder / "other.yaml"  # the controller would take over the one that it watches as it is saved
        other.write_text(manifest(stage, ONE.replace("fast", "faster")))
        with pytest.raises(Refused, match="not pinned in the lock"):
            client.apply(other, locked=True)
        taken = client.apply(other, confirm_within=300, targets=["server/chat"])
        assert check("control#/$defs/apply.answer", taken)["manifest"]["targets"] == ["server/chat"]
        assert taken["turn"] > again["turn"]
        assert client.confirm() == 2
        back = check("control#/$defs/rollback.answer", client.rollback())
        assert (back["manifest"]["generation"], back["manifest"]["held_back"]) == (1, True)
        assert client.rollback(2)["manifest"]["generation"] == 2
        other.write_text("version: 1\nmodels: {}\n")
        with pytest.raises(Refused, match="allow-empty"):
            client.apply(other)
        client.apply(stage.manifest)
        assert check("control#/$defs/lock.answer", client.lock())["pins"] == 1
        assert client.lock([])["changed"] == []


def test_events_after_a_number_and_those_to_come(up: Stage, client: Client) -> None:
    def first(stream: Iterator[dict[str, object]]) -> dict[str, object]:
        return check("control#/$defs/events.message", next(stream))  # type: ignore[no-any-return]

    with Client(layout(up)) as one:
        earliest: dict[str, int] = first(one.events())["event"]  # type: ignore[assignment]
    with Client(layout(up)) as two:
        assert first(two.events(after=earliest["seq"]))["event"]["seq"] == earliest["seq"] + 1  # type: ignore[index]
    with Client(layout(up)) as three:
        heard: list[dict[str, object]] = []
        stream = three.events(after=1_000_000)
        thread = threading.Thread(target=lambda: heard.append(first(stream)))
        thread.start()
        up.write(manifest(up, ONE.replace("fast", "quick")))
        thread.join(15)
        up.write(manifest(up))
        wait_until(lambda: client.status()["ready"], 20, "not as before")
    assert heard[0]["event"]["ref"] == "manifest"  # type: ignore[index]


def test_follow_begins_with_a_snapshot_and_ends_with_the_controller(stage: Stage) -> None:
    stage.run("apply")
    server = stage.servers()
    heard = []
    with Client(layout(stage)) as one, Client(layout(stage)) as idle, Client(layout(stage)) as other:
        for message in one.follow():
            if not heard:
                assert check("control#/$defs/shutdown.answer", other.shutdown()) == {"stopping": True}
            heard.append(check("control#/$defs/follow.message", message))
        with pytest.raises(NoController):
            idle.hello()
    assert heard[0]["type"] == "status"
    wait_until(lambda: not layout(stage).control_socket.exists(), 10, "the socket stays")
    assert stage.servers() == server, "what runs goes on"
    with pytest.raises(NoController), Client(layout(stage)):
        pass


@pytest.mark.parametrize("purge", [False, True])
def test_down(stage: Stage, purge: bool) -> None:
    stage.run("apply")
    server = stage.servers()[0]
    with Client(layout(stage)) as client:
        heard = [check("control#/$defs/down.message", message) for message in client.down(purge=purge)]
    assert {m["controller"]["mode"] for m in heard if m["type"] == "status"} == {"purge" if purge else "down"}
    assert not alive(server)
    assert not stage.workloads()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NoController), Client(Layout(tmp_path)):
        pass
