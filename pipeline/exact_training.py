"""The exact stage: a trained graph moves to the integer grid, trains on, and gets a certificate.

Takes a trained graph and open data. Works in a folder of its own inside the run's folder, from
which it continues after an interruption.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch.fx import GraphModule

from deploy.progress import Console
from export.bundle import json_bytes
from export.errors import UsageError
from export.exact.calibration import calibrate, coarsen_steps, search
from export.exact.grid import GridGraph
from export.files import sha256_of, write_file
from export.graph.fold import tensors_bytes
from pipeline.config import Config
from pipeline.config.sections import Schedule, Training
from pipeline.data import DataSet, TrainingBatches
from pipeline.methods import RewrittenGraph
from pipeline.run_folder import RunFolder
from pipeline.training import Checkpoint, EpochLines, Settings, TrainingData, read_checkpoint
from pipeline.training import train as train_graph
from pipeline.training.checkpoint import first_difference
from pipeline.training.evaluation import BATCH_SIZE, evaluate
from pipeline.training_graph import grid_of

_CALIBRATION_BATCH = 128


@dataclass(frozen=True)
class ExactStage:
    """The plan to put a graph on the grid, and the folder where it trains."""

    folder: RunFolder
    num_layers: int
    from_scratch: bool
    """Whether to ignore what an earlier call left there."""


@dataclass(frozen=True)
class ExactRun:
    """A graph on the grid, trained there, and what that did to its accuracy."""

    grid: GridGraph
    facts: Mapping[str, JsonValue]
    metrics_lines: bytes

    def __str__(self) -> str:
        return f"exact: {self.facts['test_accuracy']:.2%}"


@dataclass(frozen=True)
class NoExactForm:
    """The fact that there is no graph on the grid, and the reason."""

    reason: str

    def __str__(self) -> str:
        return f"no exact form: {self.reason}"

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        return {"not_run": self.reason}


def planned_stage(
    config: Config, graph: GraphModule, image_shape: tuple[int, int, int], folder: RunFolder, *, from_scratch: bool = False
) -> ExactStage | NoExactForm:
    """Decide whether a training graph has an exact form; the graph stays as it is.

    Raises if it has none and the config requires one.
    """
    if config.exact.enabled is False:
        return NoExactForm("switched off by exact.enabled")
    try:
        grid = grid_of(copy.deepcopy(graph), config, image_shape)
    except UsageError as error:
        if config.exact.enabled is True:
            raise
        return NoExactForm(str(error))
    return ExactStage(folder.exact, len(grid.layers), from_scratch)


def trained_on_the_grid(stage: ExactStage, config: Config, trained: RewrittenGraph, data: DataSet, console: Console) -> ExactRun:
    """Calibrate, train on the grid, and fix sums that grew too large.

    What an earlier call did under the same config and from the same weights is not done again. The
    trained graph stays as it is.
    """
    weights = {name: value.detach().cpu() for name, value in trained.graph.state_dict().items()}
    copied = copy.deepcopy(trained)  # graph and rules together, because the rules hold the graph's parameters
    grid = grid_of(copied.graph.cpu(), config, data.shape)  # on the CPU, so that the graph is the same wherever it trains
    grid.graph.to(data.train.device)
    network = RewrittenGraph(grid.graph, copied.rules)
    return _ExactTraining(stage, config, data, grid, network, sha256_of(tensors_bytes(weights)), console).run()


@dataclass(frozen=True)
class _ExactTraining:
    stage: ExactStage
    config: Config
    data: DataSet
    grid: GridGraph
    network: RewrittenGraph
    origin: str
    console: Console

    @property
    def folder(self) -> RunFolder:
        return self.stage.folder

    def run(self) -> ExactRun:
        before = None if self.stage.from_scratch else self._before()
        checkpoint, at_once = before or (None, self._calibrated())
        lines = b""
        if self.config.exact.epochs:
            self._train(checkpoint)
            lines = self.folder.metrics.read_bytes()
        mended = coarsen_steps(self.grid)
        if mended:
            self.console.say(f"exact: coarser weights in {', '.join(mended)}, whose sums had grown too large")
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
        """What this stage depends on; with another config or other weights it starts from
        scratch."""
        included = {"data", "network", "method", "training", "exact"}
        return {**self.config.model_dump(mode="json", include=included), "trained_weights": self.origin}

    def _before(self) -> tuple[Checkpoint, float] | None:
        """Return what an earlier call of this same stage left: its checkpoint and its initial
        accuracy."""
        path = self.folder.last_checkpoint
        if not path.exists():
            return None
        checkpoint = read_checkpoint(path)
        if first_difference(checkpoint.config, json.loads(json.dumps(self._identity))):
            return None
        try:
            return checkpoint, float(json.loads(self.folder.calibration.read_bytes())["test_accuracy"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _calibrated(self) -> float:
        self.console.say("exact: choosing the steps of the grid")
        calibrate(self.grid, self._calibration_images)
        if self.config.exact.search_rounds:
            search(self.grid, self._calibration_images, self.config.exact.search_rounds)
        accuracy = self._accuracy()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_file(self.folder.calibration, json_bytes({"test_accuracy": accuracy}))
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
        with self.console.progress("exact", self.config.exact.epochs * batches.steps_per_epoch) as progress:
            train_graph(self.network, TrainingData(batches, self.data.test, self.data.width), settings, EpochLines(progress), checkpoint)

    @property
    def _training(self) -> Training:
        """The options of this training.

        Float32, and nothing that exists in training only, because the graph that trains is the one
        that is deployed.
        """
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
