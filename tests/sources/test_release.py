"""Releases as an API tells them, on its good and its bad days."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

import pytest
from aiohttp import web

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import release as module
from reconciler.sources.release import PUBLIC, access, find
from tests.support.fileserver import File
from tests.support.releases import REPO, Releases

A = {"llama-b1-bin-ubuntu-x64.tar.gz": b"one"}


@pytest.fixture
def releases() -> Iterator[Releases]:
    with Releases() as releases:
        yield releases


def anything(names: Sequence[str]) -> bool:
    return bool(names)


async def fault_of(releases: Releases, tag: str = "latest") -> Fault:
    with pytest.raises(Fault) as caught:
        await find(REPO, tag, anything, releases.api)
    return caught.value


async def test_a_release_is_found_by_its_tag_and_as_the_latest(releases: Releases) -> None:
    releases.add("b1", A)
    releases.add("b2", {"b.zip": b"22", "a.zip": b"1"})
    found = await find(REPO, "b1", anything, releases.api)
    assert (found.tag, [(a.name, a.size, len(a.sha256)) for a in found.assets]) == (
        "b1",
        [("llama-b1-bin-ubuntu-x64.tar.gz", 3, 64)],
    )
    latest = await find(REPO, "latest", anything, releases.api)
    assert (latest.tag, latest.names) == ("b2", ("a.zip", "b.zip"))


async def test_a_latest_that_is_not_complete_yet_is_passed_over_for_the_newest_that_is(releases: Releases) -> None:
    for tag in ("b9998", "b10000", "b9999"):
        releases.add(tag, {"fits": b"x"})
    releases.add("b10001", {"fits": b"x"}, waiting=["fits"])
    found = await find(REPO, "latest", anything, releases.api)
    assert found.tag == "b10000", "by number, and neither by text nor by the order of the list"


async def test_without_a_latest_the_recent_ones_are_asked(releases: Releases) -> None:
    releases.add("b1", {"fits": b"x"})
    releases.server.remove(releases.latest)
    assert (await find(REPO, "latest", anything, releases.api)).tag == "b1"


async def test_where_the_environment_names_a_mirror_it_is_asked(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.add("b1", A)
    monkeypatch.setenv("RECONCILER_RELEASES", f"{releases.api}/")
    monkeypatch.setenv("GITHUB_TOKEN", "hunter2")
    assert (await find(REPO, "b1", anything)).tag == "b1"
    assert "Authorization" not in releases.server.log[0].headers, "a mirror never gets the token"
    assert access(PUBLIC).token == "hunter2"
    assert access(releases.api).token == ""


async def test_digests_of_another_form_are_no_digests(releases: Releases) -> None:
    releases.add("b1", A, digests=False)
    releases.releases[0]["assets"][0]["digest"] = "md5:abc"
    releases._publish()
    assert (await find(REPO, "b1", anything, releases.api)).assets[0].sha256 == ""


async def test_a_release_that_is_not_there_is_final(releases: Releases) -> None:
    fault = await fault_of(releases, "b404")
    assert (fault.code, fault.kind) == ("RELEASE_NOT_FOUND", FaultClass.PERMANENT)
    assert "b404" in fault.message
    assert (await fault_of(releases)).code == "RELEASE_NOT_FOUND"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<!DOCTYPE html><html>Sign in", "it is a web page"),
        (b"not json", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a release"),
        (b'{"tag_name": 5, "assets": []}', "not a release"),
        (b'{"tag_name": "b1"}', "not a release"),
    ],
)
async def test_an_answer_that_is_no_release_is_told(releases: Releases, content: bytes, word: str) -> None:
    releases.add("b1", A)
    releases.server.replace(releases.tagged("b1"), content)
    fault = await fault_of(releases, "b1")
    assert (fault.code, fault.kind) == ("BAD_ANSWER", FaultClass.TRANSIENT)
    assert word in fault.message


async def test_an_endless_answer_is_bounded(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ANSWER", 1000)
    releases.add("b1", A)
    releases.server.replace(releases.tagged("b1"), b" " * 5000)
    assert "longer than" in (await fault_of(releases, "b1")).message


async def test_assets_that_make_no_sense_are_passed_over(releases: Releases) -> None:
    odd = [None, 5, {"name": "x"}, {"name": "x", "browser_download_url": "file:///etc/passwd"}, {"name": 5}]
    good = {"name": "\x1b[31mred", "browser_download_url": "https://h/x", "size": -1}
    releases.server.replace(releases.tagged("b1"), json.dumps({"tag_name": "b1", "assets": [*odd, good]}).encode())
    (asset,) = (await find(REPO, "b1", anything, releases.api)).assets
    assert (asset.name, asset.size, asset.sha256) == ("\\x1b[31mred", 0, "")


@pytest.mark.parametrize("status", [403, 429])
async def test_a_rate_limit_says_when_to_come_again(
    releases: Releases, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    reset = str(int(time.time()) + 600)
    limited = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}

    def respond(request: web.Request) -> web.Response | File | None:
        return web.Response(status=status, headers=limited, text="{}")

    monkeypatch.setattr(releases.server, "respond", respond)
    fault = await fault_of(releases)
    assert (fault.code, fault.kind) == ("RATE_LIMITED", FaultClass.TRANSIENT)
    assert 500 < fault.after <= 600
    assert "no more questions for the next 10 min" in fault.message


@pytest.mark.parametrize(
    ("status", "code"), [(401, "BAD_TOKEN"), (403, "ACCESS_DENIED"), (500, "SOURCE_BUSY"), (418, "SOURCE_REFUSED")]
)
async def test_other_refusals_keep_their_meaning(releases: Releases, status: int, code: str) -> None:
    releases.server.status(status, times=None)
    assert (await fault_of(releases, "b1")).code == code


async def test_nobody_there_is_the_network(releases: Releases) -> None:
    releases.server.stop()
    assert (await fault_of(releases, "b1")).code == "NETWORK_UNREACHABLE"
    releases.server.start()
