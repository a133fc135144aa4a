"""Upkeep on a machine that runs: rot is found and mended, garbage goes and nothing else, statements hold."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reconciler.client import Client
from reconciler.host.layout import Layout
from tests.api.schemas import check, validator
from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.store.harm import flip
from tests.support.fileserver import FileServer
from tests.support.processes import alive, wait_until

assert validator  # the published schemas are those of tests/api


def said(stage: Stage, *words: str, code: int | None = 0) -> Any:
    return json.loads(stage.run(*words, "-o", "json", code=code).stdout)


def gc(stage: Stage, *words: str, code: int | None = None) -> Any:
    return check("output#/$defs/gc", said(stage, "gc", *words, code=code))


def verify(stage: Stage, *words: str, code: int | None = 0) -> Any:
    return check("output#/$defs/verify", said(stage, "verify", *words, code=code))


def went(found: Any) -> list[tuple[str, str]]:
    return sorted((item["what"], item["path"].rpartition("/")[2]) for item in found["go"])


def stayed(found: Any, what: str = "blob") -> dict[str, dict[str, Any]]:
    return {item["path"].rpartition("/")[2]: item for item in found["stay"] if item["what"] == what}


def checked_long_ago(stage: Stage) -> None:
    """As if the weeks had passed. The controller must not run."""
    db = sqlite3.connect(stage.root / "ledger.db")
    db.execute("UPDATE artifacts SET checked = 1")
    db.commit()
    db.close()


# -- rot ------------------------------------------------------------------------------------------------------------


def test_rot_that_no_look_sees_is_found_and_the_server_replaced(served: Stage) -> None:
    (blob,) = served.blobs()
    good, old = blob.read_bytes(), served.server()
    served.end_controller()
    flip(blob, len(good) // 2)
    checked_long_ago(served)
    assert verify(served)["good"], "a look sees nothing"
    served.run("apply", "--no-wait")
    wait_until(lambda: served.happened("model/chat", "BitRot"), 30, "the rot was not found")
    wait_until(lambda: blob.exists() and blob.read_bytes() == good, 30, "the file was not brought anew")
    wait_until(lambda: served.server() not in (0, old) and not alive(old), 30, "the server runs on the bad file")
    served.until_ready()
    assert verify(served, "--deep")["good"]


def test_it_can_be_left_out(served: Stage) -> None:
    (blob,) = served.blobs()
    served.write(manifest(served, more="limits: {scrub: none}\n"))
    served.run("apply")
    served.end_controller()
    flip(blob, 5)
    checked_long_ago(served)
    served.run("apply")
    time.sleep(1)
    assert not served.happened("model/chat", "BitRot")
    report = verify(served, "--deep", code=1)
    assert report["files"][0]["state"] == "damaged"


# -- verify ---------------------------------------------------------------------------------------------------------


def test_what_verify_finds_is_mended_at_once(served: Stage) -> None:
    (blob,) = served.blobs()
    good = blob.read_bytes()
    first = verify(served, "--deep")
    assert first["good"]
    assert first["bytes"] == len(good)
    flip(blob, 100)
    found = verify(served, "--deep", "chat", code=1)
    assert [(f["state"], f["told"]) for f in found["files"]] == [("damaged", True)]
    wait_until(lambda: blob.exists() and blob.read_bytes() == good, 30, "the file was not brought anew")
    served.until_ready()
    assert verify(served, "server/chat")["good"]
    text = served.run("verify", "--deep").stdout
    assert "all is as it should be" in text
    assert "/s)" in text
    assert "nothing is known of 'other'" in served.run("verify", "other", code=1).stderr


HARMS: dict[str, tuple[str, str]] = {
    "delete": ("missing", "missing"),
    "truncate": ("damaged", "damaged"),
    "flip": ("good", "damaged"),
    "touch": ("suspect", "good"),
    "write": ("suspect", "damaged"),
    "link": ("damaged", "damaged"),
    "folder": ("damaged", "damaged"),
}


def harm(blob: Path, how: str) -> None:
    blob.chmod(0o644)
    match how:
        case "delete":
            blob.unlink()
        case "truncate":
            os.truncate(blob, 1000)
        case "flip":
            flip(blob, 1000)
            blob.chmod(0o444)
        case "touch":
            os.utime(blob)
        case "write":
            flip(blob, 1000)
            os.utime(blob)
        case "link":
            away = blob.rename(blob.parents[3] / "away")
            blob.symlink_to(away)
        case "folder":
            blob.unlink()
            blob.mkdir()
            (blob / "in the way").touch()


@pytest.mark.parametrize("how", HARMS)
def test_without_a_controller_it_is_told_and_apply_mends_it(served: Stage, how: str) -> None:
    (blob,) = served.blobs()
    good = blob.read_bytes()
    served.end_controller()
    harm(blob, how)
    quick, deep = HARMS[how]
    before = sorted(served.root.rglob("*"))
    for words, expected in (((), quick), (("--deep",), deep)):
        found = verify(served, *words, code=0 if expected == "good" else 1)
        assert [(f["state"], f["told"]) for f in found["files"]] == [(expected, False)], how
    assert "reconcile apply" in served.run("verify", "--deep", code=None).stdout or deep == "good"
    assert sorted(served.root.rglob("*")) == before, "looking leaves no trace"
    if how == "flip":
        return  # no look sees that; what the controller does about it is shown above
    served.run("apply")
    assert blob.read_bytes() == good
    assert not blob.is_symlink()
    assert blob.stat().st_mode & 0o777 == 0o444
    assert verify(served, "--deep")["good"]


def test_two_at_once(served: Stage) -> None:
    for running in (True, False):
        if not running:
            served.end_controller()
        both = [served.start("verify", "--deep", "-o", "json") for _ in range(2)]
        for one in both:
            out, err = one.communicate(timeout=60)
            assert one.returncode == 0, err
            assert json.loads(out)["good"]


def test_a_store_that_cannot_be_written(served: Stage) -> None:
    """The kernel refuses every write: a read-only mount for root, modes for others."""
    served.end_controller()
    (blob,) = served.blobs()
    line = [sys.executable, "-m", "reconciler"]
    if os.geteuid() == 0:
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        line = ["unshare", "--mount", "sh", "-c", mount, str(served.root), *line]
    folders = [p for p in (served.root, *served.root.rglob("*")) if p.is_dir()]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*line, *words], cwd=served.folder, text=True, capture_output=True, timeout=60)

    try:
        for folder in folders:
            folder.chmod(0o555)
        assert run("verify", "--deep").returncode == 0
        assert run("attest", "--out", "was.json").returncode == 0
        assert run("gc").returncode == 0
        refused = run("gc", "--yes")
        assert refused.returncode == 1
        assert "cannot be written" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert blob.exists()


def test_before_anything_was_applied(stage: Stage) -> None:
    stage.write(manifest(stage))
    found = verify(stage, code=1)
    assert [(f["refs"], f["state"], f["sha256"]) for f in found["files"]] == [(["model/chat"], "missing", "")]
    assert "nothing is installed" in stage.run("attest", code=1).stderr
    assert "there is no ledger" in stage.run("gc", code=1).stderr
    assert not stage.root.exists()


# -- gc -------------------------------------------------------------------------------------------------------------


def two_models(stage: Stage) -> str:
    return manifest(stage, entry() + "\n" + entry("more", "models/embed.gguf", more=", task: embedding"))


def test_what_a_generation_needs_stays_until_it_is_let_go_of(fake: Stage) -> None:
    fake.write(two_models(fake))
    fake.run("apply")
    assert len(fake.blobs()) == 2
    assert gc(fake, code=0)["go"] == []
    fake.write(manifest(fake))
    fake.run("apply")
    found = gc(fake, code=0)
    whys = sorted((i["resources"], i["generations"]) for i in stayed(found).values())
    assert whys == [([], [1]), (["model/chat"], [1, 2])]
    (unneeded,) = [name for name, item in stayed(found).items() if not item["resources"]]
    shutil.move(fake.folder / "models", fake.folder / "gone")  # offline
    fake.run("rollback", "1")
    assert fake.snapshot()["manifest"]["generation"] == 1
    fake.run("rollback", "2")
    dry = gc(fake, "--keep-generations", "1", code=2)
    assert went(dry) == [("blob", unneeded), ("generation", "1.json")]
    assert (dry["done"], len(fake.blobs())) == (False, 2)
    text = fake.run("gc", "--keep-generations", "1", code=2).stdout
    assert "reconcile gc --yes" in text
    assert unneeded[:12] in text
    done = gc(fake, "--keep-generations", "1", "--yes", code=0)
    assert (done["freed"], done["forgotten"]) == (dry["size"] - done["go"][0]["size"], [1])
    assert [b.name for b in fake.blobs()] == list(stayed(done))
    assert "no generation 1" in fake.run("rollback", "1", code=1).stderr
    assert fake.ask()
    fake.until_ready()
    assert gc(fake, code=0)["go"] == []
    assert len(fake.happened("store", "Collected")) == 1


def test_the_one_in_force_and_the_promised_one_are_never_let_go_of(served: Stage) -> None:
    for number in (2, 3):
        served.write(manifest(served, entry(context=f"{number}k")))
        served.run("apply")
    served.run("rollback", "1")
    assert gc(served, "--keep-generations", "1", code=2)["forgotten"] == [2]
    other = served.folder / "other.yaml"
    other.write_text(manifest(served, entry(context="4k")))
    served.run("apply", "-f", str(other), "--confirm-within", "10m")
    found = gc(served, "-f", str(other), "--keep-generations", "1", "--yes")
    assert found["forgotten"] == [2, 3]
    assert [g["number"] for g in said(served, "history")["generations"]] == [1, 4]


def test_without_a_controller_under_its_lock(served: Stage) -> None:
    served.end_controller()
    (blob,) = served.blobs()
    stray = served.root / "artifacts" / "sha256" / "aa" / ("a" * 64)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x" * 1000)
    old = served.root / "engines" / "embedded-0.1-cp39"
    (old / "lib").mkdir(parents=True)
    (old / "lib" / "x.so").write_bytes(b"y" * 500)
    quarantine = served.root / "artifacts" / "quarantine"
    quarantine.mkdir()
    for days in (1, 30):
        (quarantine / f"{'b' * 64}.{int(time.time() - days * 86400)}").write_bytes(b"z")
    (served.root / "models").mkdir()
    (served.root / "models" / "gone.gguf").symlink_to(stray)
    (served.root / "models" / "chat.gguf").symlink_to(blob)
    dry = gc(served, code=2)
    assert {what for what, _ in went(dry)} == {"blob", "engine", "quarantine", "view"}
    assert len(stayed(dry, "quarantine")) == 1
    assert dry["size"] == 1501
    assert stray.exists()
    assert gc(served, "--older", "0s", code=2)["size"] == 1502
    done = gc(served, "--yes", code=0)
    assert done["freed"] == 1501
    assert not stray.exists()
    assert not old.exists()
    assert [p.name for p in (served.root / "models").iterdir()] == ["chat.gguf"]
    assert list((served.root / "artifacts" / "partial").iterdir()) == []
    assert gc(served, code=0)["go"] == []
    assert verify(served, "--deep")["good"]


def test_what_a_process_uses_stays_and_is_said(served: Stage) -> None:
    stray = served.root / "artifacts" / "sha256" / "aa" / ("a" * 64)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x" * 8192)
    with stray.open("rb") as data, subprocess.Popen(["sleep", "60"], stdin=data) as user:
        item = stayed(gc(served, "--yes"))[stray.name]
        assert user.pid in item["pids"]
        assert "used by pid " in item["why"]
        user.kill()
    assert stray.exists()
    assert went(gc(served, "--yes")) == [("blob", stray.name)]
    assert not stray.exists()


def test_a_download_goes_on_while_others_parts_go(fake: Stage, models: Path) -> None:
    gguf = (models / "endless.gguf").read_bytes()
    with FileServer({"/m.gguf": gguf}) as server:
        server.slow(len(gguf) // 6)
        fake.write(manifest(fake, f'chat: {{source: "{server.url("/m.gguf")}", engine: real, context: 1k}}'))
        fake.run("apply", "--no-wait")
        partial = fake.root / "artifacts" / "partial"
        wait_until(lambda: partial.exists() and any(p.stat().st_size for p in partial.iterdir()), 20, "no part")
        orphan = partial / "0123456789abcdef"
        orphan.write_bytes(b"o" * 100)
        os.utime(orphan, (1, 1))
        found = gc(fake, "--yes")
        assert went(found) == [("part", orphan.name)]
        assert stayed(found, "part")
        assert not orphan.exists()
        server.clear()
        fake.until_ready(60)
        whole = [request for request in server.requests("/m.gguf") if request.range != "bytes=0-1048575"]
        assert len(whole) <= 2, "it did not have to begin anew"
    assert verify(fake, "--deep")["good"]


def test_protected_things_stay(fake: Stage) -> None:
    fake.write(manifest(fake, entry(more=", protect: true")))
    fake.run("apply")
    (item,) = stayed(gc(fake)).values()
    assert item["resources"] == ["model/chat (protected)"]


def test_a_generation_that_cannot_be_read_is_told(served: Stage) -> None:
    served.write(manifest(served, entry(context="2k")))
    served.run("apply")
    (served.root / "generations" / "1.json").write_text("{")
    (note,) = gc(served)["notes"]
    assert "generation 1 cannot be read" in note


def test_a_manifest_that_is_broken_removes_nothing(served: Stage) -> None:
    served.end_controller()
    served.manifest.write_text("version: 1\nmodels: [")
    assert gc(served, "--yes", code=0)["go"] == []
    assert len(served.blobs()) == 1


# -- attest ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(served: Stage) -> Path:
    made = check("output#/$defs/attest_key", said(served, "attest", "--new-key", "me.key"))
    assert made["encrypted"] is False
    return served.folder / "me.key"


def minisign(*words: str | Path, code: int = 0, **settings: Any) -> str:
    found = shutil.which("minisign")
    assert found, "apt-get install minisign"
    done = subprocess.run([found, *map(str, words)], text=True, capture_output=True, timeout=120, **settings)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_a_statement_is_signed_checked_and_compared(served: Stage, keys: Path) -> None:
    said(served, "attest", "--key", "me.key", "--out", "was.json", "--deep")
    path = served.folder / "was.json"
    statement = check("output#/$defs/attestation", json.loads(path.read_bytes()))
    assert statement["deep"]
    by_ref = {r["ref"]: r for r in statement["resources"]}
    (file,) = by_ref["model/chat"]["files"]
    assert file["sha256"] == served.blobs()[0].name
    assert file["source"] == "file:hello.gguf"
    assert time.time() - file["checked"] < 300
    assert by_ref["engine/real"]["engine"]["program"] == "engine"
    for secret in (str(served.folder), os.environ.get("HOME", "/root") + "/", os.uname().nodename):
        assert secret not in path.read_text()
    assert minisign("-V", "-p", f"{keys}.pub", "-m", path)
    same = check(
        "output#/$defs/attest_check", said(served, "attest", "--check", "was.json", "--public-key", "me.key.pub")
    )
    assert same["same"]
    assert same["comment"].startswith("timestamp:")
    line = (served.folder / "me.key.pub").read_text().splitlines()[1]
    assert "is as it was at" in served.run("attest", "--check", "was.json", "--public-key", line, "--deep").stdout

    (served.folder / "engine").write_text((served.folder / "engine").read_text() + "# another\n")
    served.write(manifest(served, entry(context="2k")))
    served.run("apply")
    differs = said(served, "attest", "--check", "was.json", "--public-key", "me.key.pub", code=1)
    paths = {d["path"] for d in differs["differences"]}
    assert {"resources[engine/real].engine.sha256", "resources[server/chat].spec", "generation.manifest"} <= paths
    assert not [p for p in paths if p.startswith("resources[model/chat]")]


def test_a_changed_statement_or_another_key_is_refused(served: Stage, keys: Path) -> None:
    served.run("attest", "--key", "me.key", "--out", "was.json")
    path = served.folder / "was.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"deep":false', b'"deep":true'))
    ask = ("attest", "--check", "was.json", "--public-key")
    assert "the signature is not right" in served.run(*ask, "me.key.pub", code=1).stderr
    path.write_bytes(good)
    served.run("attest", "--new-key", "other.key")
    assert "the signature is not right" in served.run(*ask, "other.key.pub", code=1).stderr
    assert "not a public key" in served.run(*ask, "stack.yaml", code=1).stderr
    (served.folder / "was.json.minisig").write_text("no signature")
    assert "not a signature" in served.run(*ask, "me.key.pub", code=1).stderr
    (served.folder / "was.json.minisig").unlink()
    assert "cannot be read" in served.run(*ask, "me.key.pub", code=1).stderr
    assert "is there already" in served.run("attest", "--new-key", "me.key", code=1).stderr
    assert "not a secret key" in served.run("attest", "--key", "stack.yaml", "--out", "x.json", code=1).stderr
    assert not (served.folder / "x.json").exists()
    for words in (
        ("--check", "was.json"),
        ("--key", "me.key"),
        ("--check", "a", "--key", "b"),
        ("--new-key", "a", "--out", "b"),
    ):
        assert "Usage" in served.run("attest", *words, code=1).stderr


def test_nothing_damaged_is_attested(served: Stage, keys: Path) -> None:
    served.run("attest", "--key", "me.key", "--out", "was.json")
    served.end_controller()
    (blob,) = served.blobs()
    flip(blob, 1000)
    assert "model/chat" in served.run("attest", "--key", "me.key", "--out", "now.json", "--deep", code=1).stderr
    assert not (served.folder / "now.json").exists()
    differs = said(served, "attest", "--check", "was.json", "--public-key", "me.key.pub", "--deep", code=1)
    assert [d["path"] for d in differs["differences"]] == ["model/chat"]
    blob.chmod(0o644)
    blob.unlink()
    assert "missing" in served.run("attest", code=1).stderr


def test_keys_with_passwords_ours_and_minisigns(served: Stage) -> None:
    served.environment["PASSWORD"] = "correct horse"
    made = said(served, "attest", "--new-key", "ours.key", "--password", "env:PASSWORD")
    assert made["encrypted"]
    folder = served.folder
    assert (folder / "ours.key").stat().st_mode & 0o777 == 0o600
    assert "needs a password" in served.run("attest", "--key", "ours.key", "--out", "a.json", code=1).stderr
    served.run("attest", "--key", "ours.key", "--out", "a.json", "--password", "env:PASSWORD")
    minisign("-V", "-p", folder / "ours.key.pub", "-m", folder / "a.json")
    minisign("-S", "-s", folder / "ours.key", "-m", folder / "a.json", input="correct horse\n")
    served.run("attest", "--check", "a.json", "--public-key", "ours.key.pub")

    served.environment["PASSWORD"] = "wrong"
    assert (
        "password"
        in served.run("attest", "--key", "ours.key", "--out", "b.json", "--password", "env:PASSWORD", code=1).stderr
    )
    assert "reference" in served.run("attest", "--key", "ours.key", "--out", "b.json", "--password", "x", code=1).stderr
    assert not (folder / "b.json").exists()


def test_a_key_that_minisign_made_by_reference(served: Stage) -> None:
    folder = served.folder
    minisign("-G", "-W", "-p", folder / "m.pub", "-s", folder / "m.key")
    served.environment["KEY"] = (folder / "m.key").read_text().splitlines()[1]
    (folder / "m.key").unlink()
    served.run("attest", "--key", "env:KEY", "--out", "c.json")
    assert "timestamp:" in minisign("-V", "-p", folder / "m.pub", "-m", folder / "c.json")
    served.run("attest", "--check", "c.json", "--public-key", "m.pub")


def test_what_the_controller_answers_is_as_published(served: Stage) -> None:
    with Client(Layout(served.root)) as client:
        check("control#/$defs/gc.answer", client.gc())
        digest = served.blobs()[0].name
        assert client.suspect([digest, "f" * 64]) == [digest]
    served.until_ready()
    wait_until(lambda: verify(served, code=None)["good"], 20, "it was not proved again")
