"""The page for the description: our own files, under a policy that lets in no others."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import re

import pytest

from reconciler.gateway import docs_page
from tests.gateway.harness import CLIENT_KEY, Gateway
from tests.gateway.test_surface import call

KEYS = [{"name": "me", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}]


def fetch(gateway: Gateway, path: str, accepted: str = "", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=5)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if accepted:
            connection.putheader("Accept-Encoding", accepted)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_page_and_its_files_need_no_key(gateway: Gateway) -> None:
    gateway.use(api_keys=KEYS)
    status, headers, body = fetch(gateway, "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    used = re.findall(r'(?:src|href)="([^"]+)"', body.decode())
    files = {use for use in used if use != "data:," and use != "openapi.json"}
    assert files == {f"docs/{name}" for name in docs_page.FILES if name.endswith((".js", ".css"))}
    for name in files:
        assert fetch(gateway, f"/{name}")[0] == 200
    assert fetch(gateway, "/openapi.json")[0] == 401


@pytest.mark.parametrize("name", sorted(docs_page.FILES))
@pytest.mark.parametrize("accepted", ["", "gzip, deflate, br", "br", "gzip;q=0"])
def test_each_file(gateway: Gateway, name: str, accepted: str) -> None:
    status, headers, body = fetch(gateway, f"/docs/{name}" if name else "/docs", accepted)
    assert status == 200
    packed = headers.get("content-encoding") == "gzip"
    assert packed is (accepted.startswith("gzip,") and docs_page.FILES[name][0].endswith(".gz"))
    assert len(gzip.decompress(body) if packed else body) > 300
    assert headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)
    assert fetch(gateway, f"/docs/{name}" if name else "/docs", accepted, "HEAD")[2] == b""


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = docs_page.page("", packed=False).body.decode()
    assert not re.search(r"<style|\son\w+=|style=|javascript:|https?://", page)
    assert all(
        "src=" in tag and tag.endswith("></script>") for tag in re.findall(r"<script.*?</script>", page, re.DOTALL)
    )
    for name in ("page.js", "page.css"):
        assert not re.search(
            r"https?://|localStorage|document\.cookie|eval\(", docs_page.page(name, False).body.decode()
        )


def test_the_licence_comes_with_it() -> None:
    assert b"Apache License" in docs_page.page("swagger-ui-LICENSE.txt", packed=False).body
    assert b"SmartBear" in docs_page.page("swagger-ui-NOTICE.txt", packed=False).body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/docs/", 404), ("/docs/index.html", 404), ("/docs/../surface.py", 404), ("/docs/..%2fsurface.py", 404),
        ("/docs/page.js/", 404), ("/docs/swagger-ui.css.gz", 404), ("/docs/%70age.js", 404), ("/docs//page.js", 404),
        ("/docs/page.js%00", 404), ("/docs/.", 404), ("/DOCS", 404),
    ],
)  # fmt: skip
def test_no_other_file_is_served(gateway: Gateway, path: str, status: int) -> None:
    assert fetch(gateway, path)[0] == status


def test_the_guards_hold_for_it(gateway: Gateway) -> None:
    assert call(gateway, "GET", "/docs/page.css", Origin="https://evil.example")[0] == 403
    assert call(gateway, "GET", "/docs", Host="evil.example")[0] == 403
    assert call(gateway, "POST", "/docs", b"")[0] == 405
