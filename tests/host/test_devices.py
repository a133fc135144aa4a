"""GPUs as the kernel, a driver's library and the environment show them, below a root of our own."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.state import Device
from reconciler.host import devices, hardware

GIB = 1 << 30
MIB = 1 << 20
MEMORY = (64 * GIB, 40 * GIB)


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def amd(card: int, **values: object) -> dict[str, object]:
    return {f"sys/class/drm/card{card}/device/{name}": value for name, value in {"vendor": "0x1002", **values}.items()}


def test_a_machine_without_a_gpu_has_no_devices(tmp_path: Path) -> None:
    assert devices.devices("linux", "x86_64", MEMORY, tmp_path) == ()
    assert devices.devices("windows", "x86_64", MEMORY, tmp_path) == ()
    assert devices.devices("macos", "x86_64", MEMORY, tmp_path) == ()


def test_an_amd_card_is_read_anew_each_time(tmp_path: Path) -> None:
    write(tmp_path, amd(0, mem_info_vram_total=16 * GIB, mem_info_vram_used=GIB, mem_info_gtt_total=32 * GIB))
    assert devices.devices("linux", "x86_64", MEMORY, tmp_path) == (Device("AMD GPU", 16 * GIB, 15 * GIB),)
    write(tmp_path, amd(0, mem_info_vram_used=9 * GIB))
    assert devices.devices("linux", "x86_64", MEMORY, tmp_path) == (Device("AMD GPU", 16 * GIB, 7 * GIB),)


def test_cards_of_one_make_are_told_apart_in_their_order(tmp_path: Path) -> None:
    for card in (10, 2):
        write(tmp_path, amd(card, mem_info_vram_total=card * GIB, mem_info_vram_used=0, product_name="Radeon"))
    write(
        tmp_path, {"sys/class/drm/card2-DP-1/status": "connected", "sys/class/drm/renderD128/device/vendor": "0x1002"}
    )
    found = devices.devices("linux", "x86_64", MEMORY, tmp_path)
    assert [(d.name, d.total) for d in found] == [("Radeon 1", 2 * GIB), ("Radeon 2", 10 * GIB)]


def test_a_gpu_within_the_processor_uses_the_machines_own_memory(tmp_path: Path) -> None:
    files = {"mem_info_vram_total": 512 * MIB, "mem_info_vram_used": 400 * MIB}
    write(tmp_path, amd(0, **files, mem_info_gtt_total=48 * GIB, mem_info_gtt_used=2 * GIB))
    assert devices.devices("linux", "x86_64", MEMORY, tmp_path) == (
        Device("AMD GPU", 48 * GIB, 40 * GIB, unified=True),
    )
    small = (16 * GIB, 3 * GIB)
    assert devices.devices("linux", "x86_64", small, tmp_path) == (Device("AMD GPU", 16 * GIB, 3 * GIB, unified=True),)


def test_a_card_whose_use_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, amd(0, mem_info_vram_total=16 * GIB))
    write(tmp_path, amd(1, mem_info_vram_total="unknown"))
    assert devices.devices("linux", "x86_64", MEMORY, tmp_path) == ()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"lmem_total_bytes": 16 * GIB, "lmem_avail_bytes": 12 * GIB}, Device("Intel GPU", 16 * GIB, 12 * GIB)),
        ({"lmem_total_bytes": 16 * GIB}, Device("Intel GPU", 16 * GIB, 16 * GIB)),
        ({"device/tile0/physical_vram_size_bytes": hex(12 * GIB)}, Device("Intel GPU", 12 * GIB, 12 * GIB)),
        ({}, None),
    ],
)
def test_intel_tells_the_memory_of_its_own_cards_only(
    tmp_path: Path, files: dict[str, object], expected: Device | None
) -> None:
    write(tmp_path, {f"sys/class/drm/card1/{n}": v for n, v in {"device/vendor": "0x8086", **files}.items()})
    found = devices.devices("linux", "x86_64", MEMORY, tmp_path)
    assert found == ((expected,) if expected else ())


class Driver:
    """NVML's calls, answering as the real library does: a number, and values written through pointers."""

    def __init__(self, cards: list[tuple[bytes, int, int]], answer: int = 0) -> None:
        self.cards, self.answer = cards, answer

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, name: Any, length: ctypes.c_uint) -> int:
        name.value = self.cards[(handle.value or 0) - 1][0][: length.value - 1]
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        _, memory._obj.total, memory._obj.free = self.cards[(handle.value or 0) - 1]
        return self.answer


