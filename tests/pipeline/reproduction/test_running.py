"""Runs of a table: they are ordinary runs, they can be interrupted, and the result is the same."""

import csv
import json
import shutil
import signal
import xml.etree.ElementTree as Xml
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_table import CONFIGS, EPOCHS, Watched, small_table

from deploy.progress import Outcome
from export.errors import UsageError
from pipeline.config import load_config
from pipeline.reproduction.commands import reproduce
from pipeline.reproduction.figures import run_figures
from pipeline.reproduction.papers import Table
from pipeline.reproduction.planned_runs import Plan, PlanRequest, planned
from pipeline.reproduction.running import is_finished
from pipeline.training.finite import NotFiniteError

SECONDS = ("seconds", "images_per_second", "peak_memory_bytes")


def plan_in(folder: Path, table: Table | None = None, **asked: Any) -> Plan:
    return planned(table or small_table(), PlanRequest(**asked), CONFIGS, folder)


def run_in(folder: Path, console: Watched | None = None, table: Table | None = None, **asked: Any) -> Outcome:
    return reproduce(plan_in(folder, table, **asked), folder, console or Watched())


def figures_of(folder: Path) -> list[Any]:
    """Everything in the table except times."""
    rows = json.loads((folder / "table.json").read_bytes())["rows"]
    for each in rows:
        each["ours"].pop("minutes")
        each["runs"] = [{key: value for key, value in run.items() if key not in ("folder", "minutes_per_epoch")} for run in each["runs"]]
    return list(rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small table, run. Do not change it."""
    folder = tmp_path_factory.mktemp("whole") / "table"
    outcome = run_in(folder)
    assert outcome.failure is None
    assert outcome.facts["reproduction"] is True  # the tests' own table, run as it states
    return folder


def test_every_run_is_an_ordinary_one(whole: Path) -> None:
    for name in ("batchnorm-0.1", "czmig-0.2"):
        for seed in (0, 1):
            folder = whole / "runs" / name / f"seed-{seed}"
            config = load_config(folder / "config.yaml")
            assert (config.training.seed, config.training.epochs, config.exact.enabled) == (seed, EPOCHS, False)
            assert (folder / "checkpoints" / "last.safetensors").is_file()
            assert not (folder / "exact").exists()
            assert run_figures(folder, seed).machines[0]["device"] == "cpu"


def test_the_table_holds_the_figures_of_the_runs(whole: Path) -> None:
    first = figures_of(whole)[0]
    lines = [json.loads(line) for line in (whole / "runs/batchnorm-0.1/seed-1/metrics.jsonl").read_text().splitlines()]
    assert first["runs"][1]["last_accuracy"] == lines[-1]["test_accuracy"]
    assert first["ours"]["last"]["middle"] == pytest.approx(50 * sum(run["last_accuracy"] for run in first["runs"]))
    assert first["ours"]["best"]["middle"] == pytest.approx(50 * sum(run["best_accuracy"] for run in first["runs"]))
    text = (whole / "table.md").read_text()
    assert text.splitlines()[0] == "# A small table"
    assert "| batchnorm | 0.1 | 97.5 ± 0.25 |" in text
    assert "- `batchnorm-0.1`: a note on this row" in text
    assert "The paper's accuracy: the best epoch: stated. Its number of runs: 2." in text
    assert "not a reproduction" not in text


def test_a_run_that_diverges_is_a_result(whole: Path) -> None:
    last = figures_of(whole)[-1]
    assert (last["runs_finished"], last["runs_diverged"], last["ours"]["best"]) == (2, 2, None)
    assert last["runs"][0]["diverged"]["epoch"] == 1
    assert "2 of 2 runs; 2 diverged (in epoch 1, 1)" in (whole / "table.md").read_text()


def test_interrupted_in_the_middle_of_a_run_it_goes_on_to_the_same_table(whole: Path, tmp_path: Path) -> None:
    def after_the_first_epoch_of_the_second_run(text: str) -> None:
        if text.startswith(f"epoch 1/{EPOCHS}") and (tmp_path / "runs/batchnorm-0.1/seed-1").exists():
            signal.raise_signal(signal.SIGINT)

    cut = run_in(tmp_path, Watched(after_the_first_epoch_of_the_second_run))
    assert cut.interrupted
    facts = json.loads((tmp_path / "table.json").read_bytes())
    assert facts["not_a_reproduction_because"] == ["1 of 6 runs finished"]
    assert [each["runs_finished"] for each in facts["rows"]] == [1, 0, 0]
    assert facts["rows"][0]["runs"][1]["epochs"] == 1

    going_on = Watched()
    assert not run_in(tmp_path, going_on).interrupted
    assert next(text for text in going_on.said if text.startswith("run ")) == f"run 2 of 6: batchnorm-0.1, seed 1, epochs: {EPOCHS}"
    assert any(text.startswith("continuing after step") for text in going_on.said)
    assert figures_of(tmp_path) == figures_of(whole)


def test_what_is_finished_is_only_read(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "table")
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    console = Watched()
    run_in(folder, console)
    assert console.said == []
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()} == before
    assert figures_of(folder) == figures_of(whole)


def test_more_seeds_are_added_to_those_that_are_there(whole: Path, tmp_path: Path) -> None:
    folder, console = shutil.copytree(whole, tmp_path / "table"), Watched()
    run_in(folder, console, num_seeds=3, rows=("nonorm*",))
    assert [text for text in console.said if text.startswith("run ")] == [f"run 3 of 3: nonorm-1000000.0, seed 2, epochs: {EPOCHS}"]


def test_runs_of_other_lengths_do_not_share_a_folder(tmp_path: Path) -> None:
    run_in(tmp_path, rows=("nonorm*",), num_seeds=1, epochs=1)
    before = (tmp_path / "table.md").read_text()
    with pytest.raises(UsageError, match=r"seed-0 holds a run with training\.epochs = 1, expected 2; choose another --out, or remove"):
        run_in(tmp_path, rows=("nonorm*",), num_seeds=1)
    assert (tmp_path / "table.md").read_text() == before


def test_all_folders_are_looked_at_before_the_first_run(tmp_path: Path) -> None:
    run_in(tmp_path, rows=("nonorm*",), num_seeds=1, epochs=1)
    with pytest.raises(UsageError, match=r"holds a run with training\.epochs"):
        run_in(tmp_path, num_seeds=1)
    assert not (tmp_path / "runs" / "batchnorm-0.1").exists()


def test_a_run_that_cannot_be_made_ends_the_table_in_one_line(tmp_path: Path) -> None:
    table = small_table()
    broken = replace(table.rows[0], overrides=(*table.rows[0].overrides, "data.batch_size=5000"))
    with pytest.raises(UsageError, match="batch_size 5000 is more than") as error:
        run_in(tmp_path, table=replace(table, rows=(broken,)))
    assert not isinstance(error.value, NotFiniteError)
    assert not is_finished(plan_in(tmp_path, replace(table, rows=(broken,))).rows[0].runs[0])


SHORT = "not a reproduction: shortened to 1 of 2 epochs; 1 of 2 seeds"


def test_a_shortened_run_says_so_in_every_output(tmp_path: Path) -> None:
    outcome = run_in(tmp_path, rows=("batchnorm*", "czmig*"), num_seeds=1, epochs=1)
    text = (tmp_path / "table.md").read_text()
    assert text.splitlines()[0] == f"# A small table, 2 rows of 3 ({SHORT})"
    assert outcome.text.splitlines()[0] == text.splitlines()[0]
    assert text.count("| no: shortened to 1 of 2 epochs; 1 of 2 seeds |") == 2
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [each["reproduction"] for each in rows] == ["no: shortened to 1 of 2 epochs; 1 of 2 seeds"] * 2
    facts = json.loads((tmp_path / "table.json").read_bytes())
    for each in (facts, outcome.facts, *facts["rows"]):
        assert each["reproduction"] is False
        assert each["not_a_reproduction_because"] == ["shortened to 1 of 2 epochs", "1 of 2 seeds"]
    picture = Xml.parse(tmp_path / "accuracy.svg").getroot()
    drawn = " ".join(each.text or "" for each in picture.iter("{http://www.w3.org/2000/svg}text"))
    title = picture.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert SHORT in (title.text or "")
    assert SHORT in drawn


def test_other_images_are_said_in_every_output(tmp_path: Path) -> None:
    """The plan's deviation is handled like the others; a folder of images replaces the digits."""
    import numpy as np
    from PIL import Image

    for split, count in (("train", 64), ("test", 8)):
        for number, name in enumerate(("dark", "bright")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((8, 8), 60 + 120 * number + index % 8, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index}.png")
    run_in(tmp_path / "out", rows=("batchnorm*",), data=tmp_path / "images")
    said = "other data: image files in 2 classes instead of digits"
    for name in ("table.md", "table.csv", "table.json", "accuracy.svg"):
        assert said in (tmp_path / "out" / name).read_text(), name


def test_a_picture_by_rate_shows_the_papers_figures_and_what_diverged(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run_in(tmp_path, table=small_table("median and quartiles", "rates"))
    text = (tmp_path / "by-rate.svg").read_text()
    assert "dashed: the paper's figures" in text
    assert "cross: diverged before its first accuracy" in text
    assert "with a band of quartiles" in text
    assert (tmp_path / "by-rate.png").read_bytes().startswith(b"\x89PNG")
    assert "(IQR " in (tmp_path / "table.md").read_text()


def test_a_run_whose_data_are_not_there_leaves_nothing(tmp_path: Path) -> None:
    table = small_table()
    broken = replace(table, rows=tuple(replace(row, overrides=(*row.overrides, "data.name=cifar10")) for row in table.rows))
    with pytest.raises(UsageError, match="no cifar10 at"):
        run_in(tmp_path / "table", table=broken, data=tmp_path / "nowhere")
    assert list((tmp_path / "table").rglob("*")) == []
