"""A bundle's graphs, rebuilt from its config and stored weights: the training graph, the grid, the integers; and what its records say.

Takes an opened bundle. What is at odds with itself is DamagedError.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn
from torch.fx import GraphModule

from deploy.runners.base import TensorSpec
from deploy.verify.verdict import FrozenStatistics, TrainingOnlyPart
from export.bundle import (
    CONFIG,
    DIAGNOSIS,
    EXACT_MODEL,
    EXACT_TENSORRT_MODEL,
    EXACT_TRAINING_WEIGHTS,
    EXACT_WEIGHTS,
    SAMPLES,
    TRAINING_WEIGHTS,
    Bundle,
    TensorEntry,
)
from export.errors import DamagedError, UsageError
from export.exact.grid import GridGraph, integers_of
from export.layers import TrainingPart, training_only_parts
from pipeline.config import Config, parse_config
from pipeline.config.sections import Training
from pipeline.methods.statistics import is_frozen
from pipeline.networks import is_of_the_user
from pipeline.training.freezing import first_frozen_epoch
from pipeline.training_graph import ImageFacts, grid_of, training_graph

EXACT_FILES = (EXACT_MODEL, EXACT_TENSORRT_MODEL, EXACT_WEIGHTS, EXACT_TRAINING_WEIGHTS)


@dataclass(frozen=True)
class Samples:
    """Images to compare on, as often as they are asked for, and how they were made."""

    batches: Callable[[], Iterator[NDArray[np.uint8]]]
    num_batches: int
    description: str


def stored_samples(bundle: Bundle) -> Samples:
    """The test images that the bundle carries."""
    images = _tensors(bundle, SAMPLES).get("images", torch.empty(0)).numpy()
    if images.dtype != np.uint8 or images.shape[1:] != image_shape_of(bundle) or not len(images):
        found = f"{images.dtype.name}, {' x '.join(map(str, images.shape))}"
        wanted = f"uint8, N x {' x '.join(map(str, image_shape_of(bundle)))}, N at least 1"
        raise DamagedError(f"{bundle.folder / SAMPLES}: images are {found}; expected {wanted}; export the bundle again")
    size = bundle_config(bundle).verify.batch_size

    def batches() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images), size):
            yield images[start : start + size]

    return Samples(batches, -(-len(images) // size), f"{len(images)} test images stored in the bundle")


def rebuilt_grid(bundle: Bundle, config: Config, graph: GraphModule) -> GridGraph | None:
    """The exact training graph, from the bundle's config, its rebuilt training graph, and the weights of the exact stage."""
    present = [name for name in EXACT_FILES if bundle.has(name)]
    if not present:
        return None
    if len(present) < len(EXACT_FILES):
        missing = next(name for name in EXACT_FILES if not bundle.has(name))
        raise DamagedError(f"{bundle.folder} has {present[0]} and lacks {missing}, which goes with it; export the bundle again")
    grid = grid_of(copy.deepcopy(graph), config, image_shape_of(bundle))
    load_weights(grid.graph, bundle, EXACT_TRAINING_WEIGHTS)
    for step in (quantiser.step.item() for members in grid.groups.values() for quantiser in members):
        if not (0 < step < math.inf and math.frexp(step)[0] == 0.5):
            raise DamagedError(f"{bundle.folder / EXACT_TRAINING_WEIGHTS} has the step {step}, expected a power of two; export the bundle again")
    return grid


def stored_integers(bundle: Bundle, grid: GridGraph) -> dict[str, torch.Tensor]:
    """The stored integers and their steps, each of the type and shape that the network has."""
    found, expected = _tensors(bundle, EXACT_WEIGHTS), integers_of(grid)
    for name in sorted(found.keys() | expected.keys()):
        told, wanted = (_kind(tensors.get(name)) for tensors in (found, expected))
        if told != wanted:
            raise DamagedError(f"{bundle.folder / EXACT_WEIGHTS}: {name} is {told}, expected {wanted}; export the bundle again")
    return found


