"""What a bundle says about itself: its config, its records, its samples.

Takes an opened bundle. Contradictions within it are a DamagedError. Needs no torch.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import safetensors.numpy
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pydantic import JsonValue

from deploy.compare.inputs import SampleSource, samples_for
from deploy.runners.runner import TensorSpec
from deploy.verify.verdict import FrozenStatistics
from export.bundle import CONFIG, DIAGNOSIS, LABELS, METRICS, MODEL, SAMPLES, Bundle, TensorEntry, class_metadata
from export.errors import DamagedError
from pipeline.config import Config, parse_config
from pipeline.config.sections import Training

Record = Mapping[str, JsonValue]


def bundle_config(bundle: Bundle) -> Config:
    """Return the config that the bundle was made from."""
    try:
        return parse_config(bundle.read(CONFIG).decode(), f"{bundle.folder / CONFIG}")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{bundle.folder / CONFIG} is not text; export the bundle again") from error


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


def samples_of(bundle: Bundle, requested: str | None) -> SampleSource:
    """Return the samples that the bundle carries, or those that the user gives."""
    if requested is None:
        return stored_samples(bundle)
    return samples_for([spec_of(bundle.manifest.input)], requested, bundle_config(bundle).verify.batch_size, {})


def stored_samples(bundle: Bundle) -> SampleSource:
    """Return the test images that the bundle carries."""
    images = _images(bundle)
    if images.dtype != np.uint8 or images.shape[1:] != image_shape_of(bundle) or not len(images):
        found = f"{images.dtype.name}, {' x '.join(map(str, images.shape))}"
        wanted = f"uint8, N x {' x '.join(map(str, image_shape_of(bundle)))}, N at least 1"
        raise DamagedError(f"{bundle.folder / SAMPLES}: images are {found}; expected {wanted}; export the bundle again")
    size = bundle_config(bundle).verify.batch_size
    return SampleSource.of_array(bundle.manifest.input.name, images, size, f"{len(images)} test images stored in the bundle")


def _images(bundle: Bundle) -> NDArray[np.uint8]:
    try:
        return safetensors.numpy.load(bundle.read(SAMPLES)).get("images", np.empty(0))
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{bundle.folder / SAMPLES} is not a safetensors file: {error}; export the bundle again") from error


def records_in(bundle: Bundle, name: str) -> tuple[dict[str, JsonValue], ...]:
    try:
        records = [json.loads(line) for line in bundle.read(name).splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{bundle.folder / name} does not hold one JSON object per line: {error}; export the bundle again") from error
    if not all(isinstance(record, dict) for record in records):
        raise DamagedError(f"{bundle.folder / name} does not hold one JSON object per line; export the bundle again")
    return tuple(records)


def diagnosis_of(bundle: Bundle) -> tuple[dict[str, JsonValue], ...]:
    """Return the figures of all layers after each epoch, if the bundle has any."""
    records = records_in(bundle, DIAGNOSIS) if bundle.has(DIAGNOSIS) else ()
    for record in records:
        layers = record.get("layers")
        if not isinstance(record.get("epoch"), int) or not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise DamagedError(f"{bundle.folder / DIAGNOSIS} holds a line without an epoch and its layers; export the bundle again")
    return records


def frozen_statistics(records: Sequence[Record], options: Training, source: str) -> FrozenStatistics | None:
    """Return the facts of frozen statistics; None if the run never froze them."""
    first = options.first_frozen_epoch
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


def require_one_story(bundle: Bundle, config: Config) -> None:
    """Require that statements which the bundle makes in several places agree."""
    manifest, metadata = bundle.manifest, _model_metadata(bundle)
    labels = tuple(bundle.read(LABELS).decode(errors="replace").splitlines())
    told = {
        "network": (config.network.name, manifest.network, metadata.get("network")),
        "method": (config.method.name, manifest.method, metadata.get("method")),
        "classes": (class_metadata(labels), class_metadata(tuple(manifest.classes)), metadata.get("classes")),
        "recipe": (manifest.recipe.text, metadata.get("recipe")),
    }
    for what, values in told.items():
        if len(set(values)) > 1:
            raise DamagedError(f"{bundle.folder} says different things about its {what}: {', '.join(map(repr, values))}; export the bundle again")
    if manifest.recipe.shape != image_shape_of(bundle):
        sizes = [" x ".join(map(str, shape)) for shape in (manifest.recipe.shape, image_shape_of(bundle))]
        raise DamagedError(f"{bundle.folder}: the recipe gives images of {sizes[0]}, the model takes {sizes[1]}; export the bundle again")
    if len(set(manifest.classes)) < len(manifest.classes):
        raise DamagedError(f"{bundle.folder} names a class twice: {manifest.classes}; export the bundle again")


def _model_metadata(bundle: Bundle) -> dict[str, str]:
    """Return what the model file says about itself.

    Whether it may be run is checked when it is opened.
    """
    try:
        return {each.key: each.value for each in onnx.load_model_from_string(bundle.read(MODEL)).metadata_props}
    except DecodeError as error:
        raise DamagedError(f"{bundle.folder / MODEL} is not an ONNX file: {error}; export the bundle again") from error


def require_the_metrics_of_the_manifest(bundle: Bundle) -> None:
    """Require that the manifest and the metrics have the same figures of the last epoch."""
    told = bundle.manifest.metrics
    for name, value in (records_in(bundle, METRICS) or ({},))[-1].items():
        if told.get(name) != value:
            where = f"{bundle.folder / METRICS} ends with {name} {value!r}, the manifest says {told.get(name)!r}"
            raise DamagedError(f"{where}; export the bundle again")
