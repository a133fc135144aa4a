#!/usr/bin/env python3
"""Stands in for llama-server: a real process with its flags and endpoints, and faults that a real one has on bad days.

Promises: standard library only; one process (`fork-grandchildren` and `leaves-the-group` apart); answers only on --host
and --port; long and short flags of llama-server are accepted, unknown ones are ignored with their values. The API key
comes from LLAMA_API_KEY, --api-key or --api-key-file. SIGTERM and SIGINT end it with 0, a model file that does not
exist with 1, a port that is taken with 1.

FAKE_ENGINE, separated by commas, switches:

    exit-at-once=CODE    end instead of starting (--version and --help still work)
    exit-on-usr1=CODE    end with it when SIGUSR1 comes (1)
    oom                  print an allocation failure as llama.cpp does and end with 1
    oom-above=TOKENS     the same where --ctx-size, the context of all slots together, is above that
    oom-later=SECONDS    with one of these two: that long after the start, instead of starting
    wrong-owner          run without ever binding the port
    never-ready          /health says 503 "Loading model" for ever
    slow-ready=SECONDS   the same for that long
    hang-after=SECONDS   that long after being ready, accept connections and never answer (hang-accepting: at once)
    crash-after=SECONDS  die of SIGABRT that long after the start
    ignore-sigterm       SIGTERM and SIGINT have no effect, on grandchildren either
    fork-grandchildren   start two sleeping processes in the same process group
    leaves-the-group     start a sleeping process in a session of its own
    leaks-memory[=BYTES] take so much more memory each second (50000000)
    closes-port-but-lives[=SECONDS]  that long after being ready (1), stop listening and do nothing more
    ready-then-503[=SECONDS]  that long after being ready (1), /health says 503 for ever, as for a broken GPU
    save-slow=SECONDS    saving a slot takes that long
    save-fails           slots are not saved: 400
    restore-fails        nor restored: 400
    flood-log[=BYTES]    write that much to stderr each second (1000000)
    chunks=N             length of an answer in tokens (20)
    chunk-ms=N           delay before each token (0)

An answer is the text "w0 w1 w2 …", one word a token, cut at max_tokens. Tokens take a slot of the --parallel ones, and
requests wait for a slot. A client that goes away frees its slot and is logged as "cancel task".

With --slot-save-path, `POST /slots/N?action=save|restore` writes and reads what a slot holds: here the number of tokens
of its last request, 100 times its words, and padding. What was read is told as `cached_tokens` from then on.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import itertools
import json
import math
import os
import resource
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

VERSION = "11434"
SWITCHES = (
    "exit-at-once",
    "exit-on-usr1",
    "oom",
    "oom-above",
    "oom-later",
    "wrong-owner",
    "never-ready",
    "slow-ready",
    "hang-after",
    "hang-accepting",
    "crash-after",
    "ignore-sigterm",
    "fork-grandchildren",
    "leaves-the-group",
    "leaks-memory",
    "closes-port-but-lives",
    "ready-then-503",
    "flood-log",
    "save-slow",
    "save-fails",
    "restore-fails",
    "chunks",
    "chunk-ms",
)
GRANDCHILD_SECONDS = 300  # so that a leak does not outlive the test run for long

# Flag, short form, value name (empty: a switch), help: a part of what llama-server --help prints.
FLAGS = (
    ("--help", "-h", "", "print usage and exit"),
    ("--version", "", "", "show version and build info"),
    ("--threads", "-t", "N", "number of CPU threads to use during generation (default: -1)"),
    ("--threads-batch", "-tb", "N", "number of threads to use during batch and prompt processing"),
    ("--ctx-size", "-c", "N", "size of the prompt context (default: 0, 0 = loaded from model)"),
    ("--n-predict", "-n", "N", "number of tokens to predict (default: -1, -1 = infinity)"),
    ("--batch-size", "-b", "N", "logical maximum batch size (default: 2048)"),
    ("--ubatch-size", "-ub", "N", "physical maximum batch size (default: 512)"),
    ("--keep", "", "N", "number of tokens to keep from the initial prompt"),
    ("--flash-attn", "-fa", "[on|off|auto]", "set Flash Attention use (default: auto)"),
    ("--rope-scaling", "", "{none,linear,yarn}", "RoPE frequency scaling method"),
    ("--rope-scale", "", "N", "RoPE context scaling factor"),
    ("--rope-freq-base", "", "N", "RoPE base frequency"),
    ("--cache-type-k", "-ctk", "TYPE", "KV cache data type for K (default: f16)"),
    ("--cache-type-v", "-ctv", "TYPE", "KV cache data type for V (default: f16)"),
    ("--kv-unified", "-kvu", "", "use single unified KV buffer for the KV cache of all sequences"),
    ("--no-kv-offload", "-nkvo", "", "disable KV offload"),
    ("--swa-full", "", "", "use full-size SWA cache"),
    ("--mlock", "", "", "force system to keep model in RAM"),
    ("--no-mmap", "", "", "do not memory-map model"),
    ("--device", "-dev", "<dev1,dev2,..>", "devices to use for offloading"),
    ("--list-devices", "", "", "print list of available devices and exit"),
    ("--gpu-layers", "-ngl", "N", "max. number of layers to store in VRAM"),
    ("--split-mode", "-sm", "{none,layer,row}", "how to split the model across multiple GPUs"),
    ("--tensor-split", "-ts", "N0,N1,N2,...", "fraction of the model to offload to each GPU"),
    ("--main-gpu", "-mg", "INDEX", "the GPU to use for the model"),
    ("--cpu-moe", "-cmoe", "", "keep all Mixture of Experts weights in the CPU"),
    ("--n-cpu-moe", "-ncmoe", "N", "keep the MoE weights of the first N layers in the CPU"),
    ("--override-kv", "", "KEY=TYPE:VALUE", "override model metadata by key"),
    ("--lora", "", "FNAME", "path to LoRA adapter (can be repeated to use multiple adapters)"),
    ("--lora-scaled", "", "FNAME:SCALE", "path to LoRA adapter with its scaling (can be repeated)"),
    ("--model", "-m", "FNAME", "model path to load"),
    ("--mmproj", "-mm", "FILE", "path to a multimodal projector file"),
    ("--no-mmproj", "", "", "disable multimodal projector"),
    ("--model-draft", "-md", "FNAME", "draft model for speculative decoding"),
    ("--draft-max", "", "N", "number of tokens to draft for speculative decoding"),
    ("--draft-min", "", "N", "minimum number of draft tokens to use for speculative decoding"),
    ("--gpu-layers-draft", "-ngld", "N", "number of layers to store in VRAM for the draft model"),
    ("--alias", "-a", "STRING", "set alias for model name (to be used by REST API)"),
    ("--host", "", "HOST", "ip address to listen (default: 127.0.0.1)"),
    ("--port", "", "PORT", "port to listen (default: 8080)"),
    ("--path", "", "PATH", "path to serve static files from"),
    ("--no-webui", "", "", "disable the Web UI"),
    ("--api-prefix", "", "PREFIX", "prefix path the server serves from"),
    ("--api-key", "", "KEY", "API key to use for authentication (env: LLAMA_API_KEY)"),
    ("--api-key-file", "", "FNAME", "path to file containing API keys"),
    ("--timeout", "-to", "N", "server read/write timeout in seconds (default: 600)"),
    ("--threads-http", "", "N", "number of threads used to process HTTP requests"),
    ("--parallel", "-np", "N", "number of server slots (default: 1)"),
    ("--cont-batching", "-cb", "", "enable continuous batching"),
    ("--cache-prompt", "", "", "enable prompt caching"),
    ("--cache-reuse", "", "N", "min chunk size to attempt reusing from the cache via KV shifting"),
    ("--cache-ram", "-cram", "N", "maximum cache size in MiB"),
    ("--context-shift", "", "", "use context shift on infinite text generation"),
    ("--embeddings", "", "", "restrict to only support embedding use case"),
    ("--reranking", "", "", "enable reranking endpoint on server"),
    ("--pooling", "", "{none,mean,cls,last,rank}", "pooling type for embeddings"),
    ("--metrics", "", "", "enable prometheus compatible metrics endpoint"),
    ("--props", "", "", "enable changing global properties via POST /props"),
    ("--slots", "", "", "expose slots monitoring endpoint"),
    ("--no-slots", "", "", "do not expose slots monitoring endpoint"),
    ("--slot-save-path", "", "PATH", "path to save slot kv cache"),
    ("--jinja", "", "", "use jinja template for chat"),
    ("--reasoning-format", "", "FORMAT", "how thought tags are handled"),
    ("--reasoning-budget", "", "N", "amount of thinking allowed"),
    ("--chat-template", "", "JINJA_TEMPLATE", "set custom jinja chat template"),
    ("--chat-template-file", "", "FILE", "set custom jinja chat template file"),
    ("--warmup", "", "", "perform warmup with an empty run"),
    ("--no-warmup", "", "", "skip warming up the model with an empty run"),
    ("--seed", "-s", "SEED", "RNG seed"),
    ("--temp", "", "N", "temperature (default: 0.80)"),
    ("--top-k", "", "N", "top-k sampling (default: 40, 0 = disabled)"),
    ("--top-p", "", "N", "top-p sampling (default: 0.95, 1.0 = disabled)"),
    ("--sleep-idle-seconds", "", "SECONDS", "seconds of idleness after which it sleeps (default: -1)"),
    ("--log-disable", "", "", "log disable"),
    ("--log-file", "", "FNAME", "log to file"),
    ("--log-colors", "", "[on|off|auto]", "set colored logging"),
    ("--log-prefix", "", "", "enable prefix in log messages"),
    ("--log-timestamps", "", "", "enable timestamps in log messages"),
    ("--verbose", "-v", "", "set verbosity level to infinity"),
)


def log(line: str) -> None:
    """Straight to the file descriptor: a lock of sys.stderr would be a way to hang at the end."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