def _kind(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{str(tensor.dtype).removeprefix('torch.')}, {' x '.join(map(str, tensor.shape))}"


def rebuilt_training_graph(bundle: Bundle, config: Config, trusted_network: str | None) -> GraphModule:
    """The training graph, from the bundle's config and training weights.

    A bundle never names code to import: a network of the user's own is rebuilt only where the user names it.
    """
    name = config.network.name
    if is_of_the_user(name) and name != trusted_network:
        raise UsageError(
            f"{bundle.folder} was trained on {name}, code that a bundle may not import; to run it from your own files, add --network {name}"
        )
    graph = training_graph(config, _image_facts(bundle)).graph
    load_weights(graph, bundle, TRAINING_WEIGHTS)
    return graph


def _image_facts(bundle: Bundle) -> ImageFacts:
    """What the manifest says of the images; their normalisation is among the weights."""
    shape = image_shape_of(bundle)
    return ImageFacts(shape, len(bundle.manifest.classes), (0.0,) * shape[0], (1.0,) * shape[0])


def bundle_config(bundle: Bundle) -> Config:
    """The config that the bundle was made from."""
    try:
        return parse_config(bundle.read(CONFIG).decode(), f"{bundle.folder / CONFIG}")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{bundle.folder / CONFIG} is not text; export the bundle again") from error


def device_of(bundle: Bundle) -> str:
    """Where the graph was trained and folded, if this machine has it."""
    return bundle.manifest.device if torch.cuda.is_available() and bundle.manifest.device.startswith("cuda") else "cpu"


def folded_here(bundle: Bundle, device: str) -> bool:
    """A fold has the bits of the device it ran on: e^g rounds differently on another kind."""
    return torch.device(bundle.manifest.device).type == torch.device(device).type


def training_only_in(graph: GraphModule, precision: str, frozen: FrozenStatistics | None) -> tuple[TrainingOnlyPart, ...]:
    def off_since(part: TrainingPart) -> int | None:
        return frozen.since_step if frozen is not None and is_frozen(part) else None

    found = training_only_parts(graph).items()
    parts = [TrainingOnlyPart(name=name, what=part.summary, off_since_step=off_since(part)) for name, part in found]
    if precision != "float32":
        parts.append(TrainingOnlyPart(name="precision", what=f"the training steps computed in {precision}"))
    return tuple(parts)


def records_in(bundle: Bundle, name: str) -> tuple[dict[str, JsonValue], ...]:
    try:
        records = [json.loads(line) for line in bundle.read(name).splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{bundle.folder / name} does not hold a JSON object a line: {error}; export the bundle again") from error
    if not all(isinstance(record, dict) for record in records):
        raise DamagedError(f"{bundle.folder / name} does not hold a JSON object a line; export the bundle again")
    return tuple(records)


def diagnosis_of(bundle: Bundle) -> tuple[dict[str, JsonValue], ...]:
    """The figures of all layers after each epoch, where the bundle has any."""
    records = records_in(bundle, DIAGNOSIS) if bundle.has(DIAGNOSIS) else ()
    for record in records:
        layers = record.get("layers")
        if not isinstance(record.get("epoch"), int) or not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise DamagedError(f"{bundle.folder / DIAGNOSIS} holds a line without an epoch and its layers; export the bundle again")
    return records


def image_shape_of(bundle: Bundle) -> tuple[int, int, int]:
    sizes = bundle.manifest.input.shape[1:]
    if len(sizes) != 3 or None in sizes:
        raise DamagedError(
            f"{bundle.folder}: the manifest's input is {bundle.manifest.input.shape}, expected batch x C x H x W; export the bundle again"
        )
    channels, height, width = (size or 0 for size in sizes)
    return channels, height, width


def spec_of(entry: TensorEntry) -> TensorSpec:
    return TensorSpec(entry.name, entry.dtype, tuple(entry.shape))


def _tensors(bundle: Bundle, name: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(bundle.read(name))
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{bundle.folder / name} is not a safetensors file: {error}; export the bundle again") from error


def load_weights(graph: nn.Module, bundle: Bundle, name: str) -> None:
    tensors = _tensors(bundle, name)
    try:
        graph.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise DamagedError(f"{bundle.folder / name} does not fit the network of {CONFIG}: {first}; export the bundle again") from error


Record = Mapping[str, JsonValue]


def frozen_statistics(records: Sequence[Record], options: Training, source: str) -> FrozenStatistics | None:
    """None where the run never came to freezing them."""
    first = first_frozen_epoch(options)
    before = len(records) if first is None else min(first, len(records))
    frozen = records[before:]
    step = records[before - 1].get("step") if frozen and before else None
    if [record.get("frozen_at_step") for record in records] != [None] * before + [step] * len(frozen):
        raise DamagedError(f"{source}: frozen_at_step is not what training.freeze_statistics of the config makes it; export the bundle again")
    if not frozen:
        return None
    return FrozenStatistics(
        since_step=int(_number(records[before - 1], "step", source)),
        last_step=int(_number(frozen[-1], "step", source)),
        accuracy_before=_number(records[before - 1], "test_accuracy", source),
        accuracy_recomputed=_number(frozen[0], "test_accuracy_at_freezing", source),
        accuracy_at_end=_number(frozen[-1], "test_accuracy", source),
    )


def _number(record: Record, key: str, source: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DamagedError(f"{source}: {key} of epoch {record.get('epoch')} is {value!r}, expected a number; export the bundle again")
    return value
