"""Set-ups of other tools in a home folder, as they lay them out themselves; each with secrets that must go nowhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from reconciler.foreign.home import Home

SECRETS = (
    "sk-canary-0123456789abcdefghij",
    "ghp_canary0123456789abcdefghijklmnop",
    "Bearer canary-token-0123456789",
    "canary-plain-password",
    "hf_canary0123456789abcdef",
)
GGUF = b"GGUF" + b"\x03\0\0\0" + bytes(100)


def home_at(folder: Path, **environ: str) -> Home:
    folder.mkdir(parents=True, exist_ok=True)
    return Home({"PATH": "/usr/bin:/bin", **environ}, folder, "linux", folder)


def put(path: Path, content: bytes | str | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content, indent=2)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class Ollama:
    """A folder of models; `model` makes a tag out of blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, content: bytes | str | dict[str, Any]) -> str:
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        data = data.encode() if isinstance(data, str) else data
        sha256 = hashlib.sha256(data).hexdigest()
        put(self.root / "blobs" / f"sha256-{sha256}", data)
        return sha256

    def model(
        self,
        name: str,
        tag: str = "latest",
        config: dict[str, Any] | None = None,
        **layers: bytes | str | dict[str, Any],
    ) -> Path:
        where = name if name.count("/") == 2 else f"registry.ollama.ai/library/{name}"
        made = [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{self.blob(content)}", "size": 1}
            for kind, content in layers.items()
        ]
        config_blob = self.blob(config or {"model_format": "gguf", "model_family": "llama", "model_type": "8B"})
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": f"sha256:{config_blob}",
            },
            "layers": made,
        }
        return put(self.root / "manifests" / where / tag, manifest)


def ollama(home: Path) -> None:
    tool = Ollama(home / ".ollama" / "models")
    tool.model(
        "llama3", model=GGUF, template="{{ .Prompt }}", params={"num_ctx": 8192, "temperature": 0.5, "stop": ["x"]}
    )
    tool.model("llama3", "8b", model=GGUF, template="{{ .Prompt }}",
               params={"num_ctx": 8192, "temperature": 0.5, "stop": ["x"]})  # fmt: skip
    tool.model("llava", "7b", model=GGUF + b"1", projector=GGUF + b"2", adapter=GGUF + b"3", system="Be brief.")
    tool.model("hf.co/lab/X-GGUF", "Q4_K_M", model=GGUF + b"4")
    tool.model("nomic-embed-text", model=GGUF + b"5", config={"model_family": "nomic-bert"})
    tool.model("cloudy", config={"remote_host": "https://x", "remote_model": "y"})


def lmstudio(home: Path) -> None:
    base = home / ".lmstudio"
    put(base / "models" / "lab" / "Qwen-7B-GGUF" / "Qwen-7B-Q4_K_M.gguf", GGUF)
    put(base / "models" / "lab" / "Qwen-7B-GGUF" / "mmproj-F16.gguf", GGUF)
    for i in (1, 2):
        put(base / "models" / "lab" / "Big-GGUF" / f"big-Q8_0-0000{i}-of-00002.gguf", GGUF)
    put(base / "models" / "mlx-community" / "m-4bit" / "model.safetensors", b"x")
    put(base / "models" / "lab" / "e-GGUF" / "nomic-embed.Q4_0.gguf", GGUF)
    kept = (
        base / ".internal" / "user-concrete-model-default-config" / "lab" / "Qwen-7B-GGUF" / "Qwen-7B-Q4_K_M.gguf.json"
    )
    fields = [
        {"key": "llm.load.contextLength", "value": 16384},
        {"key": "llm.load.llama.flashAttention", "value": True},
        {"key": "llm.load.llama.kCacheQuantizationType", "value": {"checked": True, "value": "q8_0"}},
        {"key": "llm.load.llama.vCacheQuantizationType", "value": {"checked": False, "value": "q4_0"}},
        {"key": "llm.load.llama.cpuThreadPoolSize", "value": 6},
        {"key": "llm.load.someNewThing", "value": 1},
    ]
    put(kept, {"preset": "", "operation": {"fields": []}, "load": {"fields": fields}})
    put(
        base / ".internal" / "http-server-config.json",
        {"port": 1234, "jitModelTTL": {"enabled": True, "ttlSeconds": 900}},
    )
    put(
        base / "mcp.json",
        {"mcpServers": {"hub": {"url": "https://x.example/mcp", "headers": {"Authorization": SECRETS[2]}}}},
    )


def jan(home: Path) -> None:
    data = home / ".local" / "share" / "Jan" / "data"
    put(data / "llamacpp" / "models" / "lab" / "Qwen3-4B" / "model.gguf", GGUF)
    put(data / "llamacpp" / "models" / "lab" / "Qwen3-4B" / "mmproj.gguf", GGUF)
    put(
        data / "llamacpp" / "models" / "lab" / "Qwen3-4B" / "model.yml",
        "model_path: llamacpp/models/lab/Qwen3-4B/model.gguf\n"
        "mmproj_path: llamacpp/models/lab/Qwen3-4B/mmproj.gguf\n"
        f"name: Qwen3 4B\nsize_bytes: 108\nmodel_sha256: {hashlib.sha256(GGUF).hexdigest()}\nmodel_size_bytes: 108\n"
        "embedding: false\nctx_size: 16384\nn_gpu_layers: 20\nflash_attn: 'on'\ncache_type_k: q8_0\n"
        "temperature: 0.6\nmtp: true\nspec_draft_n_max: 3\n",
    )
    put(data / "llamacpp" / "models" / "gone" / "model.yml", "model_path: llamacpp/models/gone/model.gguf\n")
    put(
        data / "mcp_config.json",
        {
            "mcpServers": {
                "browser": {"command": "npx", "args": ["-y", "b"], "env": {"GITHUB_TOKEN": SECRETS[1], "MODE": "fast"}},
                "off": {"command": "npx", "args": [], "active": False},
                "http": {"command": "", "args": [], "type": "http", "url": "https://y.example/mcp", "timeout": 20},
            },
            "mcpSettings": {"toolCallTimeoutSeconds": 45, "backoffMultiplier": 2.0},
        },
    )
    providers = [
        {"provider": "openai", "active": True, "api_key": SECRETS[0], "models": [{"id": "gpt-5.2"}]},
        {"provider": "groq", "active": True, "api_key": "", "models": []},
        {"provider": "llamacpp", "active": True},
        {
            "provider": "My Lab",
            "active": True,
            "api_key": SECRETS[3],
            "base_url": "http://10.0.0.7:8000/v1/",
            "models": [],
        },
    ]
    server = {"serverHost": "0.0.0.0", "serverPort": 1444, "apiPrefix": "/v1", "apiKey": SECRETS[3] + "2",
              "trustedHosts": ["box.local"], "corsEnabled": True}  # fmt: skip
    put(
        data / "settings.json",
        {
            "model-provider": json.dumps({"state": {"providers": providers}, "version": 1}),
            "setting-local-api-server": json.dumps({"state": server}),
            "theme": json.dumps({"state": {"dark": True}}),
        },
    )


def llama_swap(home: Path) -> None:
    put(home / "models" / "q.gguf", GGUF)
    put(home / "bin" / "llama-server", "#!/bin/sh\n").chmod(0o755)
    put(
        home / "config.yaml",
        f"""\
healthCheckTimeout: 60
globalTTL: 600
macros:
  server: {home}/bin/llama-server --port ${{PORT}}
  default_ctx: 4096
  args: --ctx-size ${{default_ctx}}
apiKeys:
  - {SECRETS[0]}
  - ${{env.SWAP_KEY}}
x-common: &common
  ttl: 60
models:
  "qwen:7b":
    <<: *common
    macros: {{default_ctx: 32768}}
    cmd: |
      # the big one
      ${{server}} ${{args}} -m models/q.gguf --parallel 4 \\
        -ngl 99 -ctk q8_0 -ctv q8_0 -fa on --jinja --temp 0.7 --mmproj models/mm.gguf
        --lora models/a.gguf,models/b.gguf:0.5 -md models/d.gguf --api-key {SECRETS[3]} -ot "exps=CPU"
    name: Qwen
    aliases: [gpt-4o-mini, {{id: small}}]
    filters: {{stripParams: "top_k"}}
  hub:
    cmd: ${{server}} -hf lab/X-GGUF:Q4_K_M -c 0 --embeddings
    ttl: 0
  first:
    cmd: ${{server}} -m models/q.gguf
  vllm:
    cmd: vllm serve Qwen/Qwen3-8B --port ${{PORT}}
    checkEndpoint: /ready
    env: ["HF_TOKEN={SECRETS[4]}", "VLLM_USE_V1=1"]
  docker:
    cmd: docker run --rm -p ${{PORT}}:8080 -v {home}/models:/models ghcr.io/ggml-org/llama.cpp:server -m /models/q.gguf
  broken:
    cmd: ${{server}} -m "models/q.gguf
  circle:
    macros: {{a: "${{b}}", b: "${{a}}"}}
    cmd: ${{a}}
hooks: {{on_startup: {{preload: [first]}}}}
groups: {{g: {{members: [first]}}}}
peers:
  other: {{proxy: "http://10.0.0.2:8080", apiKey: {SECRETS[3]}3, models: [m1, a/b]}}
""",
    )


