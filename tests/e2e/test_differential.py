"""The same request to the engine itself and through the gateway: what a client sees is the same.

Status, headers and body are compared piece by piece. Whatever differs has to stand in `KNOWN` with its reason, and
whatever stands there has to occur: a row that no request needs any more is an error too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage, real_engine
from tests.support import llama_server
from tests.support.streams import chat_stream, messages_stream
from tests.support.streams_responses import responses_stream
from tests.support.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.engines

HI = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
PARAMETERS = {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]}
FUNCTION = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": PARAMETERS}}
TOOL = {"name": "look", "description": "Look.", "input_schema": PARAMETERS}
ITEM = {"type": "function", "name": "look", "description": "Look.", "parameters": PARAMETERS, "strict": False}
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
FORMAT = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SPOKEN_BEFORE = [*HI, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "and?"}]


class Request(NamedTuple):
    """`body` is sent as JSON, or as it is where it is bytes; GET where there is none."""

    path: str
    body: dict[str, Any] | bytes | None


def _both(path: str, **body: Any) -> list[Request]:
    """Whole and streamed."""
    return [Request(path, body), Request(path, {**body, "stream": True})]


def _chat(**more: Any) -> list[Request]:
    return _both("/chat/completions", **{"messages": HI, "max_tokens": 40, **more})


def _messages(**more: Any) -> list[Request]:
    return _both("/messages", **{"messages": HI, "max_tokens": 40, **more})


def _responses(**more: Any) -> list[Request]:
    return _both("/responses", **{"input": "hello", "max_output_tokens": 40, **more})


def _some(*bodies: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return bodies


REQUESTS: list[Request] = [
    *_chat(),
    *_chat(stream_options={"include_usage": True}),
    *_chat(messages=[{"role": "system", "content": "Be kind."}, *SPOKEN_BEFORE]),
    *_chat(messages=[{"role": "user", "content": [{"type": "text", "text": "ünïcode 🌍"}]}]),
    *_chat(max_tokens=3),
    *_chat(max_completion_tokens=3),
    *_chat(stop=["tiny"]),
    *_chat(stop="never said"),
    *_chat(seed=7),
    *_chat(logprobs=True, top_logprobs=2, max_tokens=3),
    *_chat(n=2, max_tokens=3),
    *_chat(tools=[FUNCTION], tool_choice="auto"),
    *_chat(tools=[FUNCTION], tool_choice="required", max_tokens=80),
    *_chat(tools=[FUNCTION], tool_choice="none"),
    *_chat(response_format=STRUCTURED),
    *_chat(response_format={"type": "json_object"}),
    *_chat(response_format={"type": "text"}, frequency_penalty=0.5, presence_penalty=0.5, logit_bias={"5": 1}),
    *_chat(messages="nonsense"),
    *_chat(messages=[]),
    *_chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]),
    *_chat(messages=[{"role": "user", "content": "x " * 9000}]),
    *_chat(temperature="hot"),
    *_chat(max_tokens=-5),
    *_chat(top_k=0, min_p=0.1, id_slot=0),
    *_both("/completions", prompt="hello", max_tokens=8),
    *_both("/completions", prompt="hello", max_tokens=8, stream_options={"include_usage": True}),
    *_both("/completions", prompt="hello", max_tokens=8, stop=["a"]),
    *_both("/completions", prompt="hello", max_tokens=3, logprobs=2),
    *_both("/completions", prompt="hello", max_tokens=3, echo=True),
    *_both("/completions", prompt=["x", "y"], max_tokens=2),
    *_both("/completions", prompt=[5, 6, 7], max_tokens=2),
    *_both("/completions", max_tokens=2),
    *_both("/completions", prompt="x" * 9000, max_tokens=4),
    *[
        Request("/embeddings", {"model": "embed", **more})
        for more in _some(
            {"input": "a"},
            {"input": ["a", "b c"]},
            {"input": [1, 2]},
            {"input": "a", "encoding_format": "base64"},
            {"input": "a", "dimensions": 5},
            {"input": []},
            {},
        )
    ],
    Request("/embeddings", {"model": "chat", "input": "a"}),
    *[
        Request("/rerank", {"model": "rank", **more})
        for more in _some(
            {"query": "a", "documents": ["a", "b c"]},
            {"query": "a", "documents": ["a", "b c", "d"], "top_n": 2},
            {"query": "a", "documents": []},
            {"query": "a"},
        )
    ],
    *_messages(),
    *_messages(system="Be kind.", messages=SPOKEN_BEFORE),
    *_messages(messages=[{"role": "user", "content": [{"type": "text", "text": "ünïcode 🌍"}]}]),
    *_messages(max_tokens=3),
    *_messages(stop_sequences=["tiny"]),
    *_messages(seed=7, top_k=1, top_p=0.9),
    *_messages(tools=[TOOL]),
    *_messages(tools=[TOOL], tool_choice={"type": "any"}, max_tokens=80),
    *_messages(messages="nonsense"),
    *_messages(messages=[]),
    *_messages(messages=[{"role": "user", "content": "x " * 9000}]),
    *_messages(temperature="hot"),
    Request("/messages", {"messages": HI}),
    Request("/messages/count_tokens", {"messages": HI}),
    Request("/messages/count_tokens", {"messages": HI, "system": "Be kind.", "tools": [TOOL]}),
    Request("/messages/count_tokens", {"messages": "nonsense"}),
    *_responses(),
    *_responses(instructions="Be kind.", input=[{"role": "user", "content": "hello"}]),
    *_responses(max_output_tokens=3),
    *_responses(tools=[ITEM], tool_choice="auto"),
    *_responses(tools=[ITEM], tool_choice="required", max_output_tokens=80),
    *_responses(text=FORMAT),
    *_responses(include=["message.output_text.logprobs"], max_output_tokens=3),
    *_responses(seed=7, top_p=0.9),
    *_responses(input=5),
    *_responses(input="x " * 9000),
    Request("/models", None),
    Request("/models/chat", None),
    Request("/chat/completions", b""),
    Request("/chat/completions", b"{"),
    Request("/chat/completions", b'"text"'),
    Request("/chat/completions", {"model": "unknown", "messages": HI, "max_tokens": 2}),
    Request("/nowhere", {"messages": HI}),
]
"""All with temperature 0 and without the prompt cache, so that an answer depends on nothing but its question."""


class Known(NamedTuple):
    """One difference that is meant: in which requests (their name begins so), at which places (whole match), and why.

    `added`: only where the engine says nothing at that place.
    """

    request: str
    place: str
    why: str
    added: bool = False


_BODY = r"(body|event \d+)"
_EVERYTHING = r"status|(header content-|header x-accel|body|event ).*"
_SETTINGS = (
    "background error incomplete_details instructions max_output_tokens max_tool_calls metadata parallel_tool_calls "
    "previous_response_id prompt_cache_key reasoning safety_identifier service_tier store temperature text tool_choice "
    "tools top_logprobs top_p truncation user"
).replace(" ", "|")

KNOWN: list[Known] = [
    # of every exchange
    Known(
        "", "header (date|x-request-id)", "The gateway says when it answered, and by what name its log has it.", True
    ),
    Known("", "header x-reconciler-target", "It says who answered.", True),
    Known("", "header server", "Which program serves a model is told in the list of models only."),
    Known("", "header access-control-allow-origin", "Which origins may ask is the gateway's to say."),
    Known("", "header (connection|keep-alive)", "These are of one connection, and the gateway keeps its own."),
    Known("", "header (content-length|transfer-encoding)", "A body that is there at once is sent with its length."),
    Known("", "header content-type", "JSON is UTF-8 by definition; what the gateway puts together does not say so."),
    Known("/messages", "header cache-control", "A stream that is mended says that it is not to be cached.", True),
    Known("/responses", "header cache-control", "A stream that is mended says that it is not to be cached.", True),
    Known("", rf"{_BODY}\.timings\.[a-z_]+(_ms|_per_second)", "Two runs do not take equally long."),
    Known("", rf"{_BODY}([.\[].*)?\.(id|created|created_at|completed_at|item_id|call_id)", "Each has its own."),
    # refused by the gateway, or told in its own words
    Known('/chat/completions {"model": "unknown"', _EVERYTHING, "The engine does not look at the name of its model."),
    Known("/chat/completions '", r"body\.error\..*", "Nobody could be asked for what is no JSON object."),
    Known("/nowhere", r"body\.error\..*", "The words are the gateway's, and say where the API is."),
    Known("/models", _EVERYTHING, "The gateway lists every model that it leads to, and answers for a single one."),
    # messages: what Anthropic's API does, and llama-server does not
    Known('/messages {"messages": "nonsense"', _EVERYTHING, "Refused there, answered by the engine."),
    Known('/messages {"messages": []', _EVERYTHING, "Refused there, answered by the engine."),
    Known('/messages {"messages": [{"role": "user", "content": "hello"}]}', _EVERYTHING, "A limit is required there."),
    Known("/messages", "header request-id", "Anthropic's clients look for the request's name there.", True),
    Known("/messages", r"body\.(type|request_id|error\..*)", "Errors have the envelope of Anthropic's dialect."),
    Known(
        '/messages {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "stop_sequences": ["tiny"]',
        rf"{_BODY}(\.delta)?\.stop_reason",
        "It is not its turn's end that ended it.",
    ),
    # responses: what OpenAI's API says, and llama-server does not
    Known(
        "/responses", rf"(body|event \d+\.response)\.({_SETTINGS})([.\[].*)?", "The request's settings are told.", True
    ),
    Known("/responses", rf"{_BODY}(\.response)?\.usage\..*_tokens_details\..*", "Its usage says this too.", True),
    Known("/responses", r"event \d+\.response\.(model|output|usage)", "A response that begins says this too.", True),
    Known(
        "/responses",
        r"event \d+\.(sequence_number|output_index|content_index|logprobs|part\.annotations|part\.logprobs)",
        "Its events say this too.",
        True,
    ),
    Known("/responses", r"event \d+\.timings\..*", "Its last event has no timings."),
    Known(
        '/responses {"input": "hello", "max_output_tokens": 3',
        r"(event \d+ name|.*\.status|event \d+\.type|body\.(completed_at|incomplete_details))",
        "An answer that the limit ended is incomplete.",
    ),
    Known('/responses {"input": 5', r"body\.error\..*", "The words are the gateway's."),
    Known('/responses {"input": "hello", "max_output_tokens": 40, "text"', _EVERYTHING, "The engine ignores formats."),
    Known(
        '/responses {"input": "hello", "max_output_tokens": 3, "include"', _EVERYTHING, "It ignores log probabilities."
    ),
]


@dataclass
class Answer:
    """What a client sees: places and values. `stream` holds the bytes of a good stream."""

    seen: dict[str, Any]
    stream: bytes = b""


@dataclass
class Ways:
    """The gateway, and each model's engine: where it is, and the key of this session."""

    gateway: str
    engines: dict[str, tuple[str, str]]
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60))

    def direct(self, request: Request) -> Answer:
        base, key = self.engines[_model(request)]
        return self._ask(base, request, {"authorization": f"Bearer {key}"})

    def through(self, request: Request) -> Answer:
        return self._ask(self.gateway, request, {})

    def _ask(self, base: str, request: Request, headers: dict[str, str]) -> Answer:
        method, content = "GET", b""
        if request.body is not None:
            method, content, headers = "POST", _content(request), {**headers, "content-type": "application/json"}
        got = self.http.request(method, f"{base}/v1{request.path}", content=content, headers=headers)
        seen: dict[str, Any] = {"status": got.status_code}
        seen |= {f"header {name}": value for name, value in got.headers.items()}
        if got.headers.get("content-type", "").startswith("text/event-stream"):
            for number, (name, data) in enumerate(_events(got.text)):
                seen |= {f"event {number} name": name, **_flat(data, f"event {number}")}
            return Answer(seen, got.content if got.status_code == 200 else b"")
        try:
            document = got.json()
        except ValueError:
            document = got.text
        return Answer(seen | _flat(document, "body"))


