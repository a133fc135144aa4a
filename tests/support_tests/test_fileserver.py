"""The file server is honest by default, and each fault is the one it says."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Iterator

import pytest

from tests.support.fileserver import FileServer
from tests.support.processes import wait_until

DATA = bytes(range(256)) * 1000
PATH = "/m.gguf"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({PATH: DATA, "/other": b"other"}) as server:
        yield server


class Answer:
    """One request over a connection of its own; `body` is what came, `whole` whether Content-Length was kept."""

    def __init__(self, server: FileServer, path: str = PATH, method: str = "GET", **headers: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            self.status, self.headers = response.status, response.headers
            try:
                self.body, self.whole = response.read(), True
            except http.client.IncompleteRead as error:
                self.body, self.whole = error.partial, False
        finally:
            connection.close()


def test_whole_file(server: FileServer) -> None:
    answer = Answer(server, X_Test="yes")
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["ETag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert server.sent[PATH] == len(DATA)
    (request,) = server.log
    assert (request.method, request.path, request.range, request.headers["x-test"]) == ("GET", PATH, None, "yes")


def test_head_tells_what_get_would(server: FileServer) -> None:
    answer = Answer(server, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert server.sent[PATH] == 0
    assert Answer(server, "/absent").status == 404


@pytest.mark.parametrize(
    ("header", "status", "part", "content_range"),
    [
        ("bytes=0-9", 206, DATA[:10], f"bytes 0-9/{len(DATA)}"),
        ("bytes=255990-", 206, DATA[255990:], f"bytes 255990-255999/{len(DATA)}"),
        ("bytes=-5", 206, DATA[-5:], f"bytes 255995-255999/{len(DATA)}"),
        ("bytes=255999-999999", 206, DATA[-1:], f"bytes 255999-255999/{len(DATA)}"),
        ("bytes=256000-", 416, b"", f"bytes */{len(DATA)}"),
        ("bytes=-0", 416, b"", f"bytes */{len(DATA)}"),
        ("bytes=9-0", 200, DATA, None),
        ("bytes=0-1,4-5", 200, DATA, None),
        ("lines=0-1", 200, DATA, None),
    ],
)
def test_ranges(server: FileServer, header: str, status: int, part: bytes, content_range: str | None) -> None:
    answer = Answer(server, Range=header)
    assert (answer.status, answer.body, answer.headers["Content-Range"]) == (status, part, content_range)
    assert server.log[0].range == header


def test_conditions(server: FileServer) -> None:
    etag = Answer(server, method="HEAD").headers["ETag"]
    assert Answer(server, Range="bytes=0-0", If_Range=etag).status == 206
    assert Answer(server, Range="bytes=0-0", If_Range='"old"').body == DATA
    assert Answer(server, If_None_Match=etag).status == 304
    assert Answer(server, If_Match='"old"').status == 412


def test_status_counts_down_and_path_goes_before_all(server: FileServer) -> None:
    server.status(503, 2, retry_after=7)
    server.status(429, 1, path=PATH)
    answers = [Answer(server) for _ in range(4)]
    assert [answer.status for answer in answers] == [429, 503, 503, 200]
    assert [answer.headers["Retry-After"] for answer in answers] == [None, "7", "7", None]


def test_cut_sends_exactly_that_much(server: FileServer) -> None:
    server.cut(100_000, 2)
    assert Answer(server, "/other").whole
    for _ in range(2):
        answer = Answer(server)
        assert (answer.status, answer.body, answer.whole) == (200, DATA[:100_000], False)
    assert Answer(server).whole
    assert server.sent[PATH] == 200_000 + len(DATA)


def test_stall_pauses_and_goes_on(server: FileServer) -> None:
    server.stall(1000, 0.3)
    start = time.monotonic()
    assert Answer(server).body == DATA
    assert 0.3 <= time.monotonic() - start < 3


def test_a_client_may_leave_in_the_middle(server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    server.replace("/big", bytes(50_000_000))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/big")
    connection.getresponse().close()
    connection.close()
    assert Answer(server).body == DATA
    assert 0 < server.sent["/big"] < 10_000_000
    server.stop()
    assert not caplog.records


def test_slow(server: FileServer) -> None:
    server.slow(len(DATA) * 4)
    start = time.monotonic()
    assert Answer(server).body == DATA
    assert 0.25 <= time.monotonic() - start < 3


def test_corrupt_flips_one_byte_of_the_file(server: FileServer) -> None:
    server.corrupt(5000)
    body = Answer(server).body
    assert [i for i in range(len(DATA)) if body[i] != DATA[i]] == [5000]
    assert Answer(server, Range="bytes=5000-5000").body != DATA[5000:5001]
    assert Answer(server, Range="bytes=5001-").body == DATA[5001:]
    server.clear()
    assert Answer(server).body == DATA


def test_no_range(server: FileServer) -> None:
    server.no_range(path=PATH)
    answer = Answer(server, Range="bytes=5-")
    assert (answer.status, answer.body, answer.headers["Accept-Ranges"]) == (200, DATA, None)
    assert Answer(server, "/other", Range="bytes=1-1").status == 206


@pytest.mark.parametrize(("delta", "whole", "received"), [(10, False, len(DATA)), (-10, True, len(DATA) - 10)])
def test_lying_length(server: FileServer, delta: int, whole: bool, received: int) -> None:
    server.lying_length(delta)
    assert Answer(server, method="HEAD").headers["Content-Length"] == str(len(DATA) + delta)
    answer = Answer(server)
    assert (answer.whole, len(answer.body)) == (whole, received)


def test_replace_changes_the_etag(server: FileServer) -> None:
    old = Answer(server).headers["ETag"]
    server.replace(PATH, b"new")
    answer = Answer(server, Range="bytes=1-", If_Range=old)
    assert (answer.status, answer.body) == (200, b"new")
    assert answer.headers["ETag"] != old


def test_redirect_and_login_page(server: FileServer) -> None:
    server.redirect(PATH, server.url("/other", host="localhost"))
    server.html("/other")
    answer = Answer(server)
    assert (answer.status, answer.headers["Location"]) == (302, f"http://localhost:{server.port}/other")
    page = Answer(server, "/other")
    assert (page.status, page.headers.get_content_type()) == (200, "text/html")
    assert b"Sign in" in page.body


def test_stop_ends_a_stalled_body_and_start_keeps_the_port(server: FileServer) -> None:
    server.stall(0, 60)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", PATH)
    wait_until(lambda: server.log, 5, "the request arrives")
    port, start = server.port, time.monotonic()
    server.stop()
    assert time.monotonic() - start < 3
    with pytest.raises(ConnectionRefusedError):
        Answer(server)
    connection.close()
    server.start()
    assert server.port == port
    assert Answer(server).body == DATA
