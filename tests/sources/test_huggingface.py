"""`hf:` says what a repository holds at one commit, through the hub's real client, and shows tokens to nobody else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler import sources
from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Denied
from reconciler.host.files import Files
from reconciler.sources import huggingface
from tests.sources.conftest import Desk, left
from tests.support.fileserver import FileServer
from tests.support.hub import Hub
from tests.support.processes import free_port

MODEL = b"GGUF" + bytes(range(256)) * 400
OTHER = b"GGUF" + bytes(range(255, -1, -1)) * 500
NAME = "acme/tiny"
SECRET = "hf_a-secret-of-one-host"
At = Callable[..., Desk]


@pytest.fixture(autouse=True)
def nothing_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, no endpoint and no login of the machine that the tests run on."""
    from huggingface_hub import constants

    for name in [n for n in os.environ if n.startswith("HF_") or n == "HUGGING_FACE_HUB_TOKEN"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "login" / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "login" / "stored_tokens"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.add(NAME, {"m-Q4_0.gguf": MODEL, "deep/er/m-Q8_0.gguf": OTHER, "README.md": b"# T"}, licence="mit")
        yield running


@pytest.fixture
def mirror() -> Iterator[Hub]:
    with Hub() as running:
        running.add(NAME, {"m-Q4_0.gguf": MODEL, "deep/er/m-Q8_0.gguf": OTHER, "README.md": b"# T"}, licence="mit")
        yield running


@pytest.fixture
def at(desk: Desk, hub: Hub) -> At:
    """A desk whose hub is the local one."""

    def make(token: str = "", mirrors: tuple[str, ...] = (), endpoint: str | None = None, own: str = "") -> Desk:
        meant = sources.Hub(hub.url if endpoint is None else endpoint, mirrors, token)
        return replace(desk, tap=replace(desk.tap, hub=meant, token=own))

    return make


async def fails(desk: Desk, source: str) -> Fault:
    with pytest.raises(Fault) as caught:
        await desk.find(source)
    assert SECRET not in str(caught.value)
    return caught.value


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- what a repository holds ------------------------------------------------------------------------------------------


async def test_all_models_of_all_folders_with_sizes_digests_and_addresses(at: At, hub: Hub) -> None:
    repo = hub.repos[NAME]
    repo.commit({"vocab.gguf": b"GGUF small"})
    listing = await at().find(f"hf:{NAME}")
    assert (listing.resolved, listing.licence, listing.notes) == (f"hf:{NAME}@{repo.head}", "mit", ())
    assert [(f.name, f.size, f.sha256) for f in listing.files] == [
        ("deep/er/m-Q8_0.gguf", len(OTHER), sha256(OTHER)),
        ("m-Q4_0.gguf", len(MODEL), sha256(MODEL)),
        ("vocab.gguf", 10, ""),
    ]
    assert listing.files[0].urls == (f"{hub.url}/{NAME}/resolve/{repo.head}/deep/er/m-Q8_0.gguf",)


async def test_a_branch_a_tag_and_a_short_commit_lead_to_a_full_one(at: At, hub: Hub) -> None:
    repo = hub.repos[NAME]
    first = repo.head
    repo.tags["v1"] = first
    branch = repo.commit({"m-Q4_0.gguf": OTHER}, "feature/x y")
    repo.commit({"m-Q4_0.gguf": b"GGUF" * 999})
    for revision, commit in [("v1", first), ("feature/x y", branch), (first[:8], first), (first, first)]:
        listing = await at().find(f"hf:{NAME}@{revision}")
        assert listing.resolved == f"hf:{NAME}@{commit}"
        assert all(f"/resolve/{commit}/" in f.urls[0] for f in listing.files)


async def test_what_was_resolved_stays_when_the_branch_goes_on(at: At, hub: Hub) -> None:
    before = await at().find(f"hf:{NAME}")
    hub.repos[NAME].commit({"m-Q4_0.gguf": OTHER})
    assert await at().find(before.resolved) == before
    assert (await at().find(f"hf:{NAME}")).resolved != before.resolved


async def test_a_file_is_brought_through_the_redirect_and_verified(at: At, hub: Hub) -> None:
    got = await at().bring(f"hf:{NAME}", "m-*")
    assert (got.name, got.size, got.sha256) == ("m-Q4_0.gguf", len(MODEL), sha256(MODEL))
    assert at().part.read_bytes() == MODEL
    assert len(hub.cdn.log) >= 1


async def test_bytes_that_are_not_what_the_repository_says_are_refused(at: At, hub: Hub, tmp_path: Path) -> None:
    hub.cdn.corrupt(99, path=hub.lfs(NAME, "m-Q4_0.gguf"))
    with pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await at().bring(f"hf:{NAME}", "m-*")
    assert left(tmp_path) == []


async def test_a_file_replaced_under_the_same_commit_is_refused(at: At, hub: Hub, tmp_path: Path) -> None:
    desk = at()
    (_, remote) = (await desk.find(f"hf:{NAME}")).files
    await huggingface.peek(remote, 0, 4, desk.tap)
    hub.cdn.replace(hub.lfs(NAME, "m-Q4_0.gguf"), MODEL[::-1])
    with pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await huggingface.bring(desk.request(remote), desk.tap)
    assert left(tmp_path) == []


async def test_a_header_is_read_without_the_rest(at: At, hub: Hub) -> None:
    assert await at().peek(f"hf:{NAME}", 0, 4, number=1) == b"GGUF"
    assert hub.cdn.sent[hub.lfs(NAME, "m-Q4_0.gguf")] == 4


async def test_finding_changes_nothing_on_disk(at: At, tmp_path: Path) -> None:
    still = replace(at(), tap=replace(at().tap, effects=Denied(), files=Files(Denied())))
    before = sorted(tmp_path.rglob("*"))
    await still.find(f"hf:{NAME}")
    assert sorted(tmp_path.rglob("*")) == before


async def test_nothing_is_asked_but_what_the_repository_holds(at: At, hub: Hub) -> None:
    """No telemetry, no look for updates."""
    await at().find(f"hf:{NAME}")
    assert [(r.method, r.path) for r in hub.log] == [("GET", f"/api/models/{NAME}")]


def test_the_environment_of_children_is_left_alone_and_the_client_loaded_late() -> None:
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from reconciler.sources import huggingface\n"
        "assert 'huggingface_hub' not in sys.modules and 'httpx2' not in sys.modules\n"
        "huggingface._library(); from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY and dict(os.environ) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license_name": "acme-1"}, "acme-1"),
        ({"license": ["a", "b"]}, "a, b"),
        ({"license": "a\x1b[0m" + "b" * 500}, None),
        (None, "apache-2.0"),
        ("nonsense", "apache-2.0"),
    ],
)
async def test_the_licence_is_that_of_the_card_or_of_the_tags(
    at: At, hub: Hub, monkeypatch: pytest.MonkeyPatch, card: Any, licence: str | None
) -> None:
    repo, said = hub.repos[NAME], hub.repos[NAME].said
    tags = ["license:apache-2.0"]
    monkeypatch.setattr(repo, "said", lambda sha, blobs: said(sha, blobs=blobs) | {"cardData": card, "tags": tags})
    found = (await at().find(f"hf:{NAME}")).licence
    assert found == licence if licence else len(found) <= 101 and "\x1b" not in found


