"""The llama.cpp server of the xllamacpp wheel as a program of its own, with llama-server's flags.

Runs in the engine's virtual environment and imports nothing of reconciler. The API key comes from LLAMA_API_KEY.
`--help` and `--version` are laid out as llama-server's and answer without loading the engine. Exit codes: 0 after
SIGTERM, 1 when the model cannot be served, 2 for flags that it does not know.

`TABLE` is every flag: how it is spelled, what it takes, and which field of xllamacpp.CommonParams it sets. Of
llama-server's flags those are missing that the fields cannot carry (`--device`, `--override-kv`, control vectors,
`--logit-bias`), that fetch or publish something (`--hf-repo`, TLS, the web page), and those of its router.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import argparse

FLASH = {"auto": -1, "off": 0, "on": 1}
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
# As in ggml's list of types.
CACHE = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "iq4_nl": 20, "q5_0": 6, "q5_1": 7}
LOADING = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "dio": 4}
SPECULATING = (
    "none", "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark",
    "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache",
)  # fmt: skip
# What a person set is not replaced by what the model's file recommends: one bit a field, as in llama.cpp.
RECOMMENDED = {
    "samplers": 1, "top_k": 2, "top_p": 4, "min_p": 8, "xtc_probability": 16, "xtc_threshold": 32, "temp": 64,
    "penalty_last_n": 128, "penalty_repeat": 256, "mirostat": 512, "mirostat_tau": 1024, "mirostat_eta": 2048,
}  # fmt: skip
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE = r"\.ffn_(up|down|gate)\."
MIB = 1 << 20
PADDED, WIDE = 40, 70  # columns before the text of a flag, and of it


class Row(NamedTuple):
    """One flag.

    `value` is how its value is called (empty: a switch), `to` the field that it sets (a leading ! sets a switch's
    opposite; empty: see `configure`), `read` makes the value out of the text, or is the numbers of an enum's names.
    """

    names: str
    value: str
    to: str
    read: Any
    text: str

    @property
    def spellings(self) -> tuple[str, ...]:
        return tuple(self.names.replace(",", " ").split())

    @property
    def negations(self) -> tuple[str, ...]:
        """Those spellings that switch it off, short ones before their long ones; none where it has nothing but such."""
        names, off = self.spellings, set[str]()
        for i, name in reversed(list(enumerate(names))):
            behind = names[i + 1] if i + 1 < len(names) else ""
            if name.startswith("--no-") or (not name.startswith("--") and behind in off):
                off.add(name)
        return tuple(name for name in names if name in off) if len(off) < len(names) else ()

    @property
    def positives(self) -> tuple[str, ...]:
        return tuple(name for name in self.spellings if name not in self.negations)

    @property
    def dest(self) -> str:
        return next(n for n in self.positives if n.startswith("--")).removeprefix("--").replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.read) if isinstance(self.read, dict) else ()


def mask(text: str) -> list[int]:
    """`0x3` → [0, 1]: the CPUs whose bits are set. ValueError."""
    bits = int(text, 16)
    return [cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1]


def span(text: str) -> list[int]:
    """`2-5` → [2, 3, 4, 5]. ValueError."""
    low, _, high = text.partition("-")
    return list(range(int(low or 0), int(high or 511) + 1))


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.replace("/", ",").split(",")]


def megabytes(text: str) -> list[int]:
    return [int(part) * MIB for part in text.split(",")]


def words(text: str) -> list[str]:
    return text.split(",")


def speculations(text: str) -> list[str]:
    if unknown := [part for part in text.split(",") if part not in SPECULATING]:
        raise ValueError(f"there is no {unknown[0]}")
    return text.split(",")


def folder(text: str) -> str:
    """llama.cpp puts names of files right behind it."""
    return text if text.endswith("/") else text + "/"


def contents(text: str) -> str:
    with open(text, encoding="utf-8") as file:  # noqa: PTH123 - commands that never read one load this module, too
        return file.read()


def document(text: str) -> Any:
    """JSON text → its value. ValueError."""
    import json

    return json.loads(text)


def keywords(text: str) -> dict[str, str]:
    """A JSON object, its values as JSON texts. ValueError."""
    import json

    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is not an object")
    return {key: json.dumps(value) for key, value in found.items()}


def threads_of(name: str, to: str, what: str, short: str = "") -> tuple[Row, ...]:
    """The flags of one set of threads; `name` stands behind a flag's own, `to` is where they go."""
    lead = f"-t{short}, " if name != "-batch" else "-tb, "
    return (
        Row(f"{lead}--threads{name}", "N", f"{to}.n_threads", int, f"CPU threads for {what} (default: -1)"),
        Row(f"--cpu-mask{name}", "M", f"{to}.cpumask", mask, f"the CPUs for {what}, as a hexadecimal mask"),
        Row(f"--cpu-range{name}", "lo-hi", f"{to}.cpumask", span, f"the CPUs for {what}, from the first to the last"),
        Row(f"--cpu-strict{name}", "<0|1>", f"{to}.strict_cpu", {"0": False, "1": True}, "keep threads to their CPUs"),
        Row(f"--prio{name}", "N", f"{to}.priority", int, "priority: -1 low, 0 normal, 1, 2, 3 realtime (default: 0)"),
        Row(f"--poll{name}", "<0...100>", f"{to}.poll", int, "how busily to wait for work (default: 50)"),
    )


