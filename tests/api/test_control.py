"""The control API under bad manners: every line gets an answer, and only the one who misbehaves has trouble."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.controller.control import LINE_LIMIT, MOST_CLIENTS
from reconciler.controller.request import METHODS, parse
from reconciler.core.diagnostics import Refused
from reconciler.host.layout import Layout
from tests.api.schemas import check, document, validator
from tests.api.wire import Wire
from tests.e2e.stage import Stage
from tests.support.processes import wait_until

STREAMS = ("follow", "events", "down")


@pytest.fixture(autouse=True)
def unharmed(up: Stage) -> Iterator[None]:
    """Whatever a test says, the same controller answers afterwards, and has nothing to complain of."""
    before = up.controller
    yield
    with Wire(up) as wire:
        assert wire.ask({"method": "hello"})["pid"] == before == up.controller
        assert check("status", wire.ask({"method": "status"}))["ready"]
    log = (up.root / "logs" / "controller.log").read_text()
    assert not [line for line in log.splitlines() if "Traceback" in line or "bug " in line or " ERROR " in line], log


def refused(answer: Any) -> str:
    """What is wrong, of an answer that says so."""
    check("control#/$defs/error", answer)
    return "\n".join(f"{d['path']}: {d['summary']} ({d['hint']})" for d in answer["diagnostics"])


def test_only_this_user_can_reach_the_socket(up: Stage) -> None:
    path = Layout(up.root).control_socket
    info = path.stat()
    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert info.st_uid == path.parent.stat().st_uid == os.getuid()


def test_the_schema_has_every_method_and_no_other() -> None:
    names = document("control")["$defs"]
    assert {name.removesuffix(".request") for name in names if name.endswith(".request")} == set(METHODS)
    assert {name.removesuffix(".message") for name in names if name.endswith(".message")} == set(STREAMS)
    assert {name.removesuffix(".answer") for name in names if name.endswith(".answer")} == set(METHODS) - set(STREAMS)


WRONG = {
    b"": "not a request",
    b"hello": "not a request",
    b"[]": "not a request",
    b'"status"': "not a request",
    b"null": "not a request",
    b"{}": "method",
    b'{"method": 5}': "method",
    b'{"method": ["status"]}': "method",
    b'{"method": "stats"}': "there is no method 'stats' (there are: hello, status, plan, ",
    b'{"method": "status", "api": 2}': "speaks version 1 of the API, not 2",
    b'{"method": "nothing", "api": 7, "new": 1}': "speaks version 1 of the API, not 7",
    b'{"method": "status", "api": "1"}': "api",
    b'{"method": "status", "verbose": true}': "verbose: not a request: Extra inputs are not permitted",
    b'{"method": "plan"}': "manifest: not a request: Field required",
    b'{"method": "plan", "manifest": 5}': "manifest",
    b'{"method": "plan", "manifest": "stack.yaml"}': "manifest",
    b'{"method": "plan", "manifest": ""}': "manifest",
    b'{"method": "plan", "manifest": "/a\\u0000b"}': "manifest",
    b'{"method": "plan", "manifest": "/"}': "",
    b'{"method": "plan", "manifest": "/dev/zero"}': "",
    b'{"method": "apply", "manifest": "/dev/null"}': "",
    b'{"method": "plan", "manifest": "/\\ud800"}': "not a request",
    b'{"method": "plan", "manifest": "/' + b"x" * 5000 + b'"}': "too long",
    b'{"method": "apply", "manifest": "/x", "targets": "server/chat"}': "targets",
    b'{"method": "apply", "manifest": "/x", "targets": [5]}': "targets.0",
    b'{"method": "apply", "manifest": "/x", "targets": ["server/a b"]}': "targets.0",
    b'{"method": "apply", "manifest": "/x", "lockd": true}': "lockd",
    b'{"method": "apply", "manifest": "/x", "allow_empty": "no"}': "allow_empty",
    b'{"method": "apply", "manifest": "/x", "allow_empty": 1}': "allow_empty",
    b'{"method": "apply", "manifest": "/x", "confirm_within": NaN}': "confirm_within",
    b'{"method": "apply", "manifest": "/x", "confirm_within": -1}': "confirm_within",
    b'{"method": "apply", "manifest": "/x", "confirm_within": 1e300}': "confirm_within",
    b'{"method": "apply", "manifest": "/x", "binding": []}': "binding",
    b'{"method": "rollback", "generation": 0}': "generation",
    b'{"method": "rollback", "generation": 1.5}': "generation",
    b'{"method": "rollback", "generation": 9223372036854775807}': "no generation 9223372036854775807",
    b'{"method": "rollback", "generation": 9223372036854775808}': "generation",
    b'{"method": "rollback", "generation": ' + b"9" * 6000 + b"}": "",
    b'{"method": "lock", "upgrade": {}}': "upgrade",
    b'{"method": "pause", "refs": "model/chat"}': "refs",
    b'{"method": "pause", "refs": ["/chat"]}': "refs.0",
    b'{"method": "pause", "refs": ["nobody"]}': "there is no nobody",
    b'{"method": "pause", "discard": true}': "needs a resource",
    b'{"method": "pause", "refs": ["server/chat"], "discard": true}': "has no download",
    b'{"method": "resume", "refs": ["chat"], "discard": true}': "discard",
    b'{"method": "resume", "refs": ["model/nobody"]}': "there is no model/nobody",
    b'{"method": "ensure_ready", "model": null}': "model",
    b'{"method": "ensure_ready", "model": "chat", "timeout": Infinity}': "timeout",
    b'{"method": "ensure_ready", "model": "chat", "timeout": "1"}': "timeout",
    b'{"method": "events", "after": -1}': "after",
    b'{"method": "events", "after": 1e400}': "after",
    b'{"method": "down", "purge": "yes"}': "purge",
    b'{"method": "gc", "yes": 1}': "yes",
    b'{"method": "gc", "older": -1}': "older",
    b'{"method": "gc", "keep_generations": 0}': "keep_generations",
    b'{"method": "suspect"}': "digests",
    b'{"method": "suspect", "digests": ["../../x"]}': "digests.0",
    b"[" * 100_000: "not a request",
    b'{"method": "apply", "manifest": "/x", "binding": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001: "not a request",
    b"\xff\xfe": "not a request",
    b"\x00" * 100: "not a request",
}


def test_what_is_not_a_request_is_told_so_and_the_connection_lives_on(up: Stage) -> None:
    with Wire(up) as wire:
        for line, words in WRONG.items():
            assert words in refused(wire.ask(line)), line[:100]
        assert wire.ask({"method": "hello"})["api"] == 1


def test_several_requests_in_one_breath_are_answered_in_order(up: Stage) -> None:
    with Wire(up) as wire:
        wire.say(b'{"method": "hello"}\n{"method": "none"}\n{"method": "status"}\n{"method": "hello"}')
        assert wire.hear()["pid"] == up.controller
        assert "no method" in refused(wire.hear())
        assert wire.hear()["ready"]
        wire.socket.shutdown(1)  # the last one has no line end, but nothing follows it
        assert wire.hear()["pid"] == up.controller
        assert wire.hear() is None


def test_a_line_without_end_is_cut_off(up: Stage) -> None:
    with Wire(up) as wire:
        try:
            for _ in range(4):
                wire.say(b"x" * LINE_LIMIT)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert f"at most {LINE_LIMIT} bytes" in refused(wire.hear())
        assert wire.hear() is None
    with Wire(up) as wire:
        long = json.dumps({"method": "ensure_ready", "model": "x" * (LINE_LIMIT - 100)}).encode()
        assert "no model named" in refused(wire.ask(long))


def test_many_clients_at_once(up: Stage) -> None:
    def one(number: int) -> bool:
        with Wire(up) as wire:
            manifest = str(up.manifest)
            asked = [{"method": "status"}, {"method": "plan", "manifest": manifest}, {"method": "hello"}]
            names = ("status", "plan", "control#/$defs/hello.answer")
            return all(check(name, wire.ask(request)) for name, request in zip(names, asked, strict=True))

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(one, range(80)))


def test_too_many_clients_are_told_so_and_the_others_served(up: Stage) -> None:
    with ExitStack() as stack:
        first = [stack.enter_context(Wire(up)) for _ in range(MOST_CLIENTS)]
        assert all(wire.ask({"method": "hello"}) for wire in first)
        with Wire(up) as more:
            assert f"{MOST_CLIENTS} clients are connected" in refused(more.hear())
            assert more.hear() is None
        assert first[0].ask({"method": "status"})["ready"]
    with Wire(up) as wire:  # and there is room again
        assert wait_until(lambda: _served(up), 10, "no room")
        del wire


def _served(up: Stage) -> bool:
    with Wire(up) as wire:
        return "api" in (wire.ask({"method": "hello"}) or {})


def test_a_client_that_never_reads_holds_up_nobody(up: Stage) -> None:
    controller = psutil.Process(up.controller)
    with Wire(up) as deaf, Wire(up) as wire:
        deaf.socket.setblocking(False)
        said = 0
        try:
            while said < 20_000:
                deaf.socket.send(b'{"method": "status"}\n')
                said += 1
        except BlockingIOError:
            pass  # it does not listen to whoever does not read
        before = controller.memory_info().rss
        for _ in range(50):
            assert wire.ask({"method": "status"})["ready"]
        assert controller.memory_info().rss - before < 50 << 20
        assert said < 20_000


def test_streams_that_nobody_reads_or_that_are_left_cost_nothing(up: Stage) -> None:
    def descriptors() -> int:
        return psutil.Process(up.controller).num_fds()

    before = descriptors()
    with ExitStack() as stack:
        for method in ("follow", "events", "events"):
            deaf = stack.enter_context(Wire(up))
            deaf.say(json.dumps({"method": method}).encode() + b'\n{"method": "status"}\n')
        for _ in range(30):
            with Wire(up) as wire:
                assert check("control#/$defs/events.message", wire.ask({"method": "events"}))
            with Wire(up) as wire:
                assert check("control#/$defs/follow.message", wire.ask({"method": "follow"}))["type"] == "status"
        wait_until(lambda: descriptors() <= before + 4, 10, "streams that were left stay open")
    wait_until(lambda: descriptors() <= before + 1, 10, "streams stay open")


# -- any request ------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["server/chat", "model/chat", "gateway/main", "model/x", "chat", "server/", "a/b/c", "A/b", ""])
PATHS = st.sampled_from(["/", "/dev/null", "/nowhere/stack.yaml", "/etc/hostname", "stack.yaml", "/a\0b", "~", ""])
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "api": st.sampled_from([1, 1, 1, 1, 0, 2, True, "1", 1.5, None]),
    "manifest": PATHS,
    "allow_empty": st.booleans(),
    "targets": st.lists(NAMES, max_size=3),
    "locked": st.booleans(),
    "confirm_within": st.sampled_from([0, 0.5, 31536000, 31536001, -1, -0.0]),
    "binding": st.none()
    | st.dictionaries(st.sampled_from(["lineage", "serial", "manifest", "lock", "observed"]), JSON),
    "generation": st.sampled_from([None, 0, -1, 10**6, 2**63 - 1, 2**63, 1.5]),
    "refs": st.lists(NAMES, max_size=3),
    "discard": st.booleans(),
    "upgrade": st.none() | st.lists(NAMES, max_size=3),
    "model": st.sampled_from(["chat", "fast", "nobody", ""]),
    "timeout": st.sampled_from([0, 0.01, -1, 1e9]),
    "after": st.sampled_from([0, 1, 2**63 - 1, 2**63, -1]),
    "purge": st.booleans(),
    "yes": st.booleans(),
    "older": st.sampled_from([0, 0.5, 31536000, 31536001, -1]),
    "keep_generations": st.sampled_from([None, 0, 1, 3, 2**63 - 1, 2**63, 1.5]),
    "digests": st.lists(st.sampled_from(["a" * 64, "A" * 64, "a" * 63, ""]), max_size=3),
}
# Those that would end the controller or change what is in force are only spoken wrongly to the live one.
METHOD = st.sampled_from([*METHODS, "nothing", "Status", ""])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A method with keys that are its own or another's, with values that are likely, or anything."""
    method = draw(METHOD)
    own = [key for key in METHODS[method].model_fields if key != "method"] if method in METHODS else []
    keys = draw(st.sets(st.sampled_from([*own, *own, *own, *LIKELY]), max_size=4))
    made = {key: draw(LIKELY[key] if draw(st.integers(0, 4)) else JSON) for key in keys}
    return {"method": draw(JSON) if draw(st.integers(0, 20)) == 0 else method, **made}


