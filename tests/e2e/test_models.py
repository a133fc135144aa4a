"""Models from a hub, with real engines: chosen, pinned, fetched, judged, put together, and fitted to the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import ENGINE, entry, manifest
from tests.e2e.stage import Stage
from tests.support.hub import Hub
from tests.support.processes import wait_until
from tests.support.tiny_gguf import tiny_gguf

REPO = "acme/tiny-GGUF"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
Write = Callable[..., None]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """The bytes of a tiny model, by what it is made of."""
    folder, known = tmp_path_factory.mktemp("made"), dict[str, bytes]()

    def make(**how: object) -> bytes:
        key = json.dumps(how, sort_keys=True)
        if key not in known:
            known[key] = tiny_gguf(folder / "m.gguf", **how).read_bytes()  # type: ignore[arg-type]
        return known[key]

    return make


@pytest.fixture
def hub(made: Callable[..., bytes]) -> Iterator[Hub]:
    """A hub with one repository: three quantizations, and what is no model beside them."""
    with Hub() as hub:
        files = {f"tiny-{quant}.gguf": made(quant=quant, reply=f"I am {quant}.") for quant in ("Q4_0", "Q8_0", "F16")}
        hub.add(REPO, {**files, "README.md": b"# Tiny", "imatrix.dat": b"\0" * 64}, licence="cc0-1.0")
        yield hub


@pytest.fixture
def write(stage: Stage, hub: Hub) -> Write:
    def write(models: str, more: str = "", gateway: str = "") -> None:
        told = f"hub: {{endpoint: {hub.url}{more}}}"
        lines = "\n".join(f"  {line}" for line in models.splitlines())
        stage.write(f"version: 1\n{told}\n{ENGINE}\nmodels:\n{lines}\ngateway: {{port: {stage.port}{gateway}}}\n")

    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        stage.environment[name] = ""
    stage.environment["HF_HOME"] = str(stage.folder / "hf")
    return write


def chat(keys: str = "quant: Q8_0", repo: str = REPO, name: str = "chat") -> str:
    return f"{name}: {{source: 'hf:{repo}', engine: real, context: 512, {keys}}}"


def said(stage: Stage, model: str = "chat") -> str:
    return str(stage.ask(model)["choices"][0]["message"]["content"]).strip()


def lock(stage: Stage) -> list[dict[str, object]]:
    pins: list[dict[str, object]] = json.loads((stage.folder / "stack.lock").read_text())["pins"]
    return pins


def test_a_quantization_of_a_repository_is_found_pinned_and_served(stage: Stage, hub: Hub, write: Write) -> None:
    write(chat())
    planned = stage.run("plan", code=2).stdout
    assert "tiny-Q8_0.gguf, Q8_0" in planned
    assert "GREEN" in planned or "fetch" in planned
    stage.run("apply")
    assert said(stage) == "I am Q8_0."
    (pin,) = lock(stage)
    assert (pin["source"], pin["asked"], pin["quant"], pin["licence"]) == (f"hf:{REPO}", "Q8_0", "Q8_0", "cc0-1.0")
    assert pin["resolved"] == f"hf:{REPO}@{hub.repos[REPO].head}"
    assert pin["sha256"] == stage.blobs()[0].name
    assert stage.run("plan").stdout.strip() == "nothing to do"
    hub.repos[REPO].commit({"tiny-Q8_0.gguf": b"GGUF something else"})
    assert stage.run("plan").stdout.strip() == "nothing to do"  # the branch moved, the pin did not


def test_what_fits_best_is_chosen_and_explained(stage: Stage, write: Write) -> None:
    write(chat("quant: {fit: auto, at_most: Q8_0}"))
    stage.run("apply")
    assert said(stage) == "I am Q8_0."
    told = stage.run("explain", "models.chat.quant").stdout
    assert "chosen:" in told
    assert "Q8_0: chosen" in told
    assert "Q4_0: fits, but is of lower quality" in told
    assert "F16: above at_most: Q8_0" in told
    bound = "quant: {fit: auto}, memory: {at_most: 1MB}"
    write(chat(bound, name="other"))
    assert "holds nothing that fits" in stage.run("apply", code=None).stderr + str(
        stage.happened("model/other", "Failed")
    )


def test_a_model_that_can_never_fit_is_denied_before_a_byte_of_it_comes(stage: Stage, hub: Hub, write: Write) -> None:
    write(chat("quant: Q8_0, memory: {at_most: 1MB}"))
    denied = stage.run("plan", code=3).stdout
    assert "✗" in denied
    assert "it does not fit: needs" in denied
    stage.run("apply", code=3)
    started = stage.start("watch")
    try:
        wait_until(lambda: stage.snapshot().get("settled"), 30, "the controller does not settle")
        assert stage.condition("model/chat")["reason"] == "DoesNotFit"
        assert stage.blobs() == []
        assert stage.servers() == []
    finally:
        started.terminate()
        started.wait(20)
    write(chat("quant: Q8_0, memory: {at_most: 1MB}, force: true"))
    stage.run("apply")
    assert said(stage) == "I am Q8_0."


def test_the_parts_of_a_split_model_and_its_projector_come_together(
    stage: Stage, hub: Hub, write: Write, made: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "split").mkdir()
    tiny_gguf(tmp_path / "split" / "big-Q8_0.gguf", quant="Q8_0", reply="I was split.", layers=2, split=6, dim=64)
    parts = {f"Q8_0/{p.name}": p.read_bytes() for p in sorted((tmp_path / "split").glob("*.gguf"))}
    assert len(parts) > 2
    hub.add("acme/split-GGUF", {**parts, "mmproj-F16.gguf": made(kind="mmproj")})
    write(chat(repo="acme/split-GGUF", keys="quant: Q8_0"))
    stage.run("apply")
    assert said(stage) == "I was split."
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    seen = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]}]
    answer = stage.post("/v1/chat/completions", {"model": "chat", "messages": seen, "max_tokens": 4})
    assert answer["choices"][0]["message"]["content"].startswith("I was")
    (pin,) = lock(stage)
    also = pin["also"]
    assert isinstance(also, list)
    assert [f["role"] for f in also] == ["model"] * (len(parts) - 1) + ["mmproj"]
    assert len(stage.blobs()) == len(parts) + 1
    for blob in stage.blobs():
        assert blob.stat().st_mode & 0o222 == 0
    # one damaged part is brought again, and only that one
    before = hub.cdn.sent.copy()
    victim = stage.blobs()[0]
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1])
    stage.run("apply")
    assert sum((hub.cdn.sent - before).values()) <= victim.stat().st_size
    assert said(stage) == "I was split."


def test_a_draft_model_guesses_ahead(stage: Stage, hub: Hub, write: Write, made: Callable[..., bytes]) -> None:
    hub.add("acme/draft-GGUF", {"draft-Q4_0.gguf": made(quant="Q4_0", reply="I am Q8_0.")})
    write(chat("quant: Q8_0, draft: 'hf:acme/draft-GGUF'"))
    stage.run("apply")
    answer = stage.ask("chat")
    assert answer["choices"][0]["message"]["content"].strip() == "I am Q8_0."
    assert answer["timings"]["draft_n"] > 0
    assert stage.condition("model/chat+draft")["status"] == "True"
    assert {pin.get("asked") for pin in lock(stage)} == {"Q8_0", "draft"}
    write(chat("quant: Q8_0"))
    stage.until_ready()
    wait_until(lambda: "draft_n" not in stage.ask("chat")["timings"], 30, "the draft model stays")
    assert "models.chat" in stage.run("history").stdout or stage.generation() == 2


def test_a_name_that_the_tensors_contradict_is_refused_with_what_was_found(
    stage: Stage, hub: Hub, write: Write, made: Callable[..., bytes]
) -> None:
    hub.add("acme/liar-GGUF", {"liar-Q8_0.gguf": made(quant="Q4_0")})
    write(chat(repo="acme/liar-GGUF"))
    refused = stage.run("apply", code=None)
    assert refused.returncode == 1
    assert "Q8_0 was asked for, but most of its weights are Q4_0" in refused.stderr
    assert stage.blobs() == []


@pytest.mark.parametrize("kind", ["mmproj", "bert"])
def test_what_is_no_model_of_the_kind_wanted_is_told_apart(
    stage: Stage, hub: Hub, write: Write, made: Callable[..., bytes], kind: str
) -> None:
    hub.add("acme/odd-GGUF", {"odd-F32.gguf": made(kind=kind)})
    write(chat("quant: F32", repo="acme/odd-GGUF"))
    done = stage.run("apply", code=None, timeout=120) if kind == "mmproj" else None
    if done is not None:
        assert done.returncode != 0
        assert "odd-F32.gguf is a projector" in done.stderr
        return
    told = json.loads(stage.run("inspect", "hf:acme/odd-GGUF", "-o", "json").stdout)
    assert told["model"]["task"] == "embedding"


def test_one_blob_that_two_models_want_is_fetched_once(stage: Stage, hub: Hub, write: Write) -> None:
    write(chat(name="one") + "\n" + chat(name="two"))
    stage.run("apply")
    assert said(stage, "one") == said(stage, "two") == "I am Q8_0."
    assert len(stage.blobs()) == 1
    # The header is read by whoever plans, and by the controller once for both; the whole comes once.
    assert [r.range for r in hub.cdn.log if r.method == "GET"] == ["bytes=0-1048575", "bytes=0-1048575", None]


def test_a_gated_repository_needs_a_token_that_goes_nowhere_else(stage: Stage, hub: Hub, write: Write) -> None:
    files = hub.repos[REPO].commits[hub.repos[REPO].head]
    hub.add("acme/gated-GGUF", files, gated=True)
    hub.grant("let-me-in", "acme/gated-GGUF")
    write(chat(repo="acme/gated-GGUF"))
    stage.run("apply", code=None)
    message = stage.condition("model/chat")["message"]
    assert "acme/gated-GGUF" in message
    assert "token" in message
    stage.run("down")
    stage.environment["HUB_TOKEN"] = "let-me-in"
    write(chat(repo="acme/gated-GGUF"), more=", token: 'env:HUB_TOKEN'")
    stage.run("apply")
    assert said(stage) == "I am Q8_0."
    assert hub.cdn_tokens() == set()
    everything = "".join(p.read_text(errors="replace") for p in stage.root.rglob("*") if p.is_file())
    assert "let-me-in" not in everything + stage.manifest.read_text() + (stage.folder / "stack.lock").read_text()


def test_a_mirror_is_asked_first_and_never_gets_the_token(stage: Stage, hub: Hub, write: Write) -> None:
    with Hub() as mirror:
        mirror.add(REPO, hub.repos[REPO].commits[hub.repos[REPO].head], licence="cc0-1.0")
        stage.environment["HUB_TOKEN"] = "let-me-in"
        write(chat(), more=f", mirrors: ['{mirror.url}'], token: 'env:HUB_TOKEN'")
        stage.run("apply")
        assert said(stage) == "I am Q8_0."
        assert mirror.log
        assert mirror.tokens() == mirror.cdn_tokens() == set()


def test_pinning_a_hub_needs_no_download(stage: Stage, hub: Hub, write: Write) -> None:
    write(chat())
    stage.run("lock")
    assert lock(stage)[0]["quant"] == "Q8_0"
    assert stage.blobs() == []
    stage.run("apply", "--locked")
    assert said(stage) == "I am Q8_0."


def test_inspecting_a_repository_lists_what_there_is_and_how_it_fits(stage: Stage, hub: Hub, write: Write) -> None:
    write(chat())
    table = stage.run("inspect", f"hf:{REPO}").stdout
    for quant in ("Q4_0", "Q8_0", "F16"):
        assert quant in table
    assert "GREEN" in table
    one = json.loads(stage.run("inspect", f"hf:{REPO}", "--quant", "q4_0", "-o", "json").stdout)
    assert one["model"]["quant"] == "Q4_0"
    assert one["model"]["fit"]["verdict"] == "GREEN"
    assert stage.run("inspect", "hf:acme/none", code=1).stderr
    assert not (stage.root / "artifacts").exists()


def test_bytes_that_another_tool_has_already_are_linked_and_not_fetched(stage: Stage, hub: Hub, write: Write) -> None:
    """As the hub's own client keeps them: under their sha256."""
    import hashlib

    data = hub.repos[REPO].commits[hub.repos[REPO].head]["tiny-Q8_0.gguf"]
    cache = stage.folder / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    cache.mkdir(parents=True)
    there = cache / hashlib.sha256(data).hexdigest()
    there.write_bytes(data)
    mode = there.stat().st_mode
    write(chat())
    stage.run("lock")
    before = sum(hub.cdn.sent.values())
    stage.run("apply")
    assert said(stage) == "I am Q8_0."
    assert sum(hub.cdn.sent.values()) == before
    assert there.stat().st_mode == mode
    assert any("Adopted" in e or "cache" in e for e in stage.happened("model/chat", "Adopted"))


@pytest.mark.parametrize(
    ("devices", "layers", "said"),
    [
        ([{"name": "gpu", "total": 8 << 30, "free": 7 << 30}], ("--gpu-layers", "5"), "all 5 layers on the GPU"),
        ([{"name": "gpu", "total": 1 << 20, "free": 1 << 20}], ("--gpu-layers", "0"), "only 0 of 5 layers fit the GPU"),
        ([], None, "on the CPU"),
    ],
    ids=["all of it", "none of it", "no GPU"],
)
def test_gpu_layers_follow_from_the_memory_of_the_gpus(
    fake: Stage, devices: list[object], layers: tuple[str, str] | None, said: str
) -> None:
    fake.environment["RECONCILER_DEVICES"] = json.dumps(devices)
    fake.write(manifest(fake, entry(source="models/endless.gguf")))
    fake.run("apply")
    argv = psutil.Process(fake.server()).cmdline()
    found = ("--gpu-layers", argv[argv.index("--gpu-layers") + 1]) if "--gpu-layers" in argv else None
    assert found == layers
    told = json.loads(fake.run("inspect", "models/endless.gguf", "--context", "1k", "-o", "json").stdout)
    assert said in told["model"]["fit"]["reason"]
