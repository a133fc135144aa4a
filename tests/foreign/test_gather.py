"""What other tools' files say becomes a manifest that is valid, tidy and without secrets; the rest is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.core.diagnostics import Refused
from reconciler.foreign import TOOLS, gather
from reconciler.foreign.draft import Draft
from reconciler.foreign.write import told
from reconciler.manifest.imported import imported, valid
from reconciler.manifest.parse import check
from reconciler.manifest.stack import Stack
from reconciler.manifest.tidy import tidy
from tests.foreign.setups import GGUF, SECRETS, SETUPS, Ollama, home_at, put


def made(tool: str, folder: Path, path: Path | None = None, **environ: str) -> tuple[Stack, Draft, str]:
    """The stack, the draft, and the text, which is checked."""
    draft = gather(tool, path, home_at(folder, **environ))
    result = imported(draft, folder / "stack.yaml")
    stack = check(result.text, folder / "stack.yaml").stack
    assert tidy(result.text, "stack.yaml") == result.text
    return stack, draft, result.text.decode()


def setup(tool: str, folder: Path, **environ: str) -> tuple[Stack, Draft, str]:
    home_at(folder)
    SETUPS[tool](folder)
    return made(tool, folder, **environ)


def said(draft: Draft, *words: str) -> str:
    """The one thing that was left out and of which all of these words are said."""
    found = [told(left) for left in draft.left if all(word in told(left) for word in words)]
    assert len(found) == 1, (words, [told(left) for left in draft.left])
    return found[0]


@pytest.mark.parametrize("tool", TOOLS)
def test_no_secret_gets_anywhere(tool: str, tmp_path: Path) -> None:
    _, draft, text = setup(tool, tmp_path)
    spoken = text + repr(draft) + "".join(told(left) for left in draft.left)
    for secret in SECRETS:
        assert secret.removeprefix("Bearer ") not in spoken


@pytest.mark.parametrize("tool", TOOLS)
def test_every_reference_is_among_the_variables_to_set(tool: str, tmp_path: Path) -> None:
    _, draft, text = setup(tool, tmp_path)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert set(re.findall(r"env:(\w+)", "\n".join(lines))) == set(draft.needed)


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_that_was_read_is_changed(tool: str, tmp_path: Path) -> None:
    SETUPS[tool](tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    made(tool, tmp_path)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("tool", TOOLS)
def test_where_there_is_nothing_it_is_said_what_was_looked_for(tool: str, tmp_path: Path) -> None:
    for path in (None, tmp_path / "gone", tmp_path):
        with pytest.raises(Refused) as caught:
            made(tool, tmp_path, path)
        assert caught.value.diagnostics[0].hint


# -- one tool after the other ----------------------------------------------------------------------------------------


def test_ollama(tmp_path: Path) -> None:
    stack, draft, _ = setup("ollama", tmp_path)
    assert sorted(stack.models) == ["X-GGUF-Q4_K_M", "llama3", "llava-7b", "nomic-embed-text"]
    llama = stack.models["llama3"]
    assert llama.aliases == ("llama3:latest", "llama3:8b")  # two tags of the same blobs are one model
    assert (llama.context, llama.options, llama.start, llama.idle_timeout) == (8192, {"temp": 0.5}, "on_demand", 300)
    assert llama.source == f"file:~/.ollama/models/blobs/sha256-{llama.sha256}"
    llava = stack.models["llava-7b"]
    assert llava.mmproj.startswith("file:~/.ollama")
    assert len(llava.lora) == 1
    assert stack.models["nomic-embed-text"].task == "embedding"
    assert stack.models["X-GGUF-Q4_K_M"].aliases == ("hf.co/lab/X-GGUF:Q4_K_M",)
    assert "cloud" in said(draft, "cloudy:latest")
    said(draft, "the prompt template of llama3:latest")
    said(draft, "the system prompt of llava:7b")
    said(draft, "the parameter stop of llama3:latest")


@pytest.mark.parametrize(
    ("alive", "start", "idle"),
    [("-1", "always", 600), ("10m", "on_demand", 600), ("90", "on_demand", 90), ("nonsense", "on_demand", 300)],
)
def test_ollamas_own_variables(tmp_path: Path, alive: str, start: str, idle: float) -> None:
    given = {"OLLAMA_KEEP_ALIVE": alive, "OLLAMA_CONTEXT_LENGTH": "16384", "OLLAMA_KV_CACHE_TYPE": "q8_0"}
    stack, _, _ = setup("ollama", tmp_path, **given)
    phi = stack.models["X-GGUF-Q4_K_M"]
    assert (phi.start, phi.idle_timeout, phi.context, phi.cache_type.v) == (start, idle, 16384, "q8_0")


def test_ollamas_hostile_manifests(tmp_path: Path) -> None:
    root = tmp_path / ".ollama" / "models"
    tool = Ollama(root)
    tool.model("good", model=GGUF)
    manifests = root / "manifests" / "registry.ollama.ai" / "library"
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../../etc/passwd", "size": 1}
    put(manifests / "bad" / "latest", {"layers": [layer]})
    put(manifests / "gone" / "latest", {"layers": [{**layer, "digest": f"sha256:{'a' * 64}"}]})
    put(manifests / "broken" / "latest", "{")
    put(manifests / "shape" / "latest", "[1, 2]")
    (manifests / "link").mkdir()
    (manifests / "link" / "latest").symlink_to("/etc/passwd")
    stack, draft, text = made("ollama", tmp_path)
    assert list(stack.models) == ["good"]
    assert "passwd" not in text
    assert "ollama pull gone:latest" in said(draft, "gone:latest")
    assert "latest:1:2" in said(draft, "broken:latest")
    said(draft, "bad:latest")
    said(draft, "shape:latest")


def test_lm_studio(tmp_path: Path) -> None:
    stack, draft, _ = setup("lmstudio", tmp_path)
    assert sorted(stack.models) == ["Qwen-7B-Q4_K_M", "big-Q8_0", "nomic-embed.Q4_0"]
    qwen = stack.models["Qwen-7B-Q4_K_M"]
    assert (qwen.context, qwen.cache_type.k, qwen.cache_type.v) == (16384, "q8_0", "f16")
    assert qwen.options == {"flash-attn": "on", "threads": 6}
    assert qwen.mmproj.endswith("mmproj-F16.gguf")
    assert (qwen.start, qwen.idle_timeout, qwen.aliases) == ("on_demand", 900, ("qwen-7b",))
    assert stack.models["big-Q8_0"].source.endswith("big-Q8_0-00001-of-00002.gguf")
    assert stack.models["nomic-embed.Q4_0"].task == "embedding"
    assert stack.mcp_servers["hub"].headers == {"Authorization": "env:HUB_AUTHORIZATION"}
    said(draft, "mlx-community/m-4bit", "GGUF")
    said(draft, "llm.load.someNewThing", ".json:")


def test_lm_studios_mcp_json_alone(tmp_path: Path) -> None:
    SETUPS["lmstudio"](tmp_path)
    stack, _, _ = made("lmstudio", tmp_path, tmp_path / ".lmstudio" / "mcp.json")
    assert (list(stack.models), list(stack.mcp_servers)) == ([], ["hub"])


def test_jan(tmp_path: Path) -> None:
    stack, draft, _ = setup("jan", tmp_path)
    (qwen,) = stack.models.values()
    assert (qwen.context, qwen.gpu_layers, qwen.cache_type.k) == (16384, 20, "q8_0")
    assert qwen.sha256
    assert qwen.mmproj.endswith("mmproj.gguf")
    assert qwen.aliases == ("lab/Qwen3-4B",)
    assert qwen.options == {"flash-attn": "on", "temp": 0.6}
    assert sorted(stack.providers) == ["My-Lab", "openai"]
    assert stack.providers["My-Lab"].base_url == "http://10.0.0.7:8000/v1"
    assert stack.providers["openai"].models == ("gpt-5.2",)
    browser = stack.mcp_servers["browser"]
    assert browser.env == {"GITHUB_TOKEN": "env:GITHUB_TOKEN", "MODE": "fast"}
    assert browser.timeout.call == 45
    assert stack.mcp_servers["http"].timeout.start == 20
    assert (stack.gateway.host, stack.gateway.port) == ("0.0.0.0", 1444)
    assert "box.local" in stack.gateway.trusted_hosts
    assert stack.gateway.api_keys[0].key == "env:JAN_API_KEY"
    assert "switched off" in said(draft, "the MCP server off")
    said(draft, "mtp, spec_draft_n_max", "model.yml:")
    said(draft, "the model gone", "model.yml:1:1")
    said(draft, "groq")
    said(draft, "CORS")


def test_jan_open_to_others_without_a_key_stays_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data / "settings.json", {"x": json.dumps({"state": {"serverHost": "0.0.0.0", "serverPort": 2000}})})
    stack, draft, _ = made("jan", tmp_path, data)
    assert (stack.gateway.host, stack.gateway.port) == ("127.0.0.1", 2000)
    assert "everybody" in said(draft, "0.0.0.0")


def test_llama_swap(tmp_path: Path) -> None:
    stack, draft, _ = setup("llama-swap", tmp_path)
    qwen = stack.models["qwen-7b"]
    assert (qwen.source, qwen.engine) == ("file:~/models/q.gguf", "llama")
    assert qwen.aliases == ("qwen:7b", "gpt-4o-mini", "small")
    assert (qwen.context, qwen.parallel, qwen.gpu_layers) == (8192, 4, 99)  # 32768 for four slots
    assert (qwen.cache_type.k, qwen.cache_type.v) == ("q8_0", "q8_0")
    assert qwen.options == {"flash-attn": "on", "jinja": True, "temp": 0.7, "override-tensor": "exps=CPU"}
    assert (qwen.mmproj, qwen.draft) == ("file:~/models/mm.gguf", "file:~/models/d.gguf")
    assert [getattr(one, "scale", one) for one in qwen.lora] == ["file:~/models/a.gguf", 0.5]
    assert (qwen.start, qwen.idle_timeout) == ("on_demand", 60)  # from the merged anchor
    hub = stack.models["hub"]
    assert (hub.source, str(hub.quant), hub.task) == ("hf:lab/X-GGUF", "Q4_K_M", "embedding")
    assert stack.models["first"].start == "always"  # it is preloaded
    assert stack.models["docker"].source == "file:~/models/q.gguf"
    assert (stack.models["vllm"].source, stack.models["vllm"].env) == ("hf:Qwen/Qwen3-8B", {"VLLM_USE_V1": "1"})
    engine: Any = stack.engines["vllm"]
    assert engine.argv == ("vllm", "serve", "{model_path}", "--port", "{port}")
    assert (engine.ready.http, engine.calls) == ("/ready", None)
    assert [key.key for key in stack.gateway.api_keys] == ["env:LLAMA_SWAP_KEY_1", "env:SWAP_KEY"]
    assert stack.providers["other"].base_url == "http://10.0.0.2:8080/v1"
    assert list(stack.routes) == ["m1"]
    assert "config.yaml:" in said(draft, "the model broken")
    assert "circle" in said(draft, "the model circle")
    said(draft, "--api-key of qwen:7b")
    said(draft, "HF_TOKEN of vllm")
    said(draft, "`groups`", "priority")
    said(draft, "--ctx-size of hub")
    said(draft, "a.gguf of qwen-7b", "not there")


def test_a_macro_that_is_not_defined_and_one_that_grows(tmp_path: Path) -> None:
    grow = {f"m{i}": f"${{m{i + 1}}} ${{m{i + 1}}}" for i in range(20)} | {"m20": "x" * 100}
    models = {"grow": {"cmd": "${m0}"}, "gone": {"cmd": "${nobody}"}, "env": {"cmd": "${env.NOT_SET}"},
              "ok": {"cmd": "llama-server -hf a/b:Q8_0"}, "portless": {"cmd": "vllm serve a/b"},
              "json": {"cmd": """vllm serve a/b --port=${PORT} --hf-overrides '{"a": 1}'"""}}  # fmt: skip
    put(tmp_path / "config.yaml", {"macros": grow, "models": models})
    stack, draft, _ = made("llama-swap", tmp_path)
    assert list(stack.models) == ["ok", "json"]
    engine: Any = stack.engines["vllm"]
    assert engine.argv == ("vllm", "serve", "{model_path}", "--port={port}", "--hf-overrides", '{{"a": 1}}')
    said(draft, "the model portless", "{port}")
    said(draft, "the model grow", "too long")
    said(draft, "the model gone", "nobody is not defined")
    said(draft, "the model env", "NOT_SET")


def test_litellm(tmp_path: Path) -> None:
    stack, draft, _ = setup("litellm", tmp_path)
    assert sorted(stack.providers) == ["10.0.0.7", "10.0.0.8", "anthropic", "groq", "ollama", "openai"]
    assert stack.providers["openai"].api_key == "env:OPENAI_KEY"
    assert stack.providers["anthropic"].api_key == "env:ANTHROPIC_API_KEY"
    assert stack.providers["10.0.0.7"].api_key is None
    assert stack.providers["groq"].models == "discover"
    assert stack.providers["ollama"].base_url == "http://localhost:11434/v1"
    assert stack.routes["smart"].targets == ("anthropic/claude-sonnet-5", "openai/gpt-4o", "ollama/llama3")
    assert [(t.to, t.weight) for t in stack.routes["split"].targets if not isinstance(t, str)] == [
        ("10.0.0.7/lab-a", 3),
        ("10.0.0.8/lab-b", 1),
    ]
    assert stack.routes["best"].targets == ("anthropic/claude-sonnet-5",)
    assert stack.gateway.api_keys[0].key == "env:LITELLM_MASTER_KEY"
    said(draft, "the model bedrock", "litellm_config.yaml:14:")
    said(draft, "litellm_params.temperature of gpt-4o")
    said(draft, "environment_variables: LANGFUSE_SECRET")


def test_claude_desktop(tmp_path: Path) -> None:
    stack, draft, _ = setup("claude-desktop", tmp_path)
    assert sorted(stack.mcp_servers) == ["bridge", "files", "git-hub", "ref", "remote"]
    assert stack.mcp_servers["files"].args == ("-y", "@scope/server-filesystem@1.0.0", "/srv/docs")
    token = "GITHUB_PERSONAL_ACCESS_TOKEN"
    assert stack.mcp_servers["git-hub"].env == {token: f"env:{token}", "LOG": "info", "N": "3"}
    assert stack.mcp_servers["remote"].headers["Accept"] == "text/plain"
    assert stack.mcp_servers["bridge"].env["AUTH"] == stack.mcp_servers["remote"].headers["Authorization"]
    assert stack.mcp_servers["ref"].env == {"TOKEN": "env:MY_TOKEN"}
    said(draft, "the MCP server inarg", "json:13:")
    said(draft, "the MCP server inurl", "json:14:")
    said(draft, "the MCP server off")
    said(draft, "autoApprove")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".mcp.json", '{"mcpServers": {"a": {"command": "x"}}}'),
        (".cursor/mcp.json", '{"mcpServers": {"a": {"command": "x"}}}'),
        (".vscode/mcp.json", '{"inputs": [], "servers": {"a": {"type": "stdio", "command": "x"}}}'),
        (".vscode/mcp.json", '{"servers": {"a": {"command": "x", "env": {"K": "${input:the-key}"}}}}'),
        ("mcp.json", '{"mcp": {"servers": {"a": {"url": "https://h/sse"}}}}'),
    ],
)
def test_files_of_other_clients(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path / name, text)
    stack, draft, _ = made("claude-desktop", tmp_path, tmp_path)
    assert list(stack.mcp_servers) == ["a"]
    assert set(draft.needed) == ({"THE_KEY"} if "input:" in text else set())
    assert stack.mcp_servers["a"].transport == ("sse" if "sse" in text else None)


def test_options_that_the_embedded_engine_lacks_are_left_out_and_told(tmp_path: Path) -> None:
    draft = Draft("some tool", home_at(tmp_path))
    options = {"top-nsigma": 1, "temp": 0.5, "device": "none", "port": 1}
    draft.models["a"] = {"source": "file:a.gguf", "options": options}
    stack = check(imported(draft, tmp_path / "stack.yaml").text, tmp_path / "stack.yaml").stack
    assert stack.models["a"].options == {"temp": 0.5}
    said(draft, "options top-nsigma, device of a", "the embedded engine does not have them")
    said(draft, "`models.a.options.port`", "--port may not be set")


def test_compose(tmp_path: Path) -> None:
    stack, draft, _ = setup("compose", tmp_path)
    assert sorted(stack.models) == ["hub", "llama", "llm", "phi"]
    assert stack.models["llm"].source.startswith("file:~/.docker/models/blobs/sha256/")
    assert (stack.models["llm"].context, stack.models["llm"].options) == (
        4096,
        {"no-prefill-assistant": True, "temp": 0.1},
    )
    assert (stack.models["hub"].source, str(stack.models["hub"].quant)) == ("hf:lab/X-GGUF", "Q4_K_M")
    llama = stack.models["llama"]
    assert (llama.source, llama.context, llama.parallel) == ("file:~/models/q.gguf", 4096, 2)
    assert stack.models["phi"].source.startswith("file:~/ollama/models/blobs/")
    assert stack.providers["ollama"].base_url == "http://127.0.0.1:11434/v1"
    assert stack.providers["vllm"].base_url == "http://127.0.0.1:8001/v1"
    said(draft, "the model unknown", "ai/never-pulled")
    said(draft, "the service volume")
    said(draft, "the service hidden", "no port")
    said(draft, "`models` of the service app")


# -- what is broken or means harm ------------------------------------------------------------------------------------

FILES = {
    "jan": ".local/share/Jan/data/settings.json", "lmstudio": ".lmstudio/mcp.json", "llama-swap": "config.yaml",
    "litellm": "litellm_config.yaml", "claude-desktop": ".config/Claude/claude_desktop_config.json",
    "compose": "compose.yaml",
}  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize("tool", FILES)
@pytest.mark.parametrize(
    "content",
    [b"{", b"[1, 2", b'{"a": "\\ud800"}', b'{"a": \x00}', b"\xff\xfe", b"[" * 100_000, BOMB.encode(),
     b"a: 1\n---\nb: 2\n", b'{"a": 1e999}', b"%TAG ! x\n--- a\n"],
    ids=["open", "list", "surrogate", "nul", "utf16", "deep", "bomb", "two", "infinite", "tag"],
)  # fmt: skip
def test_a_broken_file_is_told_with_its_place(tool: str, content: bytes, tmp_path: Path) -> None:
    SETUPS[tool](tmp_path)
    file = put(tmp_path / FILES[tool], content)
    with pytest.raises(Refused) as caught:
        made(tool, tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("tool", FILES)
def test_a_file_that_is_too_large_is_not_read(tool: str, tmp_path: Path) -> None:
    SETUPS[tool](tmp_path)
    with (tmp_path / FILES[tool]).open("wb") as out:
        out.truncate(1 << 33)
    with pytest.raises(Refused, match="more than"):
        made(tool, tmp_path)


@pytest.mark.parametrize("tool", FILES)
def test_values_of_every_wrong_shape_end_in_a_valid_manifest_or_a_refusal(tool: str, tmp_path: Path) -> None:
    SETUPS[tool](tmp_path)
    file = tmp_path / FILES[tool]
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("//")]
    values = yaml.safe_load("\n".join(lines)) if file.suffix == ".yaml" else parsed(lines)
    odd = [None, True, -1, 1.5, "", "x\ny", "ü ", [], [None], {}, {"a": {"b": []}}, ["-m"], "a" * 300, "${X}", "file:"]
    outcomes = 0
    for i, path in enumerate(paths(values)):
        for value in (odd[i % len(odd)], odd[(i * 7 + 3) % len(odd)]):
            put(file, json.dumps(changed(values, path, value)))
            try:
                valid(gather(tool, None, home_at(tmp_path)), tmp_path / "stack.yaml")
                outcomes += 1
            except Refused:
                continue
    assert outcomes


def parsed(lines: list[str]) -> Any:
    from reconciler.foreign.text import parse

    return parse("\n".join(lines), "x", "json").values


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, one in inner for path in paths(one, (*at, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy
