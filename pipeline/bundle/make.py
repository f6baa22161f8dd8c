"""Write the files of a bundle from a trained graph.

Takes the trained graph, the config it came from and facts of the data. Only what is written here is
verified later. Knows neither runtimes nor verdicts.
"""

import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn
from torch.fx import GraphModule

from deploy.compare.inputs import SampleSource
from deploy.report.words import spoken_counts
from export import preprocess
from export.bundle import (
    CARD,
    CONFIG,
    DIAGNOSIS,
    EXACT_METRICS,
    EXACT_MODEL,
    EXACT_TENSORRT_MODEL,
    EXACT_TRAINING_WEIGHTS,
    EXACT_WEIGHTS,
    LABELS,
    METRICS,
    MODEL,
    PREPROCESS,
    SAMPLES,
    TRAINING_WEIGHTS,
    WEIGHTS,
    Facts,
    TensorEntry,
    class_metadata,
)
from export.exact.dialects import exact_onnx, exact_tensorrt_onnx
from export.exact.grid import integers_of
from export.files import sha256_of, write_file
from export.graph.fold import fold, tensors_bytes
from export.graph.layers import not_foldable_parts
from export.onnx import INPUT, OUTPUT, onnx_from_graph
from export.preprocess import Recipe
from pipeline.bundle.stored_images import write_stored_images
from pipeline.config import Config, dump_config
from pipeline.data import Split
from pipeline.exact_training import ExactRun, NoExactForm
from pipeline.networks import is_of_the_user

_PACKAGES = ("samegraph", "torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow")
_LARGEST_SAMPLES = 8 * 2**20


@dataclass(frozen=True)
class TrainedRun:
    """A trained graph and everything that a bundle says about it."""

    config: Config
    graph: GraphModule
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    test: Split
    metrics: Mapping[str, JsonValue]
    metrics_lines: bytes
    device: str
    precision: str
    exact: ExactRun | NoExactForm
    recipe: Recipe
    test_files: tuple[str, ...] = ()
    """The image files of the test split, if it has any; a few of them go into the bundle."""
    diagnosis_lines: bytes = b""
    """The figures of layers, one line per epoch; empty if none were kept."""

    @property
    def facts(self) -> Facts:
        """The manifest's part about the model."""
        return Facts(
            network=self.config.network.name,
            method=self.config.method.name,
            input=TensorEntry(name=INPUT, dtype="uint8", shape=[None, *self.image_shape]),
            output=TensorEntry(name=OUTPUT, dtype="float32", shape=[None, len(self.classes)]),
            classes=list(self.classes),
            recipe=self.recipe,
            versions=versions(),
            device=self.device,
            training_precision=self.precision,
            metrics={**self.metrics, "exact": dict(self.exact.facts)},
        )


def write_bundle_files(folder: Path, trained: TrainedRun) -> None:
    """Write every file of the bundle except the verdict, the report and the manifest."""
    (folder / "training").mkdir()
    folded = fold(trained.graph)
    sources = {
        WEIGHTS: tensors_bytes(folded.state_dict()),
        TRAINING_WEIGHTS: tensors_bytes(trained.graph.state_dict()),
        CONFIG: dump_config(trained.config).encode(),
    }
    for name, content in sources.items():
        write_file(folder / name, content)
    write_file(folder / MODEL, onnx_from_graph(folded, trained.image_shape, _model_metadata(trained, sources)))
    if isinstance(trained.exact, ExactRun):
        _write_exact_files(folder, trained, trained.exact)
    write_file(folder / SAMPLES, tensors_bytes(_kept_samples(trained)))
    write_file(folder / METRICS, trained.metrics_lines)
    if trained.diagnosis_lines:
        write_file(folder / DIAGNOSIS, trained.diagnosis_lines)
    write_file(folder / LABELS, "".join(f"{name}\n" for name in trained.classes).encode())
    write_file(folder / CARD, _model_card(trained).encode())
    write_file(folder / PREPROCESS, Path(preprocess.__file__).read_bytes())
    write_stored_images(folder, trained.recipe, trained.test_files)


def _write_exact_files(folder: Path, trained: TrainedRun, exact: ExactRun) -> None:
    sources = {
        EXACT_WEIGHTS: tensors_bytes(integers_of(exact.grid)),
        EXACT_TRAINING_WEIGHTS: tensors_bytes(exact.grid.graph.state_dict()),
        CONFIG: dump_config(trained.config).encode(),
    }
    metadata = _model_metadata(trained, sources)
    write_file(folder / EXACT_WEIGHTS, sources[EXACT_WEIGHTS])
    write_file(folder / EXACT_TRAINING_WEIGHTS, sources[EXACT_TRAINING_WEIGHTS])
    write_file(folder / EXACT_METRICS, exact.metrics_lines)
    for name, write in {EXACT_MODEL: exact_onnx, EXACT_TENSORRT_MODEL: exact_tensorrt_onnx}.items():
        write_file(folder / name, write(exact.grid, trained.image_shape, len(trained.classes), metadata))