def test_nvidias_library_names_each_gpu_and_its_free_memory() -> None:
    driver = Driver([(b"NVIDIA RTX 6000", 48 * GIB, 20 * GIB), (b"NVIDIA T4", 16 * GIB, 16 * GIB)])
    looks = devices._nvidia(driver)
    assert [look(MEMORY) for look in looks] == [
        Device("NVIDIA RTX 6000", 48 * GIB, 20 * GIB),
        Device("NVIDIA T4", 16 * GIB, 16 * GIB),
    ]
    driver.cards[0] = (b"NVIDIA RTX 6000", 48 * GIB, GIB)
    assert looks[0](MEMORY) == Device("NVIDIA RTX 6000", 48 * GIB, GIB)


def test_an_nvidia_gpu_without_memory_of_its_own_has_the_machines() -> None:
    (look,) = devices._nvidia(Driver([(b"NVIDIA GB10", 0, 0)], answer=devices._NOT_SUPPORTED))
    assert look(MEMORY) == Device("NVIDIA GB10", 64 * GIB, 40 * GIB, unified=True)


def test_a_gpu_that_does_not_answer_is_left_out() -> None:
    (look,) = devices._nvidia(Driver([(b"NVIDIA T4", 16 * GIB, GIB)], answer=999))
    assert look(MEMORY) is None
    assert devices._nvidia(None) == ()


class Telling(Driver):
    """As newer drivers: it also lists who uses a GPU. `processes` are (pid, bytes) of each list."""

    def __init__(self, compute: list[tuple[int, int]], graphics: list[tuple[int, int]]) -> None:
        super().__init__([(b"NVIDIA A", 16 * GIB, GIB)])
        self.compute, self.graphics = compute, graphics

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, seen: Any) -> int:
        return self._tell(self.compute, count, seen)

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: Any, count: Any, seen: Any) -> int:
        return self._tell(self.graphics, count, seen)

    def _tell(self, processes: list[tuple[int, int]], count: Any, seen: Any) -> int:
        for at, (pid, memory) in enumerate(processes):
            seen[at].pid, seen[at].memory = pid, memory
        count._obj.value = len(processes)
        return 0


def test_nvidias_library_tells_who_has_how_much() -> None:
    (look,) = devices._nvidia(Telling([(7, 3 * GIB), (8, GIB), (9, 2**64 - 1)], [(7, 100), (9, 5)]))
    assert isinstance(look, devices._Nvidia)
    assert look.taken([7, 9, 10], Path("/")) == {7: 3 * GIB, 9: 5}, "what is not told is no number of bytes"
    (older,) = devices._nvidia(Driver([(b"NVIDIA A", 16 * GIB, GIB)]))
    assert isinstance(older, devices._Nvidia)
    assert older.taken([7], Path("/")) == {}


def test_the_kernel_tells_who_has_how_much_of_a_card(tmp_path: Path) -> None:
    files = amd(0, mem_info_vram_total=8 * GIB, mem_info_gtt_total=8 * GIB, mem_info_vram_used=GIB)
    write(tmp_path, {"sys/devices/0000:03:00.0/class": "0x03", **files})
    device = tmp_path / "sys/class/drm/card0/device"
    for file in list(device.iterdir()):
        file.rename(tmp_path / "sys/devices/0000:03:00.0" / file.name)
    device.rmdir()
    device.symlink_to(tmp_path / "sys/devices/0000:03:00.0")
    open_file = "pos:\t0\ndrm-pdev:\t0000:03:00.0\ndrm-client-id:\t{}\ndrm-memory-vram:\t{} KiB\n"
    write(
        tmp_path,
        {
            "proc/7/fdinfo/4": open_file.format(1, 1024),
            "proc/7/fdinfo/5": open_file.format(1, 1024),
            "proc/7/fdinfo/6": open_file.format(2, 512),
            "proc/7/fdinfo/7": open_file.format(3, 99).replace("03:00", "04:00"),
            "proc/8/fdinfo/0": "pos:\t0\n",
        },
    )
    found = devices.taken("linux", "x86_64", MEMORY, [7, 8, 9], tmp_path)
    assert found == {7: (1536 * 1024,)}, "a client's files are one, other cards and files are others"