# -- names that mean harm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "shown", "address"),
    [
        ("../../api/m.gguf", "../../api/m.gguf", "%2E%2E/%2E%2E/api/m.gguf"),
        ("/etc/m.gguf", "/etc/m.gguf", "/etc/m.gguf"),
        ("a\\..\\m.gguf", r"a\\..\\m.gguf", "a%5C..%5Cm.gguf"),
        ("\x1b[2Jm\n.gguf", r"\x1b[2Jm\x0a.gguf", "%1B%5B2Jm%0A.gguf"),
        ("m\u202efugg.gguf", r"m\u202efugg.gguf", "m%E2%80%AEfugg.gguf"),
        ("\ud800.gguf", r"\ud800.gguf", "%ED%A0%80.gguf"),
        ("a?b#c%41.gguf", "a?b#c%41.gguf", "a%3Fb%23c%2541.gguf"),
        ("模型.gguf", "模型.gguf", "%E6%A8%A1%E5%9E%8B.gguf"),
    ],
)
async def test_a_name_is_shown_made_harmless_and_leads_nowhere_else(
    at: At, hub: Hub, raw: str, shown: str, address: str
) -> None:
    repo = hub.add("evil/names", {raw: MODEL} if raw != "\ud800.gguf" else {"x.gguf": MODEL})
    if raw == "\ud800.gguf":
        repo.lied["x.gguf"] = {"rfilename": raw}
    (remote,) = (await at().find("hf:evil/names")).files
    assert (remote.name, remote.urls) == (shown, (f"{hub.url}/evil/names/resolve/{repo.head}/{address}",))


