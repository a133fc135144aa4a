"""What a machine computes with, by files of the kernel and of drivers; and what a person says of it instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reconciler.host import drivers, hardware
from reconciler.host.drivers import VARIABLE

NVIDIA = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: gcc 12.3.0\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build  (builder)\n"


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(("text", "version"), [(NVIDIA, "550.54.14"), (OPEN, "580.65"), ("NVRM of some kind\n", "")])
def test_the_version_of_nvidias_driver_is_read(tmp_path: Path, text: str, version: str) -> None:
    put(tmp_path, "proc/driver/nvidia/version", text)
    assert drivers.drivers("linux", "x86_64", tmp_path) == (("nvidia", version),)


def test_rocm_needs_its_kernel_driver_and_its_libraries(tmp_path: Path) -> None:
    put(tmp_path, "opt/rocm/.info/version", "7.2.0-43\n")
    assert drivers.drivers("linux", "x86_64", tmp_path) == ()
    put(tmp_path, "dev/kfd")
    drivers.drivers.cache_clear()
    assert drivers.drivers("linux", "x86_64", tmp_path) == (("rocm", "7.2.0"),)


def test_vulkan_needs_a_loader_and_a_driver_that_is_no_software(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/vulkan/icd.d/radeon_icd.x86_64.json")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    put(one, "usr/share/vulkan/icd.d/radeon_icd.x86_64.json")
    put(two, "usr/lib/x86_64-linux-gnu/libvulkan.so.1")
    put(two, "usr/share/vulkan/icd.d/lvp_icd.x86_64.json")
    put(three, "usr/lib64/libvulkan.so.1")
    put(three, "etc/vulkan/icd.d/nvidia_icd.json")
    found = [drivers.drivers("linux", "x86_64", root) for root in (one, two, three)]
    assert found == [(), (), (("vulkan", ""),)]


def test_an_apple_processor_has_metal(tmp_path: Path) -> None:
    assert drivers.drivers("macos", "arm64", tmp_path) == (("metal", ""),)
    assert drivers.drivers("macos", "x86_64", tmp_path) == ()
    assert drivers.drivers("windows", "x86_64", tmp_path) == ()


def test_what_the_processor_knows_is_read(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse avx avx2 fma\nprocessor\t: 1\nflags\t: none\n")
    assert drivers.features(tmp_path) == ("avx", "avx2", "fma")
    assert drivers.features(tmp_path / "nowhere") == ()


def test_what_a_person_says_replaces_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"nvidia": "580.1", "cpu": ["avx2"], "vulkan": ""}))
    assert drivers.facts("linux", "x86_64") == ((("nvidia", "580.1"), ("vulkan", "")), ("avx2",))
    facts = hardware.facts()
    assert (dict(facts.drivers)["nvidia"], facts.features) == ("580.1", ("avx2",))


@pytest.mark.parametrize("text", ["[]", "{", '{"nvidia": 5}', '{"cpu": "avx"}', "[" * 10_000])
def test_what_cannot_be_understood_is_ignored_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    drivers.said.cache_clear()
    assert drivers.said(text) is None
    assert VARIABLE in caplog.text
