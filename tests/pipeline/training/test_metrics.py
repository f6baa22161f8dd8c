"""Running sums, metrics.jsonl and TensorBoard."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from export.errors import DamagedError
from pipeline.run_folder import RunFolder
from pipeline.training.metrics import EpochRecord, MetricsLog, Tally


def _record(epoch: int, penalty: float | None = None) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=10 * epoch,
        lr=0.5,
        train_loss=1.5 / epoch,
        train_accuracy=0.5,
        test_loss=2.5,
        test_accuracy=0.25,
        seconds=2.0,
        images_per_second=64.0,
        peak_memory_bytes=1 << 40,
        penalty=penalty,
    )


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def _steps(folder: Path, tag: str) -> list[int]:
    board = EventAccumulator(str(RunFolder(folder).tensorboard))
    board.Reload()
    return [event.step for event in board.Scalars(tag)]


def _values(folder: Path, tag: str) -> list[float]:
    board = EventAccumulator(str(RunFolder(folder).tensorboard))
    board.Reload()
    return [event.value for event in board.Scalars(tag)]


def test_a_line_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path), [])
    log.add(_record(1))
    log.add(_record(2, penalty=0.125))
    log.close()
    keys = "epoch step lr train_loss train_accuracy test_loss test_accuracy seconds images_per_second peak_memory_bytes"
    first, second = _lines(tmp_path)
    assert list(first) == keys.split()
    assert list(second) == [*keys.split(), "penalty"]
    assert EpochRecord(**second) == _record(2, penalty=0.125)  # type: ignore[arg-type]


def test_no_epoch_is_there_twice_after_going_back(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path), [])
    for epoch in (1, 2, 3):
        log.add(_record(epoch))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')
    resumed = MetricsLog(RunFolder(tmp_path), [_record(1)])
    resumed.add(_record(2))
    resumed.close()
    assert [line["epoch"] for line in _lines(tmp_path)] == [1, 2]
    assert _steps(tmp_path, "train/loss") == [1, 2]
    assert _steps(tmp_path, "run/lr") == [1, 2]


def _layers(epoch: int) -> list[dict[str, object]]:
    figures = {"norms": [0.0, 1.0, 2.0 * epoch, 3.0, 4.0], "off_isocline": None, "scale": None, "variance": None}
    return [{"name": "conv", **figures, "deflated": 0.5, "gradient_norm": 0.25 * epoch}]


def test_the_figures_of_layers_are_kept_as_far_as_the_records_go(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path), [])
    for epoch in (1, 2, 3):
        log.add(_record(epoch), _layers(epoch))
    log.close()
    path = RunFolder(tmp_path).diagnosis
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + lines[0][:40])  # what a kill leaves
    resumed = MetricsLog(RunFolder(tmp_path), [_record(1), _record(2)])
    assert path.read_text() == "".join(lines[:2])
    resumed.add(_record(3), _layers(3))
    resumed.close()
    assert path.read_text() == "".join(lines)
    assert _steps(tmp_path, "norms/conv") == _steps(tmp_path, "gradient_norm/conv") == [1, 2, 3]
    assert _values(tmp_path, "norms/conv") == [2.0, 4.0, 6.0]
    assert _values(tmp_path, "deflated/conv") == [0.5] * 3


@pytest.mark.parametrize("line", ["[1]\n", '"}\n', '{"epoch": "x"}\n', "{}\n"])
def test_figures_that_somebody_changed_are_not_gone_on_with(tmp_path: Path, line: str) -> None:
    RunFolder(tmp_path).diagnosis.write_text('{"epoch": 1, "layers": []}\n' + line.replace("[1]", "[1}"))
    with pytest.raises(DamagedError, match=r"diagnosis\.jsonl does not hold one epoch per line: .*; remove it"):
        MetricsLog(RunFolder(tmp_path), [_record(1)])
    MetricsLog(RunFolder(tmp_path), []).close()
    assert not RunFolder(tmp_path).diagnosis.exists()


def test_only_our_events_are_removed(tmp_path: Path) -> None:
    (board := tmp_path / "tensorboard").mkdir()
    (board / "events.out.tfevents.1.host.2.0").touch()
    (board / "layout.json").touch()
    MetricsLog(RunFolder(tmp_path), []).close()
    left = {path.name for path in board.iterdir()}
    assert "layout.json" in left
    assert "events.out.tfevents.1.host.2.0" not in left


def test_a_tally_goes_on_from_its_description_with_the_same_bits() -> None:
    def add(tally: Tally, number: int) -> None:
        tally.add_batch(0.1 * number, number, 7)
        tally.add_gradient_norms(torch.tensor([0.1 / number, 0.7 * number], dtype=torch.float64))
        tally.add_step(torch.tensor(0.3 / number))

    whole, half = Tally(), Tally()
    for number in range(1, 6):
        add(whole, number)
    for number in range(1, 3):
        add(half, number)
    half = Tally.from_dict(json.loads(json.dumps(half.as_dict())), torch.device("cpu"))
    for number in range(3, 6):
        add(half, number)
    assert half.as_dict() == whole.as_dict()
    assert whole.accuracy == 15 / 35
    assert whole.loss == sum(0.1 * number * 7 for number in range(1, 6)) / 35
    assert whole.penalty == sum(torch.tensor(0.3 / number).double() for number in range(1, 6)) / 5
    assert whole.gradient_norms == [sum(0.1 / number for number in range(1, 6)) / 5, sum(0.7 * number for number in range(1, 6)) / 5]


def test_a_tally_without_a_penalty_has_none() -> None:
    tally = Tally()
    tally.add_batch(1.0, 2, 4)
    tally.add_step(None)
    assert tally.penalty is None
    assert tally.gradient_norms == []
    assert Tally.from_dict(tally.as_dict(), torch.device("cpu")) == tally
