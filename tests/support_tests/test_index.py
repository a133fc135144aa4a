"""Real pip finds, checks and installs what is on the index."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.index import JSON, Index, build_wheel

MODEL = b"GGUF" * 100_000


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return build_wheel(tmp_path, "Tiny.Model", "1.2", {"tiny_model/m.gguf": MODEL}, requires=["nothing-here>9"])


def pip(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)


def test_wheels_are_deterministic(tmp_path: Path, wheel: Path) -> None:
    assert wheel.name == "tiny_model-1.2-py3-none-any.whl"
    first = wheel.read_bytes()
    arguments = {"tiny_model/m.gguf": MODEL}
    assert build_wheel(tmp_path, "Tiny.Model", "1.2", arguments, requires=["nothing-here>9"]).read_bytes() == first


def test_dry_run_reports_the_digest(tmp_path: Path, wheel: Path) -> None:
    """pip reads the metadata beside the wheel; since some version after 24.0 (25.3 at the latest) it reads no more."""
    with Index([wheel]) as index:
        options = ["--dry-run", "--ignore-installed", "--no-deps", "-q", "--report", "-"]
        result = pip("install", "--index-url", index.simple_url, *options, "tiny-model==1.2", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        (install,) = json.loads(result.stdout)["install"]
        assert install["metadata"]["version"] == "1.2"
        (link,) = json.loads(_get(f"{index.simple_url}/tiny-model/", JSON))["files"]
        assert install["download_info"]["archive_info"]["hashes"] == link["hashes"]
        assert index.server.sent[f"{index.path(wheel)}.metadata"] > 0
        version = json.loads(result.stdout)["pip_version"]
        if int(version.split(".")[0]) >= 26:
            assert index.server.sent[index.path(wheel)] == 0


def test_install(tmp_path: Path, wheel: Path) -> None:
    target = tmp_path / "target"
    with Index([wheel]) as index:
        options = ["--index-url", index.simple_url, "--no-deps", "--no-compile", "--target", str(target)]
        result = pip("install", *options, "tiny-model", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "trusted-host" not in result.stderr
    assert (target / "tiny_model/m.gguf").read_bytes() == MODEL


def test_a_corrupt_wheel_is_refused(tmp_path: Path, wheel: Path) -> None:
    with Index([wheel]) as index:
        index.server.corrupt(1000, path=index.path(wheel))
        options = ["--index-url", index.simple_url, "--no-deps", "--dest", str(tmp_path / "out")]
        result = pip("download", *options, "tiny-model", cwd=tmp_path)
    assert result.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in result.stderr


def test_pages_in_both_forms(tmp_path: Path, wheel: Path) -> None:
    with Index([wheel]) as index:
        newer = build_wheel(tmp_path, "tiny-model", "2.0", {}, requires_python=">=3.9")
        index.add(newer)
        page = _get(f"{index.simple_url}/tiny-model/", "text/html").decode()
        assert 'data-core-metadata="sha256=' in page
        assert 'data-requires-python="&gt;=3.9"' in page
        files = json.loads(_get(f"{index.simple_url}/tiny-model/", JSON))["files"]
        assert [entry["filename"] for entry in files] == [wheel.name, newer.name]
        assert json.loads(_get(f"{index.simple_url}/", JSON))["projects"] == [{"name": "tiny-model"}]


def _get(url: str, accept: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.headers.get_content_type() == accept
        return bytes(response.read())