def _model(request: Request) -> str:
    named = request.body.get("model", "chat") if isinstance(request.body, dict) else "chat"
    return named if named in ("embed", "rank") else "chat"


def _content(request: Request) -> bytes:
    if isinstance(request.body, bytes):
        return request.body
    assert request.body is not None
    return json.dumps({"model": "chat", "temperature": 0, "cache_prompt": False, **request.body}).encode()


def _events(text: str) -> list[tuple[str, Any]]:
    """(name, JSON or text of its data) of each event; comments are not for the client's program."""
    out = []
    for block in re.split(r"\r?\n\r?\n", text):
        lines = [line for line in block.splitlines() if line and not line.startswith(":")]
        name = "".join(line[6:].strip() for line in lines if line.startswith("event:"))
        data = "\n".join(line[5:].strip() for line in lines if line.startswith("data:"))
        if lines:
            out.append((name, json.loads(data) if data.startswith("{") else data))
    return out


def _flat(value: Any, place: str) -> dict[str, Any]:
    """Every leaf by its place; an empty object or array is a leaf."""
    if isinstance(value, dict) and value:
        return {k: v for key, each in value.items() for k, v in _flat(each, f"{place}.{key}").items()}
    if isinstance(value, list) and value:
        return {k: v for at, each in enumerate(value) for k, v in _flat(each, f"{place}[{at}]").items()}
    return {place: value}


