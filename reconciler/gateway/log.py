"""Log lines on stderr: `level event key=value`, one line each.

Never a key, never the content of a request or response. What libraries log comes out in the same form.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress


def log(level: str, event: str, **pairs: object) -> None:
    """Write one line. Values with blanks or quotes are written as JSON strings."""
    words = [level, event, *(f"{name}={_word(value)}" for name, value in pairs.items())]
    with suppress(OSError, ValueError):  # nobody reads the log any more; serving goes on
        sys.stderr.write(" ".join(words) + "\n")
        sys.stderr.flush()


def capture_libraries() -> None:
    """Send warnings and errors of asyncio and aiohttp to the same place, as one line each without a traceback."""
    handler = _LibraryHandler()
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _word(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text != "" and not any(c in text for c in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


class _LibraryHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # Only the type of an exception: its text may quote what a client sent.
        log(
            record.levelname.lower(), record.name, message=str(record.msg), error=type(error).__name__ if error else "-"
        )