DRAFT, SAMPLING = "speculative.draft", "sampling"

TABLE: tuple[Row, ...] = (
    # what the reconciler sets itself
    Row("-m, --model", "FNAME", "model.path", str, "model path to load"),
    Row("-a, --alias", "STRING", "model_alias", str, "the name that requests ask for"),
    Row("--host", "HOST", "hostnames", words, "address to listen on (default: 127.0.0.1)"),
    Row("--port", "PORT", "port", int, "port to listen on"),
    Row("-mm, --mmproj", "FILE", "mmproj.path", str, "a projector, so that the model sees or hears"),
    Row("-md, --model-draft, --spec-draft-model", "FNAME", "", str, "a small model that guesses ahead"),
    Row("--lora", "FNAME", "", str, "an adapter (can be repeated)"),
    Row("--lora-scaled", "FNAME:SCALE", "", str, "an adapter with its strength (can be repeated)"),
    Row("-c, --ctx-size", "N", "n_ctx", int, "tokens of context, of all slots together (default: 4096)"),
    Row("-np, --parallel", "N", "n_parallel", int, "number of slots (default: 1)"),
    Row("-ngl, --gpu-layers, --n-gpu-layers", "N", "n_gpu_layers", int, "layers on the GPU (default: -1)"),
    Row("-ctk, --cache-type-k", "TYPE", "cache_type_k", CACHE, "number format of the keys (default: f16)"),
    Row("-ctv, --cache-type-v", "TYPE", "cache_type_v", CACHE, "number format of the values (default: f16)"),
    Row("--embeddings, --embedding", "", "", None, "serve embeddings"),
    Row("--reranking, --rerank", "", "", None, "serve ranks of documents"),
    Row("--no-webui, --no-ui", "", "", None, "accepted: there is never a web page"),
    # work
    *threads_of("", "cpuparams", "generation"),
    *threads_of("-batch", "cpuparams_batch", "prompts"),
    Row("-b, --batch-size", "N", "n_batch", int, "logical maximum of a batch (default: 2048)"),
    Row("-ub, --ubatch-size", "N", "n_ubatch", int, "physical maximum of a batch (default: 512)"),
    Row("-n, --predict, --n-predict", "N", "n_predict", int, "tokens to predict (default: -1, no end)"),
    Row("--keep", "N", "n_keep", int, "tokens of the prompt to keep (default: 0, -1 = all)"),
    Row("-fa, --flash-attn", "[on|off|auto]", "flash_attn_type", FLASH, "flash attention (default: auto)"),
    Row("--perf, --no-perf", "", "!no_perf", None, "measure the library's own timings (default: enabled)"),
    Row("-e, --escape, --no-escape", "", "escape", None, "read escapes such as \\n (default: enabled)"),
    Row("--swa-full", "", "swa_full", None, "keep the whole cache of sliding windows (default: disabled)"),
    Row("-cb, --cont-batching, -nocb, --no-cont-batching", "", "cont_batching", None,
        "take requests into a running batch (default: enabled)"),
    Row("--context-shift, --no-context-shift", "", "ctx_shift", None, "forget the oldest (default: disabled)"),
    Row("--warmup, --no-warmup", "", "warmup", None, "an empty run at first (default: enabled)"),
    Row("--check-tensors", "", "check_tensors", None, "look for impossible weights (default: disabled)"),
    Row("--op-offload, --no-op-offload", "", "!no_op_offload", None, "offload operations (default: enabled)"),
    Row("--repack, -nr, --no-repack", "", "!no_extra_bufts", None, "repack weights (default: enabled)"),
    Row("--no-host", "", "no_host", None, "no buffers of the host"),
    Row("--numa", "TYPE", "numa", {"distribute": 1, "isolate": 2, "numactl": 3}, "what to do with NUMA nodes"),
    # where the weights go
    Row("-lm, --load-mode", "MODE", "load_mode", LOADING, "how the file is read (default: auto)"),
    Row("--mmap, --no-mmap", "", "", None, "map the file into memory (default: enabled)"),
    Row("--mlock", "", "", None, "keep the model in memory"),
    Row("-lzm, --lazy-mode", "[on|off|auto]", "lazy_mode", {"off": 0, "auto": 1, "on": 2},
        "read some tensors when they are needed (default: auto)"),
    Row("-sm, --split-mode", "{none,layer,row,tensor}", "split_mode", {"none": 0, "layer": 1, "row": 2, "tensor": 3},
        "how the model is split over GPUs (default: layer)"),
    Row("-ts, --tensor-split", "N0,N1,N2,...", "tensor_split", numbers, "shares of the GPUs, comma-separated"),
    Row("-mg, --main-gpu", "INDEX", "main_gpu", int, "the GPU that is used (default: 0)"),
    Row("-fit, --fit", "[on|off]", "fit_params", {"on": True, "off": False}, "fit what is not set (default: on)"),
    Row("-fitt, --fit-target", "MiB0,MiB1,MiB2,...", "fit_params_target", megabytes,
        "memory to leave free, comma-separated by GPU, default: 1024"),
    Row("-fitc, --fit-ctx", "N", "fit_params_min_ctx", int, "least context that --fit makes (default: 4096)"),
    Row("-ot, --override-tensor", "<tensor name pattern>=<buffer type>,...", "tensor_buft_overrides", str,
        "which memory tensors go to"),
    Row("-cmoe, --cpu-moe", "", "", None, "all experts stay with the CPU"),
    Row("-ncmoe, --n-cpu-moe", "N", "", int, "the experts of the first N layers stay with the CPU (default: 0)"),
    Row("-ncffn, --n-cpu-ffn", "N", "", int, "the dense parts of the first N layers stay with the CPU (default: 0)"),
    Row("-kvo, --kv-offload, -nkvo, --no-kv-offload", "", "!no_kv_offload", None, "cache on GPU (default: enabled)"),
    # positions
    Row("--rope-scaling", "{none,linear,yarn}", "rope_scaling_type", {"none": 0, "linear": 1, "yarn": 2},
        "how positions are stretched"),
    Row("--rope-scale", "N", "rope_freq_scale", lambda text: 1 / float(text), "stretch positions N times"),
    Row("--rope-freq-base", "N", "rope_freq_base", float, "base of the frequencies"),
    Row("--rope-freq-scale", "N", "rope_freq_scale", float, "factor of the frequencies"),
    Row("--yarn-orig-ctx", "N", "yarn_orig_ctx", int, "context that the model was trained with (default: 0)"),
    Row("--yarn-ext-factor", "N", "yarn_ext_factor", float, "YaRN's mix of extrapolation (default: -1.00)"),
    Row("--yarn-attn-factor", "N", "yarn_attn_factor", float, "YaRN's attention magnitude (default: -1.00)"),
    Row("--yarn-beta-slow", "N", "yarn_beta_slow", float, "YaRN's alpha (default: -1.00)"),
    Row("--yarn-beta-fast", "N", "yarn_beta_fast", float, "YaRN's beta (default: -1.00)"),
    # caches
    Row("-cram, --cache-ram", "N", "cache_ram_mib", int, "MiB of host memory for prompts (default: 8192, -1 = all)"),
    Row("--cache-prompt, --no-cache-prompt", "", "cache_prompt", None, "keep prompts (default: enabled)"),
    Row("--cache-reuse", "N", "n_cache_reuse", int, "least length that is reused by shifting (default: 0)"),
    Row("--cache-idle-slots, --no-cache-idle-slots", "", "cache_idle_slots", None, "idle ones, too (default: enabled)"),
    Row("-ctxcp, --ctx-checkpoints, --swa-checkpoints", "N", "n_ctx_checkpoints", int,
        "most checkpoints of a slot (default: 32)"),
    Row("-cms, --checkpoint-min-step", "N", "checkpoint_min_step", int, "tokens between them (default: 8192)"),
    Row("-kvu, --kv-unified, -no-kvu, --no-kv-unified", "", "kv_unified", None,
        "one cache for all sequences (default: disabled)"),
    Row("--kv-unified-per-slot", "N", "kv_unified_per_slot", int, "most context of a slot (default: 0)"),
    Row("-sps, --slot-prompt-similarity", "SIMILARITY", "slot_prompt_similarity", float,
        "how alike a prompt must be to take a slot over (default: 0.10)"),
    Row("--slot-save-path", "PATH", "slot_save_path", folder, "folder that slots are saved to"),
    Row("--slots, --no-slots", "", "endpoint_slots", None, "the endpoint /slots (default: enabled)"),
    # what goes in and comes out
    Row("--chat-template", "JINJA_TEMPLATE", "chat_template", str, "a chat template instead of the model's"),
    Row("--chat-template-file", "FILE", "chat_template", contents, "the same out of a file"),
    Row("--chat-template-kwargs", "STRING", "default_template_kwargs", keywords, "its parameters, as a JSON object"),
    Row("--jinja, --no-jinja", "", "use_jinja", None, "read templates with jinja (default: enabled)"),
    Row("--prefill-assistant, --no-prefill-assistant", "", "prefill_assistant", None,
        "go on with a last message of the assistant (default: enabled)"),
    Row("--skip-chat-parsing, --no-skip-chat-parsing", "", "force_pure_content_parser", None,
        "everything is content (default: disabled)"),
    Row("--reasoning-format", "{none,auto,deepseek,deepseek-legacy}", "reasoning_format",
        {"none": 0, "auto": 1, "deepseek-legacy": 2, "deepseek": 3}, "where thoughts are put (default: deepseek)"),
    Row("-rea, --reasoning", "[on|off|auto]", "enable_reasoning", {"on": 1, "off": 0, "auto": -1},
        "whether it thinks (default: auto)"),
    Row("--reasoning-budget", "N", f"{SAMPLING}.reasoning_budget_tokens", int,
        "tokens for thoughts, 0 for none (default: -1)"),
    Row("--reasoning-budget-message", "MESSAGE", f"{SAMPLING}.reasoning_budget_message", str,
        "what is said when they are used up"),
    Row("--pooling", "{none,mean,cls,last,rank}", "pooling_type", POOLING, "how embeddings are pooled"),
    Row("--embd-normalize", "N", "embd_normalize", int, "how embeddings are normalized (default: 2)"),
    Row("-r, --reverse-prompt", "PROMPT", "antiprompt", str, "where to halt (can be repeated)"),
    Row("-sp, --special", "", "special", None, "put out special tokens (default: disabled)"),
    Row("--lora-init-without-apply", "", "lora_init_without_apply", None, "adapters begin with no strength"),
    Row("--image-min-tokens", "N", "image_min_tokens", int, "least tokens of an image (default: -1)"),
    Row("--image-max-tokens", "N", "image_max_tokens", int, "most tokens of an image (default: -1)"),
    Row("--mtmd-batch-max-tokens", "N", "mtmd_batch_max_tokens", int, "image tokens of a batch (default: 1024)"),
    Row("--video-fps", "N", "video_fps", float, "frames a second of a video (default: 4.0)"),
    Row("--video-timestamp-interval", "N", "video_timestamp_interval_ms", int, "ms between times (default: 5000)"),
    Row("--video-ffmpeg-dir", "DIR", "video_ffmpeg_bin_dir", str, "folder of ffmpeg"),
    Row("--mmproj-offload, --no-mmproj-offload", "", "mmproj_use_gpu", None, "projector on GPU (default: enabled)"),
    Row("-mmdev, --mmproj-device", "DEVICE", "mmproj_device", str, "the device of the projector"),
    Row("--mmproj-auto, --no-mmproj, --no-mmproj-auto", "", "!no_mmproj", None, "use a projector (default: enabled)"),
    Row("--media-path", "PATH", "media_path", folder, "folder of media that requests may name"),
    # the server
    Row("-to, --timeout", "N", "timeout_read", int, "seconds to read or write (default: 3600)"),
    Row("--sse-ping-interval", "N", "sse_ping_interval", int, "seconds between pings (default: 30)"),
    Row("--threads-http", "N", "n_threads_http", int, "threads for requests (default: -1)"),
    Row("--metrics", "", "endpoint_metrics", None, "the endpoint /metrics (default: disabled)"),
    Row("--props", "", "endpoint_props", None, "POST /props (default: disabled)"),
    Row("--api-prefix", "PREFIX", "api_prefix", str, "begins every path"),
    Row("--reuse-port", "", "reuse_port", None, "share the port (default: disabled)"),
    Row("--tags", "STRING", "model_tags", words, "tags of the model, comma-separated"),
    Row("--cors-origins", "ORIGINS", "cors_origins", str, "origins that may ask (default: *)"),
    Row("--cors-methods", "METHODS", "cors_methods", str, "methods that they may use"),
    Row("--cors-headers", "HEADERS", "cors_headers", str, "headers that they may send (default: *)"),
    Row("--cors-credentials, --no-cors-credentials", "", "cors_credentials", None, "credentials (default: enabled)"),
    Row("--tools", "TOOL1,TOOL2,...", "server_tools", words, "built-in tools, comma-separated"),
    Row("--tools-runtime", "OPTION", "server_tools_runtime", str, "where those run"),
    Row("--mcp-servers-config", "PATH", "mcp_servers_config", str, "a file of MCP servers"),
    Row("--mcp-servers-json", "JSON", "mcp_servers_json", str, "MCP servers"),
    Row("--sleep-idle-seconds", "SECONDS", "sleep_idle_seconds", int, "sleep after so much quiet (default: -1)"),
    Row("-lv, --verbosity, --log-verbosity", "N", "verbosity", int, "how much is logged (default: 3)"),
    Row("-v, --verbose", "", "", None, "log everything"),
    Row("--log-jsonl, --no-log-jsonl", "", "log_json", None, "log as JSON (default: disabled)"),
    Row("--log-prompts-dir", "PATH", "path_prompts_log_dir", str, "folder that prompts are logged to"),
    Row("--offline", "", "offline", None, "no network"),
    # sampling, where a request does not say
    Row("--samplers", "SAMPLERS", f"{SAMPLING}.samplers", str, "samplers in their order, separated by ;"),
    Row("-s, --seed", "SEED", f"{SAMPLING}.seed", int, "of the random numbers (default: -1, another each time)"),
    Row("--ignore-eos", "", f"{SAMPLING}.ignore_eos", None, "never end by itself"),
    Row("--temp, --temperature", "N", f"{SAMPLING}.temp", float, "temperature (default: 0.80)"),
    Row("--top-k", "N", f"{SAMPLING}.top_k", int, "top-k (default: 40, 0 = disabled)"),
    Row("--top-p", "N", f"{SAMPLING}.top_p", float, "top-p (default: 0.95, 1.0 = disabled)"),
    Row("--min-p", "N", f"{SAMPLING}.min_p", float, "min-p (default: 0.05, 0.0 = disabled)"),
    Row("--xtc-probability", "N", f"{SAMPLING}.xtc_probability", float, "probability of XTC (default: 0.00)"),
    Row("--xtc-threshold", "N", f"{SAMPLING}.xtc_threshold", float, "threshold of XTC (default: 0.10)"),
    Row("--typical, --typical-p", "N", f"{SAMPLING}.typ_p", float, "typical sampling (default: 1.00)"),
    Row("--repeat-last-n", "N", f"{SAMPLING}.penalty_last_n", int, "tokens that count (default: 64, 0 = none)"),
    Row("--repeat-penalty", "N", f"{SAMPLING}.penalty_repeat", float, "penalty of repeating (default: 1.00)"),
    Row("--presence-penalty", "N", f"{SAMPLING}.penalty_present", float, "penalty of presence (default: 0.00)"),
    Row("--frequency-penalty", "N", f"{SAMPLING}.penalty_freq", float, "penalty of frequency (default: 0.00)"),
    Row("--dry-multiplier", "N", f"{SAMPLING}.dry_multiplier", float, "strength of DRY (default: 0.00)"),
    Row("--dry-base", "N", f"{SAMPLING}.dry_base", float, "base of DRY (default: 1.75)"),
    Row("--dry-allowed-length", "N", f"{SAMPLING}.dry_allowed_length", int, "length that DRY allows (default: 2)"),
    Row("--dry-penalty-last-n", "N", f"{SAMPLING}.dry_penalty_last_n", int, "tokens that DRY counts (default: 64)"),
    Row("--adaptive-target", "N", f"{SAMPLING}.adaptive_target", float, "target of adaptive-p (default: -1.00)"),
    Row("--adaptive-decay", "N", f"{SAMPLING}.adaptive_decay", float, "decay of adaptive-p (default: 0.90)"),
    Row("--dynatemp-range", "N", f"{SAMPLING}.dynatemp_range", float, "range of temperature (default: 0.00)"),
    Row("--dynatemp-exp", "N", f"{SAMPLING}.dynatemp_exponent", float, "its exponent (default: 1.00)"),
    Row("--mirostat", "<0|1|2>", f"{SAMPLING}.mirostat", {"0": 0, "1": 1, "2": 2}, "Mirostat (default: 0)"),
    Row("--mirostat-lr", "N", f"{SAMPLING}.mirostat_eta", float, "its learning rate (default: 0.10)"),
    Row("--mirostat-ent", "N", f"{SAMPLING}.mirostat_tau", float, "its target entropy (default: 5.00)"),
    Row("--grammar", "GRAMMAR", "", str, "what may be said at all"),
    Row("--grammar-file", "FNAME", "", contents, "the same out of a file"),
    Row("-j, --json-schema", "SCHEMA", "", document, "the JSON that may be said"),
    Row("-jf, --json-schema-file", "FILE", "", lambda text: document(contents(text)), "the same out of a file"),
    Row("-bs, --backend-sampling", "", f"{SAMPLING}.backend_sampling", None, "sample on the GPU (default: disabled)"),
    # speculation
    *threads_of("-draft", f"{DRAFT}.cpuparams", "the draft model", "d"),
    Row("-tbd, --threads-batch-draft, --spec-draft-threads-batch", "N", f"{DRAFT}.cpuparams_batch.n_threads", int,
        "CPU threads for prompts of the draft model (default: -1)"),
    Row("--spec-draft-n-max, --draft-max, --draft, --draft-n", "N", f"{DRAFT}.n_max", int,
        "most tokens to guess ahead (default: 3)"),
    Row("--spec-draft-n-min, --draft-min, --draft-n-min", "N", f"{DRAFT}.n_min", int,
        "least tokens to guess ahead (default: 0)"),
    Row("--spec-draft-p-split, --draft-p-split", "P", f"{DRAFT}.p_split", float, "when it branches (default: 0.10)"),
    Row("--spec-draft-p-min, --draft-p-min", "P", f"{DRAFT}.p_min", float, "least probability (default: 0.00)"),
    Row("--spec-draft-backend-sampling, --no-spec-draft-backend-sampling", "", f"{DRAFT}.backend_sampling", None,
        "guess on the GPU (default: enabled)"),
    Row("--spec-draft-sampling", "{greedy,probabilistic}", f"{DRAFT}.probabilistic",
        {"greedy": False, "probabilistic": True}, "how it guesses (default: greedy)"),
    Row("--spec-draft-device, -devd, --device-draft", "<dev1,dev2,..>", f"{DRAFT}.devices", str,
        "devices of the draft model, comma-separated"),
    Row("--spec-draft-ngl, -ngld, --gpu-layers-draft, --n-gpu-layers-draft", "N", f"{DRAFT}.n_gpu_layers", int,
        "layers of the draft model on the GPU (default: -1)"),
    Row("--spec-draft-type-k, -ctkd, --cache-type-k-draft", "TYPE", f"{DRAFT}.cache_type_k", CACHE,
        "number format of its keys (default: f16)"),
    Row("--spec-draft-type-v, -ctvd, --cache-type-v-draft", "TYPE", f"{DRAFT}.cache_type_v", CACHE,
        "number format of its values (default: f16)"),
    Row("--spec-draft-override-tensor, -otd, --override-tensor-draft", "<tensor name pattern>=<buffer type>,...",
        f"{DRAFT}.tensor_buft_overrides", str, "which memory tensors of the draft model go to"),
    Row("--spec-type", "TYPE,...", "speculative.types", speculations, f"ways to guess: {', '.join(SPECULATING)}"),
    Row("--spec-synth-len", "L", "speculative.synth_len", float, "made-up acceptance, to measure with"),
    Row("--spec-synth-rates", "P0,P1,...", "speculative.synth_rates", numbers, "made-up rates, to measure with"),
    Row("--spec-ngram-mod-n-min", "N", "speculative.ngram_mod.n_min", int, "of ngram-mod (default: 48)"),
    Row("--spec-ngram-mod-n-max", "N", "speculative.ngram_mod.n_max", int, "of ngram-mod (default: 64)"),
    Row("--spec-ngram-mod-n-match", "N", "speculative.ngram_mod.n_match", int, "of ngram-mod (default: 24)"),
    *(
        Row(f"--spec-{kind}-{name}", "N", f"speculative.{kind.replace('-', '_')}.{name.replace('-', '_')}", int,
            f"of {kind} (default: {default})")
        for kind in ("ngram-simple", "ngram-map-k", "ngram-map-k4v")
        for name, default in (("size-n", 12), ("size-m", 48), ("min-hits", 1))
    ),
    Row("-lcs, --lookup-cache-static", "FNAME", "speculative.ngram_cache.lookup_cache_static", str, "a fixed cache"),
    Row("-lcd, --lookup-cache-dynamic", "FNAME", "speculative.ngram_cache.lookup_cache_dynamic", str, "a moving one"),
)  # fmt: skip