_MISSING = "(nothing)"
_READERS = {"/chat/completions": chat_stream, "/messages": messages_stream, "/responses": responses_stream}


def differences(one: Answer, two: Answer) -> dict[str, tuple[Any, Any]]:
    """Where the two differ, and how."""
    places = sorted(one.seen.keys() | two.seen.keys())
    pairs = {place: (one.seen.get(place, _MISSING), two.seen.get(place, _MISSING)) for place in places}
    return {place: pair for place, pair in pairs.items() if pair[0] != pair[1]}


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, models: Path, engine: str) -> Iterator[Ways]:
    """Three models up, one for each task."""
    folder = tmp_path_factory.mktemp("differential")
    if engine == "llama-server":
        (folder / "engine").symlink_to(llama_server.needed())
    else:
        real_engine(folder / "engine")
    (folder / "models").symlink_to(models)
    rank = tiny_gguf(folder / "rank.gguf", kind="rerank")
    stage = Stage(folder)
    stage.write(
        manifest(
            stage,
            "\n".join(
                (
                    entry(),
                    entry("embed", "models/embed.gguf", "512", ", task: embedding"),
                    entry("rank", rank.name, "512", ", task: rerank"),
                )
            ),
        )
    )
    try:
        stage.run("apply")
        routes = json.loads((stage.root / "run" / "routes.json").read_text())
        targets = {name: model["target"] for name, model in routes["models"].items()}
        engines = {n: (f"http://{t['host']}:{t['port']}", t["key"]) for n, t in targets.items()}
        ways = Ways(stage.url, engines)
        with ways.http:
            yield ways
    finally:
        stage.close()


