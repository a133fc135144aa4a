"""Providers, from the manifest to the running gateway: found, kept while they are down, and asked with keys that nobody
finds anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from reconciler.host.layout import Layout
from reconciler.host.probes import unix_request
from tests.e2e.conftest import manifest
from tests.e2e.stage import Stage
from tests.support.fake_provider import FakeProvider, Way
from tests.support.processes import kill9, wait_until

CANARY = "canary-aab3238922"


@pytest.fixture
def cloud() -> Iterator[FakeProvider]:
    with FakeProvider(keys=(f"{CANARY}-1",), models=("small", "large")) as cloud:
        yield cloud


@pytest.fixture
def clouded(fake: Stage, cloud: FakeProvider) -> Stage:
    """A stage with one local model, a provider whose key is in a file, and one that names its models and is down."""
    (fake.folder / "key.txt").write_text(f"{CANARY}-1\n")
    fake.environment["TEAM"] = f"{CANARY}-team"
    fake.write(text(fake, cloud))
    return fake


def text(stage: Stage, cloud: FakeProvider, more: str = "") -> str:
    return manifest(stage) + (
        "providers:\n"
        f"  cloud: {{base_url: '{cloud.url}', api_key: 'file:key.txt', headers: {{X-Team: 'env:TEAM'}}{more}}}\n"
        "  down: {base_url: 'http://127.0.0.1:9/v1', models: [far]}\n"
        "routes:\n"
        "  smart: {targets: [chat, cloud/small]}\n"
        "  far-*: {targets: [down/far]}\n"
    )


def routes(stage: Stage) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Layout(stage.root).routes.read_text())
    return document


def served(stage: Stage) -> dict[str, Any]:
    """What the running gateway says of itself."""
    return unix_request(Layout(stage.root).gateway_socket, "GET", "/state") or {}


def nowhere(stage: Stage, *printed: str) -> None:
    """No file below the data root holds a key, and nothing that was printed does."""
    for path in stage.root.rglob("*"):
        if path.is_file() and not path.is_socket():
            assert CANARY.encode() not in path.read_bytes(), path
    assert not [out for out in printed if CANARY in out]


def test_models_are_found_and_the_gateway_is_told_of_them_and_of_the_keys(clouded: Stage, cloud: FakeProvider) -> None:
    planned = clouded.run("plan", code=2)
    assert f"ask {cloud.url} for its models" in planned.stdout
    assert cloud.asked == [], "a plan asks nobody"
    done = clouded.run("apply")
    told = clouded.told("provider/cloud")
    assert (told["Ready"]["status"], told["Ready"]["message"]) == ("True", "2 models")
    assert told["Discovered"]["reason"] == "Listed"
    assert clouded.told("provider/down")["Ready"]["reason"] == "Declared"
    (request,) = cloud.asked
    assert (request.key, request.headers["x-team"]) == (f"{CANARY}-1", f"{CANARY}-team")
    document = routes(clouded)
    assert document["providers"]["cloud"]["models"] == ["large", "small"]
    assert document["providers"]["down"]["models"] == ["far"]
    assert list(document["routes"]) == ["far-*", "smart"]
    wait_until(lambda: clouded.snapshot()["ready"], 20, "not ready")
    assert served(clouded)["digest"] == document["digest"]
    assert served(clouded)["secrets"]
    assert clouded.run("plan", code=0).stdout.count("provider/") == 0
    printed = [planned.stdout, planned.stderr, done.stdout, done.stderr]
    verbs = ("plan --all", "status", "events -n 0", "state export", "why provider/cloud", "history")
    for words in (*verbs, "logs controller -n 0", "logs gateway -n 0", "explain providers"):
        form = "json" if words in ("status", "state export", "events -n 0") else "text"
        told_ = clouded.run(*words.split(), "-o", form, code=None)
        assert told_.returncode in (0, 2), (words, told_.stderr)
        printed += [told_.stdout, told_.stderr]
    assert any("cloud" in out for out in printed)
    nowhere(clouded, *printed)


def test_a_key_that_changes_reaches_the_gateway_and_nothing_else_changes(clouded: Stage, cloud: FakeProvider) -> None:
    clouded.run("apply")
    wait_until(lambda: clouded.snapshot()["ready"], 20, "not ready")
    before, wrote = served(clouded)["secrets"], routes(clouded)["digest"]
    pids = (clouded.gateway(), clouded.server())
    (clouded.folder / "key.txt").write_text(f"{CANARY}-2\n")
    wait_until(lambda: served(clouded).get("secrets") not in ("", before), 20, f"not told\n{clouded.log()}")
    assert (clouded.gateway(), clouded.server(), routes(clouded)["digest"]) == (*pids, wrote)
    after = served(clouded)["secrets"]
    kill9(clouded.gateway())
    wait_until(lambda: served(clouded).get("secrets") not in (None, "", after), 30, f"not told again\n{clouded.log()}")
    wait_until(lambda: clouded.snapshot()["ready"], 20, "not ready")
    nowhere(clouded, clouded.log())


def test_a_list_is_kept_while_its_provider_is_down_and_nothing_waits_for_it(
    clouded: Stage, cloud: FakeProvider
) -> None:
    clouded.run("apply")
    cloud.stop()
    clouded.write(text(clouded, cloud, more=", request: {set: {top_k: 1}}"))
    clouded.run("apply")
    told = clouded.told("provider/cloud")
    assert told["Ready"]["status"] == "True"
    assert (told["Discovered"]["status"], told["Discovered"]["reason"]) == ("False", "Unreachable")
    assert "what counts are its 2 models" in told["Discovered"]["message"]
    assert routes(clouded)["providers"]["cloud"]["models"] == ["large", "small"]
    assert clouded.ask()["choices"]
    clouded.end_controller()
    clouded.run("apply")
    assert routes(clouded)["providers"]["cloud"]["models"] == ["large", "small"], "it outlives its controller"


def test_one_that_was_never_there_is_open_and_found_once_it_is(clouded: Stage, cloud: FakeProvider) -> None:
    cloud.stop()
    clouded.run("apply")
    told = clouded.told("provider/cloud")
    assert (told["Ready"]["status"], told["Ready"]["reason"]) == ("True", "Open")
    assert routes(clouded)["providers"]["cloud"]["open"] is True
    assert clouded.ask()["choices"]
    cloud.start()
    wait_until(lambda: clouded.told("provider/cloud")["Discovered"]["status"] == "True", 40, "it is not asked again")
    wait_until(lambda: routes(clouded)["providers"]["cloud"]["models"] == ["large", "small"], 20, "not routed")
    assert routes(clouded)["providers"]["cloud"]["open"] is False


def test_a_secret_that_is_missing_is_the_providers_own_affair(clouded: Stage, cloud: FakeProvider) -> None:
    (clouded.folder / "key.txt").unlink()
    done = clouded.run("apply", "--timeout", "20s", code=6)
    assert "file:key.txt cannot be read" in done.stdout + done.stderr
    assert clouded.ask()["choices"]
    told = clouded.told("provider/cloud")
    assert (told["Ready"]["reason"], "file:key.txt" in told["Ready"]["message"]) == ("SecretMissing", True)
    assert "file:key.txt cannot be read" in routes(clouded)["providers"]["cloud"]["reason"]
    assert routes(clouded)["providers"]["down"]["reason"] == ""
    assert cloud.asked == []
    (clouded.folder / "key.txt").write_text(f"{CANARY}-1")
    wait_until(lambda: clouded.snapshot()["ready"], 20, f"not ready\n{clouded.log()}")
    wait_until(lambda: clouded.told("provider/cloud")["Discovered"]["status"] == "True", 20, "not asked")
    assert routes(clouded)["providers"]["cloud"]["reason"] == ""


def test_one_that_stalls_holds_up_nothing_else(clouded: Stage, cloud: FakeProvider) -> None:
    cloud.listing = Way(stall="head")
    applying = clouded.start("apply")
    wait_until(lambda: bool(cloud.running), 20, "it is not asked")
    for ref in ("server/chat", "gateway/main"):
        wait_until(lambda r=ref: clouded.told(r).get("Ready", {}).get("status") == "True", 20, f"{ref} waits")
    assert clouded.ask()["choices"]
    cloud.stop()
    applying.communicate(timeout=60)
    assert applying.returncode == 0
    from reconciler.store.ledger import Ledger

    with Ledger.read(clouded.root / "ledger.db") as ledger:
        done = [(event["ref"], event["type"]) for event in ledger.events()]
    assert done.index(("server/chat", "Start")) < done.index(("provider/cloud", "Discover"))


def test_a_provider_that_is_removed_is_forgotten(clouded: Stage, cloud: FakeProvider) -> None:
    clouded.run("apply")
    kept = Layout(clouded.root).provider("cloud")
    assert json.loads(kept.read_text())["models"] == ["large", "small"]
    clouded.write(manifest(clouded))
    clouded.run("apply")
    assert not kept.exists()
    assert routes(clouded)["providers"] == {}
    assert clouded.told("provider/cloud") == {}
    wait_until(lambda: clouded.snapshot()["ready"], 20, "not ready")
