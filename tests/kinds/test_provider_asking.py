"""Asking a provider for its models: a real server on its bad days, and addresses that must not be asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.app import tools_for
from reconciler.core.diagnostics import Fault
from reconciler.core.ids import Ref
from reconciler.core.plan import Action, Phase
from reconciler.core.state import Declared, Found, World
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.kinds.credentials import Credentials
from reconciler.kinds.provider import asking
from reconciler.kinds.provider.asking import Asked, ask
from reconciler.kinds.provider.io import ProviderKind
from reconciler.kinds.provider.rules import FRESH, ProviderState
from reconciler.kinds.provider.spec import ProviderSection, resolve
from reconciler.kinds.registry import KINDS
from reconciler.store.ledger import Ledger
from tests.support.authority import Authority
from tests.support.fake_provider import FakeProvider, Way

REF = Ref("provider", "p")
CANARY = "canary-7d793037a0"


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(models=("b", "a")) as fake:
        yield fake


async def asked(fake: FakeProvider, *keys: str, **section: Any) -> Asked:
    made = resolve("p", ProviderSection.model_validate({"base_url": fake.url, **section}))
    return await ask(made, Credentials(keys))


async def fault(fake: FakeProvider, *keys: str, **section: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        await asked(fake, *keys, **section)
    assert CANARY not in str(caught.value)
    return caught.value


async def test_its_models_come_sorted_with_the_key_that_is_meant(fake: FakeProvider) -> None:
    found = await asked(fake, "k")
    assert found == Asked(("a", "b"), f"GET {fake.url}/models")
    (request,) = fake.asked
    assert (request.headers["authorization"], request.headers["host"]) == ("Bearer k", f"127.0.0.1:{fake.port}")
    await asked(fake, "k", auth="api-key", headers={"X-Team": "ml"})
    assert (fake.asked[-1].headers["api-key"], fake.asked[-1].headers["x-team"]) == ("k", "ml")
    assert "authorization" not in fake.asked[-1].headers


async def test_pages_of_anthropics_list_are_put_together() -> None:
    with FakeProvider(models=[f"claude-{i:02}" for i in range(25)], page=10) as fake:
        found = await asked(fake, "k", dialect="anthropic")
        assert (len(found.models), len(fake.asked)) == (25, 3)
        assert {a.headers["x-api-key"] for a in fake.asked} == {"k"}
        assert {a.headers["anthropic-version"] for a in fake.asked} == {"2023-06-01"}
        assert fake.asked[1].query == {"limit": ["1000"], "after_id": ["claude-09"]}


async def test_keys_take_turns_where_one_is_refused(fake: FakeProvider) -> None:
    fake.keys = {"good", "tired"}
    fake.refused["tired"] = 429
    assert (await asked(fake, "bad", "tired", "good")).models == ("a", "b")
    assert [a.key for a in fake.asked] == ["bad", "tired", "good"]
    told = await fault(fake, CANARY, "bad")
    assert (told.code, "answered 401" in told.message) == ("KEY_REFUSED", True)


@pytest.mark.parametrize(
    ("way", "code"),
    [
        (Way(status=401), "KEY_REFUSED"),
        (Way(status=403), "LIST_REFUSED"),
        (Way(status=404, error="html"), "NO_LIST"),
        (Way(status=400), "PROVIDER_REFUSED"),
        (Way(raw=b"<html>no</html>"), "NO_LIST"),
        (Way(raw=b'{"data": 5}'), "NO_LIST"),
        (Way(redirect="http://127.0.0.1:9/v1/models"), "FOREIGN_REDIRECT"),
        (Way(redirect="https://example.com/models?key=x"), "FOREIGN_REDIRECT"),
        (Way(redirect="/v1/models"), "TOO_MANY_REDIRECTS"),
        (Way(headers={"content-encoding": "br"}), "NO_LIST"),
        (Way(headers={"content-encoding": "gzip"}), "NO_LIST"),
    ],
)
async def test_what_does_not_help_is_not_tried_again(fake: FakeProvider, way: Way, code: str) -> None:
    fake.listing = way
    assert (await fault(fake)).code == code
    assert len(fake.asked) <= asking.REDIRECTS + 1


async def test_a_redirect_within_the_place_is_followed(fake: FakeProvider) -> None:
    class Moved(FakeProvider):
        def _way(self, request: Any) -> Way:
            return Way() if request.path.startswith("/new/") else Way(redirect="/new/v1/models")

    with Moved(models=("m",)) as moved:
        assert (await asked(moved, "k")).models == ("m",)
        assert [a.path for a in moved.asked] == ["/v1/models", "/new/v1/models"]


@pytest.mark.parametrize(
    ("way", "code"),
    [
        (Way(status=503, error="html"), "PROVIDER_FAILED"),
        (Way(status=529), "PROVIDER_FAILED"),
        (Way(status=429), "RATE_LIMITED"),
        (Way(cut=5), "CUT_SHORT"),
    ],
)
async def test_what_may_pass_is_tried_three_times(fake: FakeProvider, way: Way, code: str) -> None:
    fake.listing = way
    assert (await fault(fake)).code == code
    assert len(fake.asked) == asking.TRIES


async def test_a_long_retry_after_is_passed_on_and_not_waited_for(fake: FakeProvider) -> None:
    fake.listing = Way(status=429, headers={"retry-after": "120"})
    told = await fault(fake)
    assert (told.code, told.after, len(fake.asked)) == ("RATE_LIMITED", 120.0, 1)
    fake.listing = Way(status=503, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "retry-after-ms": "900000"})
    assert (await fault(fake)).after == 900.0


@pytest.mark.parametrize("way", [Way(stall="head"), Way(stall="body"), Way(split=True, drip=0.2)])
async def test_it_does_not_take_longer_than_it_may(
    fake: FakeProvider, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "DEADLINE", 0.5)
    fake.listing = way
    assert (await fault(fake)).code == "STALLED"


async def test_an_answer_is_bounded_packed_or_not(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.listing = Way(gzip=True)
    assert (await asked(fake)).models == ("a", "b")
    monkeypatch.setattr(asking, "MOST_BYTES", 50_000)
    for way in (Way(raw=b" " * 60_000), Way(raw=b" " * 10_000_000, gzip=True)):
        fake.listing = way
        told = await fault(fake)
        assert (told.code, "beyond 50000 bytes" in told.message) == ("NO_LIST", True)


async def test_a_name_that_leads_to_this_machine_is_asked_only_where_that_is_meant(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is looked up once, and what is connected to is the address that was judged."""
    real = socket.getaddrinfo

    def found(host: str, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "provider.example" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    base = f"http://provider.example:{fake.port}/v1"
    told = await fault(fake, base_url=base)
    assert told.code == "FORBIDDEN_ADDRESS"
    assert told.message == "provider.example is not asked: 127.0.0.1 is this machine"
    assert told.hint == "if that is meant, say `private: true`"
    assert fake.asked == []
    assert (await asked(fake, base_url=base, private=True)).models == ("a", "b")
    assert fake.asked[-1].headers["host"] == f"provider.example:{fake.port}"


async def test_the_certificate_must_be_that_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real("127.0.0.1" if str(host).endswith(".example") else host, *rest, **more),
    )
    with FakeProvider(models=("m",), tls=authority.server("right.example")) as fake:
        url = f"https://right.example:{fake.port}/v1"
        untrusted = await fault(fake, base_url=url, private=True)
        assert untrusted.code == "UNTRUSTED_CERTIFICATE"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        assert (await asked(fake, base_url=url, private=True)).models == ("m",)
        wrong = await fault(fake, base_url=url.replace("right", "wrong"), private=True)
        assert wrong.code == "UNTRUSTED_CERTIFICATE"


