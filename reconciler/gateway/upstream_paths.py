"""Upstream paths: what a client may have of what an engine serves of its own.

PURE. The path is judged as it came: a second spelling of it (encoded slashes, dot segments) is refused, not resolved.
Which paths there are is `operations`' business; here are the parameters that no client may set: those that name a file
or an address of the server, and those that have been a hole in an engine.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote

from reconciler.gateway.errors import Refusal

# A segment as it may stand in the path: the name of a model may need %-escapes, but of no separator, dot or control.
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%(?!2[eEfF5]|5[cC]|7[fF]|[01])[0-9A-Fa-f]{2})+", re.ASCII)
_SLOT = re.compile(r"[0-9]{1,9}", re.ASCII)
_MODEL_LIMIT = 512

# Never from a client, at any depth beside its content. `chat_parser` was read out of bounds by some llama-servers.
_REFUSED = frozenset(
    (
        "chat_parser", "generation_prompt_parser", "filename", "file_name", "file_path", "filepath", "path", "file",
        "url", "uri", "model_path", "model_url", "lora_path", "lora_base", "mmproj", "mmproj_url", "slot_save_path",
        "media_path", "control_vector", "grammar_file", "json_schema_file", "chat_template_file", "api_key_file",
    )
)  # fmt: skip
# What people write is not looked into, but for the addresses of media; `input_extra` holds text with made-up filenames.
_CONTENT = frozenset(("prompt", "content", "input_prefix", "input_suffix", "input_extra", "tools", "functions",
                      "response_format", "json_schema", "query", "documents", "texts", "metadata", "text"))  # fmt: skip
_MEDIA = frozenset(("messages", "input", "system"))
_MEDIA_ADDRESSES = frozenset(("url", "image_url", "video_url", "audio_url", "file_url"))
_ARGUMENTS = frozenset(("input", "arguments"))  # of a tool, inside a conversation: they are not read by the engine
_LORA = frozenset(("id", "scale"))


def check_path(path: str) -> None:
    """Raises `Refusal` 400 for a path that could be read in two ways."""
    for segment in path.split("/")[1:]:
        if segment in ("", ".", "..") or not _SEGMENT.fullmatch(segment):
            raise Refusal(400, "This path is empty in places, has dot segments or encoded separators", code="bad_path")


def model_name(raw: str) -> str:
    """The name of a model that stands in a checked path."""
    return unquote(raw, errors="replace")[:_MODEL_LIMIT]


def path_at(upstream: str, parts: dict[str, str]) -> str:
    """The path at the engine; raises `Refusal` 400 for a slot that is no number."""
    if "{slot}" not in upstream:
        return upstream
    if not _SLOT.fullmatch(parts["slot"]):
        raise Refusal(400, "A slot is known by its number", param="slot", code="bad_path")
    return upstream.replace("{slot}", parts["slot"])


def check_query(upstream: str, query: str) -> None:
    """Raises `Refusal` 400 for parameters that a client may not set, or that could be read in two ways."""
    if not query:
        if "{slot}" in upstream:
            raise _only_erase()
        return
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=32, errors="strict")
    except ValueError:
        raise Refusal(400, "The query is not name=value&…", code="invalid_query") from None
    names = [name.lower() for name, _ in pairs]
    for name in names:
        if name in _REFUSED:
            raise _refused(name)
    if not query.isascii() or any(not value.isprintable() for _, value in pairs) or len(set(names)) < len(names):
        raise Refusal(400, "The query has a parameter twice, or one that is not printable", code="invalid_query")
    if "{slot}" in upstream and pairs != [("action", "erase")]:
        raise _only_erase()


def check_body(upstream: str, document: object) -> None:
    """Raises `Refusal` 400 where a body says something that a client may not set."""
    if upstream == "/lora-adapters":
        _check_lora(document, "the body")
    elif not isinstance(document, dict):
        raise Refusal(400, "The request body must be a JSON object", code="invalid_json")
    if isinstance(document, dict) and "lora" in document:
        _check_lora(document["lora"], "lora")
    _check_deep(document)


def _check_lora(value: object, where: str) -> None:
    entries = value if isinstance(value, list) else [value]
    if not isinstance(value, list) or any(not isinstance(e, dict) or not e.keys() <= _LORA for e in entries):
        text = f"Of adapters only those that are loaded can be used: {where} is a list of id and scale"
        raise Refusal(400, text, param="lora", code="parameter_refused")


def _check_deep(document: object) -> None:
    left: list[tuple[object, bool]] = [(document, False)]
    while left:
        value, in_media = left.pop()
        if isinstance(value, list):
            left += [(each, in_media) for each in value]
        elif isinstance(value, dict):
            for key, each in value.items():
                name = str(key).lower().replace("-", "_")
                if in_media:
                    _check_media(name, each)
                elif name in _REFUSED:
                    raise _refused(str(key))
                if name not in (_ARGUMENTS if in_media else _CONTENT):
                    left.append((each, in_media or name in _MEDIA))


def _check_media(name: str, value: Any) -> None:
    """An engine fetches the media of a conversation itself: then it has to be in the request, not at an address."""
    if name in _MEDIA_ADDRESSES and isinstance(value, str) and value[:5].lower() != "data:":
        text = "An engine is not sent to an address or file: put the media into the request as a data: URL"
        raise Refusal(400, text, param=name, code="address_refused")


def _refused(name: str) -> Refusal:
    text = f"The parameter '{name[:100]}' is not passed to an engine: it reaches into the server"
    return Refusal(400, text, param=name[:100], code="parameter_refused")


def _only_erase() -> Refusal:
    text = "Of a slot only action=erase is passed on; saving and restoring names files of the server"
    return Refusal(400, text, param="action", code="parameter_refused")
