"""The training loop: epochs of steps, evaluation, records, checkpoints.

Knows no terminal, config file or method. Draws and shuffles depend only on the seed and on the
position of the run, (epoch, step). So a resumed run has the bits of one that never stopped.
"""

import itertools
import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from export.errors import UsageError
from export.graph.parts import trained_layers
from export.interruption import Interruption
from pipeline.config.sections import Training
from pipeline.methods.method import RewrittenGraph
from pipeline.methods.statistics import freeze_statistics, recompute_statistics
from pipeline.run_folder import RunFolder
from pipeline.training.checkpoint import Checkpoint, Config, checkpoint_bytes, write_checkpoint
from pipeline.training.device import arithmetic, autocast_type, cpu_threads, device_by_name, forget_peak_memory, peak_memory_bytes
from pipeline.training.diagnosis import Figures, GradientNorms, layer_figures, with_gradient_norms
from pipeline.training.evaluation import Evaluation, WeightAverage, evaluate, evaluation_batch_size
from pipeline.training.finite import NotFiniteError, all_finite, first_bad_activation, first_bad_weights
from pipeline.training.freezing import FreezingMoment
from pipeline.training.metrics import EpochRecord, MetricsLog, Tally
from pipeline.training.optimiser import Moment, momentum, rate_share
from pipeline.training.protocols import Batch, PrefetchedBatches, SilentWatcher, TrainingBatches, TrainingData, Watcher
from pipeline.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train and where to write.

    A checkpoint can be resumed only if it was made with this `config`.
    """

    training: Training
    folder: RunFolder
    config: Config = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """One record per epoch, including those before an interruption."""

    records: tuple[EpochRecord, ...]


def steps_per_epoch(batches: TrainingBatches, options: Training) -> int:
    """Return the number of steps in an epoch; batches that do not fill a step are left out."""
    num_batches = batches.steps_per_epoch
    if options.accumulate > num_batches:
        what = f"training.accumulate {options.accumulate} is more than the {num_batches} batches of an epoch"
        raise UsageError(f"{what}; set it to {num_batches} or less")
    return num_batches // options.accumulate


def require_same_steps(checkpoint: Checkpoint, steps: int) -> None:
    """Refuse to go on from a checkpoint whose epochs had another length.

    The same step would be another moment of the schedule.
    """
    stored = checkpoint.position["steps_per_epoch"]
    if stored != steps:
        raise UsageError(
            f"checkpoint {checkpoint.path} was made with {stored} steps an epoch, the data now gives {steps}: the data set has changed; "
            "restore it, or start over with --fresh"
        )


def train(
    network: RewrittenGraph,
    data: TrainingData,
    settings: Settings,
    watcher: Watcher | None = None,
    resume: Checkpoint | None = None,
) -> History:
    """Train to the last epoch.

    Without `resume` the folder's earlier metrics and checkpoints are removed first. The graph keeps
    the last epoch's weights (or their average, if one is kept), on the training device, contiguous,
    in evaluation mode.
    """
    device = device_by_name(settings.training.device)
    network.graph.to(device)
    forget_peak_memory(device)
    loop = _Loop(network, data, settings, watcher or SilentWatcher(), device)
    with ExitStack() as stack:
        stack.enter_context(arithmetic(deterministic=settings.training.deterministic))
        stack.enter_context(cpu_threads(settings.training.threads, data.image_width))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(loop.interruption)
        stack.enter_context(loop.opened(resume))
        loop.run()
    return History(tuple(loop.records))


class _Loop:
    def __init__(self, network: RewrittenGraph, data: TrainingData, settings: Settings, watcher: Watcher, device: torch.device) -> None:
        self.options, self.settings, self.data, self.watcher = settings.training, settings, data, watcher
        self.graph, self.device = network.graph, device
        autocast = autocast_type(self.options.precision, device, data.image_width)
        self.step = TrainingStep(network, self.options, device, autocast)
        self.steps_per_epoch = steps_per_epoch(data.training, self.options)
        self.average = WeightAverage(self.graph, self.options.model_ema) if self.options.model_ema.decay > 0 else None
        diagnosed = self.options.diagnosis == "epoch"
        self.gradient_norms = GradientNorms(trained_layers(self.graph)) if diagnosed else None
        self.layers = trained_layers(self.deployed) if diagnosed else ()
        self.interruption = Interruption(signal.SIGINT, signal.SIGTERM)  # schedulers of clusters send SIGTERM
        self.epoch, self.tally, self.records = 0, Tally(), list[EpochRecord]()
        self.frozen: FreezingMoment | None = None
        self.batches = PrefetchedBatches(iter(()))

    @contextmanager
    def opened(self, resume: Checkpoint | None) -> Iterator[None]:
        """Restore the checkpoint, if there is one, and open the logs."""
        self.settings.folder.path.mkdir(parents=True, exist_ok=True)
        if resume is None:
            self._remove_checkpoints()
        else:
            self._restore(resume)
        self.log = MetricsLog(self.settings.folder, self.records)
        try:
            yield
        finally:
            self.log.close()

    def _remove_checkpoints(self) -> None:
        """Remove our checkpoints and half-written files that a kill left; other files of the user
        stay."""
        for path in (self.settings.folder.last_checkpoint, self.settings.folder.best_checkpoint):
            for each in (path, *path.parent.glob(f".{path.name}.*")):
                each.unlink(missing_ok=True)

    def run(self) -> None:
        self.watcher.run_started(self.options.epochs, self.steps_per_epoch, self.num_steps_done)
        while self.epoch < self.options.epochs:
            if self.epoch == self.options.first_frozen_epoch and self.frozen is None:
                self._freeze_statistics()
            self.watcher.epoch_started(self.epoch + 1)
            self._train_to_the_end_of_the_epoch()
            self._finish_epoch(self._evaluate())
        if self.average is not None:
            self.average.copy_into(self.graph)
        self.graph.eval().to(memory_format=torch.contiguous_format)

    @property
    def deployed(self) -> GraphModule:
        """The graph that is evaluated; it holds the average of the weights if one is kept."""
        return self.graph if self.average is None else self.average.graph

    @property
    def num_steps_done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.tally.num_steps

    def _freeze_statistics(self) -> None:
        """Recompute and freeze the statistics.

        A checkpoint written before this is finished is that of the epoch before: a run that is
        stopped here does all of it again.
        """
        for graph in self._graphs:
            recompute_statistics(graph.to(memory_format=torch.contiguous_format), self._images_of_the_whole_set())
        accuracy = self._evaluate().accuracy
        self._froze(FreezingMoment(self.num_steps_done, accuracy))
        self.watcher.statistics_frozen(self.num_steps_done, accuracy)

    def _froze(self, frozen: FreezingMoment) -> None:
        self.frozen = frozen
        for graph in self._graphs:
            freeze_statistics(graph)

    @property
    def _graphs(self) -> tuple[GraphModule, ...]:
        """The graph that is trained, and the average if one is kept, which has statistics of its
        own."""
        return (self.graph,) if self.average is None else (self.graph, self.average.graph)

    def _images_of_the_whole_set(self) -> Iterator[torch.Tensor]:
        for images, _ in self.data.training.whole_set():
            self._stop_if_asked()
            yield images.to(self.device, non_blocking=True)

    def _train_to_the_end_of_the_epoch(self) -> None:
        self.graph.train().to(memory_format=self._memory_format)
        self.step.begin_epoch()
        started = time.perf_counter() - self.tally.seconds
        self.batches = PrefetchedBatches(self._batches_left())
        for _ in range(self.tally.num_steps, self.steps_per_epoch):
            self._stop_if_asked()
            self._train_on(itertools.islice(self.batches, self.options.accumulate))
            self.tally.seconds = time.perf_counter() - started
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.tally.seconds = time.perf_counter() - started

    def _batches_left(self) -> Iterator[Batch]:
        """Return the batches left in this epoch, without those that do not fill a step."""
        done, all_steps = (num * self.options.accumulate for num in (self.tally.num_steps, self.steps_per_epoch))
        return itertools.islice(self.data.training.epoch(self.epoch, done), all_steps - done)

    def _train_on(self, batches: Iterable[Batch]) -> None:
        """Run one step."""
        self.step.set_learning_rate(self._rate(self.num_steps_done))
        self.step.set_momentum(momentum(self._moment(self.num_steps_done), self.options.schedule, self.options.momentum))
        losses = [self._backward(images, labels, number) for number, (images, labels) in enumerate(batches, self._num_batches_done)]
        penalty = self.step.update(self.epoch, self._note_gradients)
        if self.average is not None:
            self.average.update(self.graph, self.num_steps_done)
        self.tally.add_step(penalty)
        self.watcher.step_done(self.epoch + 1, self.tally.num_steps, sum(losses) / len(losses))

    def _backward(self, images: torch.Tensor, labels: torch.Tensor, number: int) -> float:
        """Run forward and backward on the run's batch of this number, and return its loss."""
        images, labels = self._placed(images), labels.to(self.device, non_blocking=True)
        figures = self.step.backward(images, labels, number)
        # The next batch is made while the device still computes this one.
        self.batches.prepare()
        loss, num_correct = figures.read()
        if not math.isfinite(loss):
            raise self._diverged(images, number)
        self.tally.add_batch(loss, num_correct, len(labels))
        return loss

    @property
    def _num_batches_done(self) -> int:
        return self.num_steps_done * self.options.accumulate

    def _note_gradients(self) -> None:
        if self.gradient_norms is not None:
            self.tally.add_gradient_norms(self.gradient_norms())

    def _evaluate(self) -> Evaluation:
        self._require_finite_weights()
        evaluation = evaluate(
            self.deployed, self.data.test.batches(evaluation_batch_size(self.device, self.data.image_width)), self.device, self._stop_if_asked
        )
        if not math.isfinite(evaluation.loss):
            raise self._error("the loss on the test split is not finite")
        return evaluation

    def _finish_epoch(self, evaluation: Evaluation) -> None:
        record, layers = self._record(evaluation), self._diagnosis()
        is_best = all(record.test_accuracy > earlier.test_accuracy for earlier in self.records)
        self.records.append(record)
        self.epoch, self.tally = self.epoch + 1, Tally()
        self.log.add(record, layers)
        content = self._checkpoint_bytes()
        if is_best:
            write_checkpoint(self.settings.folder.best_checkpoint, content)
        write_checkpoint(self.settings.folder.last_checkpoint, content)
        self.watcher.epoch_done(record)

    def _diagnosis(self) -> list[Figures]:
        """Return the figures of the layers that were evaluated and of the gradients of the
        epoch."""
        if self.gradient_norms is None:
            return []
        figures = layer_figures(self.layers, self.options.deflated_below)
        return with_gradient_norms(figures, self.tally.gradient_norms)

    def _record(self, evaluation: Evaluation) -> EpochRecord:
        return EpochRecord(
            epoch=self.epoch + 1,
            step=self.num_steps_done,
            lr=self._rate(self.num_steps_done - 1),
            train_loss=self.tally.loss,
            train_accuracy=self.tally.accuracy,
            test_loss=evaluation.loss,
            test_accuracy=evaluation.accuracy,
            seconds=self.tally.seconds,
            images_per_second=self.tally.num_samples / self.tally.seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            penalty=self.tally.penalty,
            frozen_at_step=None if self.frozen is None else self.frozen.step,
            test_accuracy_at_freezing=None if self.frozen is None or self.epoch != self.options.first_frozen_epoch else self.frozen.test_accuracy,
        )

    def _stop_if_asked(self) -> None:
        """Between two steps: save what was done, then stop."""
        if self.interruption.asked:
            self._require_finite_weights()
            write_checkpoint(self.settings.folder.last_checkpoint, self._checkpoint_bytes())
            raise KeyboardInterrupt

    def _checkpoint_bytes(self) -> bytes:
        position = {
            "epoch": self.epoch,
            "step": self.num_steps_done,
            "steps_per_epoch": self.steps_per_epoch,
            "tally": self.tally.as_dict(),
            "records": [record.as_dict() for record in self.records],
            "frozen": None if self.frozen is None else asdict(self.frozen),
        }
        average = None if self.average is None else self.average.graph
        return checkpoint_bytes(self.graph, self.step.optimiser, position, self.settings.config, average)

    def _restore(self, checkpoint: Checkpoint) -> None:
        require_same_steps(checkpoint, self.steps_per_epoch)
        position: dict[str, Any] = checkpoint.position
        self.graph.to(memory_format=self._memory_format)
        checkpoint.restore_graph(self.graph)
        checkpoint.restore_momentum(self.graph, self.step.optimiser)
        self.epoch, self.tally = position["epoch"], Tally.from_dict(position["tally"], self.device)
        self.records = [EpochRecord(**values) for values in position["records"]]
        if self.average is not None and self.num_steps_done:  # there is no average before the first step
            checkpoint.restore_average(self.average.graph)
        if (frozen := position.get("frozen")) is not None:
            self._froze(FreezingMoment(**frozen))

    def _rate(self, step: int) -> float:
        return self.options.learning_rate * rate_share(self._moment(step), self.options.schedule)

    def _moment(self, step: int) -> Moment:
        return Moment(step, self.steps_per_epoch, self.options.epochs)

    def _placed(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device, non_blocking=True, memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.options.channels_last else torch.contiguous_format

    def _require_finite_weights(self) -> None:
        if not all_finite(self.graph):
            raise self._error(first_bad_weights(self.graph) or "the weights are not finite")

    def _diverged(self, images: torch.Tensor, number: int) -> NotFiniteError:
        """Run the failed batch again under the same seed, and check every value."""
        if (found := first_bad_weights(self.graph)) is None:
            with self.step.as_in_training(number, len(images)):
                found = first_bad_activation(self.graph, images)
        return self._error(found or "the loss is not finite")

    def _error(self, what: str) -> NotFiniteError:
        kept = self.settings.folder.last_checkpoint
        step = self.num_steps_done + 1
        return NotFiniteError(
            what,
            epoch=self.epoch + 1,
            step=step,
            rate=self._rate(self.num_steps_done),
            checkpoint=kept if kept.exists() else None,
        )
