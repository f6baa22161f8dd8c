"""Training on CUDA with a replayed step against launching kernel by kernel: bits and time.

Takes a method or a network; the data are random. `benchmarks.gpu_acceptance` calls it if there is a
GPU.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config, parse_config
from pipeline.run_folder import RunFolder
from pipeline.training import Settings, TrainingData, train
from pipeline.training.device import arithmetic, autocast_type
from pipeline.training.protocols import Batch
from pipeline.training.step import TrainingStep
from pipeline.training_graph import ImageFacts, training_graph

METHODS = ("batchnorm", "czmi", "czmig", "equinorm", "fixup", "groupnorm", "mimicnorm", "nonorm", "scaledws", "skipinit", "weightnorm")
SETTINGS = (("float32", "none"), ("bfloat16", "norm"))
"""Precision and clipping."""
SHAPE, NUM_CLASSES, BATCH_SIZE, STEPS, EPOCHS = (3, 32, 32), 10, 32, 5, 2
TIMED_STEPS, WARM_UP_STEPS = 20, 5


@dataclass(frozen=True)
class RandomBatches:
    """Batches that depend on (epoch, step) alone."""

    steps_per_epoch: int = STEPS

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step in range(first_step, self.steps_per_epoch):
            yield random_batch(1 + 100 * epoch + step, BATCH_SIZE)

    def whole_set(self) -> Iterator[Batch]:
        yield from self.epoch(0)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        yield random_batch(9001, batch_size)


def random_batch(seed: int, size: int) -> Batch:
    """Return random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, *SHAPE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, NUM_CLASSES, (size,), generator=generator)


def different_tensors(method: str, device: str) -> dict[str, list[str]]:
    """Return, by setting, the weights and figures whose bits differ between the two ways to train.

    The lists are empty if all is well.
    """
    found = {}
    for precision, clip in SETTINGS:
        launched, replayed = (_trained(method, device, precision, clip, cuda_graphs=each) for each in (False, True))
        if launched.keys() != replayed.keys():
            raise ValueError(f"{method}: the two ways to train leave different tensors")
        found[f"{precision}, clip {clip}"] = [name for name, value in launched.items() if not torch.equal(value, replayed[name])]
    return found


def _trained(method: str, device: str, precision: str, clip: str, *, cuda_graphs: bool) -> Mapping[str, torch.Tensor]:
    """Return what a short run leaves: the weights and every epoch's figures."""
    options = {"epochs": EPOCHS, "learning_rate": 0.01, "deterministic": True, "device": device, "precision": precision}
    config = _config("resnet20", method, options | {"clip": {"name": clip}, "cuda_graphs": cuda_graphs})
    network = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3))
    with tempfile.TemporaryDirectory() as folder:
        data = TrainingData(RandomBatches(), RandomBatches(), SHAPE[2])
        history = train(network, data, Settings(training=config.training, folder=RunFolder(Path(folder))))
    figures = [[each.train_loss, each.train_accuracy, each.test_loss, each.penalty or 0.0] for each in history.records]
    return {**{name: value.cpu() for name, value in network.graph.state_dict().items()}, "figures": torch.tensor(figures, dtype=torch.float64)}


def _config(network: str, method: str, training: Mapping[str, Any]) -> Config:
    return parse_config({"network": {"name": network}, "method": {"name": method}, "training": training})


def seconds_a_step(network: str, method: str, device: str, rounds: int) -> dict[str, Any]:
    """Return the median time of a training step of 128 images each way, and the ratio.

    The rounds are interleaved.
    """
    ways = {"launched": _step(network, method, device, cuda_graphs=False), "replayed": _step(network, method, device, cuda_graphs=True)}
    batch = tuple(each.to(device) for each in random_batch(0, 128))
    rounds_of = [{name: _time(step, batch) for name, step in ways.items()} for _ in range(rounds)]
    ratios = [each["launched"] / each["replayed"] for each in rounds_of]
    milliseconds = {name: round(1e3 * statistics.median(each[name] for each in rounds_of), 3) for name in ways}
    return {"milliseconds": milliseconds, "launched_over_replayed": [round(f(ratios), 3) for f in (min, statistics.median, max)], "rounds": rounds}


def _step(network: str, method: str, device: str, *, cuda_graphs: bool) -> TrainingStep:
    config = _config(network, method, {"cuda_graphs": cuda_graphs})
    place = torch.device(device)
    rewritten = training_graph(config, ImageFacts(SHAPE, NUM_CLASSES, (128.0,) * 3, (64.0,) * 3))
    rewritten.graph.train().to(place).to(memory_format=torch.channels_last)
    return TrainingStep(rewritten, config.training, place, autocast_type("auto", place, SHAPE[2]))


def _time(step: TrainingStep, batch: tuple[torch.Tensor, ...]) -> float:
    images, labels = batch[0].contiguous(memory_format=torch.channels_last), batch[1]
    with arithmetic(deterministic=False):
        for number in range(WARM_UP_STEPS + TIMED_STEPS):
            if number == WARM_UP_STEPS:
                started = time.perf_counter()
            step.backward(images, labels, number).read()
            step.update()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / TIMED_STEPS
