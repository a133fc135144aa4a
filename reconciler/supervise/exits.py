"""What the end of an engine means: exit code and last log lines → a typed fault with a remedy. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.plan import human_bytes

T, P, H = FaultClass.TRANSIENT, FaultClass.PERMANENT, FaultClass.NEEDS_HUMAN

SHRINK_HINT = "; `memory: {shrink: true}` lets it make do with less"
MEMORY_HINT = f"lower context or parallel, choose a smaller quant, or stop other models{SHRINK_HINT}"

# (code, pattern over the lower-cased log tail, class, what to do); the first that fits wins. The texts are those of
# llama.cpp's server, of ggml on CPU, CUDA, HIP, Vulkan and Metal, of Python servers, of shells and dynamic loaders.
TABLE: tuple[tuple[str, str, FaultClass, str], ...] = (
    (
        "PORT_IN_USE",
        r"couldn't bind http server socket|address already in use|only one usage of each socket address",
        T,
        "another program took the port; the next try takes another one",
    ),
    (
        "OUT_OF_MEMORY",
        r"out of memory|failed to allocate|unable to allocate|insufficient memory|erroroutof(device|host)memory"
        r"|cudamalloc failed|cuda_error_out_of_memory|hiperroroutofmemory|outofmemory|bad_alloc|memoryerror"
        r"|cannot allocate memory|device memory allocation of size \d+ failed|not enough memory"
        r"|could not allocate|allocation failed",
        H,
        MEMORY_HINT,
    ),
    (
        "DEVICE_FAILED",
        r"cuda driver version is insufficient|no cuda-capable device|no kernel image is available|errordevicelost"
        r"|cuda error: |hip error: |no devices found|failed to initialize (cuda|vulkan|the metal)"
        r"|errorincompatibledriver|ggml_metal_init: error",
        H,
        "see that the GPU's driver is new enough for this build of the engine, or choose `variant: cpu`",
    ),
    (
        "LIBRARY_MISSING",
        r"error while loading shared libraries|cannot open shared object|library not loaded|image not found"
        r"|version `\w+_[\d.]+' not found|symbol lookup error|undefined symbol",
        H,
        "install what has this library, or choose another variant of the engine",
    ),
    (
        "INVALID_ARGUMENT",
        r"error: invalid argument|error: unknown (argument|option)|unrecognized arguments|invalid value for"
        r"|error while handling argument|error: argument --|no such option|arguments are required",
        P,
        "check `options` of the model against the engine's flags",
    ),
    (
        "MULTIMODAL_PROJECTOR_LOAD_FAILED",
        r"failed to load multimodal|failed to load mmproj|mmproj.*(failed|mismatch)|unknown projector type"
        r"|clip_init: failed|clip_model_loader|mismatch between text model|failed to load clip",
        P,
        "the projector must be one of this very model: check `mmproj`, or say `mmproj: none`",
    ),
    (
        "DRAFT_MODEL_LOAD_FAILED",
        r"failed to load draft model|draft model.*(not compatible|failed)|vocabs? are not compatible"
        r"|failed to (create|load) .*(draft|speculative)",
        P,
        "a draft model must be a whole model with the same vocabulary: check `draft`, or remove it",
    ),
    (
        "MODEL_ARCH_NOT_SUPPORTED",
        r"unknown model architecture|error loading model architecture|unsupported model architecture"
        r"|unknown pre-tokenizer type|are not supported for now",
        P,
        "this engine is too old for the model, or the file is not a model; use a newer engine version",
    ),
    (
        "MODEL_FILE_NOT_FOUND",
        r"failed to open gguf file|failed to open .*gguf|(?<!: )no such file or directory",
        T,
        "see that the data root is still there; the file is brought again",
    ),
    (
        "MODEL_LOAD_FAILED",
        r"failed to load model|error loading model|failed to load the model|invalid magic|gguf_init_from_file",
        H,
        "see the log above; `reconcile verify` reads the file again",
    ),
    ("BINARY_NOT_FOUND", r"(exec|env|sh): .*: (not found|no such file or directory)", H, "check the engine's path"),
    ("ILLEGAL_INSTRUCTION", r"\billegal instruction\b", P, ""),
)

CPU_HINT = "this build of the engine needs a newer CPU; choose another variant"
# By what it ended, where its last words say nothing: (code, class, what to do).
SIGNALS: dict[int, tuple[str, FaultClass, str]] = {
    signal.SIGILL: ("ILLEGAL_INSTRUCTION", P, CPU_HINT),
    signal.SIGSEGV: ("PROCESS_ERROR", T, "the engine crashed: try another version or variant of it"),
    signal.SIGABRT: ("PROCESS_ERROR", T, "the engine gave itself up: its log says at which check"),
    signal.SIGFPE: ("PROCESS_ERROR", T, "the engine crashed: try another version or variant of it"),
    signal.SIGBUS: ("PROCESS_ERROR", T, "what it had mapped could not be read: is the disk well, and not full?"),
    signal.SIGKILL: ("PROCESS_EXITED", T, "killed from outside, or by the kernel for want of memory (see dmesg)"),
    signal.SIGXCPU: ("PROCESS_ERROR", T, "a limit on processor time ended it (ulimit -t)"),
}
FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)

WORDS = 120  # lines of a log that are looked at; a backtrace of ggml is long
BACKTRACE = re.compile(r"#\d+ |\d+\s+\S+: No such file|\[New LWP|\[Thread|\[Inferior|warning: |Using host lib|__\w+ ")

MISSING = re.compile(
    r"loading shared libraries: ([^\s:]+)|library not loaded: (\S+)|([\w.+-]+\.(?:so|dylib)[\w.]*): cannot open shared"
    r"|version `(\w+_[\d.]+)' not found",
    re.IGNORECASE,
)


def meaning(code: int | None, tail: list[str], *, oom: bool = False, peak: int = 0, limit: int = 0) -> Fault:
    """The fault of a process that ended by itself. `code` is negative for a signal, None where nobody knows.

    `oom` says that the kernel was killing for want of memory, `peak` is the most memory that it held and `limit` what
    it might allocate (bytes, 0: not known, none).
    """
    code = 128 - code if code is not None and 128 < code < 160 else code  # as a shell tells of a signal
    text = "\n".join(tail).lower()
    # A process that was killed from outside had no say in it: its last lines would mislead.
    words = 0 if code in (-9, -15) else 1 if code is None else 3
    spoken = [line.strip() for line in tail if line.strip() and not BACKTRACE.match(line)]
    how = _how(code) + _said(spoken[-words:] if words else [])
    if oom and code == -signal.SIGKILL:
        held = f" when it held {human_bytes(peak)}" if peak else ""
        return Fault("OUT_OF_MEMORY", f"{how}: the kernel killed it for want of memory{held}", hint=MEMORY_HINT, kind=H)
    for name, pattern, kind, hint in TABLE:
        if code != -signal.SIGKILL and re.search(pattern, text):
            telling = next((line for line in spoken if re.search(pattern, line.lower())), "")
            if words == 3 and telling and telling not in spoken[-3:]:
                how = _how(code) + _said([telling, *spoken[-2:]])
            return _typed(name, how, kind, hint, text, limit)
    reached = peak > 0.9 * limit or "resource temporarily unavailable" in text  # a thread without its stack
    if limit and reached and code not in (None, 0, -signal.SIGTERM):
        return _typed("OUT_OF_MEMORY", how, H, MEMORY_HINT, text, limit)
    if code is not None and -code in SIGNALS:
        name, kind, hint = SIGNALS[-code]
        return Fault(name, how, hint=hint, kind=kind)
    if code == 0:
        return Fault("PROCESS_EXITED", how, hint="it ended as if its work were done: an engine stays in the foreground")
    if code in (126, 127):
        name = "BINARY_NOT_FOUND" if code == 127 else "BINARY_NOT_EXECUTABLE"
        return Fault(name, how, hint="check the engine's path, and what it is a script for", kind=H)
    outside = code is None or -code in FROM_OUTSIDE
    return Fault("PROCESS_EXITED" if outside else "PROCESS_ERROR", how, hint="" if outside else "see its log")


def _typed(name: str, how: str, kind: FaultClass, hint: str, text: str, limit: int) -> Fault:
    if name == "OUT_OF_MEMORY" and limit:
        return within(Fault(name, how, hint=hint, kind=kind), limit)
    if name == "LIBRARY_MISSING" and (found := MISSING.search(text)):
        library = next(group for group in found.groups() if group)
        newer = library.startswith("glib")
        hint = "this build needs a newer system (its C or C++ library); choose another variant" if newer else hint
        return Fault(name, f"{library.upper() if newer else library} is missing: {how}", hint=hint, kind=kind)
    return Fault(name, how, hint=hint or CPU_HINT, kind=kind)


def within(fault: Fault, limit: int) -> Fault:
    """Out of memory with a limit of our own: that is what to name."""
    if fault.code != "OUT_OF_MEMORY" or not limit or "its limit" in fault.message:
        return fault
    hint = f"raise `limits.memory` of the model; or {MEMORY_HINT}"
    return Fault(fault.code, f"its limit of {human_bytes(limit)} was reached: {fault.message}", hint=hint, kind=H)


def _said(lines: list[str]) -> str:
    return f"; its last words: {' | '.join(lines)}" if lines else ""


def _how(code: int | None) -> str:
    if code is None:
        return "the process ended; its exit code is not known"
    return f"the process {'was ended by' if code < 0 else 'exited with'} {_by(code)}"


def _by(code: int | None) -> str:
    """`code 3`, `signal 11 (SIGSEGV)`."""
    if code is None:
        return "a code that is not known"
    if code >= 0:
        return f"code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


# -- again and again --------------------------------------------------------------------------------------------------

LOOP = 3  # ends in a row from which on it is a loop


@dataclass(frozen=True, slots=True)
class Ending:
    """One of the last ends of a server: the fault's code, the exit code, and how many seconds it had been ready
    before (-1: it never was).
    """

    fault: str
    code: int | None
    after: float

    @property
    def words(self) -> str:
        if self.fault in ("PROCESS_EXITED", "PROCESS_ERROR"):
            return _by(self.code)
        return self.fault.lower().replace("_", " ")


def looping(endings: Sequence[Ending], fault: Fault) -> Fault:
    """The fault of the last of several ends in a row: of a loop, with what they have in common, once they are `LOOP`.

    What says by itself what is wrong stays what it is.
    """
    if len(endings) < LOOP or fault.kind is not FaultClass.TRANSIENT:
        return fault
    ways = list(dict.fromkeys(ending.words for ending in endings))
    which = f"each time with {ways[0]}" if len(ways) == 1 else f"with {', '.join(ways[:-1])} and {ways[-1]}"
    message = f"it has ended {len(endings)} times in a row, {which}, {_when(endings)}; the last time {fault.message}"
    hint = fault.hint if len(ways) == 1 and fault.hint else "`reconcile logs` shows what it said before each end"
    return Fault("CRASH_LOOP", message, hint=hint, kind=fault.kind, after=fault.after)


def _when(endings: Sequence[Ending]) -> str:
    ready = [ending.after for ending in endings if ending.after >= 0]
    if not ready:
        return "always before it was ready"
    if len(ready) == len(endings):
        return f"at most {max(1, round(max(ready)))} s after it was ready: what it was asked then may be the cause"
    return "sometimes before it was ready"
