"""The GPUs of this machine and what of their memory is free. Bytes. Starts no process.

Which there are is looked at once, since that needs a walk through /sys or a driver to be loaded; how much is free is
read anew each time, in well under a millisecond. What cannot be read is left out: a wrong guess of ours would be worse
than a plan that counts on the CPU alone.
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from reconciler.core.state import Device

log = logging.getLogger(__name__)

VARIABLE = "RECONCILER_DEVICES"
MIB = 1 << 20
GIB = 1 << 30

# A GPU within an AMD processor has a small part of memory set aside, and reaches for the rest through its page table.
CARVED = 2 * GIB
# What macOS lets a GPU wire down: two thirds of up to 36 GiB, three quarters above (what Metal recommends as a most).
APPLE_SMALL = 36 * GIB

Memory = tuple[int, int]  # of the machine: total, available
Look = Callable[[Memory], Device | None]


def devices(system: str, machine: str, memory: Memory, root: Path = Path("/")) -> tuple[Device, ...]:
    """All GPUs that the machine shows, names made different. `memory` is the machine's own: (total, available)."""
    found = [device for look in _looks(system, machine, root) if (device := look(memory)) is not None]
    return _told_apart(found)


def taken(
    system: str, machine: str, memory: Memory, pids: Sequence[int], root: Path = Path("/")
) -> dict[int, tuple[int, ...]]:
    """What each process has of each GPU, in the order of `devices`; nothing of those of which no driver tells."""
    shown = [look for look in _looks(system, machine, root) if look(memory) is not None]
    each = [look.taken(pids, root) if isinstance(look, _Nvidia | _Card) else {} for look in shown]
    known = {pid for found in each for pid in found}
    return {pid: tuple(found.get(pid, 0) for found in each) for pid in known}


@lru_cache(maxsize=4)
def said(text: str) -> tuple[Device, ...] | None:
    """What `RECONCILER_DEVICES` says; None, and a warning in the log, where it cannot be understood."""
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise ValueError("it is not a list")
        return _told_apart([_entry(entry) for entry in entries])
    except (ValueError, RecursionError) as error:
        log.warning("%s is ignored: %s", VARIABLE, error)
        return None


def _entry(entry: Any) -> Device:
    if not isinstance(entry, Mapping) or entry.keys() - {"name", "total", "free", "unified"}:
        raise ValueError("an entry has name, total, free and unified, and nothing else")
    total, unified = entry.get("total"), entry.get("unified", False)
    free, name = entry.get("free", total), entry.get("name", "GPU")
    if type(total) is not int or type(free) is not int or not 0 <= free <= total:
        raise ValueError("total and free are bytes, and free is not more than total")
    if not isinstance(name, str) or type(unified) is not bool:
        raise ValueError("name is a text, and unified true or false")
    return Device(name, total, free, unified)


def _told_apart(found: Sequence[Device]) -> tuple[Device, ...]:
    """Two cards of one make become `… 1` and `… 2`, in their order."""
    many, seen = Counter(device.name for device in found), Counter[str]()
    out = []
    for device in found:
        seen[device.name] += 1
        out.append(replace(device, name=f"{device.name} {seen[device.name]}") if many[device.name] > 1 else device)
    return tuple(out)


@lru_cache(maxsize=8)
def _looks(system: str, machine: str, root: Path) -> tuple[Look, ...]:
    """How to look at each GPU: found once, for as long as this process lives."""
    if system == "macos":
        return (_apple,) if machine == "arm64" else ()
    if system != "linux":
        return ()
    driver = (root / "proc/driver/nvidia/version").exists() or (root / "dev/dxg").exists()
    return (*(_nvidia(_library()) if driver else ()), *_cards(root))


# --- NVIDIA ---------------------------------------------------------------------------------------------------------


class _Memory(ctypes.Structure):
    """`nvmlMemory_t` of NVML's C API."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


_NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED: the GPU has no memory of its own (Jetson, Grace)


def _library() -> Any | None:
    """The driver's own library, if it is there and can be started: it comes with every driver."""
    for name in ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if library.nvmlInit_v2() == 0 else None
    return None


def driver_version() -> str | None:
    """What NVIDIA's library says of its driver; None where there is no such library."""
    library, text = _library(), ctypes.create_string_buffer(80)
    if library is None:
        return None
    known = library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) == 0
    return text.value.decode("ascii", "replace") if known else ""


def _nvidia(library: Any | None) -> tuple[Look, ...]:
    """One look for each GPU that NVML names. A call takes some microseconds; the library stays loaded."""
    count = ctypes.c_uint()
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return ()
    looks = []
    for i in range(count.value):
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(i), ctypes.byref(handle)) != 0:
            continue
        known = library.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name))) == 0
        looks.append(_Nvidia(library, handle, name.value.decode("utf-8", "replace") if known else "NVIDIA GPU"))
    return tuple(looks)


