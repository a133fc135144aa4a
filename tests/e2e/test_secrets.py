"""A secret is used, and found nowhere: in no file below the data root, and in nothing that is printed."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

import pytest

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.support.processes import kill9, wait_until

KEYRING = """
import json
from pathlib import Path

from keyring.backend import KeyringBackend


class Keyring(KeyringBackend):
    priority = 1

    def get_password(self, service, username):
        return json.loads(Path(__file__).with_name("kept.json").read_text()).get(f"{service}/{username}")

    def set_password(self, service, username, password):
        raise NotImplementedError

    def delete_password(self, service, username):
        raise NotImplementedError
"""
CANARY = "canary-5d41402abc"
KEYS = """, api_keys: [{name: a, key: 'env:KEY'}, {name: b, key: 'file:key.txt'},
  {name: c, key: 'command:cat other.txt'}, {name: d, key: 'keyring:deep/gateway'}]"""


@pytest.fixture
def keyed(fake: Stage) -> Stage:
    """A stage whose gateway has a key of each kind: CANARY-env, -file, -command and -keyring."""
    backend = fake.folder / "backend"
    backend.mkdir()
    (backend / "file_keyring.py").write_text(KEYRING)
    (backend / "kept.json").write_text(f'{{"deep/gateway": "{CANARY}-keyring"}}')
    (fake.folder / "key.txt").write_text(f"{CANARY}-file\n")
    (fake.folder / "other.txt").write_text(f"{CANARY}-command\n")
    path = os.pathsep.join(filter(None, [str(backend), os.environ.get("PYTHONPATH", "")]))
    fake.environment |= {
        "KEY": f"{CANARY}-env",
        "PYTHONPATH": path,
        "PYTHON_KEYRING_BACKEND": "file_keyring.Keyring",
    }
    fake.write(manifest(fake, gateway=KEYS))
    return fake


def accepted(stage: Stage, key: str) -> bool:
    request = urllib.request.Request(f"{stage.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        return False


def test_a_secret_of_any_kind_is_accepted_and_told_nowhere(keyed: Stage) -> None:
    printed = [keyed.run("plan", code=2), keyed.run("apply")]
    for kind in ("env", "file", "command", "keyring"):
        assert accepted(keyed, f"{CANARY}-{kind}"), kind
    assert not accepted(keyed, CANARY)

    keyed.write(manifest(keyed, entry(context="2k"), gateway=KEYS.replace("name: a", "name: z")))
    keyed.until_generation(2)
    kill9(keyed.server())
    wait_until(lambda: keyed.happened("server/chat", "Exited"), 10, "its death went unnoticed")
    (keyed.folder / "other.txt").unlink()
    keyed.until_ready()
    told = ("plan --all", "status", "events -n 0", "state export", "state", "why chat", "why gateway", "history")
    told = (*told, "diff 1 2", "logs controller -n 0", "logs gateway -n 0", "explain gateway.api_keys")
    for words in told:
        for form in ("text", "json"):
            printed.append(keyed.run(*words.split(), "-o", form, code=None))
            assert printed[-1].returncode in (0, 2), (words, printed[-1].stderr)
    for done in printed:
        assert CANARY not in done.stdout + done.stderr, done.args
    looked = [path for path in keyed.root.rglob("*") if path.is_file() and not path.is_socket()]
    assert any(path.name == "routes.json" for path in looked)
    for path in looked:
        assert CANARY.encode() not in path.read_bytes(), path


def test_a_secret_that_is_not_there_is_named_by_its_reference_only(keyed: Stage) -> None:
    (keyed.folder / "backend" / "kept.json").write_text("{}")
    done = keyed.run("apply", "--timeout", "6s", code=None)
    assert done.returncode in (1, 6)
    assert "keyring:deep/gateway is not in the keyring" in done.stderr
    assert "`keyring set deep gateway`" in done.stderr
    assert CANARY not in done.stdout + done.stderr + keyed.log()
