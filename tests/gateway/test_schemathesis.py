"""Requests made from the gateway's own description, good and bad ones, at a running gateway: it keeps its word.

Seeded, so that each run makes the same requests. Behind it is a provider that always answers: a 5xx is ours.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.gateway.harness import CLIENT_KEY, Gateway, model, provider, route, target
from tests.support.fake_provider import FakeProvider

SHA = hashlib.sha256(CLIENT_KEY.encode()).hexdigest()
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip
EXAMPLES = 4


def test_it_keeps_its_word(gateway: Gateway, tmp_path: Path) -> None:
    with FakeProvider(models=("m",)) as fake:
        gateway.use(
            {"local": model({**target(fake.port), "model": "m"})},
            providers={"far": provider(fake.url, ["m"])},
            routes={"chat": route("far/m")},
            api_keys=[{"name": "me", "sha256": SHA}],
            limits={"header_seconds": 5},
        )
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.base}/openapi.json"),
            *("-H", f"Authorization: Bearer {CLIENT_KEY}", "--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "20261123"),
            *("--generation-database", "none", "--no-color", "--continue-on-failure", "--suppress-health-check", "all"),
        ]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env={**os.environ, "CI": "true"}
        )
        print(done.stdout[-12000:])
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert len(fake.asked) > 100
    assert "bug" not in gateway.log()
