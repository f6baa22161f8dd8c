"""The exact stage: a trained graph goes onto the integer grid, trains on there, and is left so that its certificate holds.

Takes a trained graph and open data; works in a folder of its own inside the run's, from which it goes on after an interruption.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import nn

from export.bundle import json_bytes
from export.errors import UsageError
from export.exact.calibration import calibrate, mend, search
from export.exact.grid import GridGraph
from export.files import sha256_of, write_file
from export.fold import tensors_bytes
from pipeline.config import Config
from pipeline.config.sections import Schedule, Training
from pipeline.data import DataSet, TrainingBatches
from pipeline.methods import RewrittenGraph
from pipeline.progress import Console, EpochLines
from pipeline.training import Checkpoint, Settings, TrainingData, last_checkpoint, read_checkpoint
from pipeline.training import train as train_graph
from pipeline.training.checkpoint import first_difference
from pipeline.training.evaluation import BATCH_SIZE, evaluate
from pipeline.training_graph import ImageFacts, grid_of

FOLDER = "exact"
_CALIBRATED = "calibrated.json"
_CALIBRATION_BATCH = 128


@dataclass(frozen=True)
class ExactRun:
    """A graph on the grid, trained there, and what that did to its accuracy."""

    grid: GridGraph
    facts: Mapping[str, JsonValue]
    metrics_lines: bytes


def why_not_exact(config: Config, images: ImageFacts) -> str | None:
    """Why this run has no exact stage, or None. Raised before training where the config insists on one."""
    if config.exact.enabled is False:
        return "switched off by exact.enabled"
    try:
        grid_of(config, images)
    except UsageError as error:
        if config.exact.enabled is True:
            raise
        return str(error)
    return None


def exact_stage(config: Config, images: ImageFacts, trained: nn.Module, data: DataSet, where: "ExactFolder") -> ExactRun:
    """Calibrate, train, mend. What was done before under the same config and from the same weights is not done again."""
    weights = {name: value.detach().cpu() for name, value in trained.state_dict().items()}
    grid, network = grid_of(config, images, weights)
    grid.graph.to(data.train.device)
    return _ExactTraining(config, where, data, grid, network, sha256_of(tensors_bytes(weights))).run()


@dataclass(frozen=True)
class ExactFolder:
    """Where a stage works, whether it may go on from what it finds there, and who watches."""

    folder: Path
    anew: bool
    console: Console


@dataclass(frozen=True)
class _ExactTraining:
    config: Config
    place: ExactFolder
    data: DataSet
    grid: GridGraph
    network: RewrittenGraph
    origin: str

    @property
    def folder(self) -> Path:
        return self.place.folder

    def run(self) -> ExactRun:
        before = None if self.place.anew else self._before()
        checkpoint, at_once = before or (None, self._calibrated())
        lines = b""
        if self.config.exact.epochs:
            self._train(checkpoint)
            lines = (self.folder / "metrics.jsonl").read_bytes()
        mended = mend(self.grid)
        if mended:
            self.place.console.say(f"exact: coarser weights in {', '.join(mended)}, whose sums had grown too large")
        accuracy = self._accuracy() if mended or not lines else json.loads(lines.splitlines()[-1])["test_accuracy"]
        facts: dict[str, JsonValue] = {
            "test_accuracy_at_once": at_once,
            "test_accuracy": accuracy,
            "epochs": self.config.exact.epochs,
            "mended": list(mended),
        }
        return ExactRun(self.grid, facts, lines)

    @property
    def _identity(self) -> dict[str, JsonValue]:
        """What this stage depends on; another config, or other weights to begin with, begin it anew."""
        included = {"data", "network", "method", "training", "exact"}
        return {**self.config.model_dump(mode="json", include=included), "trained_weights": self.origin}

    def _before(self) -> tuple[Checkpoint, float] | None:
        """What an earlier call of this very stage left: its checkpoint, and the accuracy that it began with."""
        path = last_checkpoint(self.folder)
        if not path.exists():
            return None
        checkpoint = read_checkpoint(path)
        if first_difference(checkpoint.config, json.loads(json.dumps(self._identity))):
            return None
        try:
            return checkpoint, float(json.loads((self.folder / _CALIBRATED).read_bytes())["test_accuracy"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _calibrated(self) -> float:
        self.place.console.say("exact: choosing the steps of the grid")
        calibrate(self.grid, self._calibration_images)
        if self.config.exact.search_rounds:
            search(self.grid, self._calibration_images, self.config.exact.search_rounds)
        accuracy = self._accuracy()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / _CALIBRATED, json_bytes({"test_accuracy": accuracy}))
        return accuracy

    def _calibration_images(self) -> Iterator[torch.Tensor]:
        total = self.data.train.num_samples
        number = min(total, self.config.exact.calibration_images)
        for images, _ in self.data.train.batches_in_order(torch.arange(number) * total // number, _CALIBRATION_BATCH):
            yield images

    def _accuracy(self) -> float:
        return evaluate(self.grid.graph, self.data.test.batches(BATCH_SIZE), self.data.train.device).accuracy

    def _train(self, checkpoint: Checkpoint | None) -> None:
        batches = TrainingBatches(self.data.train, self.config.data.batch_size, self.config.data.augment, self.config.training.seed)
        settings = Settings(training=self._training, folder=self.folder, config=self._identity)
        with self.place.console.progress("exact", self.config.exact.epochs * batches.steps_per_epoch) as progress:
            train_graph(self.network, TrainingData(batches, self.data.test, self.data.width), settings, EpochLines(progress), checkpoint)

    @property
    def _training(self) -> Training:
        """Float32, because the graph that trains is the graph that is deployed, and nothing that would be in training only."""
        training = self.config.training
        return Training(
            epochs=self.config.exact.epochs,
            learning_rate=self.config.exact.learning_rate,
            momentum=training.momentum,
            nesterov=training.nesterov,
            label_smoothing=training.label_smoothing,
            seed=training.seed,
            precision="float32",
            device=training.device,
            threads=training.threads,
            deterministic=training.deterministic,
            channels_last=training.channels_last,
            schedule=Schedule(name="cosine"),
        )