@dataclass(frozen=True)
class Switches:
    values: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Switches:
        values = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = entry.partition("=")
            if name not in SWITCHES:
                raise SystemExit(f"error: unknown FAKE_ENGINE switch: {name}")
            values[name] = value
        return cls(values)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def number(self, name: str, default: float) -> float:
        return float(self.values.get(name) or default)


class Engine:
    """What the requests share: how far the start is, the slots, the keys."""

    def __init__(self, options: Options, switches: Switches) -> None:
        self.switches = switches
        self.model_path: str = options.model or ""
        self.name: str = options.alias or options.model or "fake"
        self.ctx: int = options.ctx_size or 2048
        self.keys = _api_keys(options)
        self.created = int(time.time())
        self.ids = itertools.count(1)
        self.busy = [False] * max(1, options.parallel)
        self._slot_free = threading.Condition()
        self.held = [0] * len(self.busy)  # tokens that each slot holds
        self.cached = [0] * len(self.busy)  # of those, how many were restored
        self.folder: str = options.slot_save_path
        self._ready_at = time.monotonic() + switches.number("slow-ready", 0)

    @property
    def ready(self) -> bool:
        return "never-ready" not in self.switches and time.monotonic() >= self._ready_at

    def after_ready(self, switch: str) -> bool:
        """Whether it has been ready for as long as a switch says."""
        if switch not in self.switches or not self.ready:
            return False
        return time.monotonic() >= self._ready_at + self.switches.number(switch, 1)

    @property
    def hung(self) -> bool:
        if "hang-after" not in self.switches and "hang-accepting" not in self.switches:
            return False
        return self.ready and time.monotonic() >= self._ready_at + self.switches.number("hang-after", 0)

    @contextlib.contextmanager
    def slot(self) -> Iterator[int]:
        with self._slot_free:
            self._slot_free.wait_for(lambda: not all(self.busy))
            index = self.busy.index(False)
            self.busy[index] = True
        try:
            yield index
        finally:
            with self._slot_free:
                self.busy[index] = False
                self._slot_free.notify()

    def tokens(self, limit: int | None) -> tuple[list[str], str]:
        """The words of an answer and its finish reason."""
        count = int(self.switches.number("chunks", 20))
        words = [f"w{index} " for index in range(count if limit is None or limit < 0 else min(count, limit))]
        return words, "length" if len(words) < count else "stop"

    def pause(self) -> None:
        time.sleep(self.switches.number("chunk-ms", 0) / 1000)


