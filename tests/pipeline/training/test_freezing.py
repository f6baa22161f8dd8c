"""Runs whose last epochs use no batch statistics: equal bits interrupted or not, and their
records."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from export.errors import UsageError
from export.graph.fold import fold
from pipeline.config.methods import BatchnormOptions, CzmigOptions, EquinormOptions, MethodOptions, MimicnormOptions
from pipeline.config.sections import FreezeStatistics, ModelEma, Training
from pipeline.methods.method import RewrittenGraph
from pipeline.methods.statistics import recompute_statistics, statistics_parts
from pipeline.run_folder import RunFolder
from pipeline.training import EpochRecord, Settings, SilentWatcher, TrainingData, load_checkpoint, read_checkpoint, train
from pipeline.training.evaluation import BATCH_SIZE, evaluate
from pipeline.training.freezing import require_usable_statistics
from pipeline.training.protocols import Batch, TrainingBatches

Build = Callable[[MethodOptions], RewrittenGraph]
METHODS: list[MethodOptions] = [BatchnormOptions(name="batchnorm"), MimicnormOptions(name="mimicnorm"), EquinormOptions(name="equinorm")]
by_method = pytest.mark.parametrize("method", METHODS, ids=lambda options: options.name)
EPOCHS, FROZEN_EPOCHS, STEPS = 4, 2, 4
FROZEN_AT = (EPOCHS - FROZEN_EPOCHS) * STEPS


@pytest.fixture
def freezing(settings: Settings) -> Settings:
    training = settings.training.model_copy(update={"epochs": EPOCHS, "freeze_statistics": FreezeStatistics(epochs=FROZEN_EPOCHS)})
    return replace(settings, training=training)


def state(network: RewrittenGraph) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.graph.state_dict().items()}


def running(network: RewrittenGraph) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state(network).items() if "running" in name}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() != set()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def figures(records: tuple[EpochRecord, ...]) -> list[dict[str, float]]:
    measured = {"seconds", "images_per_second", "peak_memory_bytes"}
    return [{key: value for key, value in record.as_dict().items() if key not in measured} for record in records]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class AfterStep(SilentWatcher):
    """Interrupts after a step."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        if (epoch, step_in_epoch) == self.at:
            interrupt()


class WhenFrozen(SilentWatcher):
    def statistics_frozen(self, step: int, test_accuracy: float) -> None:
        interrupt()


@dataclass(frozen=True)
class InterruptingPass:
    """Interrupts while the statistics are recomputed.

    It happens after a batch, or at the end, before the network is evaluated with the new ones.
    """

    batches: TrainingBatches
    behind: int

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        return self.batches.epoch(epoch, first_step)

    def whole_set(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches.whole_set(), start=1):
            yield batch
            if number == self.behind:
                interrupt()


@by_method
@pytest.mark.parametrize("place", ["step before", "in the pass", "behind the pass", "frozen", "step after", "last epoch"])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    build: Build, data: TrainingData, freezing: Settings, tmp_path: Path, method: MethodOptions, place: str
) -> None:
    whole, resumed = build(method), build(method)
    expected = train(whole, data, replace(freezing, folder=RunFolder(tmp_path / "whole")))
    watchers = {"step before": AfterStep(2, 4), "frozen": WhenFrozen(), "step after": AfterStep(3, 1), "last epoch": AfterStep(4, 2)}
    passes = {"in the pass": 2, "behind the pass": STEPS}
    interrupting = replace(data, training=InterruptingPass(data.training, passes.get(place, 0)))
    with pytest.raises(KeyboardInterrupt):
        train(build(method), interrupting, freezing, watchers.get(place))
    history = train(resumed, data, freezing, resume=load_checkpoint(freezing.folder.last_checkpoint, freezing.config))
    assert_same(state(resumed), state(whole))
    assert figures(history.records) == figures(expected.records)
    assert all(part.frozen for part in statistics_parts(resumed.graph).values())
    one, other = (read_checkpoint(folder.last_checkpoint) for folder in (freezing.folder, RunFolder(tmp_path / "whole")))
    assert_same(one.momentum, other.momentum)


@by_method
def test_what_is_trained_at_the_end_is_what_is_deployed(build: Build, data: TrainingData, freezing: Settings, method: MethodOptions) -> None:
    network = build(method)
    train(network, data, freezing)
    images, _ = next(iter(data.training.epoch(9)))
    assert torch.equal(network.graph.train()(images), fold(network.graph)(images))
    unfrozen = build(method)
    train(unfrozen, data, replace(freezing, training=freezing.training.model_copy(update={"freeze_statistics": FreezeStatistics()})))
    assert not torch.equal(unfrozen.graph.train()(images), fold(unfrozen.graph)(images))


class KeepsStatistics(SilentWatcher):
    """The stored statistics when they are frozen, and after each later step."""

    def __init__(self, network: RewrittenGraph) -> None:
        self.network, self.kept = network, list[dict[str, torch.Tensor]]()

    def statistics_frozen(self, step: int, test_accuracy: float) -> None:
        self.kept.append(running(self.network))

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        if self.kept:
            self.kept.append(running(self.network))


