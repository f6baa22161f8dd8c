"""Initial weights against NumPy in float64, written from the papers.

Each rule is tested as a function, then what every method draws for which layer.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from graphs import DEFAULTS, rewritten, traced
from torch.nn import functional as F

from export.graph import Convolution, find_parts
from pipeline.config.methods import MethodOptions, MimicnormOptions
from pipeline.methods.new_layers import he_normal, he_normal_fan_out, unit_uniform, xavier_normal

Array = npt.NDArray[np.float64]
SHAPES = [(4, 3, 3, 3), (6, 1, 5, 3), (8, 16, 1, 1), (5, 7)]


@pytest.fixture
def _in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def standard_normal(shape: tuple[int, ...]) -> Array:
    return torch.empty(shape).normal_(generator=seeded()).numpy()


@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize("shape", SHAPES)
def test_he_and_xavier_are_the_papers_formulas(shape: tuple[int, ...]) -> None:
    """He et al.: a deviation of sqrt(2 / ((1 + a^2) fan)) for a rectifier of slope a.

    fan_in = inputs x kernel, fan_out = outputs x kernel. Glorot: sqrt(2 / (fan_in + fan_out)).
    """
    kernel = int(np.prod(shape[2:]))
    fan_in, fan_out, drawn = shape[1] * kernel, shape[0] * kernel, standard_normal(shape)
    size = torch.Size(shape)
    for got, expected in (
        (he_normal(size, seeded()), np.sqrt(2 / fan_in) * drawn),
        (he_normal_fan_out(size, seeded()), np.sqrt(2 / fan_out) * drawn),
        (he_normal_fan_out(size, seeded(), groups=2), np.sqrt(2 / (fan_out / 2)) * drawn),
        (he_normal(size, seeded(), slope=0.5), np.sqrt(2 / (1.25 * fan_in)) * drawn),
        (he_normal_fan_out(size, seeded(), groups=2, slope=0.5), np.sqrt(2 / (1.25 * fan_out / 2)) * drawn),
        (xavier_normal(size, seeded()), np.sqrt(2 / (fan_in + fan_out)) * drawn),
    ):
        assert np.abs(got.numpy() - expected).max() <= 1e-15 * np.abs(expected).max()


@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((4, 3, 3, 3), (2, 3)), ((4, 3, 3, 3), (1, 2, 3)), ((8, 16, 1, 1), (1,)), ((6, 1, 5, 3), (2, 3)), ((4, 3, 3, 3), ()), ((5, 7), ())],
)
def test_unit_uniform_is_the_papers_formula(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    """X ~ U(-1, 1); X' = X - mean(X) over each slice; V = X' / |X'| over each filter.

    So means are 0 and norms are 1.
    """
    drawn = torch.empty(shape).uniform_(-1, 1, generator=seeded()).numpy()
    expected = np.empty_like(drawn)
    for number, kernel in enumerate(drawn):
        centred = kernel - kernel.mean(axis=tuple(dim - 1 for dim in dims), keepdims=True) if dims else kernel
        expected[number] = centred / np.sqrt((centred**2).sum())
    got = unit_uniform(torch.Size(shape), seeded(), dims).numpy()
    assert np.abs(got - expected).max() < 1e-15
    assert np.abs(np.sqrt((got**2).reshape(len(got), -1).sum(axis=1)) - 1).max() < 1e-15
    if dims:
        assert np.abs(got.sum(axis=dims)).max() < 1e-15


@pytest.mark.usefixtures("_in_float64")
def test_filters_of_zero_mean_slices_reject_a_shift_of_their_input_on_the_interior() -> None:
    """A window that reaches into the zero padding sees a step.

    Every other one sees the shift times a sum of zero.
    """
    weight = 0.8 * unit_uniform(torch.Size((8, 16, 3, 3)), seeded(), (2, 3))
    x, shift = torch.randn(2, 16, 9, 9, generator=seeded()), torch.randn(1, 16, 1, 1, generator=seeded())
    moved = (F.conv2d(x + 100 * shift, weight, padding=1) - F.conv2d(x, weight, padding=1)).abs()
    assert moved[:, :, 1:-1, 1:-1].max() < 1e-12
    assert min(edge.max() for edge in (moved[:, :, 0], moved[:, :, -1], moved[..., 0], moved[..., -1])) > 1
    one_mean = 0.8 * unit_uniform(torch.Size((8, 16, 3, 3)), seeded(), (1, 2, 3))  # the mean of the filter: channels may shift against each other
    assert (F.conv2d(100 * shift.expand_as(x), one_mean)).abs().max() > 1


# ---- what each method draws ----------------------------------------------------------------------

_OF_HE_AND_XAVIER = ("skipinit", "weightnorm", "scaledws", "batchnorm", "groupnorm", "nonorm")
_ENOUGH = 9_000
"""Draws whose deviation is known to 0.75 %; for a classifier's 5,120 draws, to 1 %.

