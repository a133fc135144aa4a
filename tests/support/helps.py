"""What llama-server prints of itself in three eras: the layout and the flags that matter here, in words of our own.

`BEFORE` is from before b6325 (`-fa, --flash-attn` is a switch), `AFTER` from after it, `TODAY` from after the renames
of `--no-webui`, `--draft-max` and `--mlock`.
"""

from __future__ import annotations

from collections.abc import Sequence

Row = tuple[str, str]  # how the flag is written, its text; a newline begins another line

COLUMN, WIDE = 40, 70


def page(rows: Sequence[Row], heading: str = "common params") -> str:
    """The text that `--help` prints."""
    lines = [f"----- {heading} -----", ""]
    for names, text in rows:
        told = [line for part in text.split("\n") for line in _wrapped(part)]
        if len(names) < COLUMN:
            lines.append(f"{names:<{COLUMN}}{told[0]}".rstrip())
            told = told[1:]
        else:
            lines.append(names)
        lines += [f"{'':<{COLUMN}}{line}" for line in told]
    return "\n".join([*lines, ""])


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) >= WIDE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


TYPES = "allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1"

_ALWAYS: tuple[Row, ...] = (
    ("-h,    --help, --usage", "print usage and exit"),
    ("--version", "show version and build info"),
    ("-m,    --model FNAME", "the model\n(env: LLAMA_ARG_MODEL)"),
    ("--host HOST", "address to listen on (default: 127.0.0.1)\n(env: LLAMA_ARG_HOST)"),
    ("--port PORT", "port to listen on (default: 8080)\n(env: LLAMA_ARG_PORT)"),
    ("-t,    --threads N", "threads for generation (default: -1)\n(env: LLAMA_ARG_THREADS)"),
    ("-tb,   --threads-batch N", "threads for prompts (default: same as --threads)"),
    ("-c,    --ctx-size N", "size of the context (default: 4096, 0 = from the model)\n(env: LLAMA_ARG_CTX_SIZE)"),
    ("-ub,   --ubatch-size N", "physical batch (default: 512)\n(env: LLAMA_ARG_UBATCH)"),
    ("--rope-scaling {none,linear,yarn}", "how to scale RoPE, linear unless the model says otherwise\n"
     "(env: LLAMA_ARG_ROPE_SCALING_TYPE)"),
    ("--rope-scale N", "context factor of RoPE\n(env: LLAMA_ARG_ROPE_SCALE)"),
    ("-ctk,  --cache-type-k TYPE", f"type of the keys\n{TYPES}\n(default: f16)\n(env: LLAMA_ARG_CACHE_TYPE_K)"),
    ("--cpu-strict <0|1>", "strict placement on CPUs (default: 0)"),
    ("--numa TYPE", "what helps on some systems\n- distribute: over all nodes\n- isolate: only on this node"),
    ("--control-vector-layer-range START END", "layers that vectors are for, the last one included"),
    ("--temp N", "temperature (default: 0.8)"),
    ("--top-k N", "top-k sampling (default: 40, 0 = disabled)"),
    ("--dry-sequence-breaker STRING", "another breaker, instead of those by default\n('\\n', ':', '\"', '*')"),
    ("--pooling {none,mean,cls,last,rank}", "how to pool, as the model says if left out\n(env: LLAMA_ARG_POOLING)"),
    ("-dev,  --device <dev1,dev2,..>", "comma-separated list of devices (none = stay on the CPU)\n"
     "use --list-devices to see them\n(env: LLAMA_ARG_DEVICE)"),
    ("--list-devices", "print list of available devices and exit"),
)  # fmt: skip

_SWITCHES: tuple[Row, ...] = (
    ("--no-mmap", "do not map the model (slower to load)\n(env: LLAMA_ARG_NO_MMAP)"),
    ("--mlock", "keep the model in memory\n(env: LLAMA_ARG_MLOCK)"),
    ("--no-warmup", "without a first empty run"),
    ("-cb,   --cont-batching", "continuous batching (default: enabled)\n(env: LLAMA_ARG_CONT_BATCHING)"),
    ("-nocb, --no-cont-batching", "no continuous batching\n(env: LLAMA_ARG_NO_CONT_BATCHING)"),
    ("--no-context-shift", "no context shift (default: disabled)\n(env: LLAMA_ARG_NO_CONTEXT_SHIFT)"),
    ("-nkvo, --no-kv-offload", "the cache stays on the CPU\n(env: LLAMA_ARG_NO_KV_OFFLOAD)"),
    ("--no-webui", "no page (default: enabled)\n(env: LLAMA_ARG_NO_WEBUI)"),
    ("--lora FNAME", "an adapter (can be repeated to use multiple adapters)"),
    ("--lora-scaled FNAME SCALE", "an adapter with its strength (can be repeated to use multiple adapters)"),
    ("--override-kv KEY=TYPE:VALUE", "another value for a key of the model. may be specified multiple times."),
    ("--draft-max, --draft, --draft-n N", "tokens to draft (default: 16)\n(env: LLAMA_ARG_DRAFT_MAX)"),
    ("--draft-min, --draft-n-min N", "least tokens to draft (default: 0)\n(env: LLAMA_ARG_DRAFT_MIN)"),
    ("-dt,   --defrag-thold N", "when to defragment (default: 0.1, < 0 - disabled)\n(env: LLAMA_ARG_DEFRAG_THOLD)"),
    ("--hf-repo <user>/<model>[:quant]", "a repository (default: unused)\n(env: LLAMA_ARG_HF_REPO)"),
)

