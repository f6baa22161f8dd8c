"""What each method does with a rectifier that lets a share of negative values pass.

Compared with the formulas in float64.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graphs import DEFAULTS, images, rewrite
from torch import nn

from export.errors import UsageError
from export.graph import find_parts, operations, trace
from export.graph.layers import Derivation, Normalise, training_only_parts_off
from export.graph.operations import OPERATIONS, NoRole, Operation
from pipeline.config.methods import MethodOptions, MimicnormOptions
from pipeline.methods import METHODS, RewrittenGraph
from pipeline.methods.batchnorm import NormInWeight
from pipeline.methods.new_layers import seen_by_zero_mean
from pipeline.methods.noise import Noise, NoisyReLU

SHAPE = (3, 8, 8)
SLOPES = (0.0, 0.1, 0.5, 1.0)
A = 0.5
NAMES = ("stem", "branch.0", "branch.3", "last")


@pytest.fixture(autouse=True)
def _prelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rectifier with a slope, for each kind in the table."""
    row = Operation(kind="rectifier", modules=(nn.PReLU,), onnx=("PRelu",), slope=lambda layer: layer.weight.item(), grid=NoRole("for a test"))
    monkeypatch.setattr(operations, "OPERATIONS", (*OPERATIONS, row))


class Residual(nn.Module):
    """One residual unit after a stem; each layer but the stem follows a rectifier."""

    def __init__(self, rectifier: Callable[[], nn.Module], tail: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = rectifier(), rectifier()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), rectifier(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last, self.tail = nn.Linear(8, 10), tail or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x))
        x = self.second(x + self.branch(x))
        return self.tail(self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))


def with_slope(options: MethodOptions, slope: float | None, tail: nn.Module | None = None) -> RewrittenGraph:
    """Rewrite the network by a method, from the same draws whatever the rectifier.

    None stands for a ReLU.
    """
    torch.manual_seed(0)
    network = Residual(nn.ReLU if slope is None else lambda: nn.PReLU(init=slope), tail)
    return rewrite(trace(network, Normalise((128.0,) * 3, (64.0,) * 3), SHAPE, 10), options)


def weights(training: RewrittenGraph) -> dict[str, torch.Tensor]:
    """Return the weight that each layer runs with.

    For `batchnorm` it is without the norm that is applied to it.
    """
    found = {}
    for name in NAMES:
        layer = training.graph.get_submodule(f"network.{name}")
        derivation = next((each for each in layer.modules() if isinstance(each, Derivation)), None)
        weight = layer.get_parameter("weight") if derivation is None else derivation()[0]
        found[name] = (derivation.filters_and_scale()[0] if isinstance(derivation, NormInWeight) else weight).detach().double()
    return found


def ratios(options: MethodOptions) -> dict[str, float]:
    """Return each layer's weights after slope A as a multiple of those after a ReLU."""
    behind_slope, behind_relu = (weights(with_slope(options, slope)) for slope in (A, None))
    found = {}
    for name in NAMES:
        relevant = behind_relu[name].abs() > 0
        if relevant.any():
            each = (behind_slope[name][relevant] / behind_relu[name][relevant]).numpy()
            assert each.std() < 1e-5  # float32
            found[name] = float(each.mean())
    return found


HE = 1 / np.sqrt(1 + A**2)
MEAN_SQUARE, SQUARED_MEAN = (1 + A**2) / 2, (1 - A) ** 2 / (2 * np.pi)
DEVIATION = np.sqrt(MEAN_SQUARE - SQUARED_MEAN) / np.sqrt(0.5 - 1 / (2 * np.pi))


@pytest.mark.parametrize("method", ["batchnorm", "groupnorm", "nonorm", "skipinit", "weightnorm", "fixup", "mimicnorm"])
def test_he_draws_take_the_slope_in_front_into_account(method: str) -> None:
    """There is no rectifier in front of the stem, and a classifier uses Glorot's rule.

    Weights that start at zero have no ratio.
    """
    expected = {"stem": 1.0, "branch.0": HE, "branch.3": HE, "last": 1.0}
    found = ratios(DEFAULTS[method])
    assert {"stem", "branch.0"} <= set(found)
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-6)


