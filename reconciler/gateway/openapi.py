"""OpenAPI: the description of what is served, made from the table by which requests are dispatched.

PURE: the table and the routes in, an OpenAPI 3.1 document out. It tells whoever may read it the names of the models
that they may ask for, and nothing else of this machine. Requests are described by the fields that this gateway knows;
others are passed on, and what a target makes of them is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reconciler.gateway.docs_page import FILES
from reconciler.gateway.operations import Operation, served
from reconciler.gateway.routes import Routes

Schema = dict[str, Any]
JSON = "application/json"
EVENTS = "text/event-stream"
_DESCRIPTION = (
    "One API in front of all models of this machine and of its providers, in OpenAI's and Anthropic's words. "
    "Errors are told in the words of the path, or in Anthropic's to whoever sends `anthropic-version`. "
    "Pages of other origins may call it where the manifest names them (`gateway.cors.origins`). GET stands for HEAD "
    "wherever HEAD is listed."
)
_TAGS = {
    "models": "Asking models",
    "engines": "What the engines of this machine serve of their own",
    "gateway": "The gateway itself",
}


def describe(routes: Routes, names: Sequence[str], version: str) -> dict[str, Any]:
    """The document; `names` are the models that its reader may ask for."""
    keyed = bool(routes.api_keys)
    paths: dict[str, dict[str, Any]] = {}
    for operation in served(routes.keep_responses):
        item = paths.setdefault(operation.whole(routes.prefix), _item(operation, names))
        item[operation.method.lower()] = _operation(operation, names, keyed)
        if operation.method == "GET" and operation.does != "native":
            item["head"] = _head(operation, names, keyed)
    document = {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "Reconciler", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/", "description": "Where this description came from"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
    if keyed:
        document["security"] = [{"bearer": []}, {"x-api-key": []}]
        document["components"] = {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's clients send a key"},
                "x-api-key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "As Anthropic's clients send a key",
                },
            },
        }
    return document


def _item(operation: Operation, names: Sequence[str]) -> dict[str, Any]:
    parameters = [_parameter(name, names) for name in _names(operation.path)]
    return {"parameters": parameters} if parameters else {}


def _names(path: str) -> list[str]:
    return [word[1:-1] for word in path.split("/") if word.startswith("{")]


def _parameter(name: str, names: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    match name:
        case "model":
            out["description"] = "A name from the list of models. A slash in it stands as it is under /upstream/."
            out |= _examples(names)
        case "file":
            out["schema"] = {"type": "string", "enum": sorted(file for file in FILES if file)}
        case "slot":
            out["schema"] = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
    return out


def _examples(names: Sequence[str]) -> dict[str, Any]:
    return {"examples": {name: {"value": name} for name in names[:20]}} if names else {}


def _operation(operation: Operation, names: Sequence[str], keyed: bool) -> dict[str, Any]:
    out = _named(operation, keyed)
    if parameters := _query(operation):
        out["parameters"] = parameters
    if (body := _body(operation, names)) is not None:
        out["requestBody"] = body
    out["responses"] = _responses(operation, keyed)
    return out


def _head(operation: Operation, names: Sequence[str], keyed: bool) -> dict[str, Any]:
    """The same without bodies."""
    out = _operation(operation, names, keyed)
    out["operationId"] = f"head_{out['operationId']}"
    out["summary"] = f"{out['summary']} (its head)"
    out["responses"] = {
        status: {key: value for key, value in answer.items() if key != "content"}
        for status, answer in out["responses"].items()
    }
    return out


def _named(operation: Operation, keyed: bool) -> dict[str, Any]:
    words = [word.strip("{}").replace("-", "_").replace(".", "_") for word in operation.path.split("/") if word]
    out: dict[str, Any] = {
        "operationId": "_".join((operation.method.lower(), *words)) if words else "front",
        "summary": operation.summary,
        "tags": [operation.tag],
    }
    if keyed and operation.keyless:
        out["security"] = []
    return out


# -- requests ---------------------------------------------------------------------------------------------------------


def _query(operation: Operation) -> list[dict[str, Any]]:
    match operation.does:
        case "kept_items":
            return [
                _in_query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "How many at most"),
                _in_query("order", {"type": "string", "enum": ["asc", "desc"]}, "The oldest or the newest first"),
                _in_query("after", {"type": "string"}, "The id of the one before the first"),
            ]
        case "models":
            return [
                _in_query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, _ANTHROPIC_ONLY),
                _in_query("after_id", {"type": "string"}, _ANTHROPIC_ONLY),
                _in_query("before_id", {"type": "string"}, _ANTHROPIC_ONLY),
            ]
        case "native" if "{slot}" in operation.path:
            return [_in_query("action", {"type": "string", "enum": ["erase"]}, "Nothing else is passed on", True)]
    return []


_ANTHROPIC_ONLY = "Read where `anthropic-version` is sent"


def _in_query(name: str, schema: Schema, description: str, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _body(operation: Operation, names: Sequence[str]) -> dict[str, Any] | None:
    if operation.method != "POST":
        return None
    if operation.does == "native":
        name, example = _NATIVE.get(operation.upstream, ("NativeRequest", {}))
        if not name:
            return None
        return _content(JSON, name, {"example": {"value": example}} if example is not None else {})
    name, example = _ASKED[operation.path]
    kind = "multipart/form-data" if operation.does == "form" else JSON
    if kind != JSON:
        return _content(kind, name, {})
    return _content(kind, name, {each: {"value": {"model": each, **example}} for each in list(names)[:3]})


def _content(kind: str, name: str, examples: Mapping[str, Any]) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": _ref(name)}
    if examples:
        media["examples"] = dict(examples)
    return {"required": True, "content": {kind: media}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TURN = {"messages": [{"role": "user", "content": "Say hello."}]}
# By path: the schema of what is asked, and an example beside the model.
_ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "/chat/completions": ("ChatRequest", {**_TURN, "max_tokens": 64}),
    "/completions": ("CompletionRequest", {"prompt": "Once upon a time", "max_tokens": 64}),
    "/embeddings": ("EmbeddingRequest", {"input": ["a text", "another"]}),
    "/rerank": ("RerankRequest", {"query": "a question", "documents": ["an answer", "something else"]}),
    "/responses": ("ResponseRequest", {"input": "Say hello."}),
    "/messages": ("MessagesRequest", {**_TURN, "max_tokens": 64}),
    "/messages/count_tokens": ("CountRequest", _TURN),
    "/audio/transcriptions": ("TranscriptionRequest", {}),
}
_NATIVE: dict[str, tuple[str, Any]] = {
    "/slots/{slot}": ("", None),
    "/lora-adapters": ("AdapterScales", [{"id": 0, "scale": 0.5}]),
    "/tokenize": ("TokenizeRequest", {"content": "Hello"}),
    "/detokenize": ("DetokenizeRequest", {"tokens": [1, 2, 3]}),
    "/apply-template": ("NativeRequest", _TURN),
    "/infill": ("NativeRequest", {"input_prefix": "def add(a, b):\n", "input_suffix": "\n", "n_predict": 16}),
    "/completion": ("NativeRequest", {"prompt": "Once upon a time", "n_predict": 16}),
    "/completions": ("NativeRequest", {"prompt": "Once upon a time", "max_tokens": 16}),
    "/chat/completions": ("NativeRequest", _TURN),
    "/embedding": ("NativeRequest", {"content": "a text"}),
    "/embeddings": ("NativeRequest", {"content": "a text"}),
}

# -- answers ----------------------------------------------------------------------------------------------------------

_ANSWERS: dict[str, str] = {
    "/chat/completions": "ChatAnswer",
    "/completions": "CompletionAnswer",
    "/embeddings": "EmbeddingAnswer",
    "/rerank": "RerankAnswer",
    "/responses": "ResponseAnswer",
    "/messages": "MessagesAnswer",
    "/messages/count_tokens": "CountAnswer",
}
_OWN_ANSWERS = {
    "front": "Front",
    "health": "Health",
    "ready": "Ready",
    "model": "AnyModel",
    "models": "AnyModels",
    "kept": "Kept",
    "kept_items": "Items",
    "description": "Description",
}
_WHY = {
    "400": "The request is not one, or says what cannot be done",
    "401": "A key is needed, or is not known here",
    "403": "This Host, Origin or key may not ask for it",
    "404": "There is no such model, response or path",
    "408": "The request did not arrive in time",
    "413": "The body is larger than the manifest allows",
    "415": "The body is packed, or is not what is read here",
    "417": "Something else than 100-continue was expected",
    "429": "The key has used up what it may, or the target says so",
    "500": "The gateway failed",
    "502": "The target broke off, or cannot be reached",
    "503": "The model is not ready, or too much is asked at once",
    "504": "The target said nothing in time",
    "4XX": "What the target says is wrong with the request",
    "5XX": "What the target says went wrong",
}


def _responses(operation: Operation, keyed: bool) -> dict[str, Any]:
    out = {"200": _success(operation)}
    if operation.does == "ready":
        out["503"] = {**_success(operation), "description": "Some models that always run cannot be asked"}
        out["503"]["headers"] = {**_HEADERS, **_RETRY}
    return out | {
        status: _failure(status, operation.dialect) for status in _failures(operation, keyed) if status not in out
    }


def _failures(operation: Operation, keyed: bool) -> list[str]:
    """The statuses other than 200 that an operation can end in."""
    out = ["400", "403", "408", "500", "503"]
    if keyed and not operation.keyless:
        out.append("401")
    if "{" in operation.path:
        out.append("404")
    if operation.does in ("ask", "form", "native"):
        out += ["404", "413", "415", "417", "429", "502", "504", "4XX", "5XX"]
    return sorted(set(out))


def _success(operation: Operation) -> dict[str, Any]:
    out: dict[str, Any] = {"description": "The answer", "headers": dict(_HEADERS)}
    if operation.does in ("ask", "form", "native"):
        out["headers"] |= _TARGET
    if operation.does == "docs":
        out["content"] = {kind: {"schema": {"type": "string"}} for kind in _docs_kinds(operation)}
    elif operation.does in ("native", "form"):
        out["content"] = {"*/*": {"schema": {}}}
    elif operation.does == "metrics":
        out["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif operation.does == "ask":
        out["content"] = {JSON: {"schema": _ref(_ANSWERS[operation.path])}}
        if operation.generates:
            out["content"][EVENTS] = {
                "schema": {"description": "With `stream: true`: each event holds a piece, as JSON"}
            }
    else:
        name = "Deleted" if operation.method == "DELETE" else _OWN_ANSWERS[operation.does]
        out["content"] = {JSON: {"schema": _ref(name)}}
    return out


def _docs_kinds(operation: Operation) -> list[str]:
    page = "{" not in operation.path
    return sorted({kind.partition(";")[0] for name, (_, kind) in FILES.items() if bool(name) is not page})


def _failure(status: str, dialect: str) -> dict[str, Any]:
    schema = _ref("AnthropicError") if dialect == "anthropic" else _ref("AnyError")
    out: dict[str, Any] = {
        "description": _WHY[status],
        "headers": dict(_HEADERS),
        "content": {JSON: {"schema": schema}},
    }
    if status in ("429", "503"):
        out["headers"] |= _RETRY
    if status.endswith("XX"):
        out["content"] = {"*/*": {"schema": {}}}
    return out


_HEADERS = {
    "x-request-id": {"description": "The client's own id of the request, or one of ours", "schema": {"type": "string"}}
}
_TARGET = {
    "x-reconciler-target": {"description": "Who answered: server/NAME or provider/NAME", "schema": {"type": "string"}},
    "x-reconciler-attempts": {"description": "How many were asked, if several", "schema": {"type": "integer"}},
    "x-reconciler-ignored": {"description": "Fields that the target does not know", "schema": {"type": "string"}},
}
_RETRY = {"Retry-After": {"description": "Seconds until it is worth asking again", "schema": {"type": "integer"}}}

# -- schemas ----------------------------------------------------------------------------------------------------------


def _object(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    out: Schema = {"type": "object", "properties": properties}
    if required:
        out["required"] = list(required)
    return out


def _list(items: Schema | None = None, **more: Any) -> Schema:
    return {"type": "array", "items": items or {}, **more}


def _text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _nullable(kind: str, **more: Any) -> Schema:
    return {"type": [kind, "null"], **more}


_INTEGER: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MODEL = _text("A name from the list of models", minLength=1)
_STREAM = _nullable("boolean", description="Whether the answer comes as events, piece by piece")
_TEMPERATURE = _nullable("number", minimum=0, maximum=2)
_SHARE = _nullable("number", minimum=0, maximum=1)
_ONE_OR_MORE: Schema = {"anyOf": [{"type": "string"}, _list({"type": "string"})]}
_TEXT_OR_PARTS: Schema = {"anyOf": [{"type": "string"}, _list({"type": "object"})]}
_ROLES = ["system", "developer", "user", "assistant", "tool", "function"]
_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_OPENAI_ERROR = _object(
    ("message", "type", "param", "code"),
    message=_text("What is wrong, where, and what helps"),
    type=_text("Whose fault it is"),
    param=_nullable("string", description="The field it is about"),
    code=_nullable("string", description="The same in one word, which does not change"),
)
_ANTHROPIC_TURN = _object(("role", "content"), role=_text(enum=["user", "assistant", "system"]), content=_TEXT_OR_PARTS)

_SCHEMAS: dict[str, Schema] = {
    "Error": _object(("error",), error=_OPENAI_ERROR),
    "AnthropicError": _object(
        ("type", "error"),
        type=_text(const="error"),
        error=_object(("type", "message"), type=_text(), message=_text()),
        request_id=_text(),
    ),
    "AnyError": {"anyOf": [_ref("Error"), _ref("AnthropicError")]},
    "Message": _object(
        ("role",),
        role=_text(enum=_ROLES),
        content={"anyOf": [{"type": ["string", "null"]}, _list({"type": "object"})]},
        name=_text(),
        tool_calls=_list({"type": "object"}),
        tool_call_id=_text(),
    ),
    "ChatRequest": _object(
        ("model", "messages"),
        model=_MODEL,
        messages=_list(_ref("Message"), minItems=1),
        stream=_STREAM,
        stream_options=_nullable("object"),
        max_tokens=_nullable("integer"),
        max_completion_tokens=_nullable("integer"),
        temperature=_TEMPERATURE,
        top_p=_SHARE,
        stop={"anyOf": [{"type": ["string", "null"]}, _list({"type": "string"})]},
        seed=_nullable("integer"),
        tools=_list({"type": "object"}),
        tool_choice={"anyOf": [{"type": "string"}, {"type": "object"}]},
        response_format={"type": "object"},
    ),
    "ChatAnswer": _object(
        ("choices",),
        id=_text(),
        object=_text(const="chat.completion"),
        created=_INTEGER,
        model=_text(),
        choices=_list(_object(index=_INTEGER, message={"type": "object"}, finish_reason={"type": ["string", "null"]})),
        usage={"anyOf": [_USAGE, {"type": "null"}]},
    ),
    "CompletionRequest": _object(
        ("model", "prompt"),
        model=_MODEL,
        prompt={"anyOf": [{"type": "string"}, _list()]},
        stream=_STREAM,
        max_tokens=_nullable("integer"),
        temperature=_TEMPERATURE,
        top_p=_SHARE,
        stop={"anyOf": [{"type": ["string", "null"]}, _list({"type": "string"})]},
    ),
    "CompletionAnswer": _object(
        ("choices",), id=_text(), object=_text(), model=_text(), choices=_list({"type": "object"}), usage={}
    ),
    "EmbeddingRequest": _object(
        ("model", "input"),
        model=_MODEL,
        input={"anyOf": [{"type": "string"}, _list()]},
        encoding_format=_text(enum=["float", "base64"]),
        dimensions={"type": "integer", "minimum": 1},
    ),
    "EmbeddingAnswer": _object(
        ("data",), object=_text(), model=_text(), data=_list(_object(index=_INTEGER, embedding={})), usage={}
    ),
    "RerankRequest": _object(
        ("model", "query", "documents"),
        model=_MODEL,
        query=_text(),
        documents=_list(),
        top_n={"type": "integer", "minimum": 1},
    ),
    "RerankAnswer": _object(("results",), results=_list(_object(index=_INTEGER, relevance_score={"type": "number"}))),
    "ResponseRequest": _object(
        ("model", "input"),
        model=_MODEL,
        input=_TEXT_OR_PARTS,
        instructions=_nullable("string"),
        previous_response_id=_nullable("string"),
        store=_nullable("boolean"),
        stream=_STREAM,
        max_output_tokens=_nullable("integer"),
        temperature=_TEMPERATURE,
        top_p=_SHARE,
        tools=_list({"type": "object"}),
    ),
    "ResponseAnswer": _object(
        ("id", "output"), id=_text(), object=_text(const="response"), status=_text(), output=_list({"type": "object"})
    ),
    "Kept": _object(("id",), id=_text(), object=_text(), output=_list({"type": "object"})),
    "Deleted": _object(
        ("id", "deleted"), id=_text(), object=_text(const="response"), deleted={"type": "boolean", "const": True}
    ),
    "Items": _object(
        ("object", "data"),
        object=_text(const="list"),
        data=_list({"type": "object"}),
        has_more={"type": "boolean"},
        first_id=_nullable("string"),
        last_id=_nullable("string"),
    ),
    "MessagesRequest": _object(
        ("model", "messages", "max_tokens"),
        model=_MODEL,
        messages=_list(_ANTHROPIC_TURN, minItems=1),
        max_tokens={"type": "integer", "minimum": 0},
        system=_TEXT_OR_PARTS,
        stream=_STREAM,
        temperature=_SHARE,
        stop_sequences=_list({"type": "string"}),
        tools=_list({"type": "object"}),
        tool_choice={"type": "object"},
        thinking={"type": "object"},
    ),
    "MessagesAnswer": _object(
        ("id", "type", "role", "content"),
        id=_text(),
        type=_text(const="message"),
        role=_text(const="assistant"),
        model=_text(),
        content=_list({"type": "object"}),
        stop_reason=_nullable("string"),
        stop_sequence=_nullable("string"),
        usage=_object(input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    "CountRequest": _object(
        ("model", "messages"),
        model=_MODEL,
        messages=_list(_ANTHROPIC_TURN, minItems=1),
        system=_TEXT_OR_PARTS,
        tools=_list({"type": "object"}),
    ),
    "CountAnswer": _object(("input_tokens",), input_tokens=_COUNT),
    "TranscriptionRequest": _object(
        ("model", "file"),
        model=_MODEL,
        file=_text("The recording", contentMediaType="application/octet-stream"),
        language=_text(),
        prompt=_text(),
        response_format=_text("json, text, srt, verbose_json or vtt, as the target knows them"),
        stream=_text(enum=["true", "false"]),
    ),
    "Model": _object(
        ("id", "object", "created", "owned_by", "ready"),
        id=_text(),
        object=_text(const="model"),
        created=_INTEGER,
        owned_by=_text(),
        ready={"type": "boolean", "description": "Whether it can be asked now"},
        context_length=_nullable("integer", description="Tokens"),
    ),
    "AnthropicModel": _object(
        ("type", "id", "display_name", "created_at"),
        type=_text(const="model"),
        id=_text(),
        display_name=_text(),
        created_at=_text(),
    ),
    "AnyModel": {"anyOf": [_ref("Model"), _ref("AnthropicModel")]},
    "AnyModels": {
        "anyOf": [
            _object(("object", "data"), object=_text(const="list"), data=_list(_ref("Model"))),
            _object(
                ("data", "has_more", "first_id", "last_id"),
                data=_list(_ref("AnthropicModel")),
                has_more={"type": "boolean"},
                first_id=_nullable("string"),
                last_id=_nullable("string"),
            ),
        ]
    },
    "Front": _object(("service", "version", "api"), service=_text(const="reconciler"), version=_text(), api=_text()),
    "Health": _object(
        ("status", "version", "models"),
        status=_text(const="ok"),
        version=_text(),
        models=_object(("ready", "total"), ready=_COUNT, total=_COUNT),
    ),
    "Ready": _object(
        ("status", "version", "serial", "waiting", "missing"),
        status=_text(enum=["ready", "waiting"]),
        version=_text(),
        serial=_COUNT,
        waiting={**_COUNT, "description": "How many models that always run cannot be asked"},
        missing={
            "type": "object",
            "additionalProperties": _text(),
            "description": "Why, by model; empty for who has no key where one is needed",
        },
    ),
    "Description": _object(("openapi", "paths"), openapi=_text(), paths={"type": "object"}),
    "NativeRequest": {"type": "object", "description": "The engine's own words; what names a file is refused"},
    "TokenizeRequest": _object(
        ("content",), content={}, add_special={"type": "boolean"}, with_pieces={"type": "boolean"}
    ),
    "DetokenizeRequest": _object(("tokens",), tokens=_list(_INTEGER)),
    "AdapterScales": _list(
        {**_object(("id", "scale"), id=_COUNT, scale={"type": "number"}), "additionalProperties": False}
    ),
}
