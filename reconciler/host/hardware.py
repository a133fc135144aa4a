"""Facts about the machine. Bytes. Starts no process and asks no driver, since it is asked in each turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Where
from reconciler.core.state import HostFacts

_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}  # PCI vendors, the strongest first

MAX_LABELS = 64 << 10  # bytes of labels.yaml


def facts(labels: Mapping[str, str] | None = None) -> HostFacts:
    """What decisions may depend on; only the available memory changes while the machine runs."""
    system, machine = _SYSTEMS.get(sys.platform, sys.platform), os.uname().machine.lower()
    return HostFacts(
        memory_total=memory_total(),
        memory_available=memory_available(),
        os=system,
        arch=_MACHINES.get(machine, machine),
        cpu=os.cpu_count() or 1,
        gpu=gpu(system, machine),
        labels=tuple(sorted((labels or {}).items())),
    )


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


def memory_available() -> int:
    """Memory that new processes can have without swapping."""
    found = _meminfo("MemAvailable")
    if found:
        return found
    import psutil

    return int(psutil.virtual_memory().available)


@lru_cache(maxsize=1)
def memory_total() -> int:
    found = _meminfo("MemTotal")
    if found:
        return found
    import psutil

    return int(psutil.virtual_memory().total)


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
