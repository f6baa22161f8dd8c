import numpy as np
import pytest
import torch
from graphs import DEFAULTS, images, rewritten, step

from export.errors import UsageError
from export.exact.calibration import LARGEST_SUM, calibrate, coarsen_steps, largest_sums, search
from export.exact.grid import GridBits, GridGraph, Quantise, off_grid
from export.exact.rewrite import grid_graph

SHAPE = (3, 32, 32)


@pytest.fixture
def grid() -> GridGraph:
    return grid_graph(rewritten("small", SHAPE, DEFAULTS["mimicnorm"]).graph.eval(), SHAPE, GridBits())


def seen_by(grid: GridGraph, quantiser: Quantise, batch: torch.Tensor) -> np.ndarray:
    kept: list[torch.Tensor] = []
    hook = quantiser.register_forward_hook(lambda _module, arguments, _output: kept.append(arguments[0]))
    with off_grid(grid.graph), torch.no_grad():
        grid.graph(batch)
    hook.remove()
    return kept[0].numpy().astype(np.float64)


def test_the_step_of_a_group_has_the_least_squared_error(grid: GridGraph) -> None:
    batch = images(16, SHAPE)
    calibrate(grid, lambda: [batch])
    for members in grid.groups.values():
        errors = {}
        for exponent in range(-12, 6):
            trial = 2.0**exponent
            errors[trial] = sum(
                np.square(np.clip(np.rint(x / trial), q.low, q.high) * trial - (x if q.signed else np.maximum(x, 0))).sum()
                for q in members
                for x in [seen_by(grid, q, batch)]
            )
        assert {q.step.item() for q in members} == {min(errors, key=lambda trial: errors[trial])}


def test_every_step_is_a_power_of_two(grid: GridGraph) -> None:
    calibrate(grid, lambda: [images(8, SHAPE)])
    steps = [q.step for q in grid.graph.modules() if isinstance(q, Quantise)] + [layer.weights.step for layer in grid.layers]
    for each in steps:
        mantissa, _ = np.frexp(each.numpy())
        assert (mantissa == 0.5).all()


def test_a_filter_whose_sums_are_too_large_gets_a_coarser_step(grid: GridGraph) -> None:
    calibrate(grid, lambda: [images(8, SHAPE)])
    layer = grid.layers[3]
    before = layer.weights.step.clone()
    assert coarsen_steps(grid) == ()
    inner = layer.weights.inner
    with torch.no_grad():
        for parameter in inner.parameters():
            if parameter.dim() == 1:
                parameter[0] = 2.0**25 * layer.weights.unit[0]  # a bias beyond every sum
    assert largest_sums(layer)[0] > LARGEST_SUM
    assert coarsen_steps(grid) == (layer.name,)
    assert largest_sums(layer).max() <= LARGEST_SUM
    assert layer.weights.step[0] > before[0]
    assert torch.equal(layer.weights.step[1:], before[1:])


def test_no_quantiser_can_meet_a_tie(grid: GridGraph) -> None:
    """A sum is odd, so half a quantiser's step is a sum only if the step is twice the sum's unit.

    Beyond 2^16 units, zero points cause ties as well.
    """
    calibrate(grid, lambda: [images(8, SHAPE)])
    layer = grid.layers[2]
    assert layer.target is not None
    quantiser = grid.groups[layer.target][0]
    for ratio, changed in ((1, False), (2, True), (4, False), (8, False), (2**16, False), (2**17, True)):
        layer.weights.step.copy_(quantiser.step / (ratio * layer.weights.input_step))
        layer.weights.step.clamp_max_(1e30)
        mended = coarsen_steps(grid)
        assert (layer.name in mended) == changed, ratio


def test_integers_are_even_and_odd(grid: GridGraph) -> None:
    calibrate(grid, lambda: [images(8, SHAPE)])
    for layer in grid.layers:
        weight, bias = layer.weights.integers()
        assert torch.equal(weight % 2, torch.zeros_like(weight))
        assert torch.equal(bias % 2, torch.ones_like(bias))
        assert weight.abs().max() <= layer.weights.limit.max()


def test_a_network_with_infinite_values_is_refused(grid: GridGraph) -> None:
    with torch.no_grad():
        next(iter(grid.graph.parameters())).fill_(float("inf"))
    with pytest.raises(UsageError, match="not finite"):
        calibrate(grid, lambda: [images(2, SHAPE)])


def test_training_on_the_grid_moves_the_weights_and_stays_on_it() -> None:
    network = rewritten("small", SHAPE, DEFAULTS["czmig"])
    grid = grid_graph(network.graph, SHAPE, GridBits())
    batch = images(8, SHAPE)
    calibrate(grid, lambda: [batch])
    before = grid.graph(batch)
    for _ in range(3):
        step(network, batch)
    after = grid.graph(batch)
    assert not torch.equal(before, after)
    for layer in grid.layers:
        weight, _ = layer.weights.integers()
        assert torch.equal(weight, weight.round())


GRAY = (1, 8, 8)


def calibrated(batch: torch.Tensor) -> GridGraph:
    grid = grid_graph(rewritten("small", GRAY, DEFAULTS["mimicnorm"]).graph.eval(), GRAY, GridBits())
    calibrate(grid, lambda: [batch])
    return grid


def divergence(grid: GridGraph, batch: torch.Tensor) -> float:
    """The mean over samples of sum p log(p / q), with p before and q after rounding."""
    with torch.no_grad():
        q = grid.graph(batch).double().softmax(1)
        with off_grid(grid.graph):
            p = grid.graph(batch).double().softmax(1)
    return float((p * (p.log() - q.log())).sum(1).mean())


def test_a_spoilt_step_is_found_and_mended_within_the_certificate() -> None:
    batch = images(32, GRAY)
    grid = calibrated(batch)
    good = divergence(grid, batch)
    group, members = next(iter(grid.groups.items()))
    for quantiser in members:
        quantiser.step.mul_(4)
    for layer in grid.layers:
        if layer.source == group:
            layer.weights.input_step.mul_(4)
    coarsen_steps(grid)
    found = search(grid, lambda: [batch], rounds=2)
    assert found.before > 2 * good
    assert found.after <= 1.5 * good
    assert group in found.moved
    assert abs(found.after - divergence(grid, batch)) < 1e-6
    assert all(largest_sums(layer).max() <= LARGEST_SUM for layer in grid.layers)
    assert coarsen_steps(grid) == ()


def test_what_is_not_better_is_taken_back() -> None:
    batch = images(32, GRAY)
    grid = calibrated(batch)
    search(grid, lambda: [batch], rounds=3)
    before = {name: value.clone() for name, value in grid.graph.state_dict().items()}
    found = search(grid, lambda: [batch], rounds=1)
    assert found.moved == ()
    assert found.after == found.before
    assert all(torch.equal(value, before[name]) for name, value in grid.graph.state_dict().items())
