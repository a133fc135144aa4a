"""What the end of an engine means: exit code and last log lines → a typed fault with a remedy. Pure."""

from __future__ import annotations

import re

from reconciler.core.diagnostics import Fault, FaultClass

# (code, pattern over the lower-cased log tail, class, what to do); the first that fits wins.
# The texts are those of llama.cpp's server and of the dynamic loader.
TABLE: tuple[tuple[str, str, FaultClass, str], ...] = (
    ("PORT_IN_USE", r"couldn't bind http server socket|address already in use", FaultClass.TRANSIENT, ""),
    (
        "OUT_OF_MEMORY",
        r"out of memory|failed to allocate|insufficient memory|erroroutofdevicememory|cudamalloc failed|bad_alloc",
        FaultClass.NEEDS_HUMAN,
        "lower context or parallel, choose a smaller quant, or stop other models",
    ),
    (
        "MODEL_ARCH_NOT_SUPPORTED",
        r"unknown model architecture|error loading model architecture",
        FaultClass.PERMANENT,
        "this engine is too old for the model, or the file is not a model; use a newer engine version",
    ),
    (
        "INVALID_ARGUMENT",
        r"error: invalid argument|error: unknown (argument|option)|unrecognized arguments|invalid value for"
        r"|error while handling argument|error: argument --",
        FaultClass.PERMANENT,
        "check `options` of the model against the engine's flags",
    ),
    ("LIBRARY_MISSING", r"error while loading shared libraries|cannot open shared object", FaultClass.NEEDS_HUMAN, ""),
    ("MODEL_FILE_NOT_FOUND", r"failed to open gguf file|no such file or directory", FaultClass.TRANSIENT, ""),
    ("MULTIMODAL_PROJECTOR_LOAD_FAILED", r"failed to load multimodal|mmproj.*failed", FaultClass.PERMANENT, ""),
    ("MODEL_LOAD_FAILED", r"failed to load model|error loading model", FaultClass.NEEDS_HUMAN, "see the log above"),
)


def meaning(code: int | None, tail: list[str]) -> Fault:
    """The fault of a process that ended by itself. `code` is negative for a signal, None where nobody knows."""
    text = "\n".join(tail).lower()
    # A process that was killed from outside had no say in it: its last lines would mislead.
    words = 0 if code in (-9, -15) else 1 if code is None else 3
    said = " | ".join([line.strip() for line in tail if line.strip()][-words:] if words else [])
    for name, pattern, kind, hint in TABLE:
        if re.search(pattern, text) and code != -9:
            return Fault(name, _message(code, said), hint=hint, kind=kind)
    if code == -4:
        return Fault(
            "ILLEGAL_INSTRUCTION",
            _message(code, said),
            hint="this build of the engine needs a newer CPU; choose another variant",
            kind=FaultClass.PERMANENT,
        )
    hint = "killed from outside, or by the kernel for want of memory (see dmesg)" if code == -9 else ""
    return Fault("PROCESS_EXITED", _message(code, said), hint=hint)


def _message(code: int | None, said: str) -> str:
    if code is None:
        how = "the process ended"
    elif code < 0:
        how = f"the process was ended by signal {-code}"
    else:
        how = f"the process exited with code {code}"
    return f"{how}; its last words: {said}" if said else how
