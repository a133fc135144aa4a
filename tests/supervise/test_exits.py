"""What an engine says before it ends has a meaning, a class and a remedy. The tails are those of real engines."""

from __future__ import annotations

import pytest

from reconciler.core.diagnostics import FaultClass
from reconciler.supervise.exits import meaning

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
    ("assertion", -6, ASSERTION, "PROCESS_EXITED", T, ""),
    ("segmentation fault", -11, "", "PROCESS_EXITED", T, ""),
    ("a good end that nobody asked for", 0, "", "PROCESS_EXITED", T, ""),
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
        (-11, [], "the process was ended by signal 11"),
        (None, [], "the process ended"),
        (3, ["", "a", " ", "b  ", "c", "d", ""], "the process exited with code 3; its last words: b | c | d"),
        (None, ["only"], "the process ended; its last words: only"),
    ],
)
def test_the_message_says_how_it_ended_and_its_last_words(code: int | None, tail: list[str], message: str) -> None:
    assert meaning(code, tail).message == message
