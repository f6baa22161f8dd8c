"""The figures of layers against NumPy in float64, and where they go.

Norms, means, scales, variances, deflated filters and gradients.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import pipeline
from graphs import DEFAULTS, REFUSED, images, rewritten, step
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from export.bundle import Facts, Manifest, open_bundle, write_manifest
from export.graph.parts import trained_layers
from pipeline.methods import METHODS
from pipeline.training.diagnosis import GradientNorms, layer_figures, with_gradient_norms

SHAPE = (3, 32, 32)
QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
SHORT = ["--set", "training.epochs=2", "--set", "training.schedule={name: constant}", "--set", "verify.samples=50"]
DIAGNOSED = [*SHORT, "--set", "training.diagnosis=epoch"]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_is_there_in_the_order_of_the_graph(method: str) -> None:
    layers = trained_layers(rewritten("resnet20", SHAPE, DEFAULTS[method]).graph)
    blocks = [f"network.stages.{stage}.{block}.conv{number}" for stage in range(3) for block in range(3) for number in (1, 2)]
    assert [layer.name for layer in layers] == ["network.conv1", *blocks, "network.classifier"]
    assert [layers[0].kind, layers[-1].kind, {layer.kind for layer in layers[1:-1]}] == ["first", "classifier", {"spatial"}]


def quantiles(values: Array) -> list[float]:
    return [float(each) for each in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


def of_parameter(name: str) -> Callable[[torch.fx.GraphModule, str], Array]:
    return lambda graph, layer: graph.get_parameter(f"{layer}.{name}").detach().double().numpy()


FILTERS = {
    "czmig": of_parameter("derivation.direction"),
    "weightnorm": of_parameter("derivation.direction"),
    "batchnorm": of_parameter("operation.derivation.weight"),
    "nonorm": of_parameter("weight"),
}
LAYER = "network.stages.1.0.conv2"


@pytest.mark.parametrize("method", FILTERS)
def test_norms_means_and_deflated_filters_are_those_of_the_trained_filters(method: str) -> None:
    training = rewritten("resnet20", SHAPE, DEFAULTS[method])
    step(training, images(8, SHAPE))
    layers = trained_layers(training.graph)
    filters = FILTERS[method](training.graph, LAYER)
    norms = np.sqrt(np.square(filters).sum(axis=(1, 2, 3)))
    means = filters.mean(axis=(2, 3))
    below = float(np.median(norms)) * (1 + 1e-6)
    (figures,) = (each for each in layer_figures(layers, below) if each["name"] == LAYER)
    assert figures["norms"] == pytest.approx(quantiles(norms), rel=1e-12)
    assert figures["slice_means"] == pytest.approx(quantiles(means), rel=1e-12, abs=1e-12)
    assert figures["off_isocline"] == pytest.approx(quantiles(np.sqrt(9 * np.square(means).sum(axis=1)) / norms), rel=1e-12)
    assert (figures["deflated"], figures["deflated_below"]) == (float((norms < below).mean()), below)
    assert 0.4 < figures["deflated"] < 1
    assert layer_figures(layers, 1e-6)[3]["deflated"] == 0


def test_the_scale_of_czmig_is_its_exponential() -> None:
    training = rewritten("resnet20", SHAPE, DEFAULTS["czmig"])
    step(training, images(8, SHAPE))
    exponent = of_parameter("derivation.log_scale")(training.graph, LAYER)
    (figures,) = (each for each in layer_figures(trained_layers(training.graph), 0.05) if each["name"] == LAYER)
    assert figures["scale"] == pytest.approx(quantiles(np.exp(exponent)), rel=1e-6)
    assert figures["variance"] is None


def variance_of(graph: torch.fx.GraphModule, layer: str) -> Array:
    return graph.get_buffer(f"{layer}.operation.derivation.norm.running_var").double().numpy()


def test_a_norm_shows_its_variance_and_what_it_multiplies_by() -> None:
    training = rewritten("resnet20", SHAPE, DEFAULTS["batchnorm"])
    step(training, images(8, SHAPE))
    variance, gain = variance_of(training.graph, LAYER), of_parameter("operation.derivation.norm.weight")(training.graph, LAYER)
    (figures,) = (each for each in layer_figures(trained_layers(training.graph), 0.05) if each["name"] == LAYER)
    assert figures["variance"] == pytest.approx(quantiles(variance), rel=1e-12)
    assert figures["scale"] == pytest.approx(quantiles(np.abs(gain) / np.sqrt(variance + 1e-5)), rel=1e-6)


def test_of_mimicnorm_the_last_layer_alone_has_a_variance() -> None:
    training = rewritten("resnet20", SHAPE, DEFAULTS["mimicnorm"])
    step(training, images(8, SHAPE))
    *others, last = layer_figures(trained_layers(training.graph), 0.05)
    assert all(each["variance"] is None for each in others)
    assert last["variance"] == pytest.approx(quantiles(variance_of(training.graph, "network.classifier")), rel=1e-12)


SQUEEZENET = "torchvision:squeezenet1_1"
OUTSIDE_OF_LAYERS = {"fixup": {"ScalarBias"}, "groupnorm": {"GroupNorm"}}
PAIRS = [(method, network) for method in METHODS for network in ("resnet20", SQUEEZENET) if network not in REFUSED.get(method, ())]


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_the_gradient_of_a_layer_is_that_of_all_its_parameters(method: str, network: str) -> None:
    training = rewritten(network, (3, 64, 64) if network == SQUEEZENET else SHAPE, DEFAULTS[method])
    layers = trained_layers(training.graph)
    training.graph.double()
    generator = torch.Generator().manual_seed(0)
    for parameter in training.graph.parameters():
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    norms = GradientNorms(layers)()
    expected = [math.sqrt(sum(float(np.square(p.grad.numpy()).sum()) for p in layer.module.parameters() if p.grad is not None)) for layer in layers]
    assert norms.dtype == torch.float64
    np.testing.assert_allclose(norms.numpy(), expected, rtol=1e-13)
    in_layers = {id(parameter) for layer in layers for parameter in layer.module.parameters()}
    outside = {type(module).__name__ for module in training.graph.modules() for each in module.parameters(recurse=False) if id(each) not in in_layers}
    assert outside == OUTSIDE_OF_LAYERS.get(method, set())


def test_a_line_of_the_file_has_six_digits_and_no_infinity() -> None:
    (line,) = with_gradient_norms([{"name": "a", "norms": [1 / 3, 2e-9, 1.0, 1.0, 1.0], "shape": [16, 3], "num_filters": 16}], [math.inf])
    assert line == {"name": "a", "norms": [0.333333, 2e-9, 1.0, 1.0, 1.0], "shape": [16, 3], "num_filters": 16, "gradient_norm": None}
    assert with_gradient_norms([{}], [123456.789])[0]["gradient_norm"] == 123457.0


def test_it_goes_to_the_run_folder_tensorboard_the_bundle_and_the_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert pipeline(capfd, "train-export", QUICKSTART, "--out", run, *DIAGNOSED).code == 0
    lines = [json.loads(line) for line in (run / "diagnosis.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    name = "network.stages.0.0.conv1"
    (layer,) = (each for each in lines[1]["layers"] if each["name"] == name)
    assert layer["gradient_norm"] > 0
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    for key in ("norms", "off_isocline", "scale"):
        assert [event.value for event in board.Scalars(f"{key}/{name}")][1] == pytest.approx(layer[key][2], rel=1e-6)
    for key in ("deflated", "gradient_norm"):
        assert [event.step for event in board.Scalars(f"{key}/{name}")] == [1, 2]
    bundle = open_bundle(run / "bundle")
    assert bundle.read("training/diagnosis.jsonl") == (run / "diagnosis.jsonl").read_bytes()
    page = bundle.read("report.html").decode()
    assert "The layers from epoch to epoch" in page
    assert "Norm of the gradient" in page
    assert pipeline(capfd, "verify", run / "bundle", "--report", tmp_path / "again").code == 0
    assert "The layers from epoch to epoch" in (tmp_path / "again" / "report.html").read_text()


def test_without_it_there_is_none(finished_run: Path) -> None:
    assert not (finished_run / "diagnosis.jsonl").exists()
    assert not open_bundle(finished_run / "bundle").has("training/diagnosis.jsonl")
    assert "The layers from epoch to epoch" not in (finished_run / "bundle" / "report.html").read_text()


def test_a_fresh_run_takes_the_old_one_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert pipeline(capfd, "train", QUICKSTART, "--out", run, *DIAGNOSED, "--set", "training.epochs=1").code == 0
    assert (run / "diagnosis.jsonl").exists()
    assert pipeline(capfd, "train", QUICKSTART, "--out", run, "--fresh", *SHORT, "--set", "training.epochs=1").code == 0
    assert not (run / "diagnosis.jsonl").exists()


@pytest.mark.parametrize("content", ["[1]\n", "{\n", '{"epoch": 1}\n', '{"epoch": 1, "layers": [3]}\n', '{"epoch": "x", "layers": []}\n'])
def test_a_bundle_with_other_lines_is_damaged(tmp_path: Path, bundle: Path, capfd: pytest.CaptureFixture[str], content: str) -> None:
    (bundle / "training" / "diagnosis.jsonl").write_text(content)
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    write_manifest(bundle, Facts.model_validate(manifest.model_dump(exclude={"files", "format_version"})))
    done = pipeline(capfd, "verify", bundle)
    assert done.code == 5
    assert "training/diagnosis.jsonl" in done.error
