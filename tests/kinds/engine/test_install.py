"""Installing engines from archives: whole or not at all, whatever the archive, the program and the disk are like."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.state import Found, Trouble
from reconciler.kinds.engine import io as engine_io
from reconciler.kinds.engine.rules import EngineState, Missing
from reconciler.kinds.engine.smoke import explained
from reconciler.kinds.engine.tiny import tiny_model
from reconciler.supervise.exits import meaning
from tests.kinds.engine.conftest import ENGINE, Bench, Crash
from tests.support.processes import children_with_env, kill9
from tests.support.releases import UBUNTU, layout, program, tarball, ubuntu, zipped

NAME = UBUNTU.format(tag="b100")


async def refused(bench: Bench, **keys: str) -> Fault:
    with pytest.raises(Fault) as caught:
        await bench.converge(bench.declared(**keys))
    assert [name for name in bench.folders if not name.startswith("kept")] == [], "nothing half-made stays"
    return caught.value


@pytest.mark.parametrize("style", ["flat", "build", "top"])
@pytest.mark.parametrize("packed", [tarball, zipped])
async def test_every_layout_of_an_archive_is_understood(bench: Bench, style: str, packed: object) -> None:
    content = packed(layout("b100", program("b100"), style))  # type: ignore[operator]
    bench.releases.add("b100", {NAME if packed is tarball else NAME.replace("tar.gz", "zip"): content})
    state = await bench.converge(bench.declared(version="b100"))
    assert bench.verbs == ["resolve", "install"]
    (start,) = state.argv
    assert Path(start).name == "run", "libraries lie beside it"
    said = subprocess.run([start, "--version"], capture_output=True, text=True, check=True)
    assert "version: 100" in said.stderr
    environment = subprocess.run(
        ["sh", "-c", Path(start).read_text().replace("exec ", "echo $LD_LIBRARY_PATH; : "), start],
        capture_output=True,
        text=True,
        check=True,
        env={"LD_LIBRARY_PATH": "/mine"},
    )
    inside, mine = environment.stdout.strip().split(":")
    assert (mine, (Path(inside) / "libllama.so").exists()) == ("/mine", True)
    assert state.token == bench.folders[0]
    assert json.loads((bench.tools.layout.engines / state.token / ".installed").read_text())["said"] == "100"


async def test_what_the_api_gives_no_digest_of_is_pinned_by_what_came(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"), digests=False)
    desired = bench.declared(version="b100")
    await bench.converge(desired)
    pin = bench.tools.ledger.pins()[desired[ENGINE].spec.pin]
    assert len(pin["sha256"]) == 64
    bench.releases.server.replace(bench.releases.path("b100", NAME), ubuntu("b200")[UBUNTU.format(tag="b200")])
    bench.tools.blobs.remove(pin["sha256"])
    bench.tools.files.remove_tree(bench.tools.layout.engines / bench.folders[0])
    assert (await refused(bench, version="b100")).code in ("CHECKSUM_MISMATCH", "SIZE_MISMATCH")


async def test_the_archive_in_the_store_is_used_again_without_the_network(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    desired = bench.declared(version="b100")
    state = await bench.converge(desired)
    bench.tools.files.remove_tree(bench.tools.layout.engines / state.token)
    bench.releases.server.stop()
    change = bench.change(desired)
    assert change is not None
    assert (change.drift, change.price.download) == (True, 0)
    assert (await bench.converge(desired)).token == state.token
    bench.releases.server.start()


async def test_a_digest_of_the_api_holds_against_what_comes(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    bench.releases.server.corrupt(100, path=bench.releases.path("b100", NAME))
    assert (await refused(bench, version="b100")).code == "CHECKSUM_MISMATCH"
    assert bench.tools.blobs.digests() == []


async def test_the_manifests_own_sha256_wins_over_the_release(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    desired = bench.declared(version="b100", sha256="ab" * 32)
    await engine_io.EngineKind().apply(bench.change(desired).actions[0], ENGINE, desired[ENGINE], bench.tools)  # type: ignore[union-attr]
    change = bench.change(desired)
    assert change is not None
    assert change.op.value == "denied"
    assert "the manifest wants abab" in change.reason


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "NOT_A_FILE", "page"),
        (tarball(layout("b100", program()))[:-40], "BAD_ARCHIVE", "damaged"),
        (tarball({"../../out": b"x"}), "BAD_ARCHIVE", "leads out of it"),
        (tarball({"llama-b100/llama-cli": b"x"}), "NO_SERVER", "holds no llama-server"),
        (tarball({"llama-server/readme": b"x"}), "NO_SERVER", "holds no llama-server"),
    ],
    ids=["a page", "cut off", "leading out", "another program", "a folder of that name"],
)
async def test_an_archive_that_is_none_is_told_and_not_kept(bench: Bench, content: bytes, code: str, word: str) -> None:
    bench.releases.add("b100", {NAME: content}, digests=code == "NO_SERVER")
    fault = await refused(bench, version="b100")
    assert (fault.code, fault.kind) == (code, FaultClass.PERMANENT)
    assert word in fault.message


GLIBC = "llama-server: /lib/libc.so.6: version `GLIBC_2.38' not found"
FLAGS = '[ "$1" = --version ] || { echo "error: invalid argument: --alias" >&2; exit 1; }'
ARM = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 183) + bytes(100)
HERE = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 62) + bytes(100)


@pytest.mark.parametrize(
    ("server", "code", "word"),
    [
        (ARM, "WRONG_ARCHITECTURE", "built for arm64"),
        (HERE, "BINARY_NOT_EXECUTABLE", "cannot be run here"),
        (program(fails="exit 127"), "ENGINE_BROKEN", "code 127"),
        (program(fails=f'echo "{GLIBC}" >&2; exit 1'.replace("`", "\\`")), "LIBRARY_TOO_OLD", "GLIBC_2.38"),
        (program(fails="kill -ILL $$"), "ILLEGAL_INSTRUCTION", "signal 4"),
        (program(behaves="exit-at-once=3"), "ENGINE_BROKEN", "code 3"),
        (program(fails=FLAGS), "INVALID_ARGUMENT", "tiny model"),
    ],
)  # fmt: skip
async def test_a_program_that_fails_its_trial_is_not_installed(
    bench: Bench, server: bytes, code: str, word: str
) -> None:
    members = {"llama-b100/llama-server": server}
    bench.releases.add("b100", {NAME: tarball(members)})
    fault = await refused(bench, version="b100")
    assert fault.code == code
    assert word in fault.message
    assert fault.hint
    assert children_with_env("RECONCILER_ROOT", str(bench.tools.layout.root)) == []


def test_words_of_a_loader_are_read() -> None:
    said = "dyld[1]: Library not loaded: @rpath/libmtmd.dylib"
    assert explained(meaning(-6, [said]), said, "llama-server").code == "LIBRARY_MISSING"


async def test_what_was_before_is_offered_once_its_successor_has_failed(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    bench.releases.add("b200", ubuntu("b200", program("b200", fails="exit 9")))
    before = await bench.converge(bench.declared(version="b100"))
    desired = bench.declared(version="b200")
    seen = bench.look(desired)[ENGINE]
    assert isinstance(seen, Missing), "while it is being installed, what runs goes on and nothing new begins"
    with pytest.raises(Fault) as caught:
        await bench.converge(desired)
    fault = caught.value
    trouble = Trouble(desired[ENGINE].attempt, 1, 0.0, fault.code, fault.message, fault.hint, fault.kind)
    bench.tools.ledger.set_trouble(ENGINE, trouble)
    seen = bench.look(desired)[ENGINE]
    assert isinstance(seen, Found)
    state: EngineState = seen.state
    assert (state.fallback, state.argv, state.token) == (True, before.argv, before.token)
    assert "code 9" in state.why
    assert state.offer is not None
    assert (state.offer.version, state.offer.variant) == ("b200", "cpu")
    change = bench.change(desired)
    assert change is not None
    assert (change.op.value, change.reason, change.drift) == ("replace", "b100 → b200", False)
    back = bench.change(bench.declared(version="b100"))
    assert back is None


async def test_an_older_version_is_called_so(bench: Bench) -> None:
    for tag in ("b9999", "b10000"):
        bench.releases.add(tag, ubuntu(tag))
    await bench.converge(bench.declared(version="b10000"))
    desired = bench.declared(version="b9999")
    await engine_io.EngineKind().apply(bench.change(desired).actions[0], ENGINE, desired[ENGINE], bench.tools)  # type: ignore[union-attr]
    assert bench.change(desired).reason == "b10000 → b9999, which is older"  # type: ignore[union-attr]


async def test_a_renewed_pin_leads_to_another_installation(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    desired = bench.declared()
    first = await bench.converge(desired)
    bench.releases.add("b200", ubuntu("b200"))
    await bench.renew(bench.anew(desired))
    desired = bench.anew(desired)
    assert bench.change(desired).reason == "b100 → b200"  # type: ignore[union-attr]
    second = await bench.converge(desired)
    assert first.token != second.token
    assert len(bench.folders) == 2


async def test_the_libraries_of_cuda_come_along(bench: Bench) -> None:
    from dataclasses import replace

    from reconciler.core.state import Device

    server = program("b1", fails='case "$LD_LIBRARY_PATH" in */build/bin:*/runtime1*) ;; *) exit 5;; esac')
    bench.releases.add(
        "b1",
        {
            "llama-b1-bin-linux-cuda-12-common_cpus-x64.tar.gz": tarball(layout("b1", server, "build")),
            "cudart-llama-bin-linux-cu12.0-x64.tar.gz": tarball({"libcudart.so.12": b"\x7fELF"}),
        },
    )
    card = (Device("Card", 8 << 30, 8 << 30),)
    bench.host = replace(bench.host, devices=card, drivers=(("nvidia", "550.54.14"),))
    state = await bench.converge(bench.declared(version="b1"))
    assert state.variant == "cuda-12"
    assert (bench.tools.layout.engines / state.token / "runtime1" / "libcudart.so.12").exists()
    assert len(bench.tools.blobs.digests()) == 2


def end(bench: Bench) -> None:
    """What a crash leaves running is ended, as the next controller does; locks die with their process."""
    for process in children_with_env("RECONCILER_ROOT", str(bench.tools.layout.root)):
        kill9(process.pid)
    for child in bench.tools.processes._children.values():
        child.wait(10)
    bench.tools.processes._children.clear()
    bench.tools.bringing.clear()


async def test_a_crash_at_any_effect_leaves_nothing_that_counts(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    whole = bench.declared(version="b100")
    await bench.converge(whole)
    effects, at, crashes = len(bench.effects.seen), 0, 0
    assert effects > 10
    while True:
        bench.tools.files.remove_tree(bench.tools.layout.engines)
        for digest in bench.tools.blobs.digests():
            bench.tools.blobs.remove(digest)
        bench.tools.ledger.disown(ENGINE)
        bench.effects.left = at
        try:
            await bench.converge(bench.declared(version="b100"))
            break
        except Crash:
            crashes += 1
        finally:
            bench.effects.left = None
        seen = bench.look(whole)[ENGINE]
        assert isinstance(seen, Missing) or (bench.tools.layout.engines / seen.state.token / ".installed").exists()  # type: ignore[union-attr]
        end(bench)
        state = await bench.converge(bench.declared(version="b100"))
        assert Path(state.argv[0]).exists()
        assert bench.folders == [state.token]
        at += 1
    assert crashes > 10


async def test_two_engines_of_one_archive_share_bytes_and_folder(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    other = Ref("engine", "other")
    one = await bench.converge(bench.declared(version="b100"))
    two = await bench.converge(bench.declared(ref=other))
    assert one.token == two.token
    assert bench.releases.server.sent[bench.releases.path("b100", NAME)] == len(ubuntu("b100")[NAME])
    from reconciler.core.plan import Action, Phase

    await engine_io.EngineKind().apply(Action(Phase.SWEEP, "purge", ""), other, None, bench.tools)
    assert bench.folders == [one.token], "the other one needs it still"
    await engine_io.EngineKind().apply(Action(Phase.SWEEP, "purge", ""), ENGINE, None, bench.tools)
    assert bench.folders == []


async def test_a_full_disk_is_told_and_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    usage = shutil.disk_usage(bench.tools.layout.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert (await refused(bench, version="b100")).code == "DISK_FULL"


async def test_another_version_is_tried_before_the_old_one_is_offered_again(bench: Bench) -> None:
    bench.releases.add("b100", ubuntu("b100"))
    await bench.converge(bench.declared(version="b100"))
    failed = bench.declared(version="b200")
    bench.tools.ledger.set_trouble(ENGINE, Trouble(failed[ENGINE].attempt, 1, 0.0, "X", "x", "", FaultClass.PERMANENT))
    assert isinstance(bench.look(failed)[ENGINE], Found)
    assert isinstance(bench.look(bench.declared(version="b300"))[ENGINE], Missing)


def test_the_tiny_model_is_small_and_always_the_same() -> None:
    assert tiny_model() == tiny_model()
    assert len(tiny_model()) < 100_000


async def test_a_real_engine_passes_its_trial(bench: Bench) -> None:
    """The engine of the development environment, as it would come in an archive."""
    speaks = '[ "$1" = --version ] && echo "version: 1" && exit'
    real = f'#!/bin/sh\n{speaks}\nexec "{sys.executable}" "{engine_io.HOST_PROGRAM}" "$@"\n'
    bench.releases.add("b100", {NAME: tarball(layout("b100", real.encode()))})
    state = await bench.converge(bench.declared(version="b100"))
    assert state.title == "llama.cpp b100"
    assert children_with_env("RECONCILER_ROOT", str(bench.tools.layout.root)) == []