BEFORE = page(
    (*_ALWAYS, *_SWITCHES, ("-fa,   --flash-attn", "flash attention (default: disabled)\n(env: LLAMA_ARG_FLASH_ATTN)"))
)
AFTER = page(
    (
        *_ALWAYS,
        *_SWITCHES,
        ("-fa,   --flash-attn [on|off|auto]", "flash attention ('on', 'off', or 'auto', default: 'auto')\n"
         "(env: LLAMA_ARG_FLASH_ATTN)"),
        ("--swa-full", "the whole sliding cache (default: false)\n(env: LLAMA_ARG_SWA_FULL)"),
    )
)  # fmt: skip
TODAY = page(
    (
        *_ALWAYS,
        ("-fa,   --flash-attn [on|off|auto]", "flash attention ('on', 'off', or 'auto', default: 'auto')\n"
         "(env: LLAMA_ARG_FLASH_ATTN)"),
        ("-lm,   --load-mode MODE", "how to load (default: auto)\n- none: read it\n- mmap: map it\n- mlock: hold it\n "
         "\n(env: LLAMA_ARG_LOAD_MODE)"),
        ("--warmup, --no-warmup", "whether to run emptily at first (default: enabled)"),
        ("-cb,   --cont-batching, -nocb, --no-cont-batching", "whether to batch continuously\n(default: enabled)\n"
         "(env: LLAMA_ARG_CONT_BATCHING)"),
        ("--context-shift, --no-context-shift", "whether to shift (default: disabled)\n(env: LLAMA_ARG_CONTEXT_SHIFT)"),
        ("-kvo,  --kv-offload, -nkvo, --no-kv-offload", "whether to offload the cache (default: enabled)"),
        ("--ui,  --webui, --no-ui, --no-webui", "whether there is a page (default: enabled)\n(env: LLAMA_ARG_UI)"),
        ("--lora FNAME", "an adapter (use comma-separated values to load multiple adapters)"),
        ("--lora-scaled FNAME:SCALE,...", "an adapter with its strength\nnote: use comma-separated values"),
        ("--override-kv KEY=TYPE:VALUE,...", "other values for keys of the model.\nuse comma-separated values."),
        ("--spec-draft-n-max N", "tokens to draft (default: 3)\n(env: LLAMA_ARG_SPEC_DRAFT_N_MAX)"),
        ("--spec-draft-n-min N", "least tokens to draft (default: 0)"),
        ("--draft, --draft-n, --draft-max N", "the argument has been removed. use --spec-draft-n-max or something\n"
         "(env: LLAMA_ARG_DRAFT_MAX)"),
        ("--spec-ngram-size-n N", "the argument has been removed. use the respective --spec-ngram-*-size-n"),
        ("-cram, --cache-ram N", "most MiB of cache (default: 8192, -1 - no limit, 0 -\ndisable)[(more\n"
         "info)](https://example.org/16391)\n(env: LLAMA_ARG_CACHE_RAM)"),
        ("-fit,  --fit [on|off]", "fit what is not set ('on' or 'off', default: 'on')\n(env: LLAMA_ARG_FIT)"),
        ("-ngl,  --gpu-layers, --n-gpu-layers N", "layers in VRAM, a number, 'auto', or 'all' (default: auto)"),
        ("--fim-qwen-1.5b-default", "use a coder (note: can download weights from the\ninternet)"),
        ("-hf,   -hfr, --hf-repo <user>/<model>[:quant]", "a repository (default: unused)\n(env: LLAMA_ARG_HF_REPO)"),
    )
)  # fmt: skip
ERAS = {"before": (BEFORE, "b6000"), "after": (AFTER, "b7000"), "today": (TODAY, "b11434")}
