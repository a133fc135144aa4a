"""What an engine says before it ends has a meaning, a class and a remedy. The tails are those of real engines."""

from __future__ import annotations

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.supervise.exits import Ending, looping, meaning, within

T, P, H = FaultClass.TRANSIENT, FaultClass.PERMANENT, FaultClass.NEEDS_HUMAN

PORT = """\
0.00.002.116 I srv  init_listene: The UI is disabled
0.00.002.184 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18998
0.00.002.185 I srv    operator(): operator(): cleaning up before exit...
0.00.002.287 E srv          init: exiting due to HTTP server error
"""
ADDRESS = "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8080): address already in use\n"
OOM_CPU = """\
ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 68719476736
llama_kv_cache_init: failed to allocate buffer for kv cache
srv    load_model: failed to load model, '/m.gguf'
"""
OOM_CUDA = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 24576.00 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 25769803776
llama_model_load: error loading model: unable to allocate CUDA0 buffer
llama_model_load_from_file_impl: failed to load model
"""
OOM_VULKAN = """\
ggml_vulkan: Device memory allocation of size 4294967296 failed.
ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory
llama_model_load: error loading model: unable to allocate Vulkan0 buffer
"""
OOM_CPP = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
ARCH = """\
0.00.006.392 E llama_model_load: error loading model: unknown model architecture: 'zlama'
0.00.006.405 E llama_model_load_from_file_impl: failed to load model
0.00.006.406 E cmn  common_init_: failed to load model 'arch.gguf'
0.00.006.677 E srv          init: exiting due to model loading error
"""
ARCH_OLD = """\
llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'gemma9'
llama_load_model_from_file: failed to load model
"""
ARGUMENT = "error: invalid argument: --no-such-flag\n"
ARGUMENT_VALUE = """\
error while handling argument "--flash-attn": error: unknown value for --flash-attn: 'sometimes'

usage:
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')

to show complete usage, run with -h
"""
ARGUMENT_NUMBER = 'error while handling argument "--ctx-size": stoi\n\nusage:\n-c, --ctx-size N\n'
HOST_UNKNOWN = """\
usage: llama_host [-h] --model MODEL --alias ALIAS
                  [--no-webui]
llama_host: error: unrecognized arguments: --no-such-flag 3
"""
HOST_CHOICE = """\
                  [--no-webui]