def _name(request: Request) -> str:
    body = request.body
    text = repr(body.decode()) if isinstance(body, bytes) else json.dumps(body)
    return f"{request.path} {text}"[:110]


def _rows(request: Request, place: str, direct: Any) -> list[Known]:
    """Those that say why there is a difference."""
    return [
        row
        for row in KNOWN
        if _name(request).startswith(row.request)
        and re.fullmatch(row.place, place)
        and (direct == _MISSING or not row.added)
    ]


class Found(NamedTuple):
    """What all requests together brought: by request, what no row explains; the rows that explained something."""

    unknown: dict[str, list[str]]
    used: set[Known]


@pytest.fixture(scope="module")
def found(ways: Ways) -> Found:
    """Every request asked both ways, its streams read by the strict readers."""
    unknown: dict[str, list[str]] = {}
    used: set[Known] = set()
    for request in REQUESTS:
        direct, through = ways.direct(request), ways.through(request)
        said = unknown.setdefault(request.path, [])
        for place, (one, two) in differences(direct, through).items():
            rows = _rows(request, place, one)
            used.update(rows)
            if not rows:
                said.append(f"{_name(request)}: {place}: {one!r} → {two!r}")
        if through.stream and request.path in _READERS:
            try:
                _READERS[request.path](through.stream)
            except AssertionError as error:
                said.append(f"{_name(request)}: {error}")
    return Found(unknown, used)


@pytest.mark.parametrize("path", sorted({request.path for request in REQUESTS}))
def test_the_gateway_says_what_the_engine_says(found: Found, path: str) -> None:
    assert not found.unknown[path], "\n".join(found.unknown[path])


def test_every_known_difference_is_still_there(found: Found) -> None:
    assert not [row for row in KNOWN if row not in found.used]
