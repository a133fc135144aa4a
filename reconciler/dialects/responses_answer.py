"""The small pieces of a chat's answer in the shape that a response has for them.

PURE. Upstreams may say anything here: what is not of the right type counts as not said.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.responses_items import Item


def usage(said: dict[str, Any]) -> dict[str, Any]:
    """Chat's usage in the shape of a response; what the upstream does not count is 0."""
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    read, wrote = said.get("prompt_tokens_details"), said.get("completion_tokens_details")
    read = read if isinstance(read, dict) else {}
    wrote = wrote if isinstance(wrote, dict) else {}
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(read.get("cached_tokens")),
            "cache_write_tokens": _count(read.get("cache_write_tokens")),
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": _count(wrote.get("reasoning_tokens"))},
        "total_tokens": _count(said.get("total_tokens")) or prompt + completion,
    }


def citation(annotation: object) -> Item | None:
    """Chat's annotation as that of a response; None for kinds other than links."""
    cited = annotation.get("url_citation") if isinstance(annotation, dict) else None
    if not isinstance(cited, dict) or not isinstance(cited.get("url"), str):
        return None
    title = cited.get("title")
    return {
        "type": "url_citation",
        "url": cited["url"],
        "title": title if isinstance(title, str) else "",
        "start_index": _count(cited.get("start_index")),
        "end_index": _count(cited.get("end_index")),
    }


def logprob(entry: object) -> Item | None:
    """Chat's log probability of a token as that of a response; None where it is not one."""
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        return None
    number = entry.get("logprob")
    token = entry["token"]
    found: Item = {
        "token": token,
        "bytes": _bytes(entry.get("bytes"), token),
        "logprob": number if isinstance(number, int | float) else 0.0,
    }
    others = [other for one in listed(entry.get("top_logprobs")) if (other := logprob(one)) is not None]
    for other in others:
        other.pop("top_logprobs", None)
    return {**found, "top_logprobs": others}


def _bytes(said: object, token: str) -> list[int]:
    if isinstance(said, list) and all(isinstance(one, int) for one in said):
        return said
    return list(token.encode("utf-8", "replace"))


def brief(entry: Item) -> Item:
    """As the events have it: without bytes."""
    others = [{"token": other["token"], "logprob": other["logprob"]} for other in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": others}


def words(content: object) -> tuple[str, str]:
    """(thought, text) of a message's content: some servers answer in parts."""
    if isinstance(content, str):
        return "", content
    thought, text = [], []
    for part in listed(content):
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str):
            text.append(part["text"])
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            thought.append(inner if isinstance(inner, str) else words(inner)[1])
    return "".join(thought), "".join(text)


def signature(entry: dict[str, Any]) -> str:
    """Google's thought signature, which has to come back with the call."""
    extra = entry.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    found = google.get("thought_signature") if isinstance(google, dict) else None
    return found if isinstance(found, str) else ""


def listed(value: object) -> list[Any]:
    """The list, or none."""
    return value if isinstance(value, list) else []


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
