"""Multipart: which model does a form ask for, and the same form for a model of another name.

PURE. The form is read where it lies: parts are positions in the body, and a file is never copied. Of RFC 7578 and 2046
only what all readers understand alike is taken; what two readers could take for different things is a `Refusal` 400.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from reconciler.gateway.errors import Refusal

MOST_PARTS = 100
MOST_HEAD = 4096  # bytes of the headers of one part
MOST_HEADERS = 8
MOST_VALUE = 64 * 1024  # bytes of a part that is no file
_TYPE = re.compile(r"multipart/form-data\s*;(.*)", re.IGNORECASE | re.ASCII | re.DOTALL)
_PARAMETER = re.compile(
    r"[ \t]*([A-Za-z0-9!#$%&'*+.^_`|~-]+)=(?:\"([^\"\\\r\n]*)\"|([A-Za-z0-9!#$%&'*+.^_`|~-]+))[ \t]*(?:;|$)", re.ASCII
)
_DISPOSITION_PARAMETER = re.compile(
    r"[ \t]*([A-Za-z0-9!#$&+.^_`|~-]+\*?)=(?:\"((?:[^\"\\\r\n]|\\[\\\"])*)\"|([^\s\";]+))[ \t]*(?:;|$)"
)
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]", re.ASCII)
_HEADER = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+:[\t\x20-\x7e\x80-\xff]*")


class Span(NamedTuple):
    """Where a field lies in a body: its part from the boundary's first dash on, and its value."""

    part: int
    start: int
    end: int


class Form(NamedTuple):
    """A form: its `fields` that are no files, where they lie in `body`, and the names of its `files` and lists."""

    body: bytes
    mark: bytes
    fields: dict[str, str]
    spans: dict[str, Span]
    files: tuple[str, ...]

    @property
    def document(self) -> dict[str, Any]:
        """As the rest of the gateway reads a request: the fields, and whether a stream is wanted."""
        document: dict[str, Any] = dict(self.fields)
        if "stream" in document:
            document["stream"] = document["stream"].lower() in ("true", "1")
        return document

    def encoded(self, document: dict[str, Any]) -> bytes:
        """The same files with these fields."""
        before, view = self.document, memoryview(self.body)
        new = (name for name in document if name not in before)
        pieces: list[bytes | memoryview] = [self._part(name, document[name]) for name in new]
        at = 0
        for name, span in sorted(self.spans.items(), key=lambda item: item[1]):
            if name not in document:
                pieces.append(view[at : span.part])
                at = span.end + 2
            elif document[name] != before[name]:
                pieces += [view[at : span.start], _said(document[name])]
                at = span.end
        return b"".join((*pieces, view[at:]))

    def _part(self, name: str, value: Any) -> bytes:
        said, quoted = _said(value), name.replace("\\", "\\\\").replace('"', '\\"').encode()
        return b'%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (self.mark, quoted, said)


def boundary(content_type: str) -> bytes:
    """The boundary in a Content-Type; raises `Refusal` 415 where it is no form, 400 where it is malformed."""
    found = _TYPE.fullmatch(content_type.strip())
    if found is None:
        if re.match(r"multipart/form-data\s*$", content_type.strip(), re.IGNORECASE):
            raise _malformed("its Content-Type has no boundary")
        raise Refusal(415, "Send a form: Content-Type: multipart/form-data", code="unsupported_media_type")
    values = [a or b for name, a, b in _parameters(_PARAMETER, found[1]) if name.lower() == "boundary"]
    if len(values) != 1 or not _BOUNDARY.fullmatch(values[0]):
        raise _malformed("its Content-Type has no boundary, two, or a bad one")
    return values[0].encode("ascii")