REPEATED = {"lora", "lora_scaled", "reverse_prompt"}
REQUIRED = {"model", "alias", "port"}
DEFAULTS = {"host": ["127.0.0.1"], "ctx_size": 4096, "parallel": 1}


def flags() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="llama_host", usage="llama_host [options]", allow_abbrev=False, add_help=False
    )
    for row in TABLE:
        dest, default = row.dest, DEFAULTS.get(row.dest)
        if not row.value:
            parser.add_argument(*row.positives, dest=dest, action="store_const", const=True)
            if row.negations:
                off = [name for name in row.spellings if name in row.negations]
                parser.add_argument(*off, dest=dest, action="store_const", const=False)
        elif dest in REPEATED:
            parser.add_argument(*row.positives, dest=dest, action="append", default=[])
        elif row.choices:
            parser.add_argument(*row.positives, dest=dest, choices=row.choices, default=default)
        else:
            required = dest in REQUIRED
            parser.add_argument(*row.positives, dest=dest, type=row.read, default=default, required=required)
    return parser


def usage() -> str:
    """What --help prints: llama-server's layout, so that one reader is enough for both."""
    rows = (
        Row("-h, --help, --usage", "", "", None, "print usage and exit"),
        Row("--version", "", "", None, "show version and build info"),
        *TABLE,
    )
    return "\n".join(["----- common params -----", "", *(line for row in rows for line in _lines(row))]) + "\n"