def litellm(home: Path) -> None:
    put(
        home / "litellm_config.yaml",
        f"""\
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o, api_key: os.environ/OPENAI_KEY, temperature: 0.2}}
  - model_name: smart
    litellm_params: {{model: anthropic/claude-sonnet-5, api_key: {SECRETS[0]}}}
  - model_name: split
    litellm_params: {{model: openai/lab-a, api_base: "http://10.0.0.7:8000/v1", api_key: none, weight: 3}}
  - model_name: split
    litellm_params: {{model: openai/lab-b, api_base: "http://10.0.0.8:8000/v1", api_key: {SECRETS[3]}, weight: 1}}
  - model_name: local
    litellm_params: {{model: ollama_chat/llama3, api_base: "http://localhost:11434"}}
  - model_name: "*"
    litellm_params: {{model: "groq/*", api_key: os.environ/GROQ_API_KEY}}
  - model_name: bedrock
    litellm_params: {{model: bedrock/x.y}}
litellm_settings:
  drop_params: true
  fallbacks: [{{smart: [gpt-4o, local]}}]
router_settings:
  model_group_alias: {{best: smart}}
  redis_password: {SECRETS[3]}4
general_settings:
  master_key: {SECRETS[0]}5
  database_url: postgresql://u:{SECRETS[3]}@db/x
environment_variables: {{LANGFUSE_SECRET: {SECRETS[3]}6}}
""",
    )


def claude_desktop(home: Path) -> None:
    put(
        home / ".config" / "Claude" / "claude_desktop_config.json",
        f"""\
{{
  // pasted by hand
  "mcpServers": {{
    "files": {{"command": "npx", "args": ["-y", "@scope/server-filesystem@1.0.0", "/srv/docs"]}},
    "git hub": {{
      "command": "docker", "args": ["run", "-i", "-e", "GITHUB_PERSONAL_ACCESS_TOKEN", "ghcr.io/x/y"],
      "env": {{"GITHUB_PERSONAL_ACCESS_TOKEN": "{SECRETS[1]}", "LOG": "info", "N": 3}}
    }},
    "remote": {{"type": "http", "url": "https://mcp.example.com/mcp", "headers": {{"Authorization": "{SECRETS[2]}",
                "Accept": "text/plain"}}}},
    "bridge": {{"command": "npx", "args": ["mcp-remote", "https://x.example/sse", "--header",
               "Authorization:${{AUTH}}"], "env": {{"AUTH": "{SECRETS[2]}"}}}},
    "inarg": {{"command": "npx", "args": ["x", "--api-key", "{SECRETS[3]}"]}},
    "inurl": {{"url": "https://x.example/mcp?api_key={SECRETS[4]}"}},
    "ref": {{"command": "x", "env": {{"TOKEN": "${{env:MY_TOKEN}}"}}, "autoApprove": ["a"]}},
    "off": {{"command": "x", "disabled": true}},
  }},
}}
""",
    )


def compose(home: Path) -> None:
    put(home / "models" / "q.gguf", GGUF)
    put(home / ".env", f"MODEL_FILE=q.gguf\nLLAMA_KEY={SECRETS[3]}\n")
    sha256 = hashlib.sha256(GGUF + b"9").hexdigest()
    store = home / ".docker" / "models"
    put(store / "blobs" / "sha256" / sha256, GGUF + b"9")
    put(store / "models.json", {"models": [{"id": "x", "tags": ["ai/smollm2:latest"], "files": [f"sha256:{sha256}"]}]})
    Ollama(home / "ollama" / "models").model("phi", model=GGUF + b"8")
    put(
        home / "compose.yaml",
        f"""\
x-llama: &llama
  image: ghcr.io/ggml-org/llama.cpp:server-cuda
services:
  app:
    image: my-app
    environment: {{OPENAI_API_KEY: {SECRETS[0]}}}
    models: [llm]
  llama:
    <<: *llama
    command: -m /models/${{MODEL_FILE:-x.gguf}} --port 8080 --api-key ${{LLAMA_KEY}}
    environment: [LLAMA_ARG_CTX_SIZE=8192, LLAMA_ARG_N_PARALLEL=2]
    volumes: ["./models:/models:ro"]
  volume:
    <<: *llama
    command: ["-m", "/data/x.gguf"]
    volumes: [data:/data]
  ollama: {{image: "ollama/ollama:latest", ports: ["11434:11434"]}}
  mine: {{image: ollama/ollama, volumes: ["./ollama:/root/.ollama"]}}
  vllm:
    image: vllm/vllm-openai:latest
    command: ["--model", "Qwen/Qwen3-8B", "--api-key", {SECRETS[3]}7]
    ports: [{{target: 8000, published: 8001}}]
  hidden: {{image: vllm/vllm-openai}}
models:
  llm: {{model: ai/smollm2, context_size: 4096, runtime_flags: ["--no-prefill-assistant", "--temp=0.1"]}}
  hub: {{model: "hf.co/lab/X-GGUF:Q4_K_M"}}
  unknown: {{model: ai/never-pulled}}
""",
    )


SETUPS = {
    "ollama": ollama, "lmstudio": lmstudio, "jan": jan, "llama-swap": llama_swap, "litellm": litellm,
    "claude-desktop": claude_desktop, "compose": compose,
}  # fmt: skip
