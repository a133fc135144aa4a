"""Quirks: how an upstream differs from a plain OpenAI-compatible or Anthropic-compatible server.

PURE data. Names of providers stand elsewhere; what is read here is read by the translators alone. Errors in a JSON
array and reasoning under either name are always understood, so they are no quirks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
"""Reasoning efforts, lowest first."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """The defaults are those of a plain server of either dialect."""

    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the limit of the answer is called."""
    reasoning: Literal["reasoning_content", "reasoning", "none"] = "none"
    """What the reasoning of earlier turns is sent as; "none": it is not sent."""
    effort: Literal["", "minimal", "low", "medium", "high", "xhigh", "max"] = "high"
    """The highest reasoning effort that is taken, higher ones become it; "": none is."""
    no_thinking: Literal["", "none", "template"] = ""
    """How thinking is switched off: effort "none", the template's enable_thinking, or not at all."""
    stop_limit: int = 4
    """How many stop sequences are taken; 0: any number."""
    sampling: bool = True
    """Whether temperature and top_p are taken."""
    temperature: tuple[float, float] = (0.0, 2.0)
    """The lowest and the highest temperature; others become the nearest."""
    top_k: bool = False
    """Whether top_k is taken by a chat upstream."""
    anything: bool = False
    """Whether fields that nobody here knows are taken rather than refused: local engines."""
    prefill: bool = False
    """Whether a last message of the assistant is continued."""
    files: bool = False
    """Whether a chat upstream takes documents as `file` parts."""
    stream_options: bool = True
    """Whether a stream's usage can be asked for."""
    choices: int = 0
    """The highest n; 0: any."""
    thought_signature: bool = False
    """Whether tool calls carry extra_content.google.thought_signature, which has to come back with them."""
    strip_billing: bool = False
    """Whether the block that Claude Code changes in each request is taken out, so that prefix caches hold."""


PLAIN = Quirks()
LOCAL = Quirks(
    reasoning="reasoning_content",
    no_thinking="template",
    stop_limit=0,
    top_k=True,
    anything=True,
    prefill=True,
    strip_billing=True,
)
"""A llama-server of ours."""


def fitting_effort(effort: str, quirks: Quirks) -> str:
    """The effort itself, or the highest that is taken; "" where none is. `effort` is one of `EFFORTS`."""
    if not quirks.effort:
        return ""
    return EFFORTS[min(EFFORTS.index(effort), EFFORTS.index(quirks.effort))]


def read_quirks(said: Mapping[str, Any]) -> Quirks:
    """Quirks from their names and JSON values, as routes.json has them. Raises ValueError that names what is wrong."""
    hints = get_type_hints(Quirks)
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in hints:
            raise ValueError(f"quirks: {name[:60]} is not known")
        values[name] = _value(name, value, hints[name])
    return Quirks(**values)


def _value(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        right = isinstance(value, str) and value in get_args(hint)
    elif get_origin(hint) is tuple:
        right = isinstance(value, list | tuple) and len(value) == 2 and all(type(one) in (int, float) for one in value)
        value = tuple(value) if right else value
    else:
        right = type(value) is hint
    if not right:
        raise ValueError(f"quirks: {name} cannot be {value!r}"[:200])
    return value
