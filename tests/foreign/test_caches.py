"""Model files in other tools' caches are found by digest or size, and nothing that was put there can lead astray."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from reconciler.foreign import caches
from reconciler.foreign.caches import Cache, candidates, lookup, where
from tests.foreign.fakehub import FakeHub

DATA = b"GGUF" + bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found(home: Path, size: int | None = len(DATA), **environ: str) -> list[tuple[str, Path, bool]]:
    return [(c.tool, c.path, c.named) for c in candidates(SHA256, size, where(environ, home, "linux"))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def test_the_real_hub_client_leaves_what_is_found_by_digest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    import huggingface_hub

    cache = home / ".cache" / "huggingface" / "hub"
    with FakeHub({"m-Q4_K_M.gguf": DATA, "README.md": b"# tiny"}) as hub:
        for name in ("README.md", "m-Q4_K_M.gguf"):
            kept = huggingface_hub.hf_hub_download("acme/tiny", name, cache_dir=cache, endpoint=hub.url, token=False)
    assert Path(kept).is_symlink()
    blob = Path(kept).resolve()
    assert blob.name == SHA256
    assert found(home) == [("the hub's cache", blob, True)]
    assert found(home, None) == found(home)
    assert found(home, len(DATA) + 1) == []


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_the_hubs_cache_may_lie_elsewhere(home: Path, tmp_path: Path, variable: str) -> None:
    blob = put(tmp_path / "big" / "models--a--b" / "blobs" / SHA256)
    put(tmp_path / "big" / "datasets--a--b" / "blobs" / SHA256)
    assert found(home) == []
    assert found(home, **{variable: str(tmp_path / "big")}) == [("the hub's cache", blob, True)]


def test_hf_home(home: Path, tmp_path: Path) -> None:
    blob = put(tmp_path / "hf" / "hub" / "models--a--b" / "blobs" / SHA256)
    assert found(home, HF_HOME=str(tmp_path / "hf")) == [("the hub's cache", blob, True)]


def test_ollama(home: Path, tmp_path: Path) -> None:
    mine = put(home / ".ollama" / "models" / "blobs" / f"sha256-{SHA256}")
    put(home / ".ollama" / "models" / "blobs" / f"sha256-{SHA256}-partial")
    other = put(tmp_path / "o" / "blobs" / f"sha256-{SHA256}")
    assert found(home) == [("Ollama", mine, True)]
    assert found(home, OLLAMA_MODELS=str(tmp_path / "o")) == [("Ollama", other, True), ("Ollama", mine, True)]


def test_docker(home: Path) -> None:
    blob = put(home / ".docker" / "models" / "blobs" / "sha256" / SHA256)
    assert found(home) == [("Docker", blob, True)]


def test_lm_studio_and_llama_cpp_by_size_only(home: Path, tmp_path: Path) -> None:
    studio = put(home / ".lmstudio" / "models" / "lab" / "m-GGUF" / "m.gguf")
    put(home / ".lmstudio" / "models" / "lab" / "m-GGUF" / "n.gguf", DATA[:-1])
    put(home / ".lmstudio" / "models" / "lab" / "m-GGUF" / "o.gguf.part")
    llama = put(home / ".cache" / "llama.cpp" / "lab_m.gguf")
    assert found(home) == [("LM Studio", studio, False), ("llama.cpp", llama, False)]
    assert found(home, None) == []
    moved = put(tmp_path / "disk" / "lab" / "m" / "m.gguf")
    put(home / ".lmstudio" / "settings.json", json.dumps({"downloadsFolder": str(tmp_path / "disk")}).encode())
    assert found(home)[0] == ("LM Studio", moved, False)
    assert found(home, LLAMA_CACHE=str(tmp_path / "disk")) == [
        ("LM Studio", moved, False),
        ("LM Studio", studio, False),
    ]


def test_on_macos_the_places_are_others(home: Path) -> None:
    llama = put(home / "Library" / "Caches" / "llama.cpp" / "m.gguf")
    jan = put(home / "Library" / "Application Support" / "Jan" / "data" / "llamacpp" / "models" / "a" / "model.gguf")
    told = [c.path for c in candidates(SHA256, len(DATA), where({}, home, "darwin"))]
    assert told == [jan, llama]


def test_jan_says_the_digest_beside_the_file(home: Path) -> None:
    data = home / ".local" / "share" / "Jan" / "data"
    model = put(data / "llamacpp" / "models" / "lab" / "m" / "model.gguf")
    elsewhere = put(home / "Downloads" / "n.gguf")
    put(model.parent / "model.yml", f"model_path: llamacpp/models/lab/m/model.gguf\nmodel_sha256: {SHA256}\n".encode())
    other = data / "llamacpp" / "models" / "n" / "model.yml"
    put(other, f"model_path: {elsewhere}\nmmproj_path: ../../../../x\nmodel_sha256: {SHA256}\n".encode())
    assert found(home, None) == [("Jan", model, True), ("Jan", elsewhere, True)]
    assert found(home)[2] == ("Jan", model, False)


def test_jan_may_have_moved_its_data(home: Path, tmp_path: Path) -> None:
    model = put(tmp_path / "j" / "llamacpp" / "models" / "m" / "model.gguf")
    put(home / ".config" / "Jan" / "settings.json", json.dumps({"data_folder": str(tmp_path / "j")}).encode())
    assert found(home) == [("Jan", model, False)]


def test_what_is_named_comes_first_and_what_was_tried_is_left_out(home: Path) -> None:
    size = put(home / ".cache" / "llama.cpp" / "m.gguf")
    blob = put(home / ".ollama" / "models" / "blobs" / f"sha256-{SHA256}")
    all_of_them = where({}, home, "linux")
    tried: list[Path] = []
    while one := lookup(SHA256, len(DATA), all_of_them, tried):
        tried.append(one.path)
    assert tried == [blob, size]


def test_one_folder_under_two_names_is_looked_at_once(home: Path, tmp_path: Path) -> None:
    put(home / ".ollama" / "models" / "blobs" / f"sha256-{SHA256}")
    (tmp_path / "link").symlink_to(home / ".ollama" / "models")
    assert len(found(home, OLLAMA_MODELS=str(tmp_path / "link"))) == 1


@pytest.mark.parametrize("name", ["", "a" * 63, "A" * 64, "../" * 21 + "x", "*" * 64])
def test_what_is_no_digest_finds_nothing(home: Path, name: str) -> None:
    put(home / ".cache" / "llama.cpp" / "m.gguf")
    put(home / ".ollama" / "models" / "blobs" / "sha256-x")
    assert list(candidates(name, len(DATA), where({}, home, "linux"))) == []


def test_only_ordinary_files_count(home: Path, tmp_path: Path) -> None:
    secret = put(tmp_path / "secret")
    blobs = home / ".ollama" / "models" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"sha256-{SHA256}").symlink_to(secret)
    llama = home / ".cache" / "llama.cpp"
    llama.mkdir(parents=True)
    (llama / "a.gguf").symlink_to(secret)
    (llama / "loop").symlink_to(llama)
    os.mkfifo(llama / "b.gguf")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(llama)
        try:
            listener.bind("c.gguf")
        finally:
            os.chdir(before)
        hub = home / ".cache" / "huggingface" / "hub" / "models--a--b" / "blobs"
        hub.mkdir(parents=True)
        os.mkfifo(hub / SHA256)
        assert found(home) == []
        assert found(home, None) == []


def test_folders_that_may_not_be_read_and_broken_settings_are_as_if_not_there(home: Path) -> None:
    put(home / ".lmstudio" / "settings.json", b"{broken")
    put(home / ".lmstudio-home-pointer", b"\xff\xfe")
    os.mkfifo(put(home / ".config" / "Jan" / "x").parent / "settings.json")
    put(home / ".local" / "share" / "Jan" / "data" / "llamacpp" / "models" / "m" / "model.yml", b"a: &a [*a]\n")
    blob = put(home / ".ollama" / "models" / "blobs" / f"sha256-{SHA256}")
    closed = put(home / ".cache" / "llama.cpp" / "deep" / "m.gguf").parent
    closed.chmod(0)
    try:
        assert ("Ollama", blob, True) in found(home)
    finally:
        closed.chmod(0o700)


def test_there_is_an_end_to_a_large_and_to_a_deep_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MOST", 5)
    root = home / "cache"
    for i in range(8):
        put(root / f"{i}.gguf")
    assert len(list(candidates(SHA256, len(DATA), [Cache("x", root, "size")]))) == 5
    deep = home / "deep" / "/".join("abcdefgh")
    put(deep / "m.gguf")
    assert list(candidates(SHA256, len(DATA), [Cache("x", home / "deep", "size")])) == []
    assert len(list(candidates(SHA256, len(DATA), [Cache("x", deep.parents[2], "size")]))) == 1
