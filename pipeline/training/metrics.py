"""The figures of a run: running sums of an epoch, a record an epoch, metrics.jsonl and TensorBoard.

Both outputs are rewritten from the given records at the start, so that a resumed run holds each epoch once.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.files import write_file


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """A line of metrics.jsonl. `seconds` is the time of the training steps alone, `penalty` its mean over them."""

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

    def as_dict(self) -> dict[str, float]:
        """What is written; `penalty` only where the method has one."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(kw_only=True)
class Tally:
    """Sums over the batches of the running epoch, exact enough to be continued from a checkpoint bit for bit."""

    num_samples: int = 0
    num_steps: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    seconds: float = 0.0
    penalty_sum: torch.Tensor | None = None

    def add(self, loss: float, num_correct: int, num_samples: int, penalty: torch.Tensor | None) -> None:
        self.num_steps += 1
        self.num_samples += num_samples
        self.loss_sum += loss * num_samples
        self.num_correct += num_correct
        if penalty is not None:
            self._add_penalty(penalty)

    def _add_penalty(self, penalty: torch.Tensor) -> None:
        """On the device, in float64: reading it at each step would wait for the device."""
        if self.penalty_sum is None:
            self.penalty_sum = torch.zeros((), dtype=torch.float64, device=penalty.device)
        self.penalty_sum += penalty

    @property
    def loss(self) -> float:
        return self.loss_sum / self.num_samples

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_samples

    @property
    def penalty(self) -> float | None:
        return None if self.penalty_sum is None else self.penalty_sum.item() / self.num_steps

    def as_dict(self) -> dict[str, float | None]:
        """For a checkpoint; a float64 survives JSON unchanged."""
        penalty = None if self.penalty_sum is None else self.penalty_sum.item()
        return {**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, "penalty_sum": penalty}

    @classmethod
    def from_dict(cls, values: dict[str, Any], device: torch.device) -> "Tally":
        """The tally that `as_dict` described."""
        penalty = values["penalty_sum"]
        sums = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        if penalty is not None:
            sums["penalty_sum"] = torch.tensor(penalty, dtype=torch.float64, device=device)
        return cls(**sums)


class MetricsLog:
    """metrics.jsonl and tensorboard/ of a run folder."""

    def __init__(self, folder: Path, records: Sequence[EpochRecord]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes long to import

        self._path = folder / "metrics.jsonl"
        write_file(self._path, "".join(_line(record) for record in records).encode())
        for events in (folder / "tensorboard").glob("events.out.tfevents*"):  # the user's own files stay
            events.unlink()
        self._board = SummaryWriter(str(folder / "tensorboard"))
        for record in records:
            self._draw(record)

    def add(self, record: EpochRecord) -> None:
        with self._path.open("a") as file:
            file.write(_line(record))
        self._draw(record)

    def close(self) -> None:
        self._board.close()

    def _draw(self, record: EpochRecord) -> None:
        for key, value in record.as_dict().items():
            if key != "epoch":
                self._board.add_scalar(_tag(key), value, record.epoch)
        self._board.flush()


def _tag(key: str) -> str:
    """train_loss -> train/loss, so that TensorBoard shows training and test side by side."""
    part, _, rest = key.partition("_")
    return f"{part}/{rest}" if part in ("train", "test") else f"run/{key}"


def _line(record: EpochRecord) -> str:
    return json.dumps(record.as_dict(), allow_nan=False) + "\n"