def _lines(row: Row) -> Iterable[str]:
    names = f"{row.names} {row.value}".rstrip()
    text = row.text
    if row.value in ("TYPE", "MODE") and row.choices:
        text += f"\nallowed values: {', '.join(row.choices)}"
    told = [line for part in text.split("\n") for line in _wrapped(part)]
    if len(names) < PADDED:
        yield f"{names:<{PADDED}}{told[0]}"
        told = told[1:]
    else:
        yield names
    yield from (" " * PADDED + line for line in told)


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= WIDE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def version() -> str:
    """The package's version, without importing it."""
    from importlib import metadata

    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if {"-h", "--help", "--usage"} & set(given):
        print(usage(), end="")
        return 0
    if "--version" in given:
        print(f"version: {version()} (xllamacpp)", file=sys.stderr)
        return 0
    parser = flags()
    parsed = parser.parse_args(joined(given))
    # Blocked before the server makes its threads, so that none of them takes the signal in our place.
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    import xllamacpp

    params = xllamacpp.CommonParams()
    try:
        configure(params, parsed, xllamacpp)
    except Unfit as error:
        parser.error(str(error))
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


def joined(argv: list[str]) -> list[str]:
    """`--flag VALUE` → `--flag=VALUE`: argparse would take a value that begins with a dash for another flag."""
    long = {name: f"--{row.dest.replace('_', '-')}" for row in TABLE if row.value for name in row.positives}
    out, rest = [], iter(argv)
    for word in rest:
        value = next(rest, None) if word in long else None
        out.append(word if value is None else f"{long[word]}={value}")
    return out


