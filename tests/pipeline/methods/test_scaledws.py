"""The formulas are compared with NumPy in float64, written from the papers.

They are scaled standardisation, alpha and beta, and adaptive clipping.
"""

import numpy as np
import pytest
import torch
from graphs import images, rewritten
from torch import nn

from export.graph.layers import training_only_parts
from pipeline.config.methods import ScaledwsOptions
from pipeline.methods import RewrittenGraph
from pipeline.methods.scaledws import StandardisedWeights

SHAPE = (3, 32, 32)
GAMMA = 1.71396


def scaledws(network: str = "resnet20", **changes: object) -> RewrittenGraph:
    shape = SHAPE if ":" not in network else (3, 64, 64)
    return rewritten(network, shape, ScaledwsOptions.model_validate({"name": "scaledws", **changes}))


def factors(training: RewrittenGraph) -> dict[str, tuple[float, float]]:
    """Return the factors of weight and bias of each standardised layer, without gamma and
    fan-in."""
    found: dict[str, tuple[float, float]] = {}
    for name, layer in training.graph.named_modules():
        if isinstance(layer, StandardisedWeights):
            of_weight = layer.factor * np.sqrt(layer.weight[0].numel()) / GAMMA
            found[name.removeprefix("network.").removesuffix(".derivation")] = (float(of_weight), layer.bias_factor)
    return found


def test_gamma_gives_back_what_a_relu_takes() -> None:
    assert pytest.approx(1 / np.sqrt(0.5 * (1 - 1 / np.pi)), rel=2e-3) == GAMMA


def test_the_weight_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    layer = StandardisedWeights(torch.randn(8, 4, 3, 3) * 0.1 + 0.3, GAMMA * 0.2, 0.2, 1e-6).double()
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    v, gain = layer.weight.detach().numpy(), layer.gain.detach().numpy()[:, None, None, None]
    mean, variance = v.mean(axis=(1, 2, 3), keepdims=True), v.var(axis=(1, 2, 3), keepdims=True)
    expected = 0.2 * gain * GAMMA / np.sqrt(4 * 3 * 3) * (v - mean) / np.sqrt(variance + 1e-6)
    weight, bias = layer()
    assert bias is not None
    assert np.abs(weight.detach().numpy() - expected).max() < 1e-15 * 8
    assert np.array_equal(bias.detach().numpy(), 0.2 * layer.bias.detach().numpy())


def test_alpha_and_beta_of_a_network_without_convolutions_on_shortcuts() -> None:
    found = factors(scaledws())
    assert found["conv1"] == pytest.approx((1, 1))
    units = [f"stages.{stage}.{block}" for stage in range(3) for block in range(3)]
    for number, unit in enumerate(units):
        assert found[f"{unit}.conv1"] == pytest.approx((1 / np.sqrt(1 + 0.04 * number), 1))
        assert found[f"{unit}.conv2"] == pytest.approx((0.2, 0.2))


def test_the_expected_variance_begins_anew_where_a_shortcut_has_a_convolution() -> None:
    found = factors(scaledws("torchvision:resnet18"))
    after_one, after_two = 1 / np.sqrt(1.04), 1 / np.sqrt(1.08)
    of_weights = [found[f"layer{stage}.{block}.conv1"][0] for stage in (1, 2, 3) for block in (0, 1)]
    assert of_weights == pytest.approx([1, after_one, after_two, after_one, after_two, after_one])
    assert found["layer2.0.downsample.0"] == pytest.approx((after_two, 1))


def test_behind_a_convolution_the_expected_variance_is_one() -> None:
    found = factors(scaledws("torchvision:mobilenet_v2"))
    assert found["features.3.conv.0.0"] == pytest.approx((1, 1))
    assert found["features.5.conv.0.0"] == pytest.approx((1, 1))
    assert found["features.6.conv.0.0"] == pytest.approx((1 / np.sqrt(1.04), 1))


def test_alpha_and_beta_can_be_left_out() -> None:
    found = factors(scaledws(alpha=1.0, beta=False)).values()
    assert np.allclose(list(found), 1.0, rtol=1e-12, atol=0)


def clipped(weight: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", gradient: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> object:
    """Adaptive clipping with 0.01 and 1e-3: per filter or row; a vector as a whole."""
    axes = tuple(range(1, weight.ndim)) if weight.ndim > 1 else (0,)
    length = np.maximum(np.sqrt((weight**2).sum(axis=axes, keepdims=True)), 1e-3)
    steepness = np.sqrt((gradient**2).sum(axis=axes, keepdims=True))
    return np.where(steepness / length > 0.01, 0.01 * length / steepness * gradient, gradient)


def test_gradients_are_clipped_by_the_papers_formula() -> None:
    training = scaledws()
    torch.manual_seed(0)
    for parameter in training.graph.double().parameters():
        parameter.grad = torch.randn_like(parameter) * 10 ** (-4 * torch.rand(len(parameter), *[1] * (parameter.dim() - 1)))
    before = {name: p.grad.clone() for name, p in training.graph.named_parameters() if p.grad is not None}
    training.rules.correct_gradients()
    some_kept = some_clipped = False
    for name, parameter in training.graph.named_parameters():
        assert parameter.grad is not None
        if "classifier" in name:
            assert torch.equal(parameter.grad, before[name])
            continue
        expected = clipped(parameter.detach().numpy(), before[name].numpy())
        assert np.allclose(parameter.grad.numpy(), expected, rtol=1e-14, atol=0)  # type: ignore[arg-type]
        same = parameter.grad.flatten(1).eq(before[name].flatten(1)).all(1) if parameter.dim() > 1 else torch.tensor([False])
        some_kept, some_clipped = some_kept or bool(same.any()), some_clipped or not bool(same.all())
    assert some_kept
    assert some_clipped


def test_clipping_can_be_switched_off_or_hold_for_the_classifier_too() -> None:
    for changes, expected in (({"clip": 0.0}, 0), ({}, 19), ({"clip_classifier": True}, 20)):
        training = scaledws(**changes)
        for parameter in training.graph.parameters():
            parameter.grad = torch.ones_like(parameter)
        training.rules.correct_gradients()
        weights = [p.grad for p in training.graph.parameters() if p.dim() > 1 and p.grad is not None]
        assert sum(bool((gradient != 1).any()) for gradient in weights) == expected


def test_nothing_is_training_only_and_gradients_of_zero_stay_finite() -> None:
    training = scaledws()
    assert not training_only_parts(training.graph)
    training.graph(images(2, SHAPE)).sum().mul(0).backward()
    training.rules.correct_gradients()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in training.graph.parameters())
