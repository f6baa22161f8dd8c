"""The figures of a run: sums over an epoch, a record per epoch, metrics.jsonl and TensorBoard.

Both outputs are rewritten from the given records at the start, so that a resumed run holds each
epoch once.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.errors import DamagedError
from export.files import write_file
from pipeline.run_folder import RunFolder

_DRAWN = ("norms", "off_isocline", "scale", "deflated", "variance", "gradient_norm")
"""What TensorBoard shows of each layer: the median over its filters, if there are several
values."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """A line of metrics.jsonl.

    `seconds` is the time of the training steps alone, and `penalty` is the mean over them.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    penalty: float | None = None
    frozen_at_step: int | None = None
    """The step after which the batch statistics were recomputed and frozen."""
    test_accuracy_at_freezing: float | None = None
    """The accuracy right after they were recomputed; only in the first epoch after that."""

    def as_dict(self) -> dict[str, float]:
        """Return what is written.

        `penalty` is left out if the method has none, and so are the values on frozen statistics.
        """
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(kw_only=True)
class Tally:
    """Sums over the batches of the running epoch.

    They are exact enough to be continued from a checkpoint bit for bit.
    """

    num_samples: int = 0
    num_steps: int = 0
    loss_sum: float = 0.0
    num_correct: float = 0.0
    seconds: float = 0.0
    penalty_sum: torch.Tensor | None = None
    gradient_norm_sums: torch.Tensor | None = None

    def add_batch(self, loss: float, num_correct: float, num_samples: int) -> None:
        self.num_samples += num_samples
        self.loss_sum += loss * num_samples
        self.num_correct += num_correct

    def add_step(self, penalty: torch.Tensor | None) -> None:
        self.num_steps += 1
        if penalty is not None:
            self.penalty_sum = _added(self.penalty_sum, penalty)

    def add_gradient_norms(self, norms: torch.Tensor) -> None:
        """Add the norms of one step, one norm per layer."""
        self.gradient_norm_sums = _added(self.gradient_norm_sums, norms)

    @property
    def loss(self) -> float:
        return self.loss_sum / self.num_samples

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_samples

    @property
    def penalty(self) -> float | None:
        return None if self.penalty_sum is None else self.penalty_sum.item() / self.num_steps

    @property
    def gradient_norms(self) -> list[float]:
        """The mean over the steps for each layer; empty if none were added."""
        return [] if self.gradient_norm_sums is None else (self.gradient_norm_sums / self.num_steps).tolist()

    def as_dict(self) -> dict[str, Any]:
        """Return the values for a checkpoint; a float64 survives JSON unchanged."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], device: torch.device) -> "Tally":
        """Return the tally that `as_dict` described."""
        sums = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        for name in ("penalty_sum", "gradient_norm_sums"):
            if sums[name] is not None:
                sums[name] = torch.tensor(sums[name], dtype=torch.float64, device=device)
        return cls(**sums)


def _added(total: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    """Add on the device, in float64: reading the values at each step would wait for the device."""
    return values.double() if total is None else total + values


class MetricsLog:
    """The figures of a run, in files for machines and for TensorBoard.

    Figures of layers are included if they are diagnosed.
    """

    def __init__(self, folder: RunFolder, records: Sequence[EpochRecord]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes long to import

        self._path, self._diagnosis = folder.metrics, folder.diagnosis
        diagnosed = _diagnosed(self._diagnosis, len(records))
        write_file(self._path, "".join(_line(record.as_dict()) for record in records).encode())
        self._diagnosis.unlink(missing_ok=True)
        for events in folder.tensorboard.glob("events.out.tfevents*"):  # the user's own files stay
            events.unlink()
        self._board = SummaryWriter(str(folder.tensorboard))
        for record in records:
            self._draw(record)
        for values in diagnosed:
            self._add_diagnosis(values)

    def add(self, record: EpochRecord, layers: Sequence[Mapping[str, Any]] = ()) -> None:
        """Add an epoch's figures, and those of its layers if there are any."""
        _append(self._path, _line(record.as_dict()))
        self._draw(record)
        if layers:
            self._add_diagnosis({"epoch": record.epoch, "layers": list(layers)})

    def close(self) -> None:
        self._board.close()

    def _draw(self, record: EpochRecord) -> None:
        for key, value in record.as_dict().items():
            if key != "epoch":
                self._board.add_scalar(_tag(key), value, record.epoch)
        self._board.flush()

    def _add_diagnosis(self, values: Mapping[str, Any]) -> None:
        _append(self._diagnosis, _line(values))
        for layer in values["layers"]:
            for key in _DRAWN:
                if (value := _middle(layer[key])) is not None:
                    self._board.add_scalar(f"{key}/{layer['name']}", value, values["epoch"])
        self._board.flush()


def _diagnosed(path: Path, num_epochs: int) -> list[dict[str, Any]]:
    """Return the figures that the file holds of the epochs that are kept.

    A kill may have left more epochs, or half a line.
    """
    if num_epochs == 0 or not path.is_file():
        return []
    try:
        values = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        return [each for each in values if each["epoch"] <= num_epochs]
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{path} does not hold one epoch per line: {error}; remove it to go on without the figures of earlier epochs") from error


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def _middle(value: float | Sequence[float] | None) -> float | None:
    """Return a number, or the median of five quantiles."""
    return value[2] if isinstance(value, Sequence) else value


def _tag(key: str) -> str:
    """Turn train_loss into train/loss, so that TensorBoard shows training and test side by side."""
    part, _, rest = key.partition("_")
    return f"{part}/{rest}" if part in ("train", "test") else f"run/{key}"


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"
