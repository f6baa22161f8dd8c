"""Verify a bundle from its files alone: rebuild its forms, run its chains on samples, and judge.

Takes an opened bundle and samples. Without PyTorch, the links between files run, and the others say
why they did not.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deploy.certificate.certificate import Certificate
from deploy.certificate.walk import certificate_of
from deploy.compare.inputs import SampleSource
from deploy.compare.samples import NamedImages, hostile_images
from deploy.progress import Console, comparing
from deploy.report.differences import pictures_of
from deploy.report.stored import require_its_own_verdict
from deploy.report.verification import Verification
from deploy.runners.runtimes import has_torch
from deploy.runners.tensorrt import EngineFile, stored_engines
from deploy.verify.links import Chain, Record, required_runtimes, selected
from deploy.verify.pixels import is_only_the_pixels, pixels_link, verdict_on_pixels
from deploy.verify.request import BundleRequest
from deploy.verify.run_chain import run_chain
from deploy.verify.verdict import FrozenStatistics, Verdict, together
from deploy.verify.worst import rows_of, worst_samples
from export.bundle import (
    CERTIFICATE,
    CONFIG,
    EXACT_FILES,
    EXACT_MODEL,
    EXACT_TENSORRT_MODEL,
    FLOAT16_MODEL,
    METRICS,
    MODEL,
    MODELS,
    TRAINING_WEIGHTS,
    WEIGHTS,
    Bundle,
    json_bytes,
    open_bundle,
)
from export.errors import DamagedError
from export.tensorrt.record import plan_name
from pipeline.bundle.chain import NO_TORCH, BundleForms, Engines, chain_of, missing_graphs
from pipeline.bundle.contents import (
    bundle_config,
    diagnosis_of,
    frozen_statistics,
    image_shape_of,
    records_in,
    require_one_story,
    require_the_metrics_of_the_manifest,
    samples_of,
)
from pipeline.bundle.stored_images import stored_images
from pipeline.bundle.stored_outputs import require_its_own_outputs
from pipeline.config import Config

if TYPE_CHECKING:
    from pipeline.bundle.rebuild import RebuiltModel

COMPARED_FILES = {MODEL, FLOAT16_MODEL, WEIGHTS, TRAINING_WEIGHTS, CONFIG, *EXACT_FILES}


def verify_folder(request: BundleRequest, console: Console) -> Verification:
    """Open a bundle and verify it on the samples that the user requests, or on its own."""
    bundle = open_bundle(request.folder)
    return verify_bundle(bundle, samples_of(bundle, request.samples), request, console)


def verify_bundle(
    bundle: Bundle, samples: SampleSource, request: BundleRequest, console: Console, second_builds: Mapping[str, EngineFile] | None = None
) -> Verification:
    """Run the chains of an opened bundle on the samples and on hostile images.

    `second_builds` holds engines that were built a second time, by name; they must give what the
    first ones give.
    """
    config = bundle_config(bundle)
    frozen = frozen_statistics(records_in(bundle, METRICS), config.training, str(bundle.folder / METRICS))
    _require_all_exact_files(bundle)
    rebuilt = _rebuilt(bundle, config, request.network, frozen)
    require_one_story(bundle, config)
    require_the_metrics_of_the_manifest(bundle)
    hostile = hostile_images(image_shape_of(bundle))
    everything = samples.followed_by({bundle.manifest.input.name: hostile.images})
    engines = dict(stored_engines(bundle))
    record = _record(bundle, samples, hostile, frozen, rebuilt, engines)
    with tempfile.TemporaryDirectory() as folder:
        models = _laid_out(bundle, Path(folder))
        wanted = Engines(files=engines, second_builds=second_builds or {}, wanted=config.export.tensorrt is not False)
        certificate = certificate_of(models[EXACT_MODEL]) if EXACT_MODEL in models else None
        if certificate is not None:
            _require_the_stored_certificate(bundle, certificate)
        chains = [] if is_only_the_pixels(request.only) else selected(_chains(config, models, rebuilt, wanted), request)
        verdict = _with_the_pixels(_verdicts(chains, everything, record, request, console), bundle, record, request)
        if verdict.passed and (certificate is None or certificate.holds):
            require_its_own_verdict(bundle)
        if chains and verdict.passed and not verdict.interrupted:
            reference = (missing_graphs(models[MODEL]) if rebuilt is None else rebuilt.graphs).reference
            assert reference is not None
            require_its_own_outputs(bundle, models[MODEL], models.get(EXACT_MODEL), reference)
    return Verification(
        verdict,
        records_in(bundle, METRICS),
        () if rebuilt is None else rebuilt.filters,
        _facts(bundle, config, rebuilt),
        diagnosis_of(bundle),
        pictures_of(rows_of(everything.batches(), worst_samples(verdict))),
        certificate if request.only is None else None,
        () if rebuilt is not None else (f"what exists in training only was not looked at: {NO_TORCH}",),
    )


def _rebuilt(bundle: Bundle, config: Config, network: str | None, frozen: FrozenStatistics | None) -> "RebuiltModel | None":
    """Return what needs PyTorch; None if it is not installed."""
    if not has_torch():
        return None
    from pipeline.bundle.rebuild import rebuilt_model

    return rebuilt_model(bundle, config, network, frozen)


def _chains(config: Config, models: Mapping[str, Path], rebuilt: "RebuiltModel | None", engines: Engines) -> list[Chain]:
    """Return the chain in float, and the one on the grid if there is an exact form."""
    runtimes = config.verify.runtimes
    floating = BundleForms(
        arithmetic="float",
        graphs=missing_graphs(models[MODEL]) if rebuilt is None else rebuilt.graphs,
        model=models[MODEL],
        float16_model=models.get(FLOAT16_MODEL),
        runtimes=runtimes,
        engines=engines,
        beyond_plain=None if rebuilt is None else rebuilt.beyond_plain,
    )
    if EXACT_MODEL not in models:
        return [chain_of(floating)]
    exact_graphs = missing_graphs(None) if rebuilt is None else rebuilt.exact_graphs
    assert exact_graphs is not None
    exact = BundleForms(
        arithmetic="grid",
        graphs=exact_graphs,
        model=models[EXACT_MODEL],
        signed_model=models[EXACT_TENSORRT_MODEL],
        runtimes=runtimes,
        engines=engines,
    )
    return [chain_of(floating), chain_of(exact)]


def _verdicts(chains: Sequence[Chain], samples: SampleSource, record: Record, request: BundleRequest, console: Console) -> list[Verdict]:
    """Return the verdict of each chain, until the user interrupts."""
    verdicts = []
    for chain in chains:
        require = required_runtimes(chain, request, ("onnxruntime-cpu",))
        watch = comparing(console, samples.num_batches)
        verdicts.append(run_chain(chain, samples.batches, record, require=require, inside=request.inside, watch=watch))
        if verdicts[-1].interrupted:
            break
    return verdicts


def _with_the_pixels(verdicts: Sequence[Verdict], bundle: Bundle, record: Record, request: BundleRequest) -> Verdict:
    """Return the verdicts as one, which begins with the link from image files to pixels."""
    images = stored_images(bundle)
    if not verdicts:
        return verdict_on_pixels(images, record)
    verdict = together(verdicts)
    return verdict if request.only is not None else replace(verdict, links=(pixels_link(images), *verdict.links))


def _record(
    bundle: Bundle,
    samples: SampleSource,
    hostile: NamedImages,
    frozen: FrozenStatistics | None,
    rebuilt: "RebuiltModel | None",
    engines: Mapping[str, EngineFile],
) -> Record:
    """Return what the verdict repeats from the bundle."""
    return Record(
        files={name: digest for name, digest in bundle.hashes.items() if name in COMPARED_FILES or name in map(plan_name, engines)},
        samples_made=(samples.description, f"{len(hostile.images)} hostile images: {hostile.description.partition(': ')[2]}"),
        training_only=() if rebuilt is None else rebuilt.training_only,
        frozen_statistics=frozen,
        not_foldable=() if rebuilt is None else rebuilt.not_foldable,
    )


def _require_all_exact_files(bundle: Bundle) -> None:
    present = [name for name in EXACT_FILES if bundle.has(name)]
    if present and len(present) < len(EXACT_FILES):
        missing = next(name for name in EXACT_FILES if not bundle.has(name))
        raise DamagedError(f"{bundle.folder} has {present[0]} and lacks {missing}, which goes with it; export the bundle again")


def _require_the_stored_certificate(bundle: Bundle, found: Certificate) -> None:
    """Require that the stored certificate is that of the exact file.

    While a bundle is being made, it has no certificate yet.
    """
    if bundle.has(CERTIFICATE) and bundle.read(CERTIFICATE) != json_bytes(found.to_json()):
        raise DamagedError(f"{bundle.folder / CERTIFICATE} is not the certificate of {EXACT_MODEL}; export the bundle again")


def _laid_out(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """Write the model files to disk: the bytes that were hashed are the bytes that are run."""
    paths = {name: folder / name for name in MODELS if bundle.has(name)}
    for name, path in paths.items():
        path.write_bytes(bundle.read(name))
    return paths


def _facts(bundle: Bundle, config: Config, rebuilt: "RebuiltModel | None") -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "network": manifest.network,
        "method": manifest.method,
        "data set": config.data.name,
        "classes": manifest.classes,
        **({} if rebuilt is None else {"parameters": rebuilt.num_parameters}),
        "accuracy on the test set": _accuracies(manifest.metrics),
        "files": bundle.hashes,
    }


def _accuracies(metrics: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the accuracies that training measured, in float32 and on the exact grid."""
    exact = metrics.get("exact")
    told = {"float32": metrics.get("test_accuracy")}
    if isinstance(exact, dict):
        told |= {
            "exact, before training on the grid": exact.get("test_accuracy_at_once"),
            "exact": exact.get("test_accuracy"),
            "no exact form": exact.get("not_run"),
        }
    return {name: value for name, value in told.items() if value is not None}