async def test_one_that_is_not_there_is_told_so() -> None:
    with FakeProvider() as fake:
        pass
    told = await fault(fake)
    assert (told.code, told.message) == ("UNREACHABLE", f"http://127.0.0.1:{fake.port} cannot be reached")
    assert (await fault(fake, base_url="http://no.such.invalid/v1")).code == "UNKNOWN_HOST"


async def test_a_proxy_is_asked_in_its_place(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """For plain http a proxy is asked for the whole address; those of the environment do not count."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (await asked(fake)).models == ("a", "b")
    through = fake.url.removesuffix("/v1")
    found = await asked(fake, base_url="http://provider.example/v1", proxy=through)
    assert found.models == ("a", "b")
    assert fake.asked[-1].headers["host"] == "provider.example"


# -- the kind ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    layout = Layout(tmp_path / "state")
    layout.root.mkdir()
    with Ledger.write(layout.ledger, Effects()) as ledger:
        tools = tools_for(layout, tmp_path, Effects(), ledger, KINDS)
        yield tools
        await tools.fetch.close()


def declared(fake: FakeProvider, **section: Any) -> Declared:
    keys = {"base_url": fake.url, "api_key": "file:key.txt", **section}
    return Declared(REF, resolve("p", ProviderSection.model_validate(keys)))


def looked(kind: ProviderKind, wanted: Declared, tools: Tools) -> ProviderState:
    seen = kind.observe([REF], {REF: wanted}, tools)[REF]
    assert isinstance(seen, Found)
    state: ProviderState = seen.state
    return state


DISCOVER = Action(Phase.MATERIALISE, "discover", "")
Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Move the clock that records are made by, so many seconds ahead of the real one."""
    import time

    from reconciler.kinds.provider import io

    real, ahead = time.time, [0.0]
    monkeypatch.setattr(io.time, "time", lambda: real() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


async def test_a_list_outlives_a_provider_that_is_down(fake: FakeProvider, tools: Tools, clock: Clock) -> None:
    kind, wanted = ProviderKind(), declared(fake)
    (tools.base / "key.txt").write_text(CANARY)
    assert not kind.due(REF, wanted, tools), "the first time belongs to the plan"
    await kind.apply(DISCOVER, REF, wanted, tools)
    assert looked(kind, wanted, tools).models == ("a", "b")
    assert not kind.due(REF, wanted, tools)
    clock(FRESH)
    assert kind.due(REF, wanted, tools)
    fake.stop()
    assert await kind.refresh(REF, wanted, tools), "that it is down is news"
    assert not await kind.refresh(REF, wanted, tools), "that it is still down is not"
    state = looked(kind, wanted, tools)
    assert (state.models, state.open) == (("a", "b"), False)
    assert state.known is not None
    assert (state.known.code, state.known.failures) == ("UNREACHABLE", 2)
    assert not kind.due(REF, wanted, tools)
    clock(60)
    assert kind.due(REF, wanted, tools)
    fake.models.append("c")
    fake.start()
    assert await kind.refresh(REF, wanted, tools)
    assert looked(kind, wanted, tools).models == ("a", "b", "c")
    events = [e["type"] for e in tools.ledger.events() if e["ref"] == str(REF)]
    assert events == ["Listed", "NotListed", "Listed"]
    for path in tools.layout.root.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


async def test_it_is_asked_again_as_soon_as_its_key_is_there_or_is_another(fake: FakeProvider, tools: Tools) -> None:
    kind, wanted, key = ProviderKind(), declared(fake), tools.base / "key.txt"
    fake.keys = {"right"}
    await kind.apply(DISCOVER, REF, wanted, tools)
    state = looked(kind, wanted, tools)
    assert state.known is not None
    assert (state.known.code, state.open, fake.asked) == ("SECRET_MISSING", True, [])
    assert "file:key.txt cannot be read" in state.problem
    assert not kind.due(REF, wanted, tools)
    key.write_text("wrong")
    assert kind.due(REF, wanted, tools)
    await kind.refresh(REF, wanted, tools)
    state = looked(kind, wanted, tools)
    assert state.known is not None
    assert (state.known.code, state.problem) == ("KEY_REFUSED", "")
    assert not kind.due(REF, wanted, tools)
    key.write_text("right")
    assert kind.due(REF, wanted, tools)
    await kind.refresh(REF, wanted, tools)
    assert looked(kind, wanted, tools).models == ("a", "b")


async def test_a_secret_that_cannot_be_sent_is_told_without_it(fake: FakeProvider, tools: Tools) -> None:
    kind, wanted = ProviderKind(), declared(fake)
    (tools.base / "key.txt").write_text(f"{CANARY}\nX-Evil: yes")
    await kind.apply(DISCOVER, REF, wanted, tools)
    state = looked(kind, wanted, tools)
    assert state.problem == "file:key.txt holds something that cannot be sent in a header"
    assert fake.asked == []


async def test_what_another_address_gave_says_nothing_of_this_one(fake: FakeProvider, tools: Tools) -> None:
    kind, wanted = ProviderKind(), declared(fake)
    (tools.base / "key.txt").write_text("k")
    await kind.apply(DISCOVER, REF, wanted, tools)
    moved = declared(fake, base_url=f"{fake.url}/other")
    assert looked(kind, moved, tools).models == ()
    change = kind.rules.change(REF, World({REF: moved}, kind.observe([REF], {REF: moved}, tools), tools.ledger.owned()))
    assert change is not None
    assert [a.verb for a in change.actions] == ["discover"]


async def test_a_declared_list_asks_nobody_and_what_is_removed_is_forgotten(fake: FakeProvider, tools: Tools) -> None:
    kind, wanted = ProviderKind(), declared(fake)
    (tools.base / "key.txt").write_text("k")
    await kind.apply(DISCOVER, REF, wanted, tools)
    path = tools.layout.provider("p")
    assert path.exists()
    fake.asked.clear()
    named = declared(fake, models=["x"])
    await kind.apply(Action(Phase.MATERIALISE, "note", ""), REF, named, tools)
    assert (looked(kind, named, tools).models, path.exists(), fake.asked) == (("x",), False, [])
    assert not kind.due(REF, named, tools)
    await kind.apply(Action(Phase.SWEEP, "release", ""), REF, None, tools)
    assert tools.ledger.owned() == {}


async def test_a_record_that_is_damaged_is_asked_for_anew(fake: FakeProvider, tools: Tools) -> None:
    kind, wanted = ProviderKind(), declared(fake)
    (tools.base / "key.txt").write_text("k")
    await kind.apply(DISCOVER, REF, wanted, tools)
    tools.layout.provider("p").write_bytes(b"\x00" * 100)
    assert not looked(kind, wanted, tools).asked
    await kind.apply(DISCOVER, REF, wanted, tools)
    assert looked(kind, wanted, tools).models == ("a", "b")


async def test_two_that_are_asked_at_once_do_not_wait_for_each_other(fake: FakeProvider) -> None:
    with FakeProvider() as stalled:
        stalled.listing = Way(stall="head")
        slow = asyncio.ensure_future(asked(stalled))
        assert (await asked(fake)).models == ("a", "b")
        assert not slow.done()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
