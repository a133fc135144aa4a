"""The table of variants: names of real releases, and machines of every sort."""

from __future__ import annotations

import pytest

from reconciler.core.state import Device, HostFacts
from reconciler.kinds.engine.spec import newer, version_of
from reconciler.kinds.engine.variants import Build, Choice, Refusal, build, choose

UPSTREAM = (
    *(f"llama-b11434-bin-{rest}"
    for rest in (
        "ubuntu-x64.tar.gz", "ubuntu-arm64.tar.gz", "ubuntu-s390x.tar.gz", "ubuntu-vulkan-x64.tar.gz",
        "ubuntu-rocm-7.2-x64.tar.gz", "ubuntu-openvino-2026.0-x64.tar.gz", "macos-arm64.tar.gz", "macos-x64.tar.gz",
        "win-cpu-x64.zip", "win-cpu-arm64.zip", "win-cuda-12.4-x64.zip", "win-cuda-13.1-x64.zip", "win-vulkan-x64.zip",
        "win-hip-radeon-x64.zip", "win-sycl-x64.zip", "win-opencl-adreno-arm64.zip",
        "310p-openEuler-x86.tar.gz", "macos-arm64-kleidiai.tar.gz",
    )),
    "cudart-llama-bin-win-cuda-12.4-x64.zip", "cudart-llama-bin-win-cuda-13.1-x64.zip",
    "llama-b11434-xcframework.zip", "llama-b11434-ui.tar.gz",
)  # fmt: skip
FORK = (
    *(f"llama-b6673-bin-{rest}.tar.gz"
    for rest in (
        "linux-common_cpus-x64", "linux-cuda-11-common_cpus-x64", "linux-cuda-12-common_cpus-x64",
        "linux-cuda-13-common_cpus-x64", "linux-vulkan-common_cpus-x64", "linux-arm64", "win-common_cpus-x64",
        "win-cuda-12-common_cpus-x64", "macos-arm64", "macos-x64",
    )),
    "cudart-llama-bin-linux-cu12.0-x64.tar.gz", "cudart-llama-bin-win-cu12.0-x64.tar.gz",
)  # fmt: skip
LEVELS = tuple(f"llama-b1-bin-linux-{level}-x64.tar.gz" for level in ("noavx", "avx", "avx2", "avx512"))
CARD = (Device("Card", 8 << 30, 8 << 30),)


def host(
    os: str = "linux", arch: str = "x86_64", gpu: bool = True, cpu: tuple[str, ...] = (), **drivers: str
) -> HostFacts:
    return HostFacts(
        os=os, arch=arch, devices=CARD if gpu else (), features=cpu, drivers=tuple(sorted(drivers.items()))
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama-b11434-bin-ubuntu-x64.tar.gz", ("linux", "x86_64", "cpu", "", False)),
        ("llama-b4000-bin-ubuntu-x64.zip", ("linux", "x86_64", "cpu", "", False)),
        ("llama-b11434-bin-ubuntu-rocm-7.2-x64.tar.gz", ("linux", "x86_64", "rocm", "7.2", False)),
        ("llama-b11434-bin-win-hip-radeon-x64.zip", ("windows", "x86_64", "rocm", "", False)),
        ("llama-b11434-bin-win-cuda-12.4-x64.zip", ("windows", "x86_64", "cuda-12", "12.4", False)),
        ("cudart-llama-bin-win-cuda-12.4-x64.zip", ("windows", "x86_64", "cuda-12", "12.4", True)),
        ("cudart-llama-bin-linux-cu12.0-x64.tar.gz", ("linux", "x86_64", "cuda-12", "12.0", True)),
        ("llama-b6673-bin-linux-cuda-12-common_cpus-x64.tar.gz", ("linux", "x86_64", "cuda-12", "12", False)),
        ("llama-b11434-bin-macos-arm64.tar.gz", ("macos", "arm64", "metal", "", False)),
        ("llama-b11434-bin-macos-x64.tar.gz", ("macos", "x86_64", "cpu", "", False)),
        ("llama-b1-bin-linux-avx2-cuda-cu12.0-x64.tar.gz", ("linux", "x86_64", "cuda-12", "12.0", False)),
    ],
)
def test_a_name_says_what_an_archive_is_for(name: str, wanted: tuple[object, ...]) -> None:
    made = build(name)
    assert isinstance(made, Build)
    assert (made.os, made.arch, made.variant, made.number, made.runtime) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "llama-b11434-xcframework.zip", "llama-b11434-ui.tar.gz", "llama-b11434-bin-310p-openEuler-x86.tar.gz",
        "llama-b11434-bin-ubuntu-s390x.tar.gz", "llama-b11434-bin-macos-arm64-kleidiai.tar.gz", "llama-b1-bin-.zip",
        "llama-b11434-bin-ubuntu-x64.rpm", "source.tar.gz", "", "llama-b1-bin-ubuntu-12-x64.zip",
    ],
)  # fmt: skip
def test_what_is_no_archive_of_a_server_or_needs_what_nobody_knows_is_passed_over(name: str) -> None:
    assert build(name) is None


