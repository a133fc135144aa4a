"""Docs page: a page that shows the API's description and tries it, made of files that lie beside this one.

Nothing on it comes from elsewhere, and its policy keeps it so: scripts and styles are files of ours, what it asks is
asked here. The files are the same for everybody and hold nothing of this machine; the description needs a key like any
other request.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).with_name("docs")
_SCRIPT, _STYLE, _TEXT = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "text/plain; charset=utf-8"
# By the name under /docs/: what it is; "" is the page itself. Those that are stored packed end in .gz in the folder.
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", _STYLE),
    "page.js": ("page.js", _SCRIPT),
    "swagger-ui.css": ("swagger-ui.css.gz", _STYLE),
    "swagger-ui-bundle.js": ("swagger-ui-bundle.js.gz", _SCRIPT),
    "swagger-ui-LICENSE.txt": ("swagger-ui-LICENSE.txt", _TEXT),
    "swagger-ui-NOTICE.txt": ("swagger-ui-NOTICE.txt", _TEXT),
}
# The page's own library sets styles on elements by script, which is not an inline style in the eyes of the policy.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    f"Content-Security-Policy: {POLICY}\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n"
    "Referrer-Policy: no-referrer\r\nCross-Origin-Opener-Policy: same-origin\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\n"
)


class Page(NamedTuple):
    """One file as it is answered: header lines and body."""

    headers: bytes
    body: bytes


@cache
def page(name: str, packed: bool) -> Page:
    """The file of that name in `FILES`; packed with gzip where the client takes it and it lies here so."""
    stored, kind = FILES[name]
    body = (_FOLDER / stored).read_bytes()
    lines = f"Content-Type: {kind}\r\n{_HEADERS}"
    if stored.endswith(".gz"):
        if packed:
            lines += "Content-Encoding: gzip\r\n"
        else:
            body = gzip.decompress(body)
    return Page(lines.encode(), body)
