"""What programs may compute with here: the drivers of GPUs, and what the processor knows. Starts no process.

Looked at once, since none of it changes while a machine runs without its drivers being installed anew. What cannot be
read counts as not there. `RECONCILER_DRIVERS` replaces what is found, for odd machines and for tests: a JSON mapping
such as `{"nvidia": "550.54.14", "vulkan": "", "cpu": ["avx", "avx2"]}`; `cpu` are features of the processor.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from reconciler.host import devices

log = logging.getLogger(__name__)

VARIABLE = "RECONCILER_DRIVERS"
FEATURES = frozenset({"avx", "avx2", "avx512f", "f16c", "fma", "bmi2", "asimd", "sve", "sve2", "i8mm"})

Drivers = tuple[tuple[str, str], ...]
_LIBRARIES = ("usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/local/lib")
_MANIFESTS = ("usr/share/vulkan/icd.d", "usr/local/share/vulkan/icd.d", "etc/vulkan/icd.d")
_SOFTWARE = ("lvp_", "swrast", "swiftshader", "vk_swiftshader")  # Vulkan on the processor: slower than the processor


def facts(system: str, arch: str) -> tuple[Drivers, tuple[str, ...]]:
    """(drivers with their versions, features of the processor), sorted; what the environment says wins."""
    given = said(text) if (text := os.environ.get(VARIABLE, "")) else None
    return (drivers(system, arch), features()) if given is None else given


@lru_cache(maxsize=4)
def said(text: str) -> tuple[Drivers, tuple[str, ...]] | None:
    """What `RECONCILER_DRIVERS` says; None, and a warning in the log, where it cannot be understood."""
    try:
        entries = json.loads(text)
        if not isinstance(entries, Mapping):
            raise ValueError("it is not a mapping")
        known = entries.get("cpu", [])
        named = {key: value for key, value in entries.items() if key != "cpu"}
        if not isinstance(known, list) or not all(isinstance(value, str) for value in (*known, *named.values())):
            raise ValueError("versions are texts, and `cpu` is a list of texts")
        return tuple(sorted(named.items())), tuple(sorted(known))
    except (ValueError, RecursionError) as error:
        log.warning("%s is ignored: %s", VARIABLE, error)
        return None


@lru_cache(maxsize=4)
def drivers(system: str, arch: str, root: Path = Path("/")) -> Drivers:
    """The drivers below `root`, by name: nvidia, rocm, vulkan, metal."""
    if system == "macos":
        return (("metal", ""),) if arch == "arm64" else ()
    if system != "linux":
        return ()
    found = {"nvidia": _nvidia(root), "rocm": _rocm(root), "vulkan": "" if _vulkan(root) else None}
    return tuple(sorted((name, version) for name, version in found.items() if version is not None))


@lru_cache(maxsize=4)
def features(root: Path = Path("/")) -> tuple[str, ...]:
    """What the first processor says that it knows, of what anybody asks for here."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(FEATURES & set(words.split())))
    return ()


def _nvidia(root: Path) -> str | None:
    """The version of NVIDIA's driver; from the driver's own library where the kernel does not tell (WSL)."""
    first = _text(root / "proc/driver/nvidia/version").partition("\n")[0]
    if found := re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", f"{first} "):
        return found[1]
    if first:
        return ""
    return devices.driver_version() if (root / "dev/dxg").exists() else None


def _rocm(root: Path) -> str | None:
    """ROCm's version, where its kernel driver and its libraries are."""
    if not (root / "dev/kfd").exists():
        return None
    return _text(root / "opt/rocm/.info/version").strip().partition("-")[0] or None


def _vulkan(root: Path) -> bool:
    """Whether the loader is there, and a driver that is no software."""
    loader = any((root / folder / "libvulkan.so.1").exists() for folder in _LIBRARIES)
    named = (path.name for folder in _MANIFESTS for path in (root / folder).glob("*.json"))
    return loader and any(not name.startswith(_SOFTWARE) for name in named)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