def test_mimicnorms_paper_gain_is_what_zero_mean_filters_lose_to_the_rectifiers_mean() -> None:
    found = ratios(MimicnormOptions(name="mimicnorm", gain="paper", branch_scale="none"))
    assert found == pytest.approx({"stem": 1.0, "branch.0": 1 / DEVIATION, "branch.3": 1 / DEVIATION, "last": 1.0}, rel=1e-6)


def test_scaledws_divides_by_the_deviation_behind_the_rectifier() -> None:
    found = ratios(DEFAULTS["scaledws"])
    assert found == pytest.approx({"stem": 1.0, "branch.0": 1 / DEVIATION, "branch.3": 1 / DEVIATION, "last": 1.0}, rel=1e-5)  # eps is 1e-6


@pytest.mark.parametrize("method", ["czmig", "czmi"])
def test_filters_of_norm_1_do_not_depend_on_the_rectifier(method: str) -> None:
    assert ratios(DEFAULTS[method]) == dict.fromkeys(NAMES, 1.0)


@pytest.mark.parametrize("slope", SLOPES)
def test_the_deviation_behind_a_rectifier_is_that_of_a_normal_value(slope: float) -> None:
    """The integral over the density, by Simpson's rule."""
    z, h = np.linspace(-12, 12, 240_001, retstep=True)
    rectified, density = np.where(z > 0, z, slope * z), np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    simpson = np.where(np.arange(len(z)) % 2, 4, 2) * h / 3
    simpson[[0, -1]] /= 2
    mean, mean_square = ((rectified**power * density * simpson).sum() for power in (1, 2))
    assert seen_by_zero_mean(slope) == pytest.approx(np.sqrt((mean_square - mean**2) / mean_square), rel=1e-8)


def test_equinorm_refuses_by_the_convolutions_name_what_can_be_negative() -> None:
    with pytest.raises(UsageError, match=r"never negative, and those of convolution 'network\.branch\.0' can be; put a ReLU in front"):
        with_slope(DEFAULTS["equinorm"], 0.1)
    with_slope(DEFAULTS["equinorm"], 0.0)


def test_noise_behind_a_slope_is_a_layer_of_its_own() -> None:
    of_relu, of_slope = (list(with_slope(DEFAULTS["czmig"], slope).graph.modules()) for slope in (None, 0.1))
    assert [type(each) for each in of_relu if isinstance(each, (Noise, NoisyReLU))] == [NoisyReLU, Noise]  # the ReLU's own
    assert [type(each) for each in of_slope if isinstance(each, (Noise, NoisyReLU))] == [Noise]


def test_fixup_has_a_scalar_in_front_of_each_rectifier() -> None:
    of_relu, of_slope = ([name for name, _ in with_slope(DEFAULTS["fixup"], slope).graph.named_parameters()] for slope in (None, 0.1))
    assert [name for name in of_slope if "bias" in name] == [name for name in of_relu if "bias" in name]


def test_a_norm_over_the_logits_takes_out_a_rectifier_behind_the_classifier() -> None:
    training = with_slope(DEFAULTS["mimicnorm"], 0.1, tail=nn.PReLU(init=0.1))
    assert not any(node.target == "network.tail" for node in training.graph.graph.nodes)


def test_of_several_rectifiers_in_front_the_mean_square_counts() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Linear(16, 10)
            self.one, self.other = nn.PReLU(init=0.25), nn.PReLU(init=0.75)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = torch.cat((self.one(x), self.other(nn.functional.max_pool2d(x, 1))), 1)
            return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    parts = find_parts(trace(Joined(), Normalise((128.0,) * 3, (64.0,) * 3), SHAPE, 10))
    assert [layer.slope for layer in parts.convolutions] == [0.0, np.sqrt((0.25**2 + 0.75**2) / 2)]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "equinorm"])
def test_training_has_the_bits_of_evaluation(method: str) -> None:
    training = with_slope(DEFAULTS[method], 0.1)
    batch = images(4, SHAPE)
    training.graph.train()
    with training_only_parts_off(training.graph):
        in_training = training.graph(batch)
    assert torch.equal(in_training, training.graph.eval()(batch))
