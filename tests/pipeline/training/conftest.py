"""A tiny run: random images in memory, the smallest network, any method."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.graph import Normalise, trace
from pipeline.config.methods import MethodOptions
from pipeline.config.sections import Training
from pipeline.methods import method_from_options
from pipeline.methods.method import RewrittenGraph
from pipeline.networks import network_by_name
from pipeline.run_folder import RunFolder
from pipeline.training import Settings, TrainingData
from pipeline.training.protocols import Batch

BATCH_SIZE, NUM_STEPS, IMAGE = 8, 4, (1, 8, 8)


@dataclass(frozen=True)
class RandomTraining:
    """Batches that depend on (epoch, step) alone."""

    steps_per_epoch: int = NUM_STEPS

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step in range(first_step, self.steps_per_epoch):
            yield _random_batch(1 + 100 * epoch + step, BATCH_SIZE)

    def whole_set(self) -> Iterator[Batch]:
        for number in range(self.steps_per_epoch):
            yield _random_batch(5000 + number, BATCH_SIZE + number % 2)


class RandomTest:
    """Two batches of unequal size."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        yield _random_batch(9001, 10)
        yield _random_batch(9002, 5)


def _random_batch(seed: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, *IMAGE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (size,), generator=generator)


@pytest.fixture
def data() -> TrainingData:
    return TrainingData(RandomTraining(), RandomTest(), image_width=IMAGE[2])


@pytest.fixture
def build() -> Callable[[MethodOptions], RewrittenGraph]:
    def built(options: MethodOptions) -> RewrittenGraph:
        torch.manual_seed(0)
        graph = trace(network_by_name("small", 3, 1), Normalise((128.0,), (64.0,)), IMAGE, 3)
        return method_from_options(options).rewrite(graph, torch.Generator().manual_seed(1))

    return built


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    training = Training(epochs=2, learning_rate=0.01, precision="float32", device="cpu")
    return Settings(training=training, folder=RunFolder(tmp_path / "run"), config={"training": {"learning_rate": 0.01}})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