class Unfit(Exception):
    """A flag whose value this version of the package does not take; begins as argparse's own errors do."""


def configure(params: Any, given: argparse.Namespace, xllamacpp: Any) -> None:
    """Set what was given; what was not keeps llama.cpp's own default. Raises Unfit."""
    for row in TABLE:
        value = getattr(given, row.dest)
        if row.to and value is not None and value != []:
            try:
                _set(params, row, value)
            except (AttributeError, TypeError, ValueError, OverflowError, AssertionError) as error:
                raise Unfit(f"argument {row.positives[-1]}: xllamacpp {version()} does not take it: {error}") from error
    if given.model_draft:
        params.speculative.draft.mparams.path = given.model_draft
        if given.spec_type is None:
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    if loras := [_adapter(xllamacpp, *one) for one in adapters(given)]:
        params.lora_adapters = loras
    if key := os.environ.pop("LLAMA_API_KEY", ""):
        params.api_keys = [key]
    if given.timeout is not None:
        params.timeout_write = given.timeout
    if given.verbose:
        params.verbosity = 1 << 30
    params.ui = False
    if given.reuse_port is None:
        params.reuse_port = False
    if given.embeddings or given.reranking:
        params.embedding = True
    if given.reranking:
        params.pooling_type = xllamacpp.llama_pooling_type(POOLING["rank"])
    _loading(params, given, xllamacpp)
    _placing(params, given)
    _wording(params, given, xllamacpp)


