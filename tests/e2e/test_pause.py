"""A person's hand on the work, with real downloads and processes: what is paused stays so, and goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.client import Client
from reconciler.core.diagnostics import Refused
from reconciler.host.fetch import SYNC_EVERY
from reconciler.host.layout import Layout
from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.downloads import vouched
from tests.support.fileserver import FileServer
from tests.support.processes import alive, kill9, wait_until

SIZE = 40 << 20
HEADER = 1 << 20  # bytes of a look at the header, before a fetch goes on
BUFFERED = 8 << 20  # bytes that the file server may count as sent while they wait in the kernel
PATH = "/big.gguf"


@pytest.fixture
def hub(models: Path) -> Iterator[FileServer]:
    """A slow server of one big model: some 13 MB a second over four connections, so that it takes seconds."""
    content = (models / "hello.gguf").read_bytes()
    with FileServer({PATH: content + bytes(SIZE - len(content))}) as server:
        server.slow((13 << 20) // 4)
        yield server


@pytest.fixture
def fetching(fake: Stage, hub: FileServer) -> Stage:
    """A stage on which that model is being fetched, and a part of it is safe."""
    fake.write(manifest(fake, f'chat: {{source: "{hub.url(PATH)}", engine: real, context: 1k}}'))
    fake.run("apply", "--no-wait")
    until_safe(fake)
    return fake


def until_safe(stage: Stage) -> None:
    wait_until(lambda: synced(stage) > 0, 20, f"nothing is fetched\n{stage.log()}")


def parts(stage: Stage) -> list[Path]:
    return sorted((stage.root / "artifacts" / "partial").glob("*"))


def synced(stage: Stage) -> int:
    """The bytes of the part that count after a crash."""
    sidecars = [path for path in parts(stage) if path.suffix == ".json"]
    return vouched(sidecars[0].with_suffix("")) if sidecars else 0


def started(hub: FileServer) -> list[str]:
    """Each request for bytes of the file, but for looks at its header."""
    return [request.range or "" for request in hub.requests(PATH) if request.range != "bytes=0-1048575"]


def asked(stage: Stage, *words: str, code: int | None = 0) -> Any:
    return json.loads(stage.run(*words, "-o", "json", code=code).stdout)


def test_a_paused_download_keeps_what_came_over_kills_and_goes_on_from_there(fetching: Stage, hub: FileServer) -> None:
    answer = asked(fetching, "pause", "chat")
    assert (answer["changed"], list(answer["paused"]), answer["stopping"]) == (["model/chat"], ["model/chat"], [])
    assert fetching.snapshot()["working"] == {}
    kept, requests = synced(fetching), started(hub)
    assert SYNC_EVERY <= kept < SIZE
    kill9(fetching.controller)
    watch = fetching.start("watch", "-f", str(fetching.manifest))
    wait_until(lambda: fetching.snapshot().get("settled"), 20, fetching.log())
    ready = fetching.told("model/chat")["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "Paused")
    assert "reconcile resume model/chat" in ready["message"]
    assert "model/chat is paused" in fetching.told("server/chat")["Ready"]["message"]
    assert "(paused by a person)" in fetching.run("plan", code=2).stdout
    assert "model/chat is paused since" in fetching.run("status").stdout
    assert started(hub) == requests, "nothing is asked of the server meanwhile"
    assert "what is paused waits for" in fetching.run("apply", code=1).stderr
    assert started(hub) == requests, "and not by an apply of everything either"
    sent = hub.sent[PATH]
    hub.clear()
    assert fetching.run("resume", "chat").stdout == "model/chat goes on\n"
    fetching.until_ready(30)
    assert started(hub)[: len(requests)] == requests
    assert hub.sent[PATH] - sent <= SIZE - kept + HEADER
    types = [t for t in ("Paused", "Resumed") if fetching.happened("model/chat", t)]
    assert types == ["Paused", "Resumed"]
    (fetched,) = fetching.happened("model/chat", "Fetch")
    amount = float(fetched.partition("verify it: ")[2].partition(" MB in ")[0])
    assert 0 < amount <= (SIZE - kept) / 1e6 + 0.1, "what was there already is not counted"
    assert "MB/s)" in fetched
    assert watch.poll() is None


def test_discarding_throws_the_part_away(fetching: Stage, hub: FileServer) -> None:
    said = fetching.run("pause", "model/chat", "--discard").stdout
    assert said.splitlines() == [
        "model/chat is paused, until `reconcile resume model/chat`",
        "model/chat: what had come of it was thrown away",
    ]
    assert parts(fetching) == []
    again = asked(fetching, "pause", "model/chat", "--discard")
    assert (again["changed"], again["discarded"]) == ([], []), "there is nothing left"
    hub.clear()
    sent = hub.sent[PATH]
    fetching.run("resume", "model/chat")
    fetching.until_ready(30)
    assert hub.sent[PATH] - sent >= SIZE, "it began anew"


def test_discarding_while_the_bytes_are_copied_waits_for_the_thread(fake: Stage, models: Path) -> None:
    with (fake.folder / "big.gguf").open("wb") as big:
        big.write((models / "hello.gguf").read_bytes())
        big.truncate(1 << 30)  # a hole: read at once, written slowly
    fake.write(manifest(fake, entry(source="big.gguf")))
    fake.run("apply", "--no-wait")
    wait_until(lambda: fake.snapshot()["progress"].get("model/chat", {}).get("done", 0) > 0, 20, fake.log())
    with Client(Layout(fake.root)) as client:
        answer = client.pause(["model/chat"], discard=True)
    assert answer["discarded"] == ["model/chat"], answer
    assert parts(fake) == []
    assert "model/chat" not in fake.snapshot()["working"]
    assert "Traceback" not in fake.log()


def test_where_no_controller_runs_it_is_written_down_for_the_next_one(fetching: Stage, hub: FileServer) -> None:
    fetching.end_controller()
    assert synced(fetching) > 0
    answer = asked(fetching, "pause", "model/chat")
    assert answer["changed"] == ["model/chat"]
    requests = started(hub)
    assert fetching.condition("model/chat")["reason"] == "Paused"
    assert "model/chat" in fetching.status()["paused"]
    fetching.start("watch", "-f", str(fetching.manifest))
    wait_until(lambda: fetching.snapshot().get("settled"), 20, fetching.log())
    assert started(hub) == requests
    fetching.end_controller()
    assert asked(fetching, "pause", "model/chat", "--discard")["discarded"] == ["model/chat"]
    assert parts(fetching) == []
    assert asked(fetching, "resume", "chat")["changed"] == ["model/chat"]
    assert fetching.status()["paused"] == {}


def test_what_makes_no_sense_is_told(served: Stage) -> None:
    assert "there is no nobody" in served.run("pause", "nobody", code=1).stderr
    assert "there is no model/nobody" in served.run("resume", "model/nobody", code=1).stderr
    assert "has no download" in served.run("pause", "server/chat", "--discard", code=1).stderr
    assert "needs a resource" in served.run("pause", "--discard", code=1).stderr
    assert served.run("resume", "chat").stdout == "chat: not paused\n"
    assert served.run("resume").stdout == "it is not suspended\n"
    assert served.run("pause", "chat").stdout.startswith("model/chat is paused, until")
    assert served.run("pause", "chat").stdout.startswith("model/chat is paused already, since")
    assert served.snapshot()["ready"], "nothing was to be done for it anyway"
    assert served.told("model/chat")["Progressing"]["reason"] == "Paused"
    assert "model/chat is paused" in served.run("apply", "--target", "model/chat", code=1).stderr
    with Client(Layout(served.root)) as client, pytest.raises(Refused, match="is paused"):
        client.apply(served.manifest, targets=["model/chat"])
    with Client(Layout(served.root)) as client, pytest.raises(Refused, match="is paused"):
        client.lock(["model/chat"])
    said = asked(served, "lock", "--upgrade", code=1)
    assert [(f["ref"], f["message"]) for f in said["faults"]] == [("model/chat", "it is paused")]


def test_before_anything_was_applied(fake: Stage) -> None:
    fake.write(manifest(fake))
    for words in (("pause", "chat"), ("pause",), ("resume", "chat"), ("resume",)):
        assert "nothing was applied" in fake.run(*words, code=1).stderr
    assert not fake.root.exists()


def test_a_paused_server_that_dies_is_told_and_stays_down_until_it_is_resumed(served: Stage) -> None:
    served.run("pause", "server/chat")
    pid = served.server()
    kill9(pid)
    wait_until(lambda: served.told("server/chat")["Ready"]["reason"] == "Paused", 10, served.log())
    assert "its process is gone" in served.told("server/chat")["Ready"]["message"]
    assert served.happened("server/chat", "Exited")
    assert served.servers() == []
    wait_until(lambda: "it is paused" in refusal(served), 10, served.log())
    served.run("resume", "server/chat")
    served.until_ready(20)
    assert served.servers() != [pid]


def refusal(stage: Stage) -> str:
    routes = json.loads((stage.root / "run" / "routes.json").read_text())
    return str(routes["models"]["chat"]["reason"])


def test_down_works_on_what_is_paused_and_the_pause_outlives_it(served: Stage) -> None:
    for ref in ("server/chat", "gateway/main", "model/chat"):
        served.run("pause", ref)
    served.run("down")
    assert served.workloads() == []
    assert served.run("apply", code=1).returncode == 1
    assert served.servers() == []
    for ref in ("server/chat", "gateway", "model/chat"):
        served.run("resume", ref)
    served.until_ready(20)
    served.run("pause", "server/chat")
    served.run("down", "--purge")
    served.run("apply")
    assert served.snapshot()["paused"] == {}, "where nothing is left, nothing is held"


def test_leaving_the_manifest_ends_the_pause(served: Stage) -> None:
    served.write(manifest(served, f"{entry()}\n{entry('more')}"))
    served.until_generation(2)
    served.run("pause", "model/more", "server/more")
    served.write(manifest(served))
    served.until_generation(3)
    wait_until(lambda: served.snapshot()["paused"] == {}, 10, served.log())
    assert served.happened("server/more", "Resumed") == ["it is no longer in the manifest"]
    assert len(served.servers()) == 1


# -- suspended --------------------------------------------------------------------------------------------------------


def test_suspended_files_are_not_taken_over_and_what_serves_is_kept_serving(served: Stage) -> None:
    assert served.run("pause").stdout == "suspended, until `reconcile resume`\n"
    assert served.run("pause").stdout.startswith("it is suspended already, since")
    served.write(manifest(served, f"{entry(context='2k')}\n{entry('more')}\n{entry('less')}"))
    kill9(served.server())
    wait_until(lambda: served.server() and served.snapshot()["ready"], 20, served.log())
    assert served.generation() == 1
    kill9(served.controller)
    pid = served.server()
    watch = served.start("watch", "-f", str(served.manifest))
    wait_until(lambda: served.snapshot().get("ready"), 20, served.log())
    assert (served.generation(), served.server(), watch.poll()) == (1, pid, None)
    assert "suspended since" in served.run("status").stdout
    assert "the controller is suspended" in served.run("apply", code=1).stderr
    with Client(Layout(served.root)) as client, pytest.raises(Refused, match="suspended"):
        client.apply(served.manifest)
    with Client(Layout(served.root)) as client, pytest.raises(Refused, match="suspended"):
        client.lock()
    assert served.ask()["choices"]


def test_suspended_targets_and_saved_plans_come_before_the_file_as_a_whole(served: Stage) -> None:
    served.run("pause")
    served.write(manifest(served, f"{entry(context='2k')}\n{entry('more')}\n{entry('less')}"))
    chat = served.server()
    served.run("apply", "--target", "server/more")
    assert (served.generation(), served.server(), served.server("less")) == (2, chat, 0)
    assert served.server("more")
    saved = served.folder / "plan.json"
    served.run("plan", "--target", "server/less", "--out", str(saved), code=2)
    served.run("apply", str(saved))
    assert (served.generation(), served.server()) == (3, chat)
    assert served.server("less")
    kill9(served.controller)  # what is resumed where none runs is known to the next one
    assert asked(served, "resume")["changed"] == ["controller"]
    served.start("watch", "-f", str(served.manifest))
    served.until_generation(4)
    assert served.server() != chat
    assert served.snapshot()["manifest"]["targets"] == []


def test_suspended_a_download_stops_and_goes_on(fetching: Stage, hub: FileServer) -> None:
    answer = asked(fetching, "pause")
    assert answer["changed"] == ["controller"]
    assert fetching.snapshot()["working"] == {}
    requests, kept = started(hub), synced(fetching)
    wait_until(lambda: fetching.told("model/chat")["Ready"]["reason"] == "Suspended", 10, fetching.log())
    assert fetching.snapshot()["settled"]
    hub.clear()
    assert fetching.run("resume").stdout == "the controller goes on\n"
    sent = hub.sent[PATH]
    fetching.until_ready(30)
    assert len(started(hub)) > len(requests)
    assert hub.sent[PATH] - sent <= SIZE - kept + HEADER


def test_going_back_while_suspended_stays_so_after_it(served: Stage) -> None:
    served.write(manifest(served, entry(context="2k")))
    served.until_generation(2)
    served.run("pause")
    served.write(manifest(served, entry(context="3k")))
    served.run("rollback")
    served.run("resume")
    assert served.snapshot()["manifest"]["held_back"]
    served.until_generation(1)


def test_what_waits_to_be_confirmed_cannot_be_suspended(served: Stage) -> None:
    other = served.folder / "other.yaml"
    other.write_text(manifest(served, entry(context="2k")))
    served.run("apply", "-f", str(other), "--confirm-within", "10m")
    assert "waits to be confirmed" in served.run("pause", code=1).stderr
    served.run("confirm")
    served.run("pause")


def test_a_pause_during_the_first_apply_is_no_failure_of_the_generation(fetching: Stage, hub: FileServer) -> None:
    fetching.run("pause", "model/chat")
    wait_until(lambda: fetching.snapshot()["settled"], 10, fetching.log())
    assert fetching.snapshot()["manifest"]["state"] == "applying"
    hub.clear()
    fetching.run("resume", "model/chat")
    fetching.until_ready(30)
    assert fetching.snapshot()["manifest"]["state"] == "ready"


# -- progress ---------------------------------------------------------------------------------------------------------


def test_how_fast_it_goes_and_how_long_it_will_take(fetching: Stage) -> None:
    def told() -> Any:
        progress = fetching.snapshot()["progress"].get("model/chat")
        return progress if progress and progress["rate"] and progress["eta_seconds"] is not None else None

    progress = wait_until(told, 10, fetching.log())
    assert progress["total"] == SIZE
    assert 0 < progress["done"] < SIZE
    assert 1 << 20 < progress["rate"] < 20 << 20
    assert progress["eta_seconds"] == pytest.approx((SIZE - progress["done"]) / progress["rate"], rel=0.2)
    assert " MB of 41.9 MB · " in fetching.run("status").stdout


def test_followers_of_events_hear_of_progress_that_is_not_kept(fetching: Stage) -> None:
    follower = fetching.start("events", "-f", "-o", "json")
    fetching.until_ready(30)
    wait_until(lambda: fetching.happened("model/chat", "Fetch"), 10, fetching.log())
    fetching.end_controller()
    out, _ = follower.communicate(timeout=20)
    told = [event for event in map(json.loads, out.splitlines()) if event["type"] == "Progress"]
    assert told
    assert {event["seq"] for event in told} == {0}
    assert all(event["progress"]["total"] == SIZE for event in told)
    assert len(told) <= 10
    assert " MB of 41.9 MB" in told[-1]["message"]
    assert fetching.happened("model/chat", "Progress") == []


def test_a_resumed_download_shows_no_absurd_rate(fetching: Stage, hub: FileServer) -> None:
    fetching.run("pause", "model/chat")
    kept = synced(fetching)
    fetching.run("resume", "model/chat")
    rates = []
    with Client(Layout(fetching.root)) as client:
        for message in client.follow():
            if message["type"] == "status":
                if progress := message["progress"].get("model/chat"):
                    assert progress["done"] >= kept or progress["done"] == 0
                    rates.append(progress["rate"])
                if message["ready"]:
                    break
    known = [rate for rate in rates if rate is not None]
    assert known
    assert max(known) < 40 << 20, "bytes that were there already do not count"


def test_the_controller_is_the_only_one_who_writes(served: Stage) -> None:
    """A controller that holds the root but does not answer is not gone round."""
    pid = served.controller
    socket, aside = Layout(served.root).control_socket, served.folder / "aside"
    socket.rename(aside)
    try:
        assert "does not answer" in served.run("pause", "chat", code=1).stderr
    finally:
        aside.rename(socket)
    assert alive(pid)
    with Client(Layout(served.root)) as client:
        assert client.status()["paused"] == {}
