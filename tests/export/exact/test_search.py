import torch
from graphs import DEFAULTS, images, rewritten

from export.exact.calibration import LARGEST_SUM, calibrate, largest_sums, mend, search
from export.exact.grid import GridBits, GridGraph, off_grid
from export.exact.rewrite import grid_graph

SHAPE = (1, 8, 8)


def calibrated(batch: torch.Tensor) -> GridGraph:
    grid = grid_graph(rewritten("small", SHAPE, DEFAULTS["mimicnorm"]).graph.eval(), SHAPE, GridBits())
    calibrate(grid, lambda: [batch])
    return grid


def divergence(grid: GridGraph, batch: torch.Tensor) -> float:
    """The mean over samples of sum p log(p / q), p without and q with the rounding."""
    with torch.no_grad():
        q = grid.graph(batch).double().softmax(1)
        with off_grid(grid.graph):
            p = grid.graph(batch).double().softmax(1)
    return float((p * (p.log() - q.log())).sum(1).mean())


def test_a_spoilt_step_is_found_and_mended_within_the_certificate() -> None:
    batch = images(32, SHAPE)
    grid = calibrated(batch)
    good = divergence(grid, batch)
    group, members = next(iter(grid.groups.items()))
    for quantiser in members:
        quantiser.step.mul_(4)
    for layer in grid.layers:
        if layer.source == group:
            layer.weights.input_step.mul_(4)
    mend(grid)
    found = search(grid, lambda: [batch], rounds=2)
    assert found.before > 2 * good
    assert found.after <= 1.5 * good
    assert group in found.moved
    assert abs(found.after - divergence(grid, batch)) < 1e-6
    assert all(largest_sums(layer).max() <= LARGEST_SUM for layer in grid.layers)
    assert mend(grid) == ()


def test_what_is_not_better_is_taken_back() -> None:
    batch = images(32, SHAPE)
    grid = calibrated(batch)
    search(grid, lambda: [batch], rounds=3)
    before = {name: value.clone() for name, value in grid.graph.state_dict().items()}
    found = search(grid, lambda: [batch], rounds=1)
    assert found.moved == ()
    assert found.after == found.before
    assert all(torch.equal(value, before[name]) for name, value in grid.graph.state_dict().items())