def _set(params: Any, row: Row, value: Any) -> None:
    path = row.to.removeprefix("!")
    *way, name = path.split(".")
    place = reduce(getattr, way, params)
    if not row.value:
        setattr(place, name, value != row.to.startswith("!"))
        return
    before = getattr(place, name)  # also the proof that this version has it
    setattr(place, name, _converted(row, value, before))
    if row.to.endswith(".cpumask"):
        place.mask_valid = True
    if way == [SAMPLING] and name in RECOMMENDED:
        place.user_sampling_config |= RECOMMENDED[name]


def _converted(row: Row, value: Any, before: Any) -> Any:
    """The value as its field takes it; `before` is what is there, and of the same type."""
    if isinstance(row.read, Mapping):
        found = row.read[value]
        return type(before)(found)
    match row.dest:
        case "alias":
            return {value}
        case "tags":
            return set(value)
        case "seed":
            return value % (1 << 32)
        case "tensor_split":
            if len(value) > len(before):
                raise ValueError(f"there are {len(before)} GPUs at most")
            return [*value, *before[len(value) :]]
        case "fit_target":
            return value * len(before) if len(value) == 1 else [*value, *before[len(value) :]]
        case "spec_type":
            return [type(before[0])(SPECULATING.index(word)) for word in value]
    if row.to.endswith(".cpumask"):
        if value and value[-1] >= len(before):
            raise ValueError(f"there are {len(before)} CPUs at most")
        return [cpu in value for cpu in range(len(before))]
    if row.to.endswith(".priority"):
        return type(before)(value)
    return value