def parse(content_type: str, body: bytes) -> Form:
    """The form; raises `Refusal` 400 (415 where the Content-Type is another) that says what is wrong with it."""
    mark = b"--" + boundary(content_type)
    if not body:
        raise Refusal(400, "The request has no body; a form with a model is needed", code="missing_body")
    if not body.startswith(mark):
        raise _malformed("it does not begin with the boundary of its Content-Type")
    fields: dict[str, str] = {}
    spans: dict[str, Span] = {}
    files: list[str] = []
    part = count = 0
    while not body.startswith(b"--", after := part + len(mark)):
        if not body.startswith(b"\r\n", after):
            raise _malformed("a boundary is not alone in its line")
        count += 1
        if count > MOST_PARTS:
            raise _malformed(f"it has more than {MOST_PARTS} parts")
        name, is_file, start = _head(body, after + 2)
        end = body.find(b"\r\n" + mark, start - 2)
        if end < 0:
            raise _malformed("it has no end: its last boundary is missing")
        start = min(start, end)
        _check_once(name, fields, files)
        if is_file or name.endswith("[]"):  # of a list there are several
            files.append(name)
        else:
            fields[name] = _text(body, name, start, end)
            spans[name] = Span(part, start, end)
        part = end + 2
    if body[after + 2 : after + 5] not in (b"", b"\r\n"):
        raise _malformed("something follows its last boundary")
    if not fields.get("model"):
        state = "must be a non-empty text" if "model" in fields or "model" in files else "is missing"
        raise Refusal(400, f"The field 'model' {state}", param="model", code="invalid_model")
    return Form(body, mark, fields, spans, tuple(files))


def _check_once(name: str, fields: dict[str, str], files: list[str]) -> None:
    """Two readers may take the first or the last of two."""
    if name == "model" and (name in fields or name in files):
        raise Refusal(400, "The field 'model' is given twice", param="model", code="invalid_model")
    if name in fields:
        raise Refusal(400, "A field is given twice", param=name[:100], code="invalid_form")


def _head(body: bytes, at: int) -> tuple[str, bool, int]:
    """Name of the part whose headers begin there, whether it is a file, and where its content begins."""
    end = body.find(b"\r\n\r\n", at, at + MOST_HEAD)
    if end < 0:
        raise _malformed("a part has no end of its headers, or too many")
    lines = body[at:end].split(b"\r\n")
    if len(lines) > MOST_HEADERS or not all(_HEADER.fullmatch(line) for line in lines):
        raise _malformed("a part has a bad header, or too many")
    dispositions = []
    for line in lines:
        header, _, value = line.partition(b":")
        if header.lower() == b"content-disposition":
            dispositions.append(value.strip())
        elif header.lower() == b"content-transfer-encoding" and value.strip().lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise _malformed("a part has a Content-Transfer-Encoding")
    if len(dispositions) != 1:
        raise _malformed("a part has no Content-Disposition, or two")
    name, is_file = _disposition(dispositions[0])
    return name, is_file, end + 4


def _disposition(value: bytes) -> tuple[str, bool]:
    try:
        kind, _, rest = value.decode("utf-8").partition(";")
    except UnicodeDecodeError:
        raise _malformed("a part's name is not UTF-8") from None
    if kind.strip().lower() != "form-data":
        raise _malformed("a part is not form-data")
    parameters = [(name.lower(), a or b) for name, a, b in _parameters(_DISPOSITION_PARAMETER, rest)]
    names = [value for name, value in parameters if name == "name"]
    known = [name for name, _ in parameters]
    if len(names) != 1 or not names[0] or len(set(known)) < len(known) or "name*" in known:
        raise _malformed("a part has no name, or two")
    return names[0], "filename" in known or "filename*" in known


def _parameters(pattern: re.Pattern[str], text: str) -> list[tuple[str, str, str]]:
    """Each `name=value`; raises `Refusal` 400 where something else stands between them."""
    out, at = [], 0
    while at < len(text):
        found = pattern.match(text, at)
        if found is None:
            raise _malformed("a header has a bad parameter")
        out.append((found[1], found[2] or "", found[3] or ""))
        at = found.end()
    return out


def _said(value: Any) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def _text(body: bytes, name: str, start: int, end: int) -> str:
    if end - start > MOST_VALUE:
        raise Refusal(400, f"A field is longer than {MOST_VALUE} bytes", param=name[:100], code="invalid_form")
    try:
        return body[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal(400, "A field is not UTF-8", param=name[:100], code="invalid_form") from None


def _malformed(what: str) -> Refusal:
    return Refusal(400, f"This is not a valid form: {what}", code="invalid_form")
