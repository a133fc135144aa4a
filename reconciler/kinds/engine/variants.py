"""Which archive of a release suits a machine, and why: a table over names. Pure; nothing is asked of any machine here.

A release names its archives after what they are built for. Two styles are read: `llama-b11434-bin-ubuntu-vulkan-x64`
and `llama-b6673-bin-linux-cuda-12-common_cpus-x64`. A name with a word that is not known is passed over, since nobody
here can say what it needs.

Versions are build numbers: b9999 is older than b10000.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reconciler.core.state import HostFacts

AUTO = "auto"
NO_GPU = "no GPU is there"
ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".zip")

# The best first. Of two that a machine can use, the one that computes faster on it: CUDA before Vulkan on one card.
ORDER = (
    "cuda-13", "cuda-12", "cuda-11", "metal", "rocm", "vulkan", "cpu",
    "sycl", "openvino", "opencl",
)  # fmt: skip
BY_HAND = frozenset({"sycl", "openvino", "opencl"})  # need what is not looked for: taken only where they are asked for

# The oldest driver that runs what was built with a CUDA of that major number: NVIDIA's table of minor version
# compatibility.
CUDA_DRIVERS: dict[str, dict[str, str]] = {
    "linux": {"11": "450.80.02", "12": "525.60.13", "13": "580"},
    "windows": {"11": "452.39", "12": "527.41", "13": "580"},
}

_SYSTEMS = {"ubuntu": "linux", "linux": "linux", "macos": "macos", "win": "windows"}
_MACHINES = {"x64": "x86_64", "x86_64": "x86_64", "amd64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
_SORTS = {
    "cuda": "cuda", "vulkan": "vulkan", "rocm": "rocm", "hip": "rocm", "sycl": "sycl", "opencl": "opencl",
    "openvino": "openvino",
}  # fmt: skip
_IGNORED = frozenset({"cpu", "common_cpus", "radeon", "adreno", "noavx", "fp32"})
_LEVELS = {"avx": ("avx",), "avx2": ("avx2",), "avx512": ("avx512f",)}
_SHOWN = {"avx512f": "AVX-512"}
_NAME = re.compile(r"(?:llama-(?P<version>.+?)|(?P<runtime>cudart-llama))-bin-(?P<words>.+)")
_NUMBER = re.compile(r"(?:cu)?(\d+(?:\.\d+){0,2})")


@dataclass(frozen=True, slots=True)
class Build:
    """What one archive of a release was built for, by its name.

    `sort` is cpu, cuda, rocm …; `number` the version of that (`12.4`, empty where the name has none); `needs` are
    features of the processor; `runtime` marks a bundle of libraries that a build goes with.
    """

    name: str
    os: str
    arch: str
    sort: str
    number: str = ""
    needs: tuple[str, ...] = ()
    runtime: bool = False

    @property
    def variant(self) -> str:
        return f"cuda-{self.number.partition('.')[0]}" if self.sort == "cuda" else self.sort


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken: `names` of archives, the engine first. `considered` says one by one why not the others."""

    variant: str
    names: tuple[str, ...]
    why: str
    considered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """That a release has nothing that can be taken, and what it has instead."""

    reason: str
    hint: str = ""
    considered: tuple[str, ...] = field(default=())