async def test_two_names_stay_two_however_alike_they_are(at: At, hub: Hub) -> None:
    names = ["a\x1b.gguf", "a\\x1b.gguf", "M.gguf", "m.gguf", "m.GGUF", "\u043c.gguf"]
    hub.add("evil/alike", {name: MODEL + name.encode() for name in names})
    files = (await at().find("hf:evil/alike")).files
    assert len({f.name for f in files}) == len({f.urls for f in files}) == len(names)


async def test_a_name_that_climbs_is_brought_to_the_part_and_nowhere_else(at: At, hub: Hub, tmp_path: Path) -> None:
    hub.add("evil/up", {"../../../up.gguf": MODEL})
    (remote,) = (await at().find("hf:evil/up")).files
    await huggingface.bring(at().request(remote), at().tap)
    assert left(tmp_path)[0] == "p"
    assert list(tmp_path.parent.rglob("up.gguf")) == []


async def test_names_without_end_are_refused(at: At, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "MOST_FILES", 20)
    hub.add("evil/many", {f"{n}.gguf": b"GGUF" for n in range(21)})
    assert (await fails(at(), "hf:evil/many")).code == "TOO_MANY_FILES"
    monkeypatch.setattr(huggingface, "MOST_FILES", 21)
    assert len((await at().find("hf:evil/many")).files) == 21


async def test_an_answer_without_end_is_refused(at: At, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "MOST_ANSWER", 1000)
    hub.repos[NAME].licence = "x" * 2000
    assert (await fails(at(), f"hf:{NAME}")).code == "NOT_A_HUB"


@pytest.mark.parametrize(
    "lie",
    [
        {"size": -1, "lfs": None},
        {"size": "big", "lfs": None},
        {"lfs": {"sha256": "../x", "size": True, "pointerSize": 1}},
    ],
)
async def test_sizes_and_digests_that_make_no_sense_are_not_known(at: At, hub: Hub, lie: dict[str, Any]) -> None:
    hub.repos[NAME].lied["m-Q4_0.gguf"] = lie
    remote = next(f for f in (await at().find(f"hf:{NAME}")).files if f.name == "m-Q4_0.gguf")
    assert (remote.size, remote.sha256) == (None, "")


# -- what is refused, and what to do ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "code", "said", "hint"),
    [
        ("", "GATED", "no token was given", "then give a token"),
        ("poor", "GATED", "the account of this token has no access", "with that account"),
        ("wrong", "TOKEN_REFUSED", "does not know the token", "expired"),
    ],
)
async def test_a_gated_repository_says_what_is_missing(
    at: At, hub: Hub, token: str, code: str, said: str, hint: str
) -> None:
    hub.add("acme/gated", {"m.gguf": MODEL}, gated=True)
    hub.grant("poor")
    hub.grant(SECRET, "acme/gated")
    fault = await fails(at(token), "hf:acme/gated")
    assert (fault.code, fault.kind) == (code, FaultClass.NEEDS_HUMAN)
    assert said in fault.message
    assert hint in fault.hint
    if code == "GATED":
        assert f"{hub.url}/acme/gated" in fault.hint
    assert (await at(SECRET).bring("hf:acme/gated")).size == len(MODEL)