QUICK = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


@settings(QUICK, max_examples=600)
@given(requests())
def test_the_schema_allows_what_the_controller_takes(request_: dict[str, Any]) -> None:
    line = json.dumps(request_).encode()
    try:
        parse(line)
    except Refused:
        taken = False
    else:
        taken = True
    allowed = validator("control").is_valid(request_) and not _whole(request_)
    assert taken == allowed, request_


def _whole(request_: dict[str, Any]) -> bool:
    """JSON Schema knows no difference between 1 and 1.0, where a count must be written as one; nor do people."""
    counts = [request_.get(key) for key in ("api", "generation", "after", "keep_generations")]
    return any(isinstance(value, float) for value in counts) or _odd(request_)


def _odd(value: Any) -> bool:
    """What is no JSON at all, though Python writes it: NaN, Infinity, half a surrogate pair."""
    if isinstance(value, dict):
        return any(_odd(key) or _odd(inner) for key, inner in value.items())
    if isinstance(value, list):
        return any(map(_odd, value))
    if isinstance(value, str):
        return any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))


@settings(QUICK, max_examples=300)
@given(requests())
def test_every_request_gets_an_answer(up: Stage, request_: dict[str, Any]) -> None:
    line = json.dumps(request_).encode()
    method = request_["method"] if isinstance(request_["method"], str) else ""
    if method in ("shutdown", "down", "lock", "pause", "resume") and validator("control").is_valid(request_):
        return  # it would do it; and a lock may take its time
    with Wire(up) as wire:
        answer = wire.ask(line)
        assert answer is not None, line
        if "error" in answer:
            check("control#/$defs/error", answer)
            assert "internal" not in answer["error"], answer
        else:
            check(f"control#/$defs/{method}.{'message' if method in STREAMS else 'answer'}", answer)


@settings(QUICK, max_examples=200)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b'{"method":', b'"hello"}', b"[", b"\\u", b"{}"])))
def test_any_bytes_get_answers_or_an_end(up: Stage, pieces: list[bytes]) -> None:
    with Wire(up) as wire:
        wire.say(b"".join(pieces))
        wire.socket.shutdown(1)
        answers = []
        while (answer := wire.hear()) is not None:
            answers.append(answer)
        said = b"".join(pieces)
        assert len(answers) == said.count(b"\n") + (not said.endswith(b"\n") and bool(said))


def test_a_manifest_that_is_a_pipe_does_not_hold_the_controller(up: Stage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stack.yaml")
    with Wire(up) as wire:
        assert "not a file" in refused(wire.ask({"method": "apply", "manifest": str(tmp_path / "stack.yaml")}))
