"""The benchmark of downloads measures what it says: its own programs are run, on a small file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import CHECKOUT, ENVIRONMENT
from tests.support.downloads import sha
from tests.support.fileserver import FileServer

DATA = bytes(range(256)) * 4000


def test_one_download_tells_its_cost(tmp_path: Path) -> None:
    with FileServer({"/m": DATA}) as server:
        argv = [sys.executable, "-m", "benchmarks.downloads", "--one", server.url("/m"), "--to", str(tmp_path / "p")]
        said = subprocess.run(argv, cwd=CHECKOUT, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    figures = json.loads(said)
    assert (figures["size"], figures["sha256"]) == (len(DATA), sha(DATA))
    assert figures["cpu"] > 0
    assert figures["rss_kib"] > 0
    assert (tmp_path / "p").read_bytes() == DATA
