"""The llama.cpp server of the xllamacpp wheel as a program of its own, with llama-server's flags.

Runs in the engine's virtual environment and imports nothing of reconciler. The API key comes from LLAMA_API_KEY.
Exit codes: 0 after SIGTERM, 1 when the model cannot be served, 2 for flags that it does not know.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from typing import Any

FLASH = {"auto": -1, "off": 0, "on": 1}
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
# As in ggml's list of types.
CACHE = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llama_host", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--mmproj", help="a projector, so that the model sees or hears")
    parser.add_argument("--model-draft", help="a small model that guesses ahead")
    parser.add_argument("--lora", action="append", default=[], help="an adapter")
    parser.add_argument("--lora-scaled", action="append", default=[], metavar="PATH:SCALE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=4096)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--gpu-layers", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--threads-http", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--ubatch-size", type=int)
    parser.add_argument("--flash-attn", choices=FLASH)
    parser.add_argument("--cache-type-k", choices=CACHE)
    parser.add_argument("--cache-type-v", choices=CACHE)
    parser.add_argument("--cache-ram", type=int, help="MiB of host memory for the prompt cache")
    parser.add_argument("--chat-template")
    parser.add_argument("--pooling", choices=POOLING)
    parser.add_argument("--rope-freq-base", type=float)
    parser.add_argument("--rope-freq-scale", type=float)
    parser.add_argument("--embeddings", "--embedding", action="store_true")
    parser.add_argument("--reranking", "--rerank", action="store_true")
    parser.add_argument("--context-shift", action="store_true")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-warmup", action="store_true")
    parser.add_argument("--no-webui", action="store_true", help="accepted: there is never a web page")
    return parser


def main() -> int:
    given = flags().parse_args()
    # Blocked before the server makes its threads, so that none of them takes the signal in our place.
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    import xllamacpp

    params = xllamacpp.CommonParams()
    configure(params, given, xllamacpp)
    sys.stdout.flush()
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print(f"error: {error}", flush=True)
        return 1
    signal.sigwait(stopping)
    # Its own shutdown waits for running streams; by now they have had their time.
    threading.Timer(2.0, os._exit, (0,)).start()
    del server
    os._exit(0)


def configure(params: Any, given: argparse.Namespace, xllamacpp: Any) -> None:
    """Set what was given; what was not keeps llama.cpp's own default."""

    def put(name: str, value: object) -> None:
        if value is not None:
            setattr(params, name, value)

    params.model.path = given.model
    if given.mmproj:
        params.mmproj.path = given.mmproj
    if given.model_draft:
        params.speculative.draft.mparams.path = given.model_draft
        kind = xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
        params.speculative.types = [kind]
    put("lora_adapters", [_adapter(xllamacpp, *one) for one in adapters(given)] or None)
    put("model_alias", {given.alias})
    put("hostnames", [given.host])
    put("port", given.port)
    put("reuse_port", False)
    put("api_keys", [key] if (key := os.environ.pop("LLAMA_API_KEY", "")) else None)
    put("n_ctx", given.ctx_size)
    put("n_parallel", given.parallel)
    put("n_gpu_layers", given.gpu_layers)
    put("n_threads_http", given.threads_http)
    put("n_batch", given.batch_size)
    put("n_ubatch", given.ubatch_size)
    put("cache_ram_mib", given.cache_ram)
    put("chat_template", given.chat_template)
    put("rope_freq_base", given.rope_freq_base)
    put("rope_freq_scale", given.rope_freq_scale)
    put("ctx_shift", given.context_shift or None)
    put("endpoint_metrics", given.metrics or None)
    put("embedding", (given.embeddings or given.reranking) or None)
    put("warmup", False if given.no_warmup else None)
    put("ui", False)
    if given.threads is not None:
        params.cpuparams.n_threads = given.threads
    enums = (
        ("flash_attn_type", "llama_flash_attn_type", FLASH.get(given.flash_attn)),
        ("cache_type_k", "ggml_type", CACHE.get(given.cache_type_k)),
        ("cache_type_v", "ggml_type", CACHE.get(given.cache_type_v)),
        ("pooling_type", "llama_pooling_type", POOLING.get("rank" if given.reranking else given.pooling)),
    )
    for name, enum, value in enums:
        if value is not None:
            put(name, getattr(xllamacpp, enum)(value))


def adapters(given: argparse.Namespace) -> list[tuple[str, float]]:
    """(path, scale) of each adapter."""
    scaled = (text.rpartition(":") for text in given.lora_scaled)
    return [*((path, 1.0) for path in given.lora), *((path, float(scale)) for path, _, scale in scaled)]


def _adapter(xllamacpp: Any, path: str, scale: float) -> Any:
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path, info.scale = path, scale
    return info


if __name__ == "__main__":
    sys.exit(main())
