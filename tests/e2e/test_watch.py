"""Everything that a manifest is made of is watched: the files that it includes, new ones, and what `when` asks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINE, entry
from tests.e2e.stage import Stage
from tests.support.processes import wait_until


@pytest.fixture
def team(fake: Stage) -> Path:
    """A folder of included files, with the model a in a.yaml; applied."""
    folder = fake.folder / "team"
    folder.mkdir()
    save(folder / "a.yaml", entry("a"))
    fake.write(f"version: 1\ninclude: [team/*.yaml]\n{ENGINE}\ngateway: {{port: {fake.port}}}\n")
    fake.run("apply")
    return folder


def save(path: Path, models: str) -> None:
    """As editors do: a new file, renamed over the old one."""
    temp = path.with_name(f".{path.name}.swp")
    temp.write_text(f"models:\n  {models}\n")
    temp.replace(path)


def taken(stage: Stage, number: int) -> float:
    """Seconds until a generation is in force."""
    begin = time.monotonic()
    wait_until(lambda: stage.generation() == number, 10, "it was not taken over")
    return time.monotonic() - begin


def test_an_edit_of_an_included_file_is_taken_within_a_second(fake: Stage, team: Path) -> None:
    times = []
    for number, context in ((2, "2k"), (3, "3k"), (4, "4k")):
        save(team / "a.yaml", entry("a", context=context))
        times.append(taken(fake, number))
        fake.until_generation(number)
    assert min(times) < 1.0, f"{times}: the two seconds of looking now and then are not watching"
    assert fake.get("/v1/models/a")["context_length"] == 4096


def test_files_that_come_and_go_by_a_pattern(fake: Stage, team: Path) -> None:
    a = fake.server("a")
    save(team / "b.yaml", entry("b", "models/endless.gguf"))
    fake.until_generation(2)
    assert fake.server("b")
    (team / "b.yaml").unlink()
    fake.until_generation(3)
    wait_until(lambda: not fake.server("b"), 10, "what is in no file any more still runs")
    assert fake.server("a") == a


def test_labels_change_what_a_condition_says(fake: Stage, team: Path) -> None:
    save(team / "b.yaml", entry("b", "models/endless.gguf", more=", when: \"'lab' in host.labels\""))
    fake.until_generation(2)
    assert not fake.server("b")
    labels = fake.root / "labels.yaml"
    labels.write_text("lab: yes\n")
    wait_until(lambda: fake.server("b"), 10, "the label was not noticed")
    fake.until_ready()
    labels.write_text("lab: [1\n")
    wait_until(lambda: fake.snapshot()["manifest"]["faults"], 10, "broken labels were not noticed")
    assert "labels.yaml:" in fake.run("status").stdout
    assert fake.server("b")
    labels.unlink()
    wait_until(lambda: not fake.server("b"), 10, "the label went, and the model stayed")


def test_a_clash_keeps_the_last_good_one_and_names_both_places(fake: Stage, team: Path) -> None:
    a = fake.server("a")
    save(team / "z.yaml", entry("a", context="2k"))
    wait_until(lambda: fake.snapshot()["manifest"]["faults"], 10, "the clash was not noticed")
    told = fake.run("status").stdout
    assert "team/z.yaml:2:3" in told
    assert "team/a.yaml:2:3" in told
    assert "the last good one stays" in told
    assert (fake.generation(), fake.server("a")) == (1, a)
    save(team / "z.yaml", entry("a", context="2k", more=", override: true"))
    fake.until_generation(2)
    assert fake.get("/v1/models/a")["context_length"] == 2048