def versions() -> dict[str, str]:
    """Return the versions of the packages that made the files."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"  # samegraph itself, if it is run from its sources


def _model_metadata(trained: TrainedRun, sources: Mapping[str, bytes]) -> dict[str, str]:
    """Return what a model file says about its origin if it is found without its bundle."""
    facts = trained.facts
    return {
        "classes": class_metadata(trained.classes),
        "recipe": facts.recipe.text,
        "network": facts.network,
        "method": facts.method,
        **{f"version.{name}": version for name, version in facts.versions.items()},
        **{f"sha256.{name}": sha256_of(content) for name, content in sources.items()},
    }


def _kept_samples(trained: TrainedRun) -> dict[str, torch.Tensor]:
    """Return as many test images, evenly spread over the set, as fit a small file.

    With them a bundle can be verified anywhere.
    """
    total, size = trained.test.num_samples, math.prod(trained.image_shape)
    number = min(total, max(1, _LARGEST_SAMPLES // size))
    chosen = torch.arange(number) * total // number
    batches = list(trained.test.batches_in_order(chosen, batch_size=256))
    return {"images": torch.cat([images for images, _ in batches]), "labels": torch.cat([labels for _, labels in batches])}


def _model_card(trained: TrainedRun) -> str:
    facts, accuracy = trained.facts, trained.metrics.get("test_accuracy")
    channels, height, width = trained.image_shape
    notes = _kept_as_it_is(trained.graph) + _frozen_since(trained.metrics)
    measured = f"{accuracy:.2%} of the test set" if isinstance(accuracy, float) else "not measured"
    origin, moment = _origin(trained)
    return f"""# {facts.network}, trained {origin}

- Input `{INPUT}`: uint8, batch x {channels} x {height} x {width}, raw pixels 0 to 255. Do not normalise: the graph does.
- Pixels: {_pixels_to_feed(trained.recipe)} `python {PREPROCESS} IMAGE...` makes them, with Pillow and NumPy alone.
- Output `{OUTPUT}`: float32, batch x {len(trained.classes)}; the order of classes is in `{LABELS}`.
{notes}- Data: {trained.config.data.name}. Accuracy {moment}: {measured}.
{_on_the_grid(trained.exact)}
`verification.json` and `report.html` say what was compared with what, and how it came out. `manifest.json` has the hash of every file;
{_how_to_verify(facts.network)}

    import numpy, onnxruntime
    session = onnxruntime.InferenceSession("{MODEL}")
    (logits,) = session.run(None, {{"{INPUT}": numpy.zeros((1, {channels}, {height}, {width}), numpy.uint8)}})
"""


def _on_the_grid(exact: ExactRun | NoExactForm) -> str:
    """Return a line on the exact form; empty if there is none."""
    if isinstance(exact, NoExactForm):
        return ""
    measured = f"{exact.facts['test_accuracy']:.2%} of the test set"
    return f"- `{EXACT_MODEL}`: the same network on the exact grid, for the same bits in every runtime. Accuracy: {measured}.\n"


def _origin(trained: TrainedRun) -> tuple[str, str]:
    """Return how the network was made and when its accuracy was measured."""
    epoch = trained.metrics.get("epoch")
    if epoch == 0:
        return "elsewhere", "as it was given"
    return f"with {trained.facts.method}", "in training" if epoch is None else f"after {epoch} epoch{'' if epoch == 1 else 's'} of training"


def _kept_as_it_is(graph: nn.Module) -> str:
    """Return a line on what could not be folded; empty if everything was."""
    counted = spoken_counts(part.summary for part in not_foldable_parts(graph).values())
    return f"- Not foldable, deployed as it was trained: {counted}.\n" if counted else ""


def _frozen_since(metrics: Mapping[str, JsonValue]) -> str:
    """Return a line on batch statistics that were frozen at the end of training; empty if there
    were none."""
    since = metrics.get("frozen_at_step")
    if since is None:
        return ""
    return f"- Batch statistics were frozen after step {since} of {metrics.get('step')}: from there on the training graph was the deployed one.\n"


def _pixels_to_feed(recipe: Recipe) -> str:
    """Return in words what an image goes through before it reaches the graph.

    To the bit, the recipe in the manifest says it.
    """
    gray = recipe.colour == "L"
    match recipe.trained_on:
        case preprocess.SIXTEENTHS:
            trained_on = "scikit-learn's values v of 0 to 16 as min(16 v, 255). An image file: "
        case preprocess.UNCHANGED:
            trained_on = f"those of the data set, {'gray' if gray else 'RGB'}, unchanged. An image file: "
        case _:
            trained_on = ""
    colour = "gray (from colour: ITU-R 601 luma)" if gray else "RGB"
    return f"{trained_on}{colour}, upright as the EXIF orientation says; {_part_to_feed(recipe)}."


def _part_to_feed(recipe: Recipe) -> str:
    size, scaled = f"{recipe.height} x {recipe.width}", "bilinear with antialiasing (Pillow's `BILINEAR`)"
    match recipe.framing:
        case preprocess.WHOLE:
            return f"{size}, neither cropped nor scaled"
        case preprocess.SHORTER_SIDE:
            return f"the shorter side scaled to {recipe.resize}, {scaled}, and of that the {size} in the centre"
        case _:
            return f"the centre square, scaled to {size}, {scaled}"


def _how_to_verify(network: str) -> str:
    if is_of_the_user(network):
        return f"""`pipeline verify BUNDLE --network {network}`, where that module can be imported, checks hashes and outputs again: the network is
code of the user's own, which no bundle imports by itself. BUNDLE is this folder."""
    return "`pipeline verify` on this folder checks hashes and outputs again, from these files alone."


def test_set(trained: TrainedRun) -> SampleSource:
    """Return the test set, or as much of it as the config requests."""
    wanted, size = trained.config.verify.samples, trained.config.verify.batch_size
    number = trained.test.num_samples if wanted == "test" else min(wanted, trained.test.num_samples)
    order = torch.arange(number)

    def batches() -> Iterator[dict[str, NDArray[np.uint8]]]:
        for images, _ in trained.test.batches_in_order(order, size):
            yield {INPUT: images.cpu().numpy()}

    whole = f"{number} test images" if number == trained.test.num_samples else f"the first {number} test images"
    return SampleSource(batches, -(-number // size), number, f"{whole} of {trained.config.data.name}")