@by_method
def test_the_statistics_are_those_of_the_whole_set_and_stay(build: Build, data: TrainingData, freezing: Settings, method: MethodOptions) -> None:
    network, before = build(method), build(method)
    watcher = KeepsStatistics(network)
    train(network, data, freezing, watcher)
    assert len(watcher.kept) == 1 + FROZEN_EPOCHS * STEPS
    for kept in watcher.kept[1:]:
        assert_same(kept, watcher.kept[0])
    shortened = freezing.training.model_copy(update={"epochs": EPOCHS - FROZEN_EPOCHS, "freeze_statistics": FreezeStatistics()})
    train(before, data, replace(freezing, training=shortened))
    recompute_statistics(before.graph, (images for images, _ in data.training.whole_set()))
    assert_same(running(before), watcher.kept[0])


def test_the_records_tell_since_when_and_what_it_did(build: Build, data: TrainingData, freezing: Settings) -> None:
    network, before = build(METHODS[0]), build(METHODS[0])
    records = train(network, data, freezing).records
    assert [record.frozen_at_step for record in records] == [None, None, FROZEN_AT, FROZEN_AT]
    assert [record.test_accuracy_at_freezing is not None for record in records] == [False, False, True, False]
    assert not {"frozen_at_step", "test_accuracy_at_freezing"} & records[1].as_dict().keys()
    shortened = freezing.training.model_copy(update={"epochs": EPOCHS - FROZEN_EPOCHS, "freeze_statistics": FreezeStatistics()})
    assert figures(train(before, data, replace(freezing, training=shortened)).records) == figures(records)[:2]
    recompute_statistics(before.graph, (images for images, _ in data.training.whole_set()))
    assert evaluate(before.graph, data.test.batches(BATCH_SIZE), torch.device("cpu")).accuracy == records[2].test_accuracy_at_freezing


def test_the_watcher_hears_of_it_before_the_first_frozen_epoch(build: Build, data: TrainingData, freezing: Settings) -> None:
    heard: list[object] = []

    class Listening(SilentWatcher):
        def statistics_frozen(self, step: int, test_accuracy: float) -> None:
            heard.append((step, test_accuracy))

        def epoch_started(self, epoch: int) -> None:
            heard.append(epoch)

    records = train(build(METHODS[0]), data, freezing, Listening()).records
    assert heard == [1, 2, (FROZEN_AT, records[2].test_accuracy_at_freezing), 3, 4]


@pytest.mark.parametrize(
    "extra",
    [{"precision": "bfloat16", "nesterov": True}, {"model_ema": ModelEma(decay=0.5)}, {"accumulate": 2}],
    ids=["bfloat16", "average", "accumulation"],
)
def test_with_whatever_else_training_has_a_resumed_run_has_the_same_bits(
    build: Build, data: TrainingData, freezing: Settings, tmp_path: Path, extra: dict[str, object]
) -> None:
    settings = replace(freezing, training=freezing.training.model_copy(update=extra))
    whole, resumed = build(METHODS[0]), build(METHODS[0])
    train(whole, data, replace(settings, folder=RunFolder(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        train(build(METHODS[0]), data, settings, AfterStep(3, 1))
    train(resumed, data, settings, resume=read_checkpoint(settings.folder.last_checkpoint))
    assert_same(state(resumed), state(whole))


def test_an_average_of_the_weights_has_statistics_of_its_own(build: Build, data: TrainingData, freezing: Settings) -> None:
    """Recomputed for the averaged weights, which are the evaluated ones.

    From then on they average as the weights do.
    """
    averaged = replace(freezing, training=freezing.training.model_copy(update={"model_ema": ModelEma(decay=0.5)}))
    network, before = build(METHODS[0]), build(METHODS[0])
    shortened = averaged.training.model_copy(update={"epochs": EPOCHS - FROZEN_EPOCHS, "freeze_statistics": FreezeStatistics()})
    train(before, data, replace(averaged, training=shortened))
    recompute_statistics(before.graph, (images for images, _ in data.training.whole_set()))
    expected = evaluate(before.graph, data.test.batches(BATCH_SIZE), torch.device("cpu")).accuracy
    records = train(network, data, averaged).records
    assert records[FROZEN_EPOCHS].test_accuracy_at_freezing == expected
    images, _ = next(iter(data.training.epoch(9)))
    assert torch.equal(network.graph.train()(images), fold(network.graph)(images))


@pytest.mark.parametrize("options", METHODS, ids=lambda options: options.name)
def test_a_batch_of_one_is_refused_where_its_statistics_are_used(build: Build, options: MethodOptions) -> None:
    graph = build(options).graph
    with pytest.raises(UsageError, match=r"training steps on 1 image cannot use .* set data\.batch_size to 2 or more") as caught:
        require_usable_statistics(graph, Training(), 1)
    assert "\n" not in str(caught.value)
    require_usable_statistics(graph, Training(), 2)


@pytest.mark.parametrize(
    "options", [CzmigOptions(name="czmig"), MimicnormOptions(name="mimicnorm", last_norm=False)], ids=lambda options: options.name
)
def test_a_method_without_batch_statistics_takes_any_batch_and_freezes_nothing(build: Build, options: MethodOptions) -> None:
    graph = build(options).graph
    require_usable_statistics(graph, Training(), 1)
    with pytest.raises(UsageError, match=r"training\.freeze_statistics\.epochs is 3, but this method has no batch statistics"):
        require_usable_statistics(graph, Training(freeze_statistics=FreezeStatistics(epochs=3)), 8)