def _loading(params: Any, given: argparse.Namespace, xllamacpp: Any) -> None:
    """--mmap and --mlock are what --load-mode was once called."""
    if given.load_mode is None and (given.mmap is not None or given.mlock):
        mapped = given.mmap is not False
        mode = ("mmap+mlock" if mapped else "mlock") if given.mlock else ("mmap" if mapped else "none")
        params.load_mode = xllamacpp.llama_load_mode(LOADING[mode])


def _placing(params: Any, given: argparse.Namespace) -> None:
    """Rules that keep tensors with the CPU, after those that were written out."""
    rules = [given.override_tensor] if given.override_tensor else []
    rules += [f"{EXPERTS}=CPU"] if given.cpu_moe else []
    rules += [rf"blk\.{layer}{EXPERTS}=CPU" for layer in range(given.n_cpu_moe or 0)]
    rules += [rf"blk\.{layer}{DENSE}=CPU" for layer in range(given.n_cpu_ffn or 0)]
    if rules:
        params.tensor_buft_overrides = ",".join(rules)


def _wording(params: Any, given: argparse.Namespace, xllamacpp: Any) -> None:
    grammar = given.grammar or given.grammar_file
    schema = given.json_schema if given.json_schema is not None else given.json_schema_file
    if grammar:
        kind = xllamacpp.common_grammar_type.COMMON_GRAMMAR_TYPE_USER
        params.sampling.grammar = xllamacpp.CommonGrammar(kind, grammar)
    elif schema is not None:
        kind = xllamacpp.common_grammar_type.COMMON_GRAMMAR_TYPE_OUTPUT_FORMAT
        params.sampling.grammar = xllamacpp.CommonGrammar(kind, xllamacpp.json_schema_to_grammar(schema))


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