llama_host: error: argument --flash-attn: invalid choice: 'foo' (choose from 'auto', 'off', 'on')
"""
HOST_NUMBER = "                  [--no-webui]\nllama_host: error: argument --threads: invalid int value: 'many'\n"
HOST_NO_VALUE = "                  [--no-webui]\nllama_host: error: argument --threads: expected one argument\n"
NO_FILE = """\
0.00.004.831 E gguf_init_from_file: failed to open GGUF file 'nonexist.gguf' (No such file or directory)
0.00.004.837 E llama_model_load: error loading model: llama_model_loader: failed to load model from nonexist.gguf
0.00.004.838 E llama_model_load_from_file_impl: failed to load model
0.00.005.176 E srv          init: exiting due to model loading error
"""
LIBRARY = (
    "/opt/llama-server: error while loading shared libraries: libcudart.so.12: "
    "cannot open shared object file: No such file or directory\n"
)
PROJECTOR = """\
clip_init: failed to load model '/mmproj.gguf': load_hparams: unknown projector type: foo
srv    load_model: failed to load multimodal model, '/mmproj.gguf'
srv          init: exiting due to model loading error
"""
TRUNCATED = """\
0.00.006.528 E llama_model_load: error loading model: tensor 'output.weight' data is not within the file bounds
0.00.006.529 E llama_model_load_from_file_impl: failed to load model
0.00.006.531 E srv    load_model: failed to load model, 'trunc.gguf'
0.00.006.840 E srv          init: exiting due to model loading error
"""
OOM_METAL = """\
ggml_metal_synchronize: error: command buffer 0 failed with status 5
error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)
"""
OOM_HIP = "ROCm error: out of memory\n  hipMalloc: hipErrorOutOfMemory\n"
OOM_TORCH = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
DRIVER = "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version\n"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\n  ggml_cuda_compute_forward\n"
DRAFT = """\
0.00.008.508 E llama_model_load: error loading model: unknown model architecture: 'zlama'
0.00.008.511 E srv    load_model: failed to load draft model, '/d.gguf'
"""
VOCABULARY = "srv load_model: the target and draft vocabs are not compatible\nfailed to create speculator\n"
MISMATCH = "mismatch between text model (n_embd = 64) and mmproj (n_embd = 2048)\n"
DYLD = "dyld[412]: Library not loaded: @rpath/libggml-metal.dylib\n  Referenced from: /opt/llama-server\n"
GLIBC = "./llama-server: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by ./llama-server)\n"
ASSERTION = 'ggml/src/ggml.c:1234: GGML_ASSERT(false && "crash") failed\n'

# (what it is, exit code, tail, code of the fault, its class, part of the remedy)
CASES: list[tuple[str, int | None, str, str, FaultClass, str]] = [
    ("port taken, llama.cpp", 1, PORT, "PORT_IN_USE", T, ""),
    ("port taken, Python", 1, ADDRESS, "PORT_IN_USE", T, ""),
    ("memory, CPU", 1, OOM_CPU, "OUT_OF_MEMORY", H, "lower context"),
    ("memory, CUDA", 1, OOM_CUDA, "OUT_OF_MEMORY", H, "smaller quant"),
    ("memory, Vulkan", 1, OOM_VULKAN, "OUT_OF_MEMORY", H, "smaller quant"),
    ("memory, C++", -6, OOM_CPP, "OUT_OF_MEMORY", H, "smaller quant"),
    ("architecture", 1, ARCH, "MODEL_ARCH_NOT_SUPPORTED", P, "newer engine"),
    ("architecture, older words", 1, ARCH_OLD, "MODEL_ARCH_NOT_SUPPORTED", P, "newer engine"),
    ("unknown flag", 1, ARGUMENT, "INVALID_ARGUMENT", P, "`options`"),
    ("flag with a wrong word", 1, ARGUMENT_VALUE, "INVALID_ARGUMENT", P, "`options`"),
    ("flag with a wrong number", 1, ARGUMENT_NUMBER, "INVALID_ARGUMENT", P, "`options`"),
    ("unknown flag, embedded", 2, HOST_UNKNOWN, "INVALID_ARGUMENT", P, "`options`"),
    ("flag with a wrong word, embedded", 2, HOST_CHOICE, "INVALID_ARGUMENT", P, "`options`"),
    ("flag with a wrong number, embedded", 2, HOST_NUMBER, "INVALID_ARGUMENT", P, "`options`"),
    ("flag without a value, embedded", 2, HOST_NO_VALUE, "INVALID_ARGUMENT", P, "`options`"),
    ("no model file", 1, NO_FILE, "MODEL_FILE_NOT_FOUND", T, ""),
    ("no library", 127, LIBRARY, "LIBRARY_MISSING", H, ""),
    ("projector", 1, PROJECTOR, "MULTIMODAL_PROJECTOR_LOAD_FAILED", P, ""),
    ("half a model", 1, TRUNCATED, "MODEL_LOAD_FAILED", H, "log"),
    ("illegal instruction", -4, "loading\n", "ILLEGAL_INSTRUCTION", P, "newer CPU"),
    ("killed by the kernel", -9, OOM_CPU, "PROCESS_EXITED", T, "want of memory"),
    ("killed", -9, "all well\n", "PROCESS_EXITED", T, "killed from outside"),
    ("assertion", -6, ASSERTION, "PROCESS_ERROR", T, "at which check"),
    ("segmentation fault", -11, "", "PROCESS_ERROR", T, "another version"),
    ("a good end that nobody asked for", 0, "", "PROCESS_EXITED", T, "in the foreground"),
    ("a bad end without a word", 3, "", "PROCESS_ERROR", T, "log"),
    ("bus error", -7, "", "PROCESS_ERROR", T, "disk"),
    ("a signal as a shell tells of it", 139, "", "PROCESS_ERROR", T, "another version"),
    ("an illegal instruction as a shell tells of it", 132, "", "ILLEGAL_INSTRUCTION", P, "newer CPU"),
    ("asked to end", -15, "", "PROCESS_EXITED", T, ""),
    ("memory, Metal", 1, OOM_METAL, "OUT_OF_MEMORY", H, "smaller quant"),
    ("memory, HIP", 1, OOM_HIP, "OUT_OF_MEMORY", H, "smaller quant"),
    ("memory, PyTorch", 1, OOM_TORCH, "OUT_OF_MEMORY", H, "smaller quant"),
    ("memory, Python", 1, "Traceback\nMemoryError\n", "OUT_OF_MEMORY", H, "smaller quant"),
    ("memory, Vulkan of the host", 1, "vk::Device::allocateMemory: ErrorOutOfHostMemory", "OUT_OF_MEMORY", H, ""),
    ("driver", 1, DRIVER, "DEVICE_FAILED", H, "driver"),
    ("build for other GPUs", -6, NO_KERNEL, "DEVICE_FAILED", H, "driver"),
    ("GPU lost", -6, "vk::Queue::submit: ErrorDeviceLost", "DEVICE_FAILED", H, "driver"),
    ("draft", 1, DRAFT, "DRAFT_MODEL_LOAD_FAILED", P, "`draft`"),
    ("draft of another family", 1, VOCABULARY, "DRAFT_MODEL_LOAD_FAILED", P, "same vocabulary"),
    ("projector of another model", 1, MISMATCH, "MULTIMODAL_PROJECTOR_LOAD_FAILED", P, "this very model"),
    ("no library, macOS", -6, DYLD, "LIBRARY_MISSING", H, "variant"),
    ("no library, Python", 1, "ImportError: libcublas.so.12: cannot open shared object file", "LIBRARY_MISSING", H, ""),
    ("library too old", 1, GLIBC, "LIBRARY_MISSING", H, "newer system"),
    ("no program behind the script", 127, "./engine: 2: exec: /opt/llama: not found\n", "BINARY_NOT_FOUND", H, "path"),
    ("no program, and not a word", 127, "", "BINARY_NOT_FOUND", H, "path"),
    ("an end that nobody saw", None, "", "PROCESS_EXITED", T, ""),
]


@pytest.mark.parametrize(("code", "tail", "fault", "kind", "hint"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_end_of_an_engine_has_a_meaning(
    code: int | None, tail: str, fault: str, kind: FaultClass, hint: str
) -> None:
    found = meaning(code, tail.splitlines())
    assert (found.code, found.kind) == (fault, kind)
    assert hint in found.hint


@pytest.mark.parametrize(
    ("code", "tail", "message"),
    [
        (3, [], "the process exited with code 3"),
        (-11, [], "the process was ended by signal 11 (SIGSEGV)"),
        (None, [], "the process ended; its exit code is not known"),
        (3, ["", "a", " ", "b  ", "c", "d", ""], "the process exited with code 3; its last words: b | c | d"),
        (None, ["only"], "the process ended; its exit code is not known; its last words: only"),
    ],
)
def test_the_message_says_how_it_ended_and_its_last_words(code: int | None, tail: list[str], message: str) -> None:
    assert meaning(code, tail).message == message


@pytest.mark.parametrize(
    ("tail", "library"),
    [(LIBRARY, "libcudart.so.12"), (DYLD, "@rpath/libggml-metal.dylib"), (GLIBC, "GLIBC_2.38")],
)
def test_a_missing_library_is_named(tail: str, library: str) -> None:
    assert meaning(127, tail.splitlines()).message.casefold().startswith(f"{library} is missing".casefold())


def test_the_kernel_that_wants_memory_is_told_from_a_person_that_kills() -> None:
    fault = meaning(-9, ["all well"], oom=True, peak=6 << 30)
    assert (fault.code, fault.kind) == ("OUT_OF_MEMORY", H)
    assert "the kernel killed it for want of memory when it held 6.4 GB" in fault.message
    assert meaning(-15, [], oom=True).code == "PROCESS_EXITED"


@pytest.mark.parametrize(
    ("code", "tail", "peak"),
    [(1, OOM_CPU, 0), (-6, OOM_CPP, 0), (-11, "", 95 << 20), (-6, "what():  Resource temporarily unavailable", 0)],
)
def test_a_limit_of_ours_is_named(code: int, tail: str, peak: int) -> None:
    fault = meaning(code, tail.splitlines(), peak=peak, limit=100 << 20)
    assert (fault.code, fault.kind) == ("OUT_OF_MEMORY", H)
    assert fault.message.startswith("its limit of 105 MB was reached: the process ")
    assert fault.hint.startswith("raise `limits.memory`")
    assert within(fault, 100 << 20) is fault


def test_a_limit_that_was_not_reached_is_not_blamed() -> None:
    assert meaning(-11, [], peak=50 << 20, limit=100 << 20).code == "PROCESS_ERROR"
    assert meaning(0, [], peak=99 << 20, limit=100 << 20).code == "PROCESS_EXITED"


def test_a_backtrace_does_not_drown_what_was_said() -> None:
    trace = ["[New LWP 12]", "#1  0x00007f in raise ()", "73\tPython/ceval.c: No such file or directory."]
    assert meaning(-6, ["GGML_ASSERT(x) failed", *trace]).message.endswith("its last words: GGML_ASSERT(x) failed")


# -- again and again --------------------------------------------------------------------------------------------------


def loop(*endings: tuple[str, int | None, float], code: int = 3) -> Fault:
    return looping([Ending(*e) for e in endings], meaning(code, ["bye"]))


def test_two_ends_are_no_loop_and_three_are() -> None:
    once = ("PROCESS_ERROR", 3, -1.0)
    assert loop(once, once).code == "PROCESS_ERROR"
    fault = loop(once, once, once)
    assert (fault.code, fault.kind) == ("CRASH_LOOP", T)
    assert fault.message == (
        "it has ended 3 times in a row, each time with code 3, always before it was ready; "
        "the last time the process exited with code 3; its last words: bye"
    )


@pytest.mark.parametrize(
    ("endings", "words"),
    [
        ([("PROCESS_ERROR", -11, 4.0)] * 3, "each time with signal 11 (SIGSEGV), at most 4 s after it was ready"),
        ([("PROCESS_ERROR", -11, -1.0)] * 2 + [("PROCESS_ERROR", 3, 2.0)], "with signal 11 (SIGSEGV) and code 3"),
        ([("PROCESS_ERROR", 3, -1.0)] * 2 + [("PROCESS_ERROR", 3, 2.0)], "sometimes before it was ready"),
        ([("OUT_OF_MEMORY", 1, 5.0)] * 3, "each time with out of memory, at most 5 s"),
        ([("PROCESS_EXITED", None, 0.2)] * 3, "each time with a code that is not known, at most 1 s"),
    ],
)
def test_a_loop_says_what_its_ends_have_in_common(endings: list[tuple[str, int | None, float]], words: str) -> None:
    assert words in loop(*endings).message


def test_what_says_what_is_wrong_is_no_riddle_even_when_it_repeats() -> None:
    fault = meaning(1, OOM_CPU.splitlines())
    assert looping([Ending("OUT_OF_MEMORY", 1, -1.0)] * 5, fault) is fault
