"""Verification of a bundle from its files alone: its chains are rebuilt, run on samples and judged.

Takes an opened bundle and samples; how links are compared is decided in `deploy.verify`.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn

from deploy.certificate.certificate import Certificate
from deploy.certificate.walk import certificate_of
from deploy.compare.inputs import samples_for
from deploy.compare.samples import hostile_images
from deploy.report.differences import pictures_of
from deploy.report.stored import require_its_own_verdict
from deploy.report.verification import Verification
from deploy.runners.tensorrt import EngineFile
from deploy.verify.links import Record, required_runtimes, selected
from deploy.verify.request import BundleRequest
from deploy.verify.run import run_chain
from deploy.verify.verdict import NotFoldablePart, together
from deploy.verify.worst import rows_of, worst_samples
from export.bundle import (
    CERTIFICATE,
    CONFIG,
    EXACT_MODEL,
    EXACT_TENSORRT_MODEL,
    FLOAT16_MODEL,
    LABELS,
    METRICS,
    MODEL,
    PREPROCESSING,
    TRAINING_WEIGHTS,
    WEIGHTS,
    Bundle,
    json_bytes,
)
from export.errors import DamagedError
from export.exact.grid import folded_from_integers
from export.fold import fold
from export.layers import not_foldable_parts
from export.onnx import class_metadata, operations_beyond_plain
from export.tensorrt.record import plan_name
from pipeline.bundle.chain import ChainSetting, Engines, ExactForms, exact_chain, float_chain, with_exact_engines, with_float_engines
from pipeline.bundle.engines import stored_engines
from pipeline.bundle.make import TrainedRun
from pipeline.bundle.rebuild import (
    EXACT_FILES,
    Samples,
    bundle_config,
    device_of,
    diagnosis_of,
    folded_here,
    frozen_statistics,
    image_shape_of,
    load_weights,
    rebuilt_grid,
    rebuilt_training_graph,
    records_in,
    spec_of,
    stored_integers,
    stored_samples,
    training_only_in,
)
from pipeline.config import Config
from pipeline.graph.parts import trained_layers
from pipeline.methods.statistics import freeze_statistics
from pipeline.progress import Console, shown
from pipeline.training.diagnosis import layer_figures

MODELS = (MODEL, FLOAT16_MODEL, EXACT_MODEL, EXACT_TENSORRT_MODEL)
COMPARED_FILES = {MODEL, FLOAT16_MODEL, WEIGHTS, TRAINING_WEIGHTS, CONFIG, *EXACT_FILES}


def test_set(trained: TrainedRun) -> Samples:
    """The test set, or as much of it as the config asks for."""
    wanted, size = trained.config.verify.samples, trained.config.verify.batch_size
    number = trained.test.num_samples if wanted == "test" else min(wanted, trained.test.num_samples)
    order = torch.arange(number)

    def batches() -> Iterator[NDArray[np.uint8]]:
        for images, _ in trained.test.batches_in_order(order, size):
            yield images.cpu().numpy()

    whole = f"{number} test images" if number == trained.test.num_samples else f"the first {number} test images"
    return Samples(batches, -(-number // size), f"{whole} of {trained.config.data.name}")


def samples_of(bundle: Bundle, asked: str | None) -> Samples:
    """The samples that the bundle carries, or those that the user gives."""
    if asked is None:
        return stored_samples(bundle)
    name = bundle.manifest.input.name
    given = samples_for([spec_of(bundle.manifest.input)], asked, bundle_config(bundle).verify.batch_size, {})
    return Samples(lambda: (batch[name] for batch in given.batches()), given.num_batches, given.description)


def verify_bundle(
    bundle: Bundle, samples: Samples, request: BundleRequest, console: Console, second_builds: Mapping[str, EngineFile] | None = None
) -> Verification:
    """Run the chain of an opened bundle on the samples and on hostile images.

    `second_builds`: engines that were built a second time, by name; they must give what the first ones give.
    """
    config = bundle_config(bundle)
    graph = rebuilt_training_graph(bundle, config, request.network)
    frozen = frozen_statistics(records_in(bundle, METRICS), config.training, str(bundle.folder / METRICS))
    if frozen is not None:
        freeze_statistics(graph)
    folded = fold(graph)
    load_weights(folded, bundle, WEIGHTS)
    _require_one_story(bundle, config)
    _require_the_metrics_of_the_manifest(bundle)
    hostile = hostile_images(image_shape_of(bundle))

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
        training_only=training_only_in(graph, bundle.manifest.training_precision, frozen),
        frozen_statistics=frozen,
        not_foldable=tuple(NotFoldablePart(name=name, what=part.summary) for name, part in not_foldable_parts(graph).items()),
    )
    place = ChainSetting(device_of(bundle), spec_of(bundle.manifest.input), spec_of(bundle.manifest.output), config.verify.runtimes)
    with tempfile.TemporaryDirectory() as folder:
        models = _laid_out(bundle, Path(folder))
        wanted, beyond_plain = config.export.tensorrt is not False, operations_beyond_plain(graph)
        engines = Engines(stored, second_builds or {}, models.get(FLOAT16_MODEL), wanted, beyond_plain)
        float_forms = float_chain(place, graph, folded, models[MODEL], folded_here=folded_here(bundle, place.device))
        chains = [with_float_engines(float_forms, engines)]
        certificate = None
        if (grid := rebuilt_grid(bundle, config, graph)) is not None:
            exact = folded_from_integers(grid, stored_integers(bundle, grid))
            rounded_on = None if folded_here(bundle, place.device) else bundle.manifest.device
            forms = ExactForms(grid, exact, models[EXACT_MODEL], models[EXACT_TENSORRT_MODEL], rounded_on)
            chains.append(with_exact_engines(exact_chain(place, forms), engines))
            certificate = certificate_of(models[EXACT_MODEL])
            _require_the_stored_certificate(bundle, certificate)
        verdicts = []
        for chain in selected(chains, request):
            require = required_runtimes(chain, request, ("onnxruntime-cpu",))
            verdicts.append(run_chain(chain, batches, record, require=require, inside=request.inside))
            if verdicts[-1].interrupted:
                break
    proved = certificate if request.only is None else None
    filters = tuple(layer_figures(trained_layers(graph), config.training.deflated_below))
    verdict = together(verdicts)
    if verdict.passed and (certificate is None or certificate.holds):
        require_its_own_verdict(bundle)
    return Verification(
        verdict,
        records_in(bundle, METRICS),
        filters,
        _facts(bundle, config, graph),
        diagnosis_of(bundle),
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
    for name, value in (records_in(bundle, METRICS) or ({},))[-1].items():
        if told.get(name) != value:
            where = f"{bundle.folder / METRICS} ends with {name} {value!r}, the manifest says {told.get(name)!r}"
            raise DamagedError(f"{where}; export the bundle again")


def _facts(bundle: Bundle, config: Config, graph: nn.Module) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "network": manifest.network,
        "method": manifest.method,
        "data set": config.data.name,
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
