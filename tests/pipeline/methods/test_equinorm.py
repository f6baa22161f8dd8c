"""The formulas are compared with NumPy in float64, written from the paper.

Sums are over samples and pixels. What the formulas promise holds.
"""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from graphs import images, rewritten
from torch import nn
from torch.nn import functional as F

from export.errors import UsageError
from export.graph import Normalise
from export.graph.layers import training_only_parts
from pipeline.config.methods import EquinormOptions
from pipeline.methods import RewrittenGraph
from pipeline.methods.equinorm import BalancedConv2d, BalancedWeights, InputStatistics
from pipeline.methods.new_layers import he_normal_fan_out, with_both_signs

SHAPE = (3, 32, 32)
Array = npt.NDArray[np.float64]


def options(**changes: object) -> EquinormOptions:
    return EquinormOptions.model_validate({"name": "equinorm", **changes})


def equinorm(network: str = "resnet20", **changes: object) -> RewrittenGraph:
    return rewritten(network, SHAPE if ":" not in network else (3, 64, 64), options(**changes))


def layer(stride: int = 1, pixels: int = 8, groups: int = 1, **changes: object) -> BalancedConv2d:
    """In float64, 8 filters of 4 channels; `pixels` in, and pixels / stride out."""
    torch.manual_seed(0)
    like = nn.Conv2d(4, 8, 3, stride, 1, groups=groups)
    out = (pixels - 1) // stride + 1
    derivation = BalancedWeights(torch.randn(8, 4 // groups, 3, 3), 4, (stride * out / pixels) ** 2, options(**changes)).double()
    return BalancedConv2d(like, derivation, InputStatistics(derivation, options(**changes))).train()


def derivation_of(balanced: BalancedConv2d) -> BalancedWeights:
    assert isinstance(balanced.operation.derivation, BalancedWeights)
    return balanced.operation.derivation


def by_the_paper(w: Array, x: Array, out_pixels: int, stride: int, *, two_pass: bool) -> Array:
    """One filter after the other: v_c, b, the positive part, s.

    Sums are over samples and pixels, and r = N Hout Wout stride^2.
    """
    v = x.sum(axis=(0, 2, 3))
    r = x.shape[0] * out_pixels * stride**2
    balanced = np.empty_like(w)
    for d, kernel in enumerate(w):
        b = -sum(v[c] * kernel[c].sum() for c in range(len(v))) / (kernel[0].size * v.sum())
        if two_pass:
            positive = [np.maximum(kernel[c] + b, 0).sum() for c in range(len(v))]
        else:
            positive = [kernel[c][kernel[c] > 0].sum() + b * (kernel[c] > 0).sum() for c in range(len(v))]
        balanced[d] = r / sum(v[c] * positive[c] for c in range(len(v))) * (kernel + b)
    return balanced


@pytest.mark.parametrize("form", ["single_pass", "two_pass"])
@pytest.mark.parametrize(("stride", "pixels"), [(1, 8), (2, 8), (2, 7)])
def test_filters_are_balanced_by_the_papers_formulas(form: str, stride: int, pixels: int) -> None:
    balanced = layer(stride, pixels, form=form)
    derivation = derivation_of(balanced)
    nn.init.normal_(derivation.gain)
    nn.init.normal_(derivation.bias)
    x = torch.rand(6, 4, pixels, pixels, dtype=torch.float64)
    raw, gain = derivation.weight.detach().numpy(), derivation.gain.detach()
    out_pixels = ((pixels - 1) // stride + 1) ** 2
    expected = torch.from_numpy(by_the_paper(raw, x.numpy(), out_pixels, stride, two_pass=form == "two_pass"))
    weight, _ = derivation.balanced_by(x.mean((0, 2, 3)))
    assert (weight / gain.view(-1, 1, 1, 1) - expected).abs().max() < 1e-12 * expected.abs().max()
    output = F.conv2d(x, expected, None, stride, 1) * gain.view(1, -1, 1, 1) + derivation.bias.view(1, -1, 1, 1)
    assert (balanced(x) - output).abs().max() < 1e-11


def test_filters_of_a_group_are_balanced_by_the_channels_of_their_group() -> None:
    derivation = derivation_of(layer(groups=2))
    means = torch.rand(4, dtype=torch.float64)
    weight, _ = derivation.balanced_by(means)
    for group in range(2):
        alone = BalancedWeights(derivation.weight[4 * group : 4 * group + 4].detach(), 2, 1.0, options())
        expected, _ = alone.balanced_by(means[2 * group : 2 * group + 2])
        assert (weight[4 * group : 4 * group + 4] - expected).abs().max() < 1e-14


def test_zero_mean_and_unit_positive_part_with_circular_padding() -> None:
    derivation = derivation_of(layer(form="two_pass"))
    x = torch.rand(6, 4, 8, 8, dtype=torch.float64) ** 2
    weight, _ = derivation.balanced_by(x.mean((0, 2, 3)))
    around = F.pad(x, (1, 1, 1, 1), mode="circular")
    assert F.conv2d(around, weight).mean((0, 2, 3)).abs().max() < 1e-12
    for sign in (1, -1):
        part = F.conv2d(around, sign * (sign * weight).clamp_min(0)).mean((0, 2, 3))
        assert (part - sign).abs().max() < 1e-12


def test_the_single_pass_is_a_little_larger() -> None:
    single, double = (derivation_of(layer(form=form)).balanced_by(torch.rand(4, dtype=torch.float64))[0] for form in ("single_pass", "two_pass"))
    ratio = (single / double).flatten(1).mean(1)
    assert (ratio > 1 - 1e-14).all()  # equal where the shift turns no sign
    assert ratio.max() > 1.001
    assert (ratio < 1.3).all()  # normal filters of 36 values


@pytest.mark.parametrize(("statistics", "seen"), [("batch", 8), ("first_quarter", 2)])
def test_running_means_follow_the_batches(statistics: str, seen: int) -> None:
    balanced = layer(statistics=statistics, statistics_momentum=0.3)
    expected = np.ones(4)
    for number in range(3):
        torch.manual_seed(number)
        x = torch.rand(8, 4, 8, 8, dtype=torch.float64)
        balanced(x)
        expected = 0.7 * expected + 0.3 * x.numpy()[:seen].mean(axis=(0, 2, 3))
    running = derivation_of(balanced).running_means
    assert np.abs(running.numpy() - expected).max() < 1e-14
    weight, bias = derivation_of(balanced).balanced_by(torch.from_numpy(expected))
    assert (balanced.eval()(x) - F.conv2d(x, weight, bias, 1, 1)).abs().max() < 1e-12
    assert torch.equal(running, derivation_of(balanced).running_means)


def test_gradients_flow_through_the_statistics_unless_they_are_held() -> None:
    x = torch.rand(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    balanced = layer(pixels=4)
    assert torch.autograd.gradcheck(balanced, (x,))
    held = layer(pixels=4, differentiate_statistics=False)
    gradients = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (balanced, held)]
    weight, bias = derivation_of(held).balanced_by(x.mean((0, 2, 3)).detach())
    as_constant = torch.autograd.grad(F.conv2d(x, weight.detach(), bias, 1, 1).square().sum(), x)[0]
    assert (gradients[1] - as_constant).abs().max() < 1e-12
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_a_batch_of_black_images_stays_finite() -> None:
    assert torch.isfinite(layer()(torch.zeros(2, 4, 8, 8, dtype=torch.float64))).all()


@pytest.mark.parametrize(("shape", "dims"), [((64, 1, 3, 3), (1, 2, 3)), ((400, 2, 1, 1), (1, 2, 3)), ((50, 8, 2, 2), (2, 3))])
def test_no_filter_or_slice_starts_with_one_sign(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    drawn = he_normal_fan_out(torch.Size(shape), torch.Generator().manual_seed(0))
    drawn[0] = drawn[0].abs()
    mixed = with_both_signs(drawn, dims, torch.Generator().manual_seed(1))
    for each in (mixed > 0, mixed < 0):
        assert each.numpy().any(axis=dims).all()
    assert torch.equal(mixed.abs(), drawn.abs())
    had_both = torch.from_numpy((drawn > 0).numpy().any(axis=dims, keepdims=True) & (drawn < 0).numpy().any(axis=dims, keepdims=True))
    assert torch.equal(torch.where(had_both, mixed, 0), torch.where(had_both, drawn, 0))


def test_a_single_value_has_one_sign() -> None:
    weight = torch.ones(3, 5, 1, 1)
    assert torch.equal(with_both_signs(weight, (2, 3), torch.Generator()), weight)


def test_initial_variance_is_that_of_the_fan_out() -> None:
    drawn = he_normal_fan_out(torch.Size((64, 256, 3, 3)), torch.Generator().manual_seed(0))
    assert abs(drawn.double().std().item() / np.sqrt(2 / (64 * 9)) - 1) < 0.01  # 147,456 draws


def test_pixels_keep_their_sign() -> None:
    training = equinorm()
    (normalise,) = (each for each in training.graph.modules() if isinstance(each, Normalise))
    assert not normalise.mean.any()
    assert (normalise.deviation == 64).all()


def test_each_convolution_is_balanced_and_listed() -> None:
    training = equinorm("torchvision:resnet18", statistics="first_quarter")
    assert [part.summary for part in training_only_parts(training.graph).values()] == ["channel means of a quarter of the batch, in the filters"] * 20
    ratios = {each.pixel_ratio for each in training.graph.modules() if isinstance(each, BalancedWeights)}
    assert ratios == {1.0}
    assert isinstance(training.graph.get_submodule("network.fc"), nn.Linear)


def test_shortcuts_may_stay_plain() -> None:
    training = equinorm("torchvision:resnet18", shortcuts="plain")
    layers = dict(training.graph.named_modules())
    plain = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    assert plain == [f"network.layer{number}.0.downsample.0" for number in (2, 3, 4)]
    assert len([layer for layer in layers.values() if isinstance(layer, BalancedConv2d)]) == 17


@pytest.mark.parametrize("network", ["torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5"])
def test_inputs_that_can_be_negative_are_refused(network: str) -> None:
    with pytest.raises(UsageError, match=r"needs inputs that are never negative, and those of convolution '.*' can be; put a ReLU"):
        equinorm(network)


def test_the_scale_of_the_pixels_does_not_matter() -> None:
    """A power of two goes through every sum without a rounding, so not one bit changes."""
    training = equinorm("torchvision:squeezenet1_1")
    (normalise,) = (each for each in training.graph.modules() if isinstance(each, Normalise))
    for part in training_only_parts(training.graph).values():
        part.active = isinstance(part, InputStatistics)
    batch = images(4, (3, 64, 64))
    before = training.graph.train()(batch)
    normalise.deviation.mul_(2)
    assert torch.equal(training.graph(batch), before)
    assert not torch.equal(training.graph(images(4, (3, 64, 64), seed=1)), before)
