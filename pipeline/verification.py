"""The chain of a bundle, rebuilt from its files alone: training graph, evaluation graph, folded graph, ONNX file, each runtime.

Takes an opened bundle and samples; what the links are and what each must hold is decided here, how they are compared in `deploy.verify`.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule

from deploy.runners.base import Runner, TensorSpec
from deploy.runners.table import FILE_RUNTIMES, RunOptions, open_file
from deploy.runners.torch import TorchRunner
from deploy.verify.samples import hostile_images
from export.bundle import Bundle, TensorEntry
from export.derived import TrainingOnly, training_only_parts
from export.errors import DamagedError, UsageError
from export.fold import fold
from pipeline.assemble import ImageFacts, training_graph
from pipeline.config import Config, parse_config
from pipeline.networks import is_of_the_user
from pipeline.staging import CONFIG, MODEL, SAMPLES, TRAINING_WEIGHTS, WEIGHTS, Trained

Batch = dict[str, NDArray[np.uint8]]
Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Samples:
    """Images to compare on, as often as they are asked for, and how they were made."""

    batches: Callable[[], Iterator[NDArray[np.uint8]]]
    description: str


def test_set(trained: Trained) -> Samples:
    """The test set, or as much of it as the config asks for."""
    wanted, size = trained.config.verify.samples, trained.config.verify.batch_size
    number = trained.test.num_samples if wanted == "test" else min(wanted, trained.test.num_samples)
    order = torch.arange(number)

    def batches() -> Iterator[NDArray[np.uint8]]:
        for images, _ in trained.test.batches_in_order(order, size):
            yield images.cpu().numpy()

    whole = "the whole test set" if number == trained.test.num_samples else f"the first {number} images of the test set"
    return Samples(batches, f"{whole} of {trained.config.data.name}")


def stored_samples(bundle: Bundle, batch_size: int) -> Samples:
    """The test images that the bundle carries."""
    images = safetensors.torch.load(bundle.read(SAMPLES))["images"].numpy()

    def batches() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]

    return Samples(batches, f"{len(images)} test images stored in the bundle")


def rebuilt_training_graph(bundle: Bundle, trusted_network: str | None) -> GraphModule:
    """The training graph, from the bundle's config and training weights.

    A bundle never names code to import: a network of the user's own is rebuilt only where the user names it.
    """
    config = bundle_config(bundle)
    name = config.network.name
    if is_of_the_user(name) and name != trusted_network:
        raise UsageError(
            f"{bundle.folder} was trained on {name}, code that a bundle may not import; to run it from your own files, add --network {name}"
        )
    shape = bundle.manifest.input.shape[1:]
    channels, height, width = (size or 0 for size in shape)
    facts = ImageFacts((channels, height, width), len(bundle.manifest.classes), (0.0,) * channels, (1.0,) * channels)
    graph = training_graph(config, facts).graph
    _load(graph, bundle, TRAINING_WEIGHTS)
    return graph


def bundle_config(bundle: Bundle) -> Config:
    """The config that the bundle was made from."""
    try:
        return parse_config(bundle.read(CONFIG).decode(), f"{bundle.folder / CONFIG}")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{bundle.folder / CONFIG} is not text; export the bundle again") from error


def _load(graph: nn.Module, bundle: Bundle, name: str) -> None:
    tensors = safetensors.torch.load(bundle.read(name))
    try:
        graph.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise DamagedError(f"{bundle.folder / name} does not fit the network of {CONFIG}: {first}; export the bundle again") from error