def _api_keys(options: Options) -> list[str]:
    keys = [options.api_key or "", os.environ.get("LLAMA_API_KEY", "")]
    if options.api_key_file:
        keys += Path(options.api_key_file).read_text(encoding="utf-8").splitlines()
    return [key.strip() for key in keys if key.strip()]


class Refusal(Exception):
    def __init__(self, code: int, sort: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"error": {"message": message, "type": sort, "code": code}}


class Handler(BaseHTTPRequestHandler):
    engine: Engine  # set by serve()
    protocol_version = "HTTP/1.1"
    server_version = "llama.cpp"
    sys_version = ""
    disable_nagle_algorithm = True

    PUBLIC = ("/health", "/v1/health")

    def do_GET(self) -> None:
        self._dispatch(
            {
                "/health": self._health,
                "/v1/health": self._health,
                "/v1/models": self._models,
                "/models": self._models,
                "/props": self._props,
                "/slots": self._slots,
            }
        )

    def do_POST(self) -> None:
        self._dispatch(
            {
                "/v1/chat/completions": self._chat,
                "/v1/completions": self._completion,
                "/v1/embeddings": self._embeddings,
                **{f"/slots/{n}": functools.partial(self._slot_action, n) for n in range(len(self.engine.busy))},
            }
        )

    def _dispatch(self, routes: dict[str, Callable[[], None]]) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.engine.hung:
            log(f"fake: hanging on {path}")
            threading.Event().wait()
        try:
            self._admit(path)
            if path not in routes:
                raise Refusal(404, "not_found_error", "File Not Found")
            routes[path]()
            log(f"srv  log_server_r: done request: {self.command} {path} {self.client_address[0]} 200")
        except Refusal as refusal:
            self._json(refusal.body, refusal.code)
        except (BrokenPipeError, ConnectionResetError):
            log(f"srv          stop: cancel task, {path}")
            self.close_connection = True

    def _admit(self, path: str) -> None:
        """As llama-server does: the key first, then whether the model is loaded."""
        if path not in self.PUBLIC and self.engine.keys:
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or self.headers.get(
                "X-Api-Key", ""
            )
            if not any(hmac.compare_digest(given.encode(), key.encode()) for key in self.engine.keys):
                raise Refusal(401, "authentication_error", "Invalid API Key")
        if not self.engine.ready:
            raise Refusal(503, "unavailable_error", "Loading model")

    # --- endpoints ----------------------------------------------------------------------------------------------------

    def _health(self) -> None:
        if self.engine.after_ready("ready-then-503"):
            raise Refusal(503, "unavailable_error", "the device is lost")
        self._json({"status": "ok"})

    def _models(self) -> None:
        meta = {"n_ctx": self.engine.ctx, "n_ctx_train": self.engine.ctx, "n_embd": 8, "size": 0}
        entry: dict[str, Any] = {"id": self.engine.name, "aliases": [self.engine.name], "object": "model"}
        entry |= {"created": self.engine.created, "owned_by": "llamacpp", "meta": meta}
        self._json({"object": "list", "data": [entry]})

    def _props(self) -> None:
        self._json(
            {
                "default_generation_settings": {"n_ctx": self.engine.ctx, "params": {}},
                "total_slots": len(self.engine.busy),
                "model_alias": self.engine.name,
                "model_path": self.engine.model_path,
                "modalities": {"vision": False, "audio": False},
                "chat_template": "",
                "build_info": f"b{VERSION}-fake",
            }
        )

    def _slots(self) -> None:
        slots = enumerate(self.engine.busy)
        self._json([{"id": index, "n_ctx": self.engine.ctx, "is_processing": busy} for index, busy in slots])

    def _slot_action(self, slot: int) -> None:
        engine, action = self.engine, urlsplit(self.path).query.removeprefix("action=")
        if not engine.folder or action not in ("save", "restore"):
            raise Refusal(501, "not_supported_error", "This server does not support slots action.")
        name = json.loads(self.body)["filename"]
        path = Path(engine.folder, name)
        if f"{action}-fails" in engine.switches or (action == "restore" and not path.exists()):
            raise Refusal(400, "invalid_request_error", f"Unable to {action} slot")
        if action == "save":
            time.sleep(engine.switches.number("save-slow", 0))
            size = path.write_bytes(f"{engine.held[slot]:08}".encode() * 1000)
            self._json({"id_slot": slot, "filename": name, "n_saved": engine.held[slot], "n_written": size})
            return
        engine.held[slot] = engine.cached[slot] = int(path.read_bytes()[:8])
        self._json({"id_slot": slot, "filename": name, "n_restored": engine.held[slot], "n_read": 8000})

    def _chat(self) -> None:
        request = self._request("messages", list)
        head = self._head("chatcmpl", "chat.completion")
        if request.get("stream"):
            head["object"] = "chat.completion.chunk"
            first = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
            self._stream(request, head, first, lambda word: {"delta": {"content": word} if word else {}})
            return
        text, reason, usage = self._generate(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        self._json({**head, "choices": [choice], "usage": usage})

    def _completion(self) -> None:
        request = self._request("prompt", (str, list))
        head = self._head("cmpl", "text_completion")
        if request.get("stream"):
            self._stream(request, head, None, lambda word: {"text": word, "logprobs": None})
            return
        text, reason, usage = self._generate(request)
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        self._json({**head, "choices": [choice], "usage": usage})

    def _embeddings(self) -> None:
        """The same text gives the same eight numbers, and another text most likely others."""
        given = self._request("input", (str, list))["input"]
        texts = given if isinstance(given, list) else [given]
        vectors = [[((hash_of(str(text)) >> (4 * i)) & 15) / 15 for i in range(8)] for text in texts]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self._json({"object": "list", "model": self.engine.name, "data": data, "usage": usage})

    # --- parts of them ------------------------------------------------------------------------------------------------

    def _request(self, key: str, sort: type | tuple[type, ...]) -> dict[str, Any]:
        try:
            request = json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, "invalid_request_error", f"parse error: {error}") from error
        if not isinstance(request, dict) or not isinstance(request.get(key), sort):
            raise Refusal(400, "invalid_request_error", f"'{key}' is missing or of the wrong type")
        return request

    def _head(self, prefix: str, sort: str) -> dict[str, Any]:
        number = next(self.engine.ids)
        return {"id": f"{prefix}-{number}", "object": sort, "created": int(time.time()), "model": self.engine.name}

    def _limit(self, request: dict[str, Any]) -> int | None:
        limit = request.get("max_completion_tokens", request.get("max_tokens"))
        return limit if isinstance(limit, int) else None

    def _generate(self, request: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        words, reason = self.engine.tokens(self._limit(request))
        with self.engine.slot() as slot:
            for _ in words:
                self.engine.pause()
            usage = self._usage(request, len(words), slot)
        return "".join(words).rstrip(), reason, usage

    def _usage(self, request: dict[str, Any], produced: int, slot: int) -> dict[str, Any]:
        usage, engine = usage_of(request, produced), self.engine
        engine.held[slot] = 100 * usage["prompt_tokens"]
        return {**usage, "prompt_tokens_details": {"cached_tokens": engine.cached[slot]}}

    def _stream(
        self,
        request: dict[str, Any],
        head: dict[str, Any],
        first: dict[str, Any] | None,
        choice: Callable[[str], dict[str, Any]],
    ) -> None:
        words, reason = self.engine.tokens(self._limit(request))
        with self.engine.slot() as slot:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if first is not None:
                self._event({**head, "choices": [first]})
            for word in words:
                self.engine.pause()
                self._event({**head, "choices": [{"index": 0, **choice(word), "finish_reason": None}]})
            self._event({**head, "choices": [{"index": 0, **choice(""), "finish_reason": reason}]})
            usage = self._usage(request, len(words), slot)
            if (request.get("stream_options") or {}).get("include_usage"):
                self._event({**head, "choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

    def _event(self, value: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(value)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: _dispatch logs as llama-server does."""


def hash_of(text: str) -> int:
    value = 0x811C9DC5  # FNV-1a: the built-in hash differs from process to process
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def usage_of(request: dict[str, Any], produced: int) -> dict[str, int]:
    prompt = len(json.dumps(request.get("messages", request.get("prompt"))).split())
    return {"prompt_tokens": prompt, "completion_tokens": produced, "total_tokens": prompt + produced}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, which may wait for a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        log(f"srv  {sys.exception()}")


def serve(options: Options, switches: Switches) -> int:
    Handler.engine = Engine(options, switches)
    try:
        server = Server((options.host, options.port), Handler)
    except OSError:
        log(f"srv         start: couldn't bind HTTP server socket, hostname: {options.host}, port: {options.port}")
        return 1
    log(f"main: server is listening on http://{options.host}:{server.server_port}")
    threading.Thread(target=announce, args=(Handler.engine,), daemon=True).start()
    if "closes-port-but-lives" in switches:
        threading.Thread(target=deafen, args=(Handler.engine, server), daemon=True).start()
    server.serve_forever(poll_interval=3600)
    return 0


def announce(engine: Engine) -> None:
    log("srv    load_model: loading model '" + engine.model_path + "'")
    while not engine.ready:
        time.sleep(0.02)
    log("main: model loaded")


def deafen(engine: Engine, server: Server) -> None:
    while not engine.after_ready("closes-port-but-lives"):
        time.sleep(0.02)
    log("fake: the port is closed")
    server.socket.shutdown(socket.SHUT_RDWR)
    os.dup2(os.open(os.devnull, os.O_RDWR), server.socket.fileno())  # under the loop, which goes on as if


def leak(bytes_per_second: float) -> None:
    """Until there is no more; then as a server in C++ ends."""
    kept = []
    try:
        while True:
            kept.append(b"x" * int(bytes_per_second / 20))
            time.sleep(0.05)
    except MemoryError:
        kept.clear()
        log("terminate called after throwing an instance of 'std::bad_alloc'")
        os._exit(1)


def flood(bytes_per_second: float) -> None:
    line = b"slot update_slots: id  0 | task 1 | new prompt, n_ctx_slot = 2048, n_keep = 0, n_prompt_tokens = 12\n"
    per_turn = line * max(1, int(bytes_per_second / 50 / len(line)))
    while True:
        with contextlib.suppress(OSError):
            os.write(2, per_turn)
        time.sleep(0.02)


def crash(seconds: float) -> None:
    time.sleep(seconds)
    log('ggml/src/ggml.c:1234: GGML_ASSERT(false && "crash-after") failed')
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def out_of_memory() -> int:
    log("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 68719476736")
    log("llama_kv_cache_init: failed to allocate buffer for kv cache\nsrv    load_model: failed to load model")
    return 1


def install_signals(switches: Switches) -> None:
    """The default ends without a word to threads: no flush, no lock, no traceback."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if "ignore-sigterm" in switches:
            signal.signal(number, signal.SIG_IGN)  # inherited by grandchildren
        else:
            signal.signal(number, lambda *_: os._exit(0))
    if "exit-on-usr1" in switches:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(int(switches.number("exit-on-usr1", 1))))


def usage() -> str:
    lines = ["usage: llama-server [options]", "", "----- common params -----", ""]
    for flag, short, value, text in FLAGS:
        names = f"{short + ',':<6} {flag} {value}" if short else f"{flag} {value}"
        lines.append(f"{names.rstrip():<40} {text}")
    return "\n".join(lines)


@dataclass
class Options:
    model: str = ""
    alias: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    ctx_size: int = 0
    parallel: int = 1
    api_key: str = ""
    api_key_file: str = ""
    slot_save_path: str = ""

    @classmethod
    def parse(cls, argv: list[str]) -> Options:
        """By hand: argparse would read an unknown -ctk as -c with the value "tk"."""
        options = cls()
        long_form = {short: flag for flag, short, _, _ in FLAGS}
        takes_value = {flag for flag, _, value, _ in FLAGS if value}
        words = iter(argv)
        for word in words:
            flag = long_form.get(word, word)
            if flag not in takes_value:
                continue
            value = next(words, "")
            name = flag.removeprefix("--").replace("-", "_")
            if name in ("port", "ctx_size", "parallel"):
                setattr(options, name, int(value))
            elif hasattr(options, name):
                setattr(options, name, value)
        return options


def main(argv: list[str]) -> int:
    if "--version" in argv:
        log(f"version: {VERSION} (fake)\nbuilt with nothing for any machine")
        return 0
    if "--help" in argv or "-h" in argv:
        print(usage(), flush=True)
        return 0
    options = Options.parse(argv)
    switches = Switches.parse(os.environ.get("FAKE_ENGINE", ""))
    install_signals(switches)
    if "exit-at-once" in switches:
        log("error: exit-at-once")
        return int(switches.number("exit-at-once", 1))
    if options.model and not Path(options.model).exists():
        log(f"gguf_init_from_file: failed to open GGUF file '{options.model}' (No such file or directory)")
        log("llama_model_load_from_file_impl: failed to load model")
        log(f"srv    load_model: failed to load model, '{options.model}'")
        return 1
    if "oom" in switches or options.ctx_size > switches.number("oom-above", math.inf):
        if "oom-later" not in switches:
            return out_of_memory()
        threading.Timer(switches.number("oom-later", 1), lambda: os._exit(out_of_memory())).start()
    if "fork-grandchildren" in switches:
        for _ in range(2):
            subprocess.Popen(["sleep", str(GRANDCHILD_SECONDS)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if "leaves-the-group" in switches:
        void = subprocess.DEVNULL
        subprocess.Popen(["sleep", str(GRANDCHILD_SECONDS)], stdin=void, stdout=void, start_new_session=True)
    works = (("crash-after", crash, 0.0), ("flood-log", flood, 1e6), ("leaks-memory", leak, 50e6))
    for name, work, default in works:
        if name in switches:
            threading.Thread(target=work, args=(switches.number(name, default),), daemon=True).start()
    if "wrong-owner" in switches:
        log("fake: wrong-owner, the port is left alone")
        threading.Event().wait()
    return serve(options, switches)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
