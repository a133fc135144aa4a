"""What `reconcile env` says leads real clients to the real gateway, with every kind of key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import entry, manifest
from tests.e2e.stage import Stage
from tests.e2e.test_secrets import CANARY, KEYRING, KEYS
from tests.support.processes import free_port, kill9

ASK = """
from openai import OpenAI
client = OpenAI(max_retries=0)
print([model.id for model in client.models.list()])
print(client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}], max_tokens=40)
      .choices[0].message.content)
"""
LIST = """
import json, os, urllib.request
key, url = os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]
request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
print([model["id"] for model in json.load(urllib.request.urlopen(request))["data"]])
"""


def asked(stage: Stage, lines: str, program: str, **environ: str) -> list[str]:
    """What a program prints that a shell starts, once the shell has read these lines."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "ANTHROPIC"))}
    done = subprocess.run(
        ["sh", "-c", f'{lines}\nexec "$0" -c "$1"', sys.executable, program],
        cwd=stage.folder,
        env={**plain, **stage.environment, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def home(stage: Stage) -> Path:
    """A home folder for the command line of a stage."""
    folder = stage.folder / "home"
    folder.mkdir()
    stage.environment |= {"HOME": str(folder), "SHELL": "/bin/sh", "XDG_CONFIG_HOME": ""}
    return folder


def test_a_client_that_knows_nothing_else_asks_the_gateway(hello: Stage, home: Path) -> None:
    hello.run("env", "openai", "--write")
    assert list(home.iterdir()) == [home / ".profile"]
    models, answer = asked(hello, '. "$HOME/.profile"', ASK)
    assert models == "['chat']"
    assert "Hello from a tiny model." in answer
    hello.run("env", "openai", "--remove")
    assert list(home.iterdir()) == []


def test_every_kind_of_key_opens_the_gateway(fake: Stage, home: Path) -> None:
    backend = fake.folder / "backend"
    backend.mkdir()
    (backend / "file_keyring.py").write_text(KEYRING)
    (backend / "kept.json").write_text(f'{{"deep/gateway": "{CANARY}-keyring"}}')
    (fake.folder / "key.txt").write_text(f"{CANARY}-file\n")
    (fake.folder / "other.txt").write_text(f"{CANARY}-command\n")
    fake.environment |= {
        "KEY": f"{CANARY}-env",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(backend), os.environ.get("PYTHONPATH", "")])),
        "PYTHON_KEYRING_BACKEND": "file_keyring.Keyring",
    }
    fake.write(manifest(fake, gateway=KEYS))
    fake.run("apply")
    for name in "abcd":
        said = fake.run("env", "openai", "--key", name)
        assert CANARY not in said.stdout + said.stderr
        assert asked(fake, said.stdout, LIST) == ["['chat']"]
        shown = fake.run("env", "openai", "--key", name, "--show-key").stdout
        assert CANARY in shown
        assert asked(fake, shown, LIST, KEY="gone") == ["['chat']"]
    with pytest.raises(AssertionError, match="401"):
        asked(fake, fake.run("env", "openai", "--key", "a").stdout, LIST, KEY="wrong")


def test_what_is_in_force_counts_and_not_what_was_saved_since(served: Stage, home: Path) -> None:
    served.run("pause")
    port, served.port = served.port, free_port()
    served.write(manifest(served))
    said = served.run("env", "openai")
    assert f":{port}/v1" in said.stdout
    assert "generation 1, which is in force; stack.yaml says something else now" in said.stderr
    served.write("version: 1\nmodles: {}\n")
    assert f":{port}/v1" in served.run("env", "openai").stdout
    served.manifest.unlink()
    assert f":{port}/v1" in served.run("env", "openai").stdout
    assert json.loads(served.run("env", "openai", "-o", "json").stdout)["url"] == f"http://127.0.0.1:{port}/v1"
    kill9(served.controller)
    served.run("resume")
    assert f":{port}/v1" in served.run("env", "openai").stdout
    served.write(manifest(served, entry("other")))
    served.run("apply")
    said = served.run("env", "codex")
    assert f":{served.port}/v1" in said.stdout
    assert 'model = "other"' in said.stdout
    assert "generation" not in said.stderr


def test_a_model_that_is_not_for_this_machine_is_not_offered(served: Stage, home: Path) -> None:
    away = entry("away", more=", when: 'false'")
    served.write(manifest(served, f"{away}\n{entry()}"))
    served.run("apply")
    assert 'model = "chat"' in served.run("env", "codex").stdout
    assert "away" not in served.run("env", "opencode").stdout
    assert "no model 'away'" in served.run("env", "openai", "--model", "away", code=1).stderr