@pytest.mark.parametrize(
    ("names", "machine", "taken", "word"),
    [
        (UPSTREAM, host(gpu=False), ["ubuntu-x64"], "no GPU"),
        (UPSTREAM, host(vulkan=""), ["ubuntu-vulkan-x64"], "a GPU with a Vulkan driver"),
        (UPSTREAM, host(nvidia="550.54.14", vulkan=""), ["ubuntu-vulkan-x64"], "not cuda-12: the release has none"),
        (UPSTREAM, host(rocm="7.2.0", vulkan=""), ["ubuntu-rocm-7.2-x64"], "ROCm 7.2.0"),
        (UPSTREAM, host(arch="arm64", gpu=False), ["ubuntu-arm64"], "no GPU"),
        (UPSTREAM, host(), ["ubuntu-x64"], "not vulkan: no Vulkan driver is there"),
        (UPSTREAM, host("macos", "arm64"), ["macos-arm64"], "Apple"),
        (UPSTREAM, host("macos", "x86_64", gpu=False), ["macos-x64"], "no GPU"),
        (UPSTREAM, host("windows", nvidia="580.10"), ["win-cuda-13.1-x64", "win-cuda-13.1-x64"], "580.10"),
        (UPSTREAM, host("windows", nvidia="552.22"), ["win-cuda-12.4-x64", "win-cuda-12.4-x64"], "not cuda-13: needs"),
        (
            UPSTREAM,
            host("windows", nvidia="527.40", vulkan=""),
            ["win-vulkan-x64"],
            "not cuda-12: needs NVIDIA driver 527",
        ),
        (FORK, host(nvidia="580.65.06"), ["linux-cuda-13-common_cpus-x64"], "580.65.06"),
        (FORK, host(nvidia="525.60.13"), ["linux-cuda-12-common_cpus-x64", "linux-cu12.0-x64"], "needs 525.60.13"),
        (
            FORK,
            host(nvidia="525.60.11"),
            ["linux-cuda-11-common_cpus-x64"],
            "not cuda-12: needs NVIDIA driver 525.60.13",
        ),
        (FORK, host(nvidia="450.80.01"), ["linux-common_cpus-x64"], "not cuda-11: needs NVIDIA driver 450.80.02"),
        (
            FORK,
            host(nvidia="", vulkan=""),
            ["linux-vulkan-common_cpus-x64"],
            "version of the NVIDIA driver is not known",
        ),
        (LEVELS, host(gpu=False), ["linux-noavx-x64"], "no GPU"),
        (LEVELS, host(gpu=False, cpu=("avx", "avx2")), ["linux-avx2-x64"], "no GPU"),
    ],
)
def test_a_machine_gets_what_suits_it_best_with_the_reason(
    names: tuple[str, ...], machine: HostFacts, taken: list[str], word: str
) -> None:
    found = choose(names, machine)
    assert isinstance(found, Choice), found
    assert [name.partition("bin-")[2].removesuffix(".tar.gz").removesuffix(".zip") for name in found.names] == taken
    assert word in found.why


def test_a_named_variant_is_taken_whatever_the_machine_has() -> None:
    found = choose(UPSTREAM, host(gpu=False), "vulkan")
    assert isinstance(found, Choice)
    assert (found.variant, found.why) == ("vulkan", "the manifest asks for it")


@pytest.mark.parametrize(
    ("names", "machine", "asked", "reason", "hint"),
    [
        (UPSTREAM, host(), "cuda-12", "no cuda-12 for linux/x86_64", "there is rocm, vulkan, cpu, openvino"),
        (UPSTREAM, host(arch="riscv64"), "auto", "nothing for linux/riscv64", "linux/x86_64"),
        (("readme.txt",), host(), "auto", "nothing for linux/x86_64", "no archives of a llama-server at all"),
        (LEVELS[3:], host(), "auto", "every cpu for linux/x86_64 needs a newer processor", "there is cpu"),
        (LEVELS[3:], host(), "cpu", "every cpu for linux/x86_64 needs a newer processor", "another release"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(
    names: tuple[str, ...], machine: HostFacts, asked: str, reason: str, hint: str
) -> None:
    found = choose(names, machine, asked)
    assert isinstance(found, Refusal)
    assert reason in found.reason
    assert hint in found.hint


def test_versions_are_numbers_and_no_texts() -> None:
    assert newer("b10000", "b9999")
    assert not newer("b9999", "b10000")
    assert not newer("b100", "b100")
    assert [version_of(name) for name in (UPSTREAM[0], "llama-server.tar.gz", "b12.zip")] == ["b11434", "", "b12"]
