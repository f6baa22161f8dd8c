"""The chain of a bundle, rebuilt from its files alone: training graph, evaluation graph, folded graph, ONNX file, each runtime.

Takes an opened bundle and samples; what the links are and what each must hold is decided here, how they are compared in `deploy.verify`.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn
from torch.fx import GraphModule

from deploy.runners.base import TensorSpec
from deploy.runners.tensorrt import EngineFile
from deploy.verify.certificate import Certificate
from deploy.verify.certifying import certificate_of
from deploy.verify.chain import Record, run_chain
from deploy.verify.given import samples_for
from deploy.verify.samples import hostile_images
from deploy.verify.selection import required_runtimes, selected
from deploy.verify.verdict import FrozenStatistics, NotFoldablePart, TrainingOnlyPart, together
from deploy.verify.worst import rows_of, worst_samples
from export.bundle import Bundle, TensorEntry, json_bytes
from export.derived import TrainingOnly, not_foldable_parts, training_only_parts
from export.engines.record import plan_name
from export.errors import DamagedError, UsageError
from export.exact.fold import folded_from_integers, integers_of
from export.exact.rewrite import GridGraph
from export.fold import fold
from export.onnx import class_metadata, operations_beyond_plain
from pipeline.assemble import ImageFacts, training_graph
from pipeline.chains import ExactForms, Place, exact_chain, float_chain
from pipeline.config import Config, parse_config
from pipeline.diagnosis import layer_figures
from pipeline.engine_links import Engines, with_exact_engines, with_float_engines
from pipeline.engines import stored_engines
from pipeline.exact_stage import grid_of
from pipeline.frozen import frozen_statistics
from pipeline.graph.trained import trained_layers
from pipeline.layout import (
    CERTIFICATE,
    CONFIG,
    DIAGNOSIS,
    EXACT_MODEL,
    EXACT_TENSORRT_MODEL,
    EXACT_TRAINING_WEIGHTS,
    EXACT_WEIGHTS,
    FLOAT16_MODEL,
    LABELS,
    METRICS,
    MODEL,
    PREPROCESSING,
    SAMPLES,
    TRAINING_WEIGHTS,
    WEIGHTS,
)
from pipeline.methods.statistics import freeze_statistics, is_frozen
from pipeline.networks import is_of_the_user
from pipeline.pictures import pictures_of
from pipeline.staging import Trained
from pipeline.stored_verdict import require_its_own_verdict
from pipeline.verified import Verification
from pipeline.watching import Console, shown

EXACT_FILES = (EXACT_MODEL, EXACT_TENSORRT_MODEL, EXACT_WEIGHTS, EXACT_TRAINING_WEIGHTS)
MODELS = (MODEL, FLOAT16_MODEL, EXACT_MODEL, EXACT_TENSORRT_MODEL)
COMPARED_FILES = {MODEL, FLOAT16_MODEL, WEIGHTS, TRAINING_WEIGHTS, CONFIG, *EXACT_FILES}


@dataclass(frozen=True)
class Samples:
    """Images to compare on, as often as they are asked for, and how they were made."""

    batches: Callable[[], Iterator[NDArray[np.uint8]]]
    num_batches: int
    description: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user wants of a verification beyond the chain itself."""

    required: tuple[str, ...] = ()
    """Runtimes without which there is no verdict; and "bitwise": see `selected`."""
    only: str | None = None
    """The one link that is checked."""
    inside: bool = False
    """Whether the report is to show the errors at inner tensors."""
    network: str | None = None
    """Code of the user's own that may build the network."""
    second_builds: Mapping[str, EngineFile] = field(default_factory=dict)
    """Engines that were built a second time, by name: the others must give what they give."""


