"""Facts about the machine: what the kernel shows, and what people say in labels.yaml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from reconciler.core.state import HostFacts
from reconciler.host import hardware

GIB = 1 << 30


def test_the_facts_of_this_machine() -> None:
    facts = hardware.facts({"b": "2", "a": "1"})
    assert facts.os == {"linux": "linux", "darwin": "macos"}[sys.platform]
    assert facts.arch in ("x86_64", "arm64")
    assert facts.cpu == os.cpu_count()
    assert facts.labels == (("a", "1"), ("b", "2"))
    assert 0 < facts.memory_available < facts.memory_total


@pytest.mark.parametrize(
    ("size", "gib"), [(0, 0), (15 * GIB + GIB // 2, 16), (15 * GIB + GIB // 2 - 1, 15), (16 * GIB + 5, 16)]
)
def test_memory_is_counted_to_the_nearest_gib(size: int, gib: int) -> None:
    assert HostFacts(memory_total=size).memory_gib == gib


@pytest.mark.parametrize(
    ("vendors", "expected"),
    [
        ([], ""),
        (["0x8086"], "intel"),
        (["0x8086", "0x1002"], "amd"),
        (["0x1002", "0x10de"], "nvidia"),
        (["0x1af4"], ""),
    ],
)
def test_the_gpu_is_known_by_its_vendor(tmp_path: Path, vendors: list[str], expected: str) -> None:
    for i, vendor in enumerate(vendors):
        device = tmp_path / f"sys/class/drm/card{i}/device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
    assert hardware.gpu("linux", "x86_64", tmp_path) == expected


def test_the_driver_of_nvidia_is_enough(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: …")
    assert hardware.gpu("linux", "x86_64", tmp_path) == "nvidia"


def test_an_apple_has_its_own_gpu(tmp_path: Path) -> None:
    assert hardware.gpu("macos", "arm64", tmp_path) == "apple"
    assert hardware.gpu("macos", "x86_64", tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", {}),
        (b"# none yet\n", {}),
        (b"team: research\nrack: 07\nfast: yes\n", {"team": "research", "rack": "07", "fast": "yes"}),
    ],
)
def test_labels_are_a_flat_mapping_of_text(tmp_path: Path, text: bytes, expected: dict[str, str]) -> None:
    path = tmp_path / "labels.yaml"
    assert hardware.labels(path) == ({}, [])
    path.write_bytes(text)
    assert hardware.labels(path) == (expected, [])


@pytest.mark.parametrize(
    ("text", "place", "summary"),
    [
        (b"- a\n", ":1:1", "must be a mapping"),
        (b"a: 1\nb: [2]\n", ":2:1", "a label is a name and a text"),
        (b"a: 1\na: 2\n", ":2:1", "'a' is here twice"),
        (b"a: [\n", ":2:1", "not readable as YAML"),
        (b"a: \xff\n", "", "not readable as YAML"),
        (b"a: \x00\n", "", "not readable as YAML"),
        (b"a: *x\n", ":1:4", "not readable as YAML"),
        (b"[" * 5000, "", "not readable as YAML"),
        (b"x" * (hardware.MAX_LABELS + 1), "", "bytes of labels"),
    ],
)
def test_what_is_wrong_with_labels_is_told(tmp_path: Path, text: bytes, place: str, summary: str) -> None:
    path = tmp_path / "labels.yaml"
    path.write_bytes(text)
    (fault,) = hardware.labels(path)[1]
    assert str(fault.where) == f"{path}{place}"
    assert summary in fault.summary


def test_labels_that_are_a_folder_are_told(tmp_path: Path) -> None:
    assert "Is a directory" in hardware.labels(tmp_path)[1][0].summary
