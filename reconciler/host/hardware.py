"""Facts about the machine. Bytes. Starts no process and takes less than a millisecond, since it is asked in each turn.

Which devices there are is looked at once; how much of them is free is read anew each time: from files of the kernel
(AMD, Intel), from the driver's library in this process (NVIDIA), from the machine's own memory (Apple, and others
whose GPU shares it). A limit that the control group sets, as in a container, counts as the machine's memory.

`RECONCILER_DEVICES` replaces what is found, for odd machines and for tests: a JSON list such as
`[{"name": "A100 slice", "total": 21474836480, "free": 20401094656}]`, with `"unified": true` where the memory is the
machine's own. `free` is `total` where it is left out; `[]` means that no GPU is to be used. Drivers and what the
processor knows are looked at once, too, and replaced by `RECONCILER_DRIVERS` (see `drivers`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Where
from reconciler.core.state import Device, HostFacts
from reconciler.host import devices, drivers

_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}  # PCI vendors, the strongest first

MAX_LABELS = 64 << 10  # bytes of labels.yaml
UNLIMITED = 1 << 60  # bytes: control groups of version 1 say something near 2^63 where there is no limit


def facts(labels: Mapping[str, str] | None = None) -> HostFacts:
    """What decisions may depend on; only what is available of its memories changes while the machine runs."""
    system, machine = _SYSTEMS.get(sys.platform, sys.platform), os.uname().machine.lower()
    arch = _MACHINES.get(machine, machine)
    memory = (memory_total(), memory_available())
    computes, knows = drivers.facts(system, arch)
    return HostFacts(
        memory_total=memory[0],
        memory_available=memory[1],
        os=system,
        arch=arch,
        cpu=os.cpu_count() or 1,
        gpu=gpu(system, machine),
        labels=tuple(sorted((labels or {}).items())),
        devices=gpus(system, arch, memory),
        features=knows,
        drivers=computes,
    )


def gpus(system: str, arch: str, memory: tuple[int, int]) -> tuple[Device, ...]:
    """The GPUs, the most free memory of each; what the environment says of them wins."""
    given = devices.said(text) if (text := os.environ.get(devices.VARIABLE, "")) else None
    return devices.devices(system, arch, memory) if given is None else given


def gpu_memory(pids: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """What each process has of each GPU (bytes, in the order of `facts().devices`), as far as their drivers tell."""
    if not pids or os.environ.get(devices.VARIABLE, ""):
        return {}
    system = _SYSTEMS.get(sys.platform, sys.platform)
    machine = os.uname().machine.lower()
    return devices.taken(system, _MACHINES.get(machine, machine), (memory_total(), memory_available()), pids)


@lru_cache
def gpu(system: str, machine: str, root: Path = Path("/")) -> str:
    """The vendor of the GPU, by what the kernel shows below `root`: empty where there is none."""
    if system == "macos":
        return "apple" if machine == "arm64" else ""
    if (root / "proc/driver/nvidia/version").exists():
        return "nvidia"
    seen = set()
    for path in root.glob("sys/class/drm/card*/device/vendor"):
        try:
            seen.add(path.read_text().strip().lower())
        except OSError:
            continue
    return next((name for vendor, name in _VENDORS.items() if vendor in seen), "")


def labels(path: Path) -> tuple[dict[str, str], list[Diagnostic]]:
    """What labels.yaml says of this machine, a flat mapping of text, and what is wrong with it. No file: no labels."""
    import yaml

    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABELS + 1)
        if len(data) > MAX_LABELS:
            return {}, [Diagnostic(f"more than {MAX_LABELS} bytes of labels", Where(str(path)))]
        node = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except (FileNotFoundError, NotADirectoryError):
        return {}, []
    except OSError as error:
        return {}, [Diagnostic(f"the labels cannot be read: {error.strerror}", Where(str(path)))]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = Where(str(path), mark.line + 1, mark.column + 1) if mark else Where(str(path))
        return {}, [Diagnostic(f"not readable as YAML: {error.problem}", where)]
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, [Diagnostic("not readable as YAML", Where(str(path)), "it holds lines such as `team: research`")]
    out: dict[str, str] = {}
    faults = []
    if node is not None and not isinstance(node, yaml.MappingNode):
        return {}, [_label_fault("must be a mapping", path, node)]
    for key, value in node.value if node is not None else ():
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            faults.append(_label_fault("a label is a name and a text", path, key))
        elif key.value in out:
            faults.append(_label_fault(f"the label {key.value!r} is here twice", path, key))
        else:
            out[key.value] = value.value
    return out, faults


def _label_fault(summary: str, path: Path, node: Any) -> Diagnostic:
    where = Where(str(path), node.start_mark.line + 1, node.start_mark.column + 1)
    return Diagnostic(summary, where, "write lines such as `team: research`")


def memory_available(root: Path = Path("/")) -> int:
    """Memory that new processes can have without swapping, and without passing the limit of our control group."""
    return min([_machine("MemAvailable", root), *(left for _, left in _limits(root))])


def memory_total(root: Path = Path("/")) -> int:
    """The machine's memory, or what of it our control group may have."""
    return min([_installed(root), *(limit for limit, _ in _limits(root))])


@lru_cache(maxsize=4)
def _installed(root: Path) -> int:
    return _machine("MemTotal", root)


def _machine(name: str, root: Path) -> int:
    found = _meminfo(name, root)
    if found:
        return found
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total if name == "MemTotal" else memory.available)


def _meminfo(name: str, root: Path) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is none."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) of our control group and of those that it is in, where they have one.

    Cached pages of files that were not used lately count as left: the kernel takes them back before it refuses
    memory (`inactive_file` in cgroups' memory.stat).
    """
    for folder, version in _groups(root):
        limit, used = ("memory.max", "memory.current") if version == 2 else _FIRST
        most = _bytes(folder / limit)
        if most is None or most >= UNLIMITED:
            continue
        taken = max(0, (_bytes(folder / used) or 0) - _idle(folder / "memory.stat", version))
        yield most, max(0, most - taken)


_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes")  # version 1


@lru_cache(maxsize=4)
def _groups(root: Path) -> tuple[tuple[Path, int], ...]:
    """The folders of our control group and of all above it, and the version of their files."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ()
    out = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            base, version = root / "sys/fs/cgroup", 2
        elif "memory" in controllers.split(","):
            base, version = root / "sys/fs/cgroup/memory", 1
        else:
            continue
        # A container sees its own group as the root, and may be told a path that only the machine outside knows.
        own = PurePosixPath(path.lstrip("/"))
        out += [(base / part, version) for part in (own, *own.parents) if ".." not in part.parts]
    limits = {1: _FIRST[0], 2: "memory.max"}
    return tuple((folder, version) for folder, version in out if (folder / limits[version]).exists())


def _idle(path: Path, version: int) -> int:
    name = "inactive_file " if version == 2 else "total_inactive_file "
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0)


def _bytes(path: Path) -> int | None:
    """A number of bytes; None where there is none, or none that is a limit (`max`)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