async def test_a_gate_that_closes_before_the_download_says_the_same(at: At, hub: Hub) -> None:
    hub.add("acme/gated", {"m.gguf": MODEL})
    (remote,) = (await at().find("hf:acme/gated")).files
    hub.repos["acme/gated"].gated = True
    with pytest.raises(Fault, match=r"GATED: acme/gated is only .* no token was given"):
        await huggingface.bring(at().request(remote), at().tap)


@pytest.mark.parametrize(
    ("token", "said", "hint"),
    [("", "or it is private", "give a token"), ("poor", "or this token may not see it", "what the token may read")],
)
async def test_a_private_repository_is_one_that_may_not_exist(
    at: At, hub: Hub, token: str, said: str, hint: str
) -> None:
    hub.add("acme/private", {"m.gguf": MODEL}, private=True)
    hub.grant("poor")
    hub.grant(SECRET, "acme/private")
    for name in ("acme/private", "acme/no-such"):
        fault = await fails(at(token), f"hf:{name}")
        assert (fault.code, fault.kind) == ("REPO_NOT_FOUND", FaultClass.NEEDS_HUMAN)
        assert said in fault.message
        assert hint in fault.hint
    assert (await at(SECRET).bring("hf:acme/private")).size == len(MODEL)


async def test_a_disabled_repository(at: At, hub: Hub) -> None:
    hub.add("acme/off", {"m.gguf": MODEL}, disabled=True)
    assert (await fails(at(), "hf:acme/off")).code == "REPO_DISABLED"


async def test_a_revision_that_is_not_there(at: At) -> None:
    fault = await fails(at(), f"hf:{NAME}@v9")
    assert (fault.code, fault.kind) == ("REVISION_NOT_FOUND", FaultClass.PERMANENT)
    assert "v9" in fault.message


async def test_a_repository_without_a_model(at: At, hub: Hub) -> None:
    hub.add("acme/plain", {"model.safetensors": b"x" * 2000})
    fault = await fails(at(), "hf:acme/plain")
    assert (fault.code, fault.kind) == ("NO_GGUF", FaultClass.PERMANENT)
    assert "GGUF" in fault.hint


@pytest.mark.parametrize(
    "source", ["hf:../../etc", "hf:a/b/c", "hf:a b/c", "hf:", "hf:a/b?x", "hf:a/..", "hf:a/b@v\x1b"]
)
async def test_what_cannot_be_a_repository_is_not_asked_for(at: At, hub: Hub, source: str) -> None:
    assert (await fails(at(), source)).code == "BAD_SOURCE"
    assert hub.log == []


async def test_a_new_name_is_followed_and_told(at: At, hub: Hub) -> None:
    hub.rename(NAME, "acme/small")
    listing = await at().find(f"hf:{NAME}")
    assert listing.resolved == f"hf:acme/small@{hub.repos['acme/small'].head}"
    assert listing.files[1].sha256 == sha256(MODEL)
    assert "/acme/small/resolve/" in listing.files[1].urls[0]
    assert listing.notes == (f"{NAME} is now called acme/small; write hf:acme/small in the manifest",)
    assert (await at().bring(f"hf:{NAME}", "m-*")).sha256 == sha256(MODEL)


async def test_a_redirect_to_another_host_is_not_followed(at: At, hub: Hub, mirror: Hub) -> None:
    hub.server.redirect(f"/api/models/{NAME}", mirror.server.url(f"/api/models/{NAME}", host="localhost"), code=307)
    fault = await fails(at(SECRET), f"hf:{NAME}")
    assert (fault.code, fault.kind) == ("FOREIGN_REDIRECT", FaultClass.NEEDS_HUMAN)
    assert mirror.log == []


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_hub_is_tried_again_when_it_says(at: At, hub: Hub, status: int) -> None:
    hub.server.status(status, None, retry_after=7)
    fault = await fails(at(), f"hf:{NAME}")
    assert (fault.code, fault.kind, fault.after) == ("SOURCE_BUSY", FaultClass.TRANSIENT, 7.0)
    assert len(hub.log) == 1, "the library does not try again by itself"