def test_set(trained: Trained) -> Samples:
    """The test set, or as much of it as the config asks for."""
    wanted, size = trained.config.verify.samples, trained.config.verify.batch_size
    number = trained.test.num_samples if wanted == "test" else min(wanted, trained.test.num_samples)
    order = torch.arange(number)

    def batches() -> Iterator[NDArray[np.uint8]]:
        for images, _ in trained.test.batches_in_order(order, size):
            yield images.cpu().numpy()

    whole = f"{number} test images" if number == trained.test.num_samples else f"the first {number} test images"
    return Samples(batches, -(-number // size), f"{whole} of {trained.config.data.name}")


def stored_samples(bundle: Bundle) -> Samples:
    """The test images that the bundle carries."""
    images = _tensors(bundle, SAMPLES).get("images", torch.empty(0)).numpy()
    if images.dtype != np.uint8 or images.shape[1:] != _image_shape(bundle) or not len(images):
        found = f"{images.dtype.name}, {' x '.join(map(str, images.shape))}"
        wanted = f"uint8, N x {' x '.join(map(str, _image_shape(bundle)))}, N at least 1"
        raise DamagedError(f"{bundle.folder / SAMPLES}: images are {found}; expected {wanted}; export the bundle again")
    size = bundle_config(bundle).verify.batch_size

    def batches() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images), size):
            yield images[start : start + size]

    return Samples(batches, -(-len(images) // size), f"{len(images)} test images stored in the bundle")


def samples_of(bundle: Bundle, asked: str | None) -> Samples:
    """The samples that the bundle carries, or those that the user gives."""
    if asked is None:
        return stored_samples(bundle)
    name = bundle.manifest.input.name
    given = samples_for([_spec(bundle.manifest.input)], asked, bundle_config(bundle).verify.batch_size, {})
    return Samples(lambda: (batch[name] for batch in given.batches()), given.num_batches, given.description)


def verify_bundle(bundle: Bundle, samples: Samples, asked: Asked, console: Console) -> Verification:
    """Run the chain of an opened bundle on the samples and on hostile images."""
    graph = rebuilt_training_graph(bundle, asked.network)
    config = bundle_config(bundle)
    frozen = frozen_statistics(_records(bundle, METRICS), config.training, str(bundle.folder / METRICS))
    if frozen is not None:
        freeze_statistics(graph)
    folded = fold(graph)
    _load(folded, bundle, WEIGHTS)
    _require_one_story(bundle, config)
    _require_the_metrics_of_the_manifest(bundle)
    hostile = hostile_images(_image_shape(bundle))

    def inputs(batches: Iterable[NDArray[np.uint8]]) -> Iterator[dict[str, NDArray[np.uint8]]]:
        for images in batches:
            yield {bundle.manifest.input.name: images}
        yield {bundle.manifest.input.name: hostile.images}

    def batches() -> Iterator[dict[str, NDArray[np.uint8]]]:
        return inputs(shown(console, samples.batches(), "comparing", samples.num_batches))

    stored = dict(stored_engines(bundle))
    record = Record(
        files={name: digest for name, digest in bundle.hashes.items() if name in COMPARED_FILES or name in map(plan_name, stored)},
        samples_made=(samples.description, f"{len(hostile.images)} hostile images: {hostile.description.partition(': ')[2]}"),
        training_only=_training_only(graph, bundle.manifest.training_precision, frozen),
        frozen_statistics=frozen,
        not_foldable=tuple(NotFoldablePart(name=name, what=part.summary) for name, part in not_foldable_parts(graph).items()),
    )
    place = Place(_device(bundle), _spec(bundle.manifest.input), _spec(bundle.manifest.output), config.verify.runtimes)
    with tempfile.TemporaryDirectory() as folder:
        models = _laid_out(bundle, Path(folder))
        wanted, beyond_plain = config.export.tensorrt is not False, operations_beyond_plain(graph)
        engines = Engines(stored, asked.second_builds, models.get(FLOAT16_MODEL), wanted, beyond_plain)
        float_forms = float_chain(place, graph, folded, models[MODEL], folded_here=_folded_here(bundle, place.device))
        chains = [with_float_engines(float_forms, engines)]
        certificate = None
        if (grid := _rebuilt_grid(bundle, config)) is not None:
            exact = folded_from_integers(grid, _integers(bundle, grid))
            rounded_on = None if _folded_here(bundle, place.device) else bundle.manifest.device
            forms = ExactForms(grid, exact, models[EXACT_MODEL], models[EXACT_TENSORRT_MODEL], rounded_on)
            chains.append(with_exact_engines(exact_chain(place, forms), engines))
            certificate = certificate_of(models[EXACT_MODEL])
            _require_the_stored_certificate(bundle, certificate)
        verdicts = []
        for chain in selected(chains, asked.only, asked.required):
            require = required_runtimes(chain, (*asked.required, "onnxruntime-cpu"), asked.only)
            verdicts.append(run_chain(chain, batches, record, require=require, inside=asked.inside))
            if verdicts[-1].interrupted:
                break
    proved = certificate if asked.only is None else None
    filters = tuple(layer_figures(trained_layers(graph), config.training.deflated_below))
    verdict = together(verdicts)
    if verdict.passed and (certificate is None or certificate.holds):
        require_its_own_verdict(bundle)
    return Verification(
        verdict,
        _records(bundle, METRICS),
        filters,
        _facts(bundle, graph),
        _diagnosed(bundle),
        pictures_of(rows_of(inputs(samples.batches()), worst_samples(verdict))),
        proved,
    )


def _require_the_stored_certificate(bundle: Bundle, found: Certificate) -> None:
    """A bundle's certificate must be the one that its file has; while a bundle is made there is none yet."""
    if bundle.has(CERTIFICATE) and bundle.read(CERTIFICATE) != json_bytes(found.to_json()):
        raise DamagedError(f"{bundle.folder / CERTIFICATE} is not the certificate of {EXACT_MODEL}; export the bundle again")


def _laid_out(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """The model files on the disk: the bytes that were hashed are the bytes that are run."""
    paths = {name: folder / name for name in MODELS if bundle.has(name)}
    for name, path in paths.items():
        path.write_bytes(bundle.read(name))
    return paths


def _rebuilt_grid(bundle: Bundle, config: Config) -> GridGraph | None:
    """The exact training graph, from the bundle's config, its training weights, and those of the exact stage."""
    present = [name for name in EXACT_FILES if bundle.has(name)]
    if not present:
        return None
    if len(present) < len(EXACT_FILES):
        missing = next(name for name in EXACT_FILES if not bundle.has(name))
        raise DamagedError(f"{bundle.folder} has {present[0]} and lacks {missing}, which goes with it; export the bundle again")
    grid, _ = grid_of(config, _image_facts(bundle), _tensors(bundle, TRAINING_WEIGHTS))
    _load(grid.graph, bundle, EXACT_TRAINING_WEIGHTS)
    for step in (quantiser.step.item() for members in grid.groups.values() for quantiser in members):
        if not (0 < step < math.inf and math.frexp(step)[0] == 0.5):
            raise DamagedError(f"{bundle.folder / EXACT_TRAINING_WEIGHTS} has the step {step}, expected a power of two; export the bundle again")
    return grid


def _integers(bundle: Bundle, grid: GridGraph) -> dict[str, torch.Tensor]:
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
    graph = training_graph(config, _image_facts(bundle)).graph
    _load(graph, bundle, TRAINING_WEIGHTS)
    return graph


def _image_facts(bundle: Bundle) -> ImageFacts:
    """What the manifest says of the images; their normalisation is among the weights."""
    shape = _image_shape(bundle)
    return ImageFacts(shape, len(bundle.manifest.classes), (0.0,) * shape[0], (1.0,) * shape[0])


def bundle_config(bundle: Bundle) -> Config:
    """The config that the bundle was made from."""
    try:
        return parse_config(bundle.read(CONFIG).decode(), f"{bundle.folder / CONFIG}")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{bundle.folder / CONFIG} is not text; export the bundle again") from error


def _device(bundle: Bundle) -> str:
    """Where the graph was trained and folded, if this machine has it."""
    return bundle.manifest.device if torch.cuda.is_available() and bundle.manifest.device.startswith("cuda") else "cpu"


def _folded_here(bundle: Bundle, device: str) -> bool:
    """A fold has the bits of the device it ran on: e^g rounds differently on another kind."""
    return torch.device(bundle.manifest.device).type == torch.device(device).type


def _training_only(graph: GraphModule, precision: str, frozen: FrozenStatistics | None) -> tuple[TrainingOnlyPart, ...]:
    def off_since(part: TrainingOnly) -> int | None:
        return frozen.since_step if frozen is not None and is_frozen(part) else None

    found = training_only_parts(graph).items()
    parts = [TrainingOnlyPart(name=name, what=part.summary, off_since_step=off_since(part)) for name, part in found]
    if precision != "float32":
        parts.append(TrainingOnlyPart(name="precision", what=f"the training steps computed in {precision}"))
    return tuple(parts)


def _records(bundle: Bundle, name: str) -> tuple[dict[str, JsonValue], ...]:
    try:
        records = [json.loads(line) for line in bundle.read(name).splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{bundle.folder / name} does not hold a JSON object a line: {error}; export the bundle again") from error
    if not all(isinstance(record, dict) for record in records):
        raise DamagedError(f"{bundle.folder / name} does not hold a JSON object a line; export the bundle again")
    return tuple(records)


def _diagnosed(bundle: Bundle) -> tuple[dict[str, JsonValue], ...]:
    """The figures of all layers after each epoch, where the bundle has any."""
    records = _records(bundle, DIAGNOSIS) if bundle.has(DIAGNOSIS) else ()
    for record in records:
        layers = record.get("layers")
        if not isinstance(record.get("epoch"), int) or not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise DamagedError(f"{bundle.folder / DIAGNOSIS} holds a line without an epoch and its layers; export the bundle again")
    return records


def _model_metadata(bundle: Bundle) -> dict[str, str]:
    """What the model file says of itself; whether it may be run is found out when it is opened."""
    try:
        return {each.key: each.value for each in onnx.load_model_from_string(bundle.read(MODEL)).metadata_props}
    except DecodeError as error:
        raise DamagedError(f"{bundle.folder / MODEL} is not an ONNX file: {error}; export the bundle again") from error


def _require_one_story(bundle: Bundle, config: Config) -> None:
    """What the bundle says of itself in several places must be the same in all of them."""
    manifest, metadata = bundle.manifest, _model_metadata(bundle)
    labels = tuple(bundle.read(LABELS).decode(errors="replace").splitlines())
    told = {
        "network": (config.network.name, manifest.network, metadata.get("network")),
        "method": (config.method.name, manifest.method, metadata.get("method")),
        "classes": (class_metadata(labels), class_metadata(tuple(manifest.classes)), metadata.get("classes")),
        "preprocessing": (PREPROCESSING, manifest.preprocessing, metadata.get("preprocessing")),
    }
    for what, values in told.items():
        if len(set(values)) > 1:
            raise DamagedError(f"{bundle.folder} says different things of its {what}: {', '.join(map(repr, values))}; export the bundle again")
    if len(set(manifest.classes)) < len(manifest.classes):
        raise DamagedError(f"{bundle.folder} names a class twice: {manifest.classes}; export the bundle again")


def _require_the_metrics_of_the_manifest(bundle: Bundle) -> None:
    """The figures of the last epoch stand in both."""
    told = bundle.manifest.metrics
    for name, value in (_records(bundle, METRICS) or ({},))[-1].items():
        if told.get(name) != value:
            where = f"{bundle.folder / METRICS} ends with {name} {value!r}, the manifest says {told.get(name)!r}"
            raise DamagedError(f"{where}; export the bundle again")


def _facts(bundle: Bundle, graph: nn.Module) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "network": manifest.network,
        "method": manifest.method,
        "data set": bundle_config(bundle).data.name,
        "classes": manifest.classes,
        "parameters": sum(parameter.numel() for parameter in graph.parameters()),
        "accuracy on the test set": _accuracies(manifest.metrics),
        "files": bundle.hashes,
    }


def _accuracies(metrics: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """As training measured them, in float32 and on the exact grid."""
    exact = metrics.get("exact")
    told = {"float32": metrics.get("test_accuracy")}
    if isinstance(exact, dict):
        told |= {
            "exact, before training on the grid": exact.get("test_accuracy_at_once"),
            "exact": exact.get("test_accuracy"),
            "no exact form": exact.get("not_run"),
        }
    return {name: value for name, value in told.items() if value is not None}


def _image_shape(bundle: Bundle) -> tuple[int, int, int]:
    sizes = bundle.manifest.input.shape[1:]
    if len(sizes) != 3 or None in sizes:
        raise DamagedError(
            f"{bundle.folder}: the manifest's input is {bundle.manifest.input.shape}, expected batch x C x H x W; export the bundle again"
        )
    channels, height, width = (size or 0 for size in sizes)
    return channels, height, width


def _spec(entry: TensorEntry) -> TensorSpec:
    return TensorSpec(entry.name, entry.dtype, tuple(entry.shape))


def _tensors(bundle: Bundle, name: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(bundle.read(name))
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{bundle.folder / name} is not a safetensors file: {error}; export the bundle again") from error


def _load(graph: nn.Module, bundle: Bundle, name: str) -> None:
    tensors = _tensors(bundle, name)
    try:
        graph.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise DamagedError(f"{bundle.folder / name} does not fit the network of {CONFIG}: {first}; export the bundle again") from error