class _Process(ctypes.Structure):
    """`nvmlProcessInfo_t` of NVML's C API, of the second version of its functions and those after."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    ]


_MANY = 512  # processes on one GPU
_NOT_TOLD = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


@dataclass(frozen=True, slots=True)
class _Nvidia:
    library: Any
    handle: ctypes.c_void_p
    name: str

    def __call__(self, memory: Memory) -> Device | None:
        seen = _Memory()
        answer = self.library.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(seen))
        if answer == _NOT_SUPPORTED:
            return Device(self.name, *memory, unified=True)
        return Device(self.name, int(seen.total), int(seen.free)) if answer == 0 else None

    def taken(self, pids: Sequence[int], root: Path) -> Mapping[int, int]:
        """By CUDA and by Vulkan alike: the driver lists them apart, and a process may be in both lists."""
        out: dict[int, int] = {}
        for sort in ("Compute", "Graphics"):
            ask = getattr(self.library, f"nvmlDeviceGet{sort}RunningProcesses_v3", None)
            ask = ask or getattr(self.library, f"nvmlDeviceGet{sort}RunningProcesses_v2", None)
            count, seen = ctypes.c_uint(_MANY), (_Process * _MANY)()
            if ask is not None and ask(self.handle, ctypes.byref(count), seen) == 0:
                for one in seen[: count.value]:
                    if one.pid in pids and one.memory != _NOT_TOLD:
                        out[one.pid] = max(out.get(one.pid, 0), int(one.memory))
        return out


# --- AMD and Intel --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Card:
    """A card of the kernel's graphics drivers, by the files that say how its memory is used. `bus` is its address."""

    name: str
    total: int
    used: Path | None = None
    free: Path | None = None
    unified: bool = False
    bus: str = ""

    def __call__(self, memory: Memory) -> Device | None:
        if self.used is not None:
            used = _number(self.used)
            left = None if used is None else self.total - used
        else:
            left = _number(self.free) if self.free is not None else self.total
        if left is None:
            return None
        total = min(self.total, memory[0]) if self.unified else self.total
        left = min(left, memory[1]) if self.unified else left
        return Device(self.name, total, min(max(left, 0), total), self.unified)

    def taken(self, pids: Sequence[int], root: Path) -> Mapping[int, int]:
        """What the kernel says of each open file of a card (its `drm-usage-stats`), once for each of its clients."""
        regions = ("gtt",) if self.unified else ("vram", "vram0", "local0")
        out: dict[int, int] = {}
        for pid in pids:
            clients = dict(_clients(root / f"proc/{pid}/fdinfo", self.bus, regions))
            if clients:
                out[pid] = sum(clients.values())
        return out


def _clients(folder: Path, bus: str, regions: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(client, bytes) of each file of a process that is the card at `bus`. One client may have several files."""
    try:
        files = list(folder.iterdir())
    except OSError:
        return
    for file in files:
        said = dict(line.split(":", 1) for line in _text(file).splitlines() if line.startswith("drm-"))
        if not bus or said.get("drm-pdev", "").strip() != bus:
            continue
        names = (f"drm-{kind}-{region}" for kind in ("resident", "memory") for region in regions)
        size, unit = next(([*said[name].split(), "", ""][:2] for name in names if name in said), ("0", ""))
        yield said.get("drm-client-id", "").strip(), int(size) * (1024 if unit == "KiB" else 1) if size.isdigit() else 0


def _cards(root: Path) -> tuple[Look, ...]:
    """The cards with memory that the kernel tells of; those of Intel that use main memory only are left out."""
    found = [_card(path) for path in root.glob("sys/class/drm/card*") if re.fullmatch(r"card\d+", path.name)]
    order = sorted((card for card in found if card is not None), key=lambda card: card[0])
    return tuple(card for _, card in order)


def _card(path: Path) -> tuple[int, _Card] | None:
    number, device = int(path.name.removeprefix("card")), path / "device"
    vendor = _text(device / "vendor").lower()
    card = _amd(device) if vendor == "0x1002" else _intel(path, device) if vendor == "0x8086" else None
    return None if card is None else (number, replace(card, bus=device.resolve().name))


def _amd(device: Path) -> _Card | None:
    """`amdgpu`: mem_info_vram_* is memory of the card, mem_info_gtt_* the part of main memory that it can reach."""
    vram, reach = _number(device / "mem_info_vram_total"), _number(device / "mem_info_gtt_total")
    if vram is None:
        return None
    name = _text(device / "product_name") or "AMD GPU"
    if vram <= CARVED and reach is not None and reach > 2 * vram:
        return _Card(name, reach, used=device / "mem_info_gtt_used", unified=True)
    return _Card(name, vram, used=device / "mem_info_vram_used")


def _intel(path: Path, device: Path) -> _Card | None:
    """`i915` tells local memory, total and available; `xe` its size alone, so that all of it counts as free."""
    total = _number(path / "lmem_total_bytes")
    if total:
        free = path / "lmem_avail_bytes"
        return _Card("Intel GPU", total, free=free if free.exists() else None)
    total = _number(device / "tile0/physical_vram_size_bytes")
    return _Card("Intel GPU", total) if total else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path), 0)
    except ValueError:
        return None


# --- Apple ----------------------------------------------------------------------------------------------------------


def _apple(memory: Memory) -> Device | None:
    """The one GPU of Apple's processors: as much of main memory as macOS lets it wire down."""
    total, available = memory
    share = total * 2 // 3 if total < APPLE_SMALL else total * 3 // 4
    limit = _wired_limit() * MIB or share
    most = min(limit, total)
    return Device("Apple GPU", most, min(most, available), unified=True)


@lru_cache(maxsize=1)
def _wired_limit() -> int:
    """The limit that a person has set, in MiB; 0 where none is set, or this is no Mac."""
    try:
        call = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return 0
    value, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = call(b"iogpu.wired_limit_mb", ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return 0 if failed else max(0, value.value)
