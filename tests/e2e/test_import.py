"""A set-up of another tool, imported, applied, and answering under the names that its clients know."""

from __future__ import annotations

import json
from pathlib import Path

from openai import OpenAI

from tests.e2e.stage import Stage, real_engine

CONFIG = """\
macros:
  server: {engine} --port ${{PORT}}
models:
  "hello:tiny":
    cmd: ${{server}} -m models/hello.gguf -c 1024 -np 1 --no-warmup
    aliases: [gpt-4o-mini]
hooks: {{on_startup: {{preload: ["hello:tiny"]}}}}
"""


def test_a_configuration_of_llama_swap_goes_on_here(stage: Stage) -> None:
    engine = real_engine(stage.folder / "llama-server")
    (stage.folder / "config.yaml").write_text(CONFIG.format(engine=engine))
    told = json.loads(stage.run("import", "--from", "llama-swap", "config.yaml", "-o", "json").stdout)
    assert (told["left"], told["later"], told["needed"]) == ([], [], [])
    assert Path(told["manifest"]) == stage.manifest
    with stage.manifest.open("a") as out:
        out.write(f"\ngateway: {{port: {stage.port}}}\n")
    stage.run("validate")
    stage.run("apply")
    with OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as openai:
        for name in ("hello-tiny", "hello:tiny", "gpt-4o-mini"):
            question = [{"role": "user", "content": "Say hello."}]
            answer = openai.chat.completions.create(model=name, messages=question, max_tokens=40)  # type: ignore[call-overload]
            assert answer.choices[0].message.content == "Hello from a tiny model."
