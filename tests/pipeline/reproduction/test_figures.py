"""What is read from run folders, and the mean, median and spread of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import DamagedError
from pipeline.reproduction.figures import RunFigures, run_figures, spread


def line(epoch: int, accuracy: float, **values: float) -> str:
    record = {"epoch": epoch, "train_accuracy": 0.5, "test_accuracy": accuracy, "seconds": 30.0, "peak_memory_bytes": 100 + epoch}
    return json.dumps(record | values) + "\n"


def machine(device: str) -> dict[str, str]:
    return {"device": device, "name": "a machine", "precision": "float32", "torch": "2.14"}


def run(folder: Path, text: str, **files: Any) -> RunFigures:
    (folder / "metrics.jsonl").write_text(text)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return run_figures(folder, 3)


@pytest.mark.parametrize("values", [[1.0, 2.0], [93.1, 94.6, 93.9], [5.0, 1.0, 4.0, 2.0], [float(n * n % 17) for n in range(11)]])
def test_spreads_are_numpys(values: list[float]) -> None:
    mean = spread(values, "mean and std")
    assert mean is not None
    deviation = np.std(values, ddof=1)
    assert [mean.middle, mean.width, mean.low, mean.high] == pytest.approx(
        [np.mean(values), deviation, mean.middle - deviation, mean.middle + deviation]
    )
    median = spread(values, "median and quartiles")
    assert median is not None
    low, high = np.percentile(values, [25, 75])
    assert [median.middle, median.low, median.high, median.width] == pytest.approx([np.median(values), low, high, high - low])


def test_a_single_run_has_no_spread_and_none_has_no_figure() -> None:
    for statistic in ("mean and std", "median and quartiles"):
        single = spread([7.0], statistic)
        assert single is not None
        assert (single.middle, single.low, single.high, single.width) == (7.0, None, None, None)
        assert spread([], statistic) is None


def test_best_and_last_epoch_are_different_things(tmp_path: Path) -> None:
    figures = run(tmp_path, line(1, 0.5) + line(2, 0.75) + line(3, 0.75) + line(4, 0.6))
    assert figures.best is not None
    assert figures.last is not None
    assert (figures.best["epoch"], figures.best["test_accuracy"]) == (2, 0.75)
    assert (figures.last["epoch"], figures.last["test_accuracy"]) == (4, 0.6)
    assert figures.minutes_per_epoch == 0.5
    assert figures.seed == 3


def test_a_run_that_diverged_has_a_best_epoch_and_no_last_one(tmp_path: Path) -> None:
    figures = run(tmp_path, line(1, 0.5), diverged=[{"epoch": 2, "message": "the loss is not finite"}])
    assert figures.best is not None
    assert figures.last is None
    assert figures.diverged is not None
    assert figures.diverged.epoch == 2


def test_memory_is_the_largest_and_none_on_a_cpu(tmp_path: Path) -> None:
    text = line(1, 0.5, peak_memory_bytes=7) + line(2, 0.5, peak_memory_bytes=5)
    assert run(tmp_path, text).peak_memory_bytes == 7
    assert run(tmp_path, text, machines=[machine("cuda")]).peak_memory_bytes == 7
    assert run(tmp_path, text, machines=[machine("cuda"), machine("cpu")]).peak_memory_bytes is None


def test_half_a_line_is_left_for_later_and_a_folder_may_be_empty(tmp_path: Path) -> None:
    assert len(run(tmp_path, line(1, 0.5) + line(2, 0.6).strip()).records) == 1
    assert run_figures(tmp_path / "nothing", 0).records == ()


@pytest.mark.parametrize("text", ["nonsense\n", '{"epoch": 1}\n', "[]\n"])
def test_other_lines_are_damaged(tmp_path: Path, text: str) -> None:
    with pytest.raises(DamagedError, match="does not hold one epoch per line, each with epoch, train_accuracy"):
        run(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "value"), [("diverged", {"epoch": 1}), ("diverged", [{"epoch": 1}]), ("machines", [{"device": "cpu"}]), ("machines", 7)]
)
def test_other_files_of_ours_are_damaged(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(DamagedError, match=rf"{name}\.json is not as it was written"):
        run(tmp_path, line(1, 0.5), **{name: value})