async def test_a_hub_that_is_not_there(at: At) -> None:
    fault = await fails(at(endpoint=f"http://127.0.0.1:{free_port()}"), f"hf:{NAME}")
    assert (fault.code, fault.kind) == ("NETWORK_UNREACHABLE", FaultClass.TRANSIENT)
    assert fault.hint


async def test_a_hub_that_does_not_answer(at: At, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "PATIENCE", 0.2)
    hub.server.stall(0, 3600, None)
    assert (await fails(at(), f"hf:{NAME}")).code == "STALLED"


async def test_a_login_page_is_not_a_hub(at: At, hub: Hub) -> None:
    hub.server.html()
    fault = await fails(at(), f"hf:{NAME}")
    assert (fault.code, fault.kind) == ("NOT_A_HUB", FaultClass.NEEDS_HUMAN)


async def test_offline_is_offline(at: At, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fault = await fails(at(), f"hf:{NAME}")
    assert (fault.code, fault.kind) == ("OFFLINE", FaultClass.NEEDS_HUMAN)
    assert hub.log == []


# -- mirrors ----------------------------------------------------------------------------------------------------------


async def test_the_mirror_is_asked_first_and_the_origin_comes_last(at: At, hub: Hub, mirror: Hub) -> None:
    listing = await at(mirrors=(mirror.url,)).find(f"hf:{NAME}")
    ends = f"/{NAME}/resolve/{hub.repos[NAME].head}/m-Q4_0.gguf"
    assert listing.files[1].urls == (mirror.url + ends, hub.url + ends)
    assert hub.log == []


async def test_a_mirror_without_the_repository_leads_to_the_origin(at: At, hub: Hub, mirror: Hub) -> None:
    del mirror.repos[NAME]
    listing = await at(mirrors=(mirror.url,)).find(f"hf:{NAME}")
    assert [len(f.urls) for f in listing.files] == [1, 1]
    assert listing.files[0].urls[0].startswith(hub.url)
    assert len(listing.notes) == 1
    assert f"the mirror {mirror.host} was passed over" in listing.notes[0]


async def test_a_mirror_that_lags_behind_leads_to_the_origin(at: At, hub: Hub, mirror: Hub) -> None:
    commit = hub.repos[NAME].commit({"m-Q4_0.gguf": OTHER})
    listing = await at(mirrors=(mirror.url,)).find(f"hf:{NAME}@{commit}")
    assert listing.resolved == f"hf:{NAME}@{commit}"


@pytest.mark.parametrize("how", ["down", "busy", "login", "gated", "renamed", "another commit"])
async def test_a_mirror_that_makes_no_sense_leads_to_the_origin(at: At, hub: Hub, mirror: Hub, how: str) -> None:
    url = f"http://127.0.0.1:{free_port()}" if how == "down" else mirror.url
    source = f"hf:{NAME}"
    match how:
        case "busy":
            mirror.server.status(503, None)
        case "login":
            mirror.server.html()
        case "gated":
            mirror.repos[NAME].private = True
        case "renamed":
            mirror.rename(NAME, "evil/tiny")
        case "another commit":
            source = f"hf:{NAME}@{hub.repos[NAME].head}"
            mirror.repos[NAME].commit({"m-Q4_0.gguf": OTHER})
            mirror.repos[NAME].tags[hub.repos[NAME].head] = mirror.repos[NAME].head
    listing = await at(mirrors=(url,)).find(source)
    assert listing.resolved == f"hf:{NAME}@{hub.repos[NAME].head}"
    assert all(remote.urls[0].startswith(hub.url) for remote in listing.files)


async def test_when_all_fail_the_origins_word_counts_and_the_mirrors_is_told(at: At, mirror: Hub) -> None:
    del mirror.repos[NAME]
    fault = await fails(at(mirrors=(mirror.url,), endpoint=f"http://127.0.0.1:{free_port()}"), f"hf:{NAME}")
    assert (fault.code, fault.kind) == ("NETWORK_UNREACHABLE", FaultClass.TRANSIENT)
    assert f"the mirror {mirror.host} was passed over: there is no repository" in fault.message


async def test_the_first_that_answers_is_believed_and_the_bytes_are_held_to_it(at: At, hub: Hub, mirror: Hub) -> None:
    """A mirror that says another sha256 for the same commit: nothing but bytes of that sha256 comes through."""
    mirror.repos[NAME].lied["m-Q4_0.gguf"] = {"lfs": {"sha256": "0" * 64, "size": len(MODEL), "pointerSize": 1}}
    desk = at(mirrors=(mirror.url,))
    with pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await desk.bring(f"hf:{NAME}", "m-*")
    with pytest.raises(Fault, match="by its source's own word"):
        await desk.bring(f"hf:{NAME}", "m-*", sha256(MODEL))


async def test_hf_endpoint_is_a_mirror_where_the_manifest_is_silent(
    at: At, hub: Hub, mirror: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "_HF_DEFAULT_ENDPOINT", hub.url)  # the public hub, for this test
    monkeypatch.setenv("HF_ENDPOINT", mirror.url + "/")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.grant(SECRET)
    listing = await at(endpoint="").find(f"hf:{NAME}")
    assert [url.partition("/acme")[0] for url in listing.files[0].urls] == [mirror.url, hub.url]
    mirror.server.stop()
    assert (await at(endpoint="").find(f"hf:{NAME}")).files[0].urls[0].startswith(hub.url)
    assert (mirror.tokens(), hub.tokens()) == (set(), {f"Bearer {SECRET}"})
    named = await at(endpoint=hub.url).find(f"hf:{NAME}")
    assert [len(f.urls) for f in named.files] == [1, 1], "the manifest's word goes before the environment's"


# -- where tokens go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hub", "model", "environment", "login"])
async def test_a_token_is_shown_to_the_origin_and_nobody_else(
    at: At, hub: Hub, mirror: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    hub.add("acme/gated", {"m.gguf": MODEL}, gated=True)
    hub.grant(SECRET, "acme/gated")
    if how == "environment":
        monkeypatch.setenv("HF_TOKEN", SECRET)
    if how == "login":
        (tmp_path / "login").mkdir()
        (tmp_path / "login" / "token").write_text(SECRET)
    desk = at(token=SECRET if how == "hub" else "", own=SECRET if how == "model" else "", mirrors=(mirror.url,))
    assert (await desk.bring("hf:acme/gated")).sha256 == sha256(MODEL)
    assert hub.tokens() == {f"Bearer {SECRET}"}
    assert len(mirror.log) >= 1
    assert len(hub.cdn.log) >= 1
    assert mirror.tokens() == hub.cdn_tokens() == mirror.cdn_tokens() == set()


async def test_a_mirror_gets_the_bytes_request_without_the_token(at: At, hub: Hub, mirror: Hub) -> None:
    hub.grant(SECRET)
    await at(SECRET, mirrors=(mirror.url,)).bring(f"hf:{NAME}", "m-*")
    assert any("/resolve/" in request.path for request in mirror.log)
    assert mirror.tokens() == mirror.cdn_tokens() == set()


async def test_the_models_own_token_goes_before_the_hubs(at: At, hub: Hub) -> None:
    hub.grant(SECRET)
    await at("another", own=SECRET).find(f"hf:{NAME}")
    assert hub.tokens() == {f"Bearer {SECRET}"}


async def test_a_secret_is_not_in_what_is_printed_of_a_source(at: At, hub: Hub) -> None:
    hub.grant(SECRET)
    listing = await at(SECRET).find(f"hf:{NAME}")
    assert SECRET not in repr(listing)
    assert SECRET not in repr(at(SECRET).tap)


# -- the hub itself, as others use it ---------------------------------------------------------------------------------


async def test_a_mirror_as_a_web_server_that_knows_nothing_is_passed_over(at: At, hub: Hub) -> None:
    with FileServer({}) as plain:
        assert (await at(mirrors=(plain.base_url,)).find(f"hf:{NAME}")).files[0].urls[0].startswith(hub.url)
