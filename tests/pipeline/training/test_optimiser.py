"""The rate at each step, against figures written out by hand, and clipping against NumPy in
float64.

Each reading of the threshold of clipping is tested.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from pipeline.config.methods import BatchnormOptions, MethodOptions, NonormOptions, SkipinitOptions
from pipeline.config.sections import AdaptiveClipping, Clipping, NoClipping, NormClipping, Schedule, Training
from pipeline.methods.method import RewrittenGraph
from pipeline.training.optimiser import SCHEDULES, Moment, clipping, momentum, rate_share, threshold
from pipeline.training.step import TrainingStep


def _shares(options: Schedule, epochs: int, steps_per_epoch: int) -> list[float]:
    return [rate_share(Moment(step, steps_per_epoch, epochs), options) for step in range(epochs * steps_per_epoch)]


def test_constant_is_constant() -> None:
    assert _shares(Schedule(name="constant"), 2, 2) == [1.0] * 4


def test_multistep_falls_after_its_milestones() -> None:
    options = Schedule(name="multistep", milestones=(1, 3), factor=0.5)
    assert _shares(options, 4, 2) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_warm_up_rises_step_by_step_and_reaches_the_full_rate_at_its_last_step() -> None:
    options = Schedule(name="multistep", milestones=(2,), factor=0.5, warmup_epochs=1.0)
    assert _shares(options, 3, 4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


def test_warm_up_may_end_within_an_epoch() -> None:
    assert _shares(Schedule(name="constant", warmup_epochs=0.5), 1, 4) == [0.5, 1.0, 1.0, 1.0]


def test_linear_cosine_and_monotonic_fall_to_the_last_share() -> None:
    assert _shares(Schedule(name="linear", last=0.5), 2, 2) == [1.0, 0.875, 0.75, 0.625]
    assert _shares(Schedule(name="monotonic"), 2, 2) == [1.0, 1.0, 0.5, 0.5]
    expected = 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    assert np.abs(np.array(_shares(Schedule(name="cosine", last=0.2), 2, 4)) - expected).max() < 1e-15


def test_cyclic_goes_up_and_down() -> None:
    assert _shares(Schedule(name="cyclic", cycle_epochs=2.0, last=0.5), 4, 2) == [0.5, 0.75, 1.0, 0.75] * 2
    assert _shares(Schedule(name="cyclic"), 10, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2], abs=1e-15)


def test_points_are_joined_by_straight_lines() -> None:
    """The one cycle of thirty epochs: 0.1 to 0.5 and back, then a hundred times lower.

    The momentum moves the other way.
    """
    options = Schedule(
        name="points",
        rate_points=((1, 0.2), (13, 1.0), (26, 0.2), (30, 0.002)),
        momentum_points=((1, 0.95), (13, 0.85), (26, 0.95), (27, 0.85)),
    )
    shares = _shares(options, 31, 2)
    assert [shares[2 * epoch] for epoch in (0, 1, 13, 26, 30)] == pytest.approx([0.2, 0.2, 1.0, 0.2, 0.002], abs=1e-15)
    assert shares[14] == pytest.approx(0.2 + 0.8 * 6 / 12, abs=1e-15)
    momenta = [momentum(Moment(2 * epoch, 2, 31), options, 0.9) for epoch in (0, 7, 13, 26, 30)]
    assert momenta == pytest.approx([0.95, 0.9, 0.85, 0.95, 0.85], abs=1e-15)
    assert momentum(Moment(0, 2, 31), Schedule(name="constant"), 0.9) == 0.9


THIRTY_EPOCHS = Schedule(name="one_cycle", cycle_epochs=26.0, cycle_foot=0.2, last=0.002, momentum_after_cycle=0.85)
"""EquiNorm's, of a rate of 0.5: five-fold up to epoch 13, five-fold down to 26, then a
hundred-fold.

The last fall takes the rest of the run.
"""


def test_one_cycle_is_the_thirty_epochs_of_equinorm() -> None:
    steps_per_epoch = 390
    steps = np.arange(30 * steps_per_epoch)
    epochs = steps / steps_per_epoch
    rates = np.interp(epochs, [0, 13, 26, 30], [0.1, 0.5, 0.1, 0.001])
    assert np.abs(0.5 * np.array(_shares(THIRTY_EPOCHS, 30, steps_per_epoch)) - rates).max() < 1e-15
    momenta = np.where(epochs <= 26, np.interp(epochs, [0, 13, 26], [0.95, 0.85, 0.95]), 0.85)
    found = [momentum(Moment(int(step), steps_per_epoch, 30), THIRTY_EPOCHS, 0.9) for step in steps]
    assert np.abs(np.array(found) - momenta).max() < 1e-15


def test_one_cycle_by_default_takes_nine_tenths_of_the_run_and_ends_at_the_momentum_of_its_feet() -> None:
    options = Schedule(name="one_cycle", cycle_foot=0.5)
    assert _shares(options, 10, 1) == pytest.approx(np.interp(range(10), [0, 4.5, 9], [0.5, 1, 0.5]))
    momenta = [momentum(Moment(step, 2, 10), options, 0.9) for step in (0, 9, 18, 19)]
    assert momenta == pytest.approx([0.95, 0.85, 0.95, 0.95], abs=1e-15)


def test_points_of_the_momentum_come_before_the_cycles_own() -> None:
    options = Schedule(name="one_cycle", momentum_points=((0, 0.5),))
    assert momentum(Moment(5, 1, 10), options, 0.9) == 0.5


def test_a_cycle_as_long_as_the_run_has_nothing_behind_it() -> None:
    assert _shares(Schedule(name="one_cycle", cycle_epochs=4.0, cycle_foot=0.0), 4, 1) == [0.0, 0.5, 1.0, 0.5]


def test_every_schedule_of_the_config_has_a_row() -> None:
    named = Schedule.model_json_schema()["properties"]["name"]["enum"]
    assert sorted(named) == sorted(SCHEDULES)


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
    """Give a graph in float64 gradients of very different sizes, and return them."""
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
    """Like the ones of a lone norm that is written as a convolution."""
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
