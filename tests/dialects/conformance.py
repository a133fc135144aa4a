"""The conformance table: what becomes of every field of a request on its way into another dialect.

    python -m tests.dialects.conformance        writes docs/conformance.md

It is made from the tables that the translators themselves read. `test_conformance.py` says when it is out of date.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from reconciler.dialects import chat_request, messages_request, responses_tables
from reconciler.dialects.fields import Field

FILE = Path(__file__).parents[2] / "docs" / "conformance.md"
_FATES = {
    "mapped": "said in the other dialect's way",
    "passed": "sent as it is",
    "refused": "a 400 that names the field and says why",
    "warned": "left out, since the answer is good without it, and named in the header `x-reconciler-ignored`",
}
_FATES_OF_PAIRS = """\
| from \\ to | chat completions | messages | responses |
| --- | --- | --- | --- |
| **chat completions** | as it is | [translated](#chat-completions--messages) | not asked for |
| **messages** | [translated](#messages--chat-completions) | as it is | not asked for |
| **responses** | [translated](#responses--chat-completions) | [in two steps](#responses--messages) | as it is |
"""


class Table(NamedTuple):
    """One heading, one sentence under it, and the rows."""

    title: str
    told: str
    rows: Mapping[str, Field]


class Pair(NamedTuple):
    """A dialect of clients, and one of a target that does not speak it."""

    title: str
    told: str
    tables: tuple[Table, ...]


PAIRS = (
    Pair(
        "Messages → chat completions",
        "A client of Anthropic's API, and a provider that speaks OpenAI's chat completions.",
        (Table("", "", messages_request.FIELDS),),
    ),
    Pair(
        "Chat completions → messages",
        "A client of OpenAI's API, and a provider that speaks Anthropic's messages.",
        (Table("", "", chat_request.FIELDS),),
    ),
    Pair(
        "Responses → chat completions",
        "A client of OpenAI's responses, and a provider that speaks chat completions.",
        (
            Table("Fields of a request", "", responses_tables.FIELDS),
            Table("Items of `input`", "By their type.", responses_tables.ITEMS),
            Table("Content of messages", "By its type.", responses_tables.CONTENT),
            Table("Tools", "By their type.", responses_tables.TOOLS),
            Table("Values of `include`", "", responses_tables.INCLUDE),
        ),
    ),
)


def document() -> str:
    """The whole page, as Markdown."""
    lines = [
        "# What becomes of each field",
        "",
        "<!-- Made by `python -m tests.dialects.conformance` from the tables that the translators read. -->",
        "",
        "Where a target speaks the client's dialect, requests and answers pass through as they are. Where it does not,",
        "the gateway translates, and this says field by field what that means. A name with dots is a field inside of",
        "another. What stands in no table is passed on to local engines, and warned of for providers. A llama-server",
        "speaks all three dialects; what it leaves open there is mended, and what it cannot do in responses goes over",
        "chat.",
        "",
        _FATES_OF_PAIRS,
        *(f"- **{fate}**: {told}" for fate, told in _FATES.items()),
    ]
    for pair in PAIRS:
        lines += ["", f"## {pair.title}", "", pair.told, "", _counted(pair)]
        for table in pair.tables:
            lines += _table(table)
    lines += [
        "",
        "## Responses → messages",
        "",
        "A request goes through both tables: from responses to chat completions, and from there to messages. The",
        "answer comes back the same way.",
        "",
    ]
    return "\n".join(lines)


def _counted(pair: Pair) -> str:
    fates: list[str] = [field.fate for table in pair.tables for field in table.rows.values()]
    return ", ".join(f"{fates.count(fate)} {fate}" for fate in _FATES) + "."


def _table(table: Table) -> list[str]:
    lines = ["", f"### {table.title}"] if table.title else []
    lines += ["", table.told] if table.told else []
    lines += ["", "| field | | |", "| --- | --- | --- |"]
    for name, field in table.rows.items():
        lines.append(f"| `{name}` | {field.fate} | {_sentence(field)} |")
    return lines


def _sentence(field: Field) -> str:
    """With a full stop; what callers read after the field's name gets a capital."""
    why = field.why.replace("|", "\\|").removesuffix(".")
    return f"{why[0].upper()}{why[1:]}." if field.fate == "refused" else f"{why}."


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(document(), encoding="utf-8")