@pytest.mark.parametrize(("total", "most"), [(18, 12), (36, 27), (64, 48)])
def test_apples_gpu_may_wire_a_part_of_the_machines_memory(total: int, most: int) -> None:
    memory = (total * GIB, 10 * GIB)
    expected = Device("Apple GPU", most * GIB, 10 * GIB, unified=True)
    assert devices.devices("macos", "arm64", memory) == (expected,)


def test_the_environment_says_what_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[{"name": "A", "total": 100, "free": 60}, {"total": 50, "unified": true}]'
    monkeypatch.setenv(devices.VARIABLE, text)
    assert hardware.facts().devices == (Device("A", 100, 60), Device("GPU", 50, 50, unified=True))
    monkeypatch.setenv(devices.VARIABLE, "[]")
    assert hardware.facts().devices == ()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[1]",
        '[{"name": "A"}]',
        '[{"total": "8GiB"}]',
        '[{"total": 1, "free": 2}]',
        '[{"total": true}]',
        '[{"total": 1, "name": 1}]',
        '[{"total": 1, "unified": 1}]',
        '[{"total": 1, "size": 1}]',
        "[" * 100_000,
    ],
)
def test_what_the_environment_says_wrongly_is_ignored_and_told(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert devices.said(text) is None
    assert devices.VARIABLE in caplog.text


# --- main memory ----------------------------------------------------------------------------------------------------


def machine(root: Path, **files: object) -> None:
    write(root, {"proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable: 8388608 kB"})
    write(root, {name.replace("__", "/"): value for name, value in files.items()})


def test_without_a_limit_memory_is_the_machines(tmp_path: Path) -> None:
    machine(tmp_path)
    write(tmp_path, {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"})
    assert hardware.memory_total(tmp_path) == 16 * GIB
    assert hardware.memory_available(tmp_path) == 8 * GIB


def test_the_limit_of_a_control_group_counts_as_the_machines_memory(tmp_path: Path) -> None:
    machine(tmp_path)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/memory.max": 4 * GIB,
            "sys/fs/cgroup/a/b/memory.current": 3 * GIB,
            "sys/fs/cgroup/a/b/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7",
        },
    )
    assert hardware.memory_total(tmp_path) == 4 * GIB
    assert hardware.memory_available(tmp_path) == 2 * GIB  # a limit of 4, of which 3 are used, 1 of them given back


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    machine(tmp_path)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/memory.max": 3 * GIB,
            "sys/fs/cgroup/a/memory.current": 2 * GIB,
            "sys/fs/cgroup/a/b/memory.max": 6 * GIB,
            "sys/fs/cgroup/a/b/memory.current": GIB,
        },
    )
    assert (hardware.memory_total(tmp_path), hardware.memory_available(tmp_path)) == (3 * GIB, GIB)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    machine(tmp_path)
    files = {"proc/self/cgroup": "0::/../../docker/4f", "sys/fs/cgroup/memory.max": 2 * GIB}
    write(tmp_path, {**files, "sys/fs/cgroup/memory.current": 3 * GIB})
    assert (hardware.memory_total(tmp_path), hardware.memory_available(tmp_path)) == (2 * GIB, 0)


def test_the_first_version_of_control_groups_counts_too(tmp_path: Path) -> None:
    machine(tmp_path)
    base = "sys/fs/cgroup/memory/x"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/y\n4:memory:/x\n0::/",
            f"{base}/memory.limit_in_bytes": 2 * GIB,
            f"{base}/memory.usage_in_bytes": GIB,
            f"{base}/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        },
    )
    assert hardware.memory_total(tmp_path) == 2 * GIB
    assert hardware.memory_available(tmp_path) == GIB + GIB // 2


def test_looking_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    for name in ("fork", "posix_spawn", "system", "popen"):
        monkeypatch.setattr(os, name, refused)
    monkeypatch.setattr("subprocess.Popen", refused)
    hardware.gpu.cache_clear()
    devices._looks.cache_clear()
    assert hardware.facts().memory_total > 0