Four times that is allowed.
"""
_TRAINED = ("weight", "direction")


def drawn_weights(network: str, options: MethodOptions) -> list[tuple[Convolution, Array]]:
    """Each layer of the network as it is written, and its filters in the training graph.

    Other tests cover their gains and scales.
    """
    shape = (3, 64, 64) if ":" in network else (3, 32, 32)
    layers, graph = find_parts(traced(network, shape)).convolutions, rewritten(network, shape, options).graph
    parameters = dict(graph.named_parameters())
    found = []
    for layer in layers:
        inside = [value for name, value in parameters.items() if name.startswith(f"{layer.name}.") and name.endswith(_TRAINED) and value.dim() > 1]
        assert len(inside) == 1, layer.name
        found.append((layer, inside[0].detach().double().numpy()))
    return found


def deviation(weight: Array) -> float:
    return float(np.sqrt((weight**2).mean()))


@pytest.mark.parametrize("method", _OF_HE_AND_XAVIER)
@pytest.mark.parametrize("network", ["resnet18", "torchvision:mobilenet_v2"])
def test_layers_start_as_he_says_and_classifiers_as_glorot(method: str, network: str) -> None:
    checked = 0
    for layer, weight in drawn_weights(network, DEFAULTS[method]):
        outputs, fan_in = weight.shape[0], weight[0].size
        expected = math.sqrt(2 / (outputs + fan_in)) if layer.kind == "classifier" else math.sqrt(2 / fan_in)
        if weight.size >= _ENOUGH or layer.kind == "classifier":
            assert abs(deviation(weight) / expected - 1) < 0.04, layer.name
            checked += 1
    assert checked >= 19


@pytest.mark.parametrize("network", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_czmig_starts_every_filter_at_norm_one_and_its_slices_at_zero_mean(network: str) -> None:
    checked = {"spatial": 0, "pointwise": 0, "depthwise": 0, "first": 0}
    for layer, weight in drawn_weights(network, DEFAULTS["czmig"]):
        if layer.kind == "classifier":
            assert abs(deviation(weight) / math.sqrt(2 / sum(weight.shape)) - 1) < 0.05
            continue
        checked[layer.kind] += 1
        assert np.abs(np.sqrt((weight**2).reshape(len(weight), -1).sum(axis=1)) - 1).max() < 1e-6
        largest_mean = np.abs(weight.mean(axis=(2, 3))).max()
        assert largest_mean < 1e-7 if layer.kind in ("spatial", "depthwise") else largest_mean > 1e-3, layer.name
    assert checked["first"] == 1
    assert sum(checked.values()) > 19


@pytest.mark.parametrize(("fan", "axis"), [("in", 1), ("out", 0)])
def test_mimicnorm_outside_of_residual_branches_starts_at_sqrt_of_2_8_over_a_fan(fan: str, axis: int) -> None:
    """The authors' VGGs use the fan-in on CIFAR and the fan-out on ImageNet.

    Linear layers have He's weights by their fan-in in both.
    """
    options = MimicnormOptions.model_validate({"name": "mimicnorm", "weight_mean": False, "fan": fan})
    checked = 0
    for layer, weight in drawn_weights("vgg11", options):
        if layer.kind == "classifier" or weight.size < _ENOUGH:
            continue
        expected = math.sqrt(2 / weight.shape[1]) if weight.ndim == 2 else math.sqrt(2.8 / (weight.shape[axis] * 9))
        assert abs(deviation(weight) / expected - 1) < 0.04, layer.name
        checked += 1
    assert checked == 9  # seven convolutions without the first, which is too small, and two hidden linear layers


@pytest.mark.parametrize(("channels", "share"), [(1, 1.0), (4, 0.5)])
def test_mimicnorms_fan_of_depthwise_convolutions_may_count_more_channels_than_they_have(channels: int, share: float) -> None:
    """max(4, inputs / groups) in the authors' ShuffleNetV2.

    For a single channel the fan is 36 instead of 9. Other layers have more than four.
    """
    options = MimicnormOptions.model_validate({"name": "mimicnorm", "weight_mean": False, "fan_channels": channels})
    drawn = drawn_weights("shufflenetv2_x1_0", options)
    depthwise = np.concatenate([weight.reshape(-1) for layer, weight in drawn if layer.kind == "depthwise"])
    assert abs(deviation(depthwise) / (share * math.sqrt(2 / 9)) - 1) < 0.04
    assert {weight[0].size for layer, weight in drawn if layer.kind == "depthwise"} == {9}
    pointwise = [weight for layer, weight in drawn if layer.kind == "pointwise" and weight.size >= _ENOUGH]
    assert all(abs(deviation(weight) / math.sqrt(2.8 / weight.shape[1]) - 1) < 0.04 for weight in pointwise)
