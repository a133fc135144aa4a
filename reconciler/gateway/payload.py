"""Payload: is this body a request, and for which model?

PURE. The body is parsed to be judged; what goes on to the engine is decided elsewhere.
"""

from __future__ import annotations

import json
import re
from typing import Any

from reconciler.gateway.errors import Refusal
from reconciler.gateway.routes import Rewrite


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object, whose `model` is text; raises `Refusal` 400 that names what is wrong."""
    document = decoded(body)
    if not isinstance(document, dict):
        raise Refusal(400, "The request body must be a JSON object", code="invalid_json")
    name = document.get("model")
    if not isinstance(name, str) or not name:
        state = "must be a non-empty string" if "model" in document else "is missing"
        raise Refusal(400, f"The field 'model' {state}", param="model", code="invalid_model")
    if _may_repeat_model(body) and _repeats_model(body):
        raise Refusal(400, "The field 'model' is given twice", param="model", code="invalid_model")
    return document


def decoded(body: bytes) -> Any:
    """The JSON value; raises `Refusal` 400 that names what is wrong."""
    if not body:
        raise Refusal(400, "The request has no body; a JSON object with a model is needed", code="missing_body")
    try:
        document = _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise Refusal(400, "The request body is not UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise Refusal(400, f"The request body is not JSON: {error.msg} at {where}", code="invalid_json") from None
    except ValueError as error:
        raise Refusal(400, f"The request body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise Refusal(400, "The request body is nested too deeply", code="invalid_json") from None
    return document


def check_charset(content_type: str) -> None:
    """Raise `Refusal` 415 where a target that goes by the Content-Type would read other text than is read here."""
    found = _CHARSET.search(content_type)
    if found is not None and found[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refusal(415, "JSON is sent in UTF-8", code="unsupported_charset")


def rewritten(document: dict[str, Any], rewrite: Rewrite, name: str | None) -> dict[str, Any]:
    """The same request for a model of another name (None: of the same), with what is to be changed in it."""
    if not rewrite and (name is None or name == document["model"]):
        return document
    out = {key: value for key, value in document.items() if key not in rewrite.strip}
    out = {**rewrite.default, **out, **rewrite.set}
    return {**out, "model": document["model"] if name is None else name}


def encoded(document: dict[str, Any]) -> bytes:
    """As a body; raises `Refusal` 400 for a number that JSON cannot say."""
    try:
        return json.dumps(document, allow_nan=False).encode()  # ASCII: lone surrogates stay
    except ValueError:
        raise Refusal(400, "The request holds a number that is out of range", code="invalid_json") from None


_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;\"']*)", re.IGNORECASE)
# A gateway that asks whom its client names gives its keys away. Ours never does; it also says so.
_NESTED = (dict, list)
_ADDRESSES = frozenset(("api_base", "base_url", "api_url", "baseurl", "apibase", "litellm_params", "azure_endpoint"))
# Here people write what they want: text, and the schemas of tools.
_CONTENT = frozenset(
    (
        "messages", "input", "prompt", "tools", "functions", "system", "response_format", "text", "output_config",
        "documents",
    )
)  # fmt: skip


def refuse_addresses(document: dict[str, Any]) -> None:
    """Raise `Refusal` 400 where a client says, at any depth beside its content, whom to ask."""
    left: list[tuple[str, Any]] = []
    for key, value in document.items():  # most requests hold nothing but plain values beside their content
        if key not in _CONTENT:
            _refuse_address(key)
            if isinstance(value, _NESTED):
                left.append((key, value))
    while left:
        where, value = left.pop()
        if isinstance(value, list):
            left += [(f"{where}.{at}", each) for at, each in enumerate(value) if isinstance(each, _NESTED)]
            continue
        for key, each in value.items():
            _refuse_address(f"{where}.{key}")
            if isinstance(each, _NESTED):
                left.append((f"{where}.{key}", each))


def _refuse_address(where: str) -> None:
    if where.rpartition(".")[2].lower().replace("-", "_") in _ADDRESSES:
        where = where[:200]
        raise Refusal(400, f"A request cannot say whom to ask: {where}", param=where, code="address_refused")


def _may_repeat_model(body: bytes) -> bool:
    # A key that reads "model" is either spelled out or has an escape of one of its letters, all of which are \u006x.
    return body.count(b'"model"') > 1 or b"\\u006" in body


def _repeats_model(body: bytes) -> bool:
    """Read again, keeping the pairs of each object; the outermost object is the last to be finished."""
    last: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        nonlocal last
        last = pairs

    json.loads(body, object_pairs_hook=keep)
    return sum(key == "model" for key, _ in last) > 1


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