def numbers(version: str) -> tuple[int, ...]:
    """`b10000` → (10000,), `525.60.13` → (525, 60, 13): what versions are compared by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def build(name: str) -> Build | None:
    """What an archive is by its name; None for all that is no archive of a llama-server, or needs what is not known."""
    stem = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), "")
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    system = machine = number = ""
    sort, needs = "cpu", tuple[str, ...]()
    for word in match["words"].split("-"):
        if word in _SYSTEMS:
            system = _SYSTEMS[word]
        elif word in _MACHINES:
            machine = _MACHINES[word]
        elif word in _SORTS:
            sort = _SORTS[word]
        elif word in _LEVELS:
            needs = _LEVELS[word]
        elif found := _NUMBER.fullmatch(word):
            number = found[1]
            sort = "cuda" if word.startswith("cu") or match["runtime"] else sort
        elif word not in _IGNORED:
            return None
    if not system or not machine or (number and sort == "cpu"):
        return None
    if (system, machine, sort) == ("macos", "arm64", "cpu"):
        sort = "metal"
    return Build(name, system, machine, sort, number, needs, runtime=bool(match["runtime"]))


def builds(names: Iterable[str], os: str, arch: str) -> tuple[Build, ...]:
    """The archives that are for a system and a kind of processor."""
    found = (made for name in names if (made := build(name)) is not None)
    return tuple(made for made in found if (made.os, made.arch) == (os, arch))


def choose(names: Sequence[str], host: HostFacts, asked: str = AUTO) -> Choice | Refusal:
    """What of a release's archives to take on a machine. `asked` is a variant, or `auto` for what suits it best."""
    here = builds(names, host.os, host.arch)
    engines = [made for made in here if not made.runtime]
    machine = f"{host.os}/{host.arch}"
    if not engines:
        others = sorted({f"{made.os}/{made.arch}" for name in names if (made := build(name)) and not made.runtime})
        hint = f"it has some for {', '.join(others)}" if others else "it has no archives of a llama-server at all"
        return Refusal(f"the release has nothing for {machine}", hint)
    variants = [variant for variant in ORDER if any(made.variant == variant for made in engines)]
    if asked != AUTO:
        if asked not in variants:
            there = f"there is {', '.join(variants)}" if variants else "there is nothing else"
            return Refusal(f"the release has no {asked} for {machine}", f"{there}; or leave it to `variant: auto`")
        made = _best([m for m in engines if m.variant == asked], host)
        if made is None:
            return Refusal(*_processor(asked, machine))
        return _taken(made, here, "the manifest asks for it", ())
    considered: list[str] = []
    for variant in ORDER:
        if variant in BY_HAND:
            continue
        why, able = _able(variant, host)
        made = _best([m for m in engines if m.variant == variant], host)
        if able and made is not None:
            return _taken(made, here, why, considered)
        if variant not in variants:
            considered += [f"{variant}: the release has none for {machine}"] if able and variant != "cpu" else []
        else:
            considered.append(f"{variant}: {why if not able else _processor(variant, machine)[0]}")
    hint = f"there is {', '.join(variants)}: name one with `variant` if you know that it runs here"
    return Refusal(f"nothing of the release runs on {machine}: {'; '.join(considered)}", hint, tuple(considered))


def _taken(made: Build, here: Sequence[Build], why: str, considered: Sequence[str]) -> Choice:
    """With the libraries that go with it: those of the same CUDA, else of the nearest above within its major number."""
    runtimes = [m for m in here if m.runtime and made.sort == "cuda" and m.variant == made.variant]
    runtimes.sort(key=lambda m: (m.number != made.number, [-n for n in numbers(m.number)]))
    beside = tuple(m.name for m in runtimes[:1])
    told = [each for each in considered if not each.endswith(NO_GPU)]  # which the reason itself says
    passed = f" (not {'; not '.join(told)})" if told else ""
    return Choice(made.variant, (made.name, *beside), why + passed, tuple(considered))


def _best(found: Sequence[Build], host: HostFacts) -> Build | None:
    """Of several of one variant that the processor can run: the newest CUDA or ROCm, then the one that asks most."""
    fitting = [made for made in found if set(made.needs) <= set(host.features)]
    return max(
        fitting, key=lambda m: (numbers(m.number), len(m.needs), m.needs, not m.name.endswith(".zip")), default=None
    )


def _processor(variant: str, machine: str) -> tuple[str, str]:
    return f"every {variant} for {machine} needs a newer processor", "choose another release, or another variant"


def _able(variant: str, host: HostFacts) -> tuple[str, bool]:
    """(why, whether a machine can use a variant)."""
    drivers = dict(host.drivers)
    sort, _, major = variant.partition("-")
    if sort == "cpu":
        return ("no GPU is there that it could use" if not host.devices else "its GPU can be used by none", True)
    if sort == "metal":
        return "Apple's GPU", host.os == "macos" and host.arch == "arm64"
    if not host.devices:
        return NO_GPU, False
    if sort == "cuda":
        return _cuda(major, drivers.get("nvidia"), host.os)
    if sort == "rocm":
        if "rocm" not in drivers:
            return "no ROCm is installed", False
        return f"ROCm {drivers['rocm']}".rstrip(), True
    if sort == "vulkan":
        return ("a GPU with a Vulkan driver", True) if "vulkan" in drivers else ("no Vulkan driver is there", False)
    return "it is taken only where it is asked for", False


def _cuda(major: str, driver: str | None, system: str) -> tuple[str, bool]:
    least = CUDA_DRIVERS.get(system, {}).get(major)
    if driver is None or least is None:
        return "no NVIDIA driver is there", False
    if not driver:
        return "the version of the NVIDIA driver is not known", False
    if numbers(driver) < numbers(least):
        return f"needs NVIDIA driver {least}, here is {driver}", False
    return f"NVIDIA driver {driver}, of which it needs {least}", True
