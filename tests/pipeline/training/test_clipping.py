"""Clipping against NumPy in float64: the three readings of the logarithmic threshold, the norm of all gradients, adaptive clipping."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from pipeline.config.methods import BatchnormOptions, MethodOptions, NonormOptions, SkipinitOptions
from pipeline.config.sections import AdaptiveClipping, Clipping, NoClipping, NormClipping, Training
from pipeline.methods.base import RewrittenGraph
from pipeline.training.optimiser import clipping, threshold
from pipeline.training.step import TrainingStep

Build = Callable[[MethodOptions], RewrittenGraph]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
TORCHS_GUARD = 1e-6
"""What torch adds to the norm before it divides."""


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ("constant", [5.0, 5.0, 5.0, 5.0]),
        ("times_log", [5 * (1 + math.log(1 + e)) for e in (0, 1, 2, 89)]),
        ("plus_log", [5 + math.log(1 + e) for e in (0, 1, 2, 89)]),
        ("over_log", [5 / (1 + math.log(1 + e)) for e in (0, 1, 2, 89)]),
    ],
)
def test_the_threshold_of_an_epoch_in_each_reading(growth: Any, expected: list[float]) -> None:
    options = NormClipping(name="norm", growth=growth)
    assert [threshold(options, epoch) for epoch in (0, 1, 2, 89)] == expected
    assert expected[0] == options.threshold == 5.0


def with_gradients(graph: GraphModule, size: float) -> dict[str, Array]:
    """Gives a graph in float64 gradients of very different sizes; returns them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in graph.double().parameters():
        if parameter.requires_grad:
            drawn = size * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            shares = 10 ** (-3 * torch.rand(parameter.shape[:1], dtype=torch.float64, generator=generator))
            parameter.grad = torch.einsum("o...,o->o...", drawn, shares) if parameter.dim() else drawn * shares
    return gradients_of(graph)


def gradients_of(graph: GraphModule) -> dict[str, Array]:
    return {name: each.grad.numpy().copy() for name, each in graph.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("size", [1e-3, 10.0])
def test_all_gradients_together_are_scaled_down_to_the_threshold(build: Build, size: float) -> None:
    graph = build(NonormOptions(name="nonorm")).graph
    before = with_gradients(graph, size)
    options = NormClipping(name="norm", threshold=0.5, growth="over_log")
    clipping(graph, options)(3)
    limit = 0.5 / (1 + math.log(4))
    norm = math.sqrt(sum(float(np.square(each).sum()) for each in before.values()))
    factor = min(1.0, limit / (norm + TORCHS_GUARD))
    assert (factor < 1) == (size == 10.0)
    for name, gradient in gradients_of(graph).items():
        np.testing.assert_allclose(gradient, factor * before[name], rtol=1e-14, atol=0)
    clipped = math.sqrt(sum(float(np.square(each).sum()) for each in gradients_of(graph).values()))
    assert clipped <= limit
    assert size == 1e-3 or clipped > 0.999 * limit


def adaptively_clipped(weight: Array, gradient: Array, share: float, eps: float) -> Array:
    """Per filter or row; a vector or a scalar as a whole."""
    if weight.ndim < 2:
        limit, norm = share * max(float(np.linalg.norm(weight)), eps), float(np.linalg.norm(gradient))
        return gradient * (limit / norm) if norm > limit else gradient
    return np.stack([adaptively_clipped(w.reshape(-1), g.reshape(-1), share, eps).reshape(g.shape) for w, g in zip(weight, gradient, strict=True)])


@pytest.mark.parametrize("method", [NonormOptions(name="nonorm"), BatchnormOptions(name="batchnorm"), SkipinitOptions(name="skipinit")])
@pytest.mark.parametrize("classifier", [False, True])
def test_each_filter_is_clipped_by_its_own_norm(build: Build, method: MethodOptions, classifier: bool) -> None:
    graph = build(method).graph
    before = with_gradients(graph, 0.3)
    clipping(graph, AdaptiveClipping(name="agc", threshold=0.02, eps=0.01, classifier=classifier))(0)
    kept = clipped = 0
    for name, parameter in graph.named_parameters():
        assert parameter.grad is not None
        expected = before[name]
        if classifier or not name.startswith("network.classifier"):
            expected = adaptively_clipped(parameter.detach().numpy(), before[name], 0.02, 0.01)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-14, atol=0)
        unchanged = np.array_equal(parameter.grad.numpy(), before[name])
        kept, clipped = kept + unchanged, clipped + (not unchanged)
    assert (kept > 0) != classifier
    assert clipped > 5


def test_what_trains_nothing_is_passed_over(build: Build) -> None:
    """As the ones with which a norm that stands alone is written as a convolution."""
    graph = build(NonormOptions(name="nonorm")).graph
    graph.get_parameter("network.conv1.weight").requires_grad_(False)
    before = with_gradients(graph, 1.0)
    for options in (NormClipping(name="norm", threshold=0.1), AdaptiveClipping(name="agc")):
        clipping(graph, options)(0)
    assert "network.conv1.weight" not in before
    assert not np.array_equal(gradients_of(graph)["network.stages.0.0.conv1.weight"], before["network.stages.0.0.conv1.weight"])


def test_none_leaves_everything(build: Build) -> None:
    graph = build(NonormOptions(name="nonorm")).graph
    before = with_gradients(graph, 1e6)
    clipping(graph, NoClipping(name="none"))(0)
    assert all(np.array_equal(gradient, before[name]) for name, gradient in gradients_of(graph).items())


@pytest.mark.parametrize(("growth", "epoch", "limit"), [("constant", 5, 0.01), ("times_log", 5, 0.01 * (1 + math.log(6)))])
def test_the_optimiser_sees_the_clipped_gradients_of_the_epoch(build: Build, growth: Any, epoch: int, limit: float) -> None:
    clip: Clipping = NormClipping(name="norm", threshold=0.01, growth=growth)
    step = TrainingStep(build(NonormOptions(name="nonorm", weight_decay=0.0)), Training(learning_rate=1.0, clip=clip), torch.device("cpu"), None)
    before = [each.detach().clone() for each in step.graph.parameters()]
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    step.backward(images, torch.arange(8) % 3)
    step.update(epoch)
    moved = math.sqrt(sum(float((was - now.detach()).double().square().sum()) for was, now in zip(before, step.graph.parameters(), strict=True)))
    assert moved == pytest.approx(limit, rel=1e-3)  # float32, and torch's guard on a norm of about one
