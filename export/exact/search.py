"""A search for better steps than the least squared error of each group gives: what counts is the outputs.

Takes a calibrated grid graph; leaves it with steps for which the certificate still holds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from export.exact.calibration import Batches, mend, set_input_step
from export.exact.grid import off_grid
from export.exact.rewrite import GridGraph


@dataclass(frozen=True)
class Found:
    """How far the outputs were from the float ones before and after, as the mean divergence of class probabilities, and what moved."""

    before: float
    after: float
    moved: tuple[str, ...]


@torch.no_grad()
def search(grid: GridGraph, batches: Batches, rounds: int) -> Found:
    """Try each group's step at half and twice its size, in the order of computation, and keep what brings the outputs nearer."""
    with off_grid(grid.graph):
        wanted = [grid.graph(images).log_softmax(1) for images in batches()]
    best = before = _divergence(grid, batches, wanted)
    moved: list[str] = []
    for _ in range(rounds):
        for group in grid.groups:
            for factor in (0.5, 2.0):
                kept = _state(grid)
                _scale(grid, group, factor)
                if (found := _divergence(grid, batches, wanted)) < best:
                    best = found
                    moved.append(group)
                    break
                _restore(kept)
    return Found(before, best, tuple(moved))


def _divergence(grid: GridGraph, batches: Batches, wanted: Iterable[torch.Tensor]) -> float:
    """The mean Kullback-Leibler divergence of the exact class probabilities from the float ones."""
    total, number = 0.0, 0
    for images, logs in zip(batches(), wanted, strict=True):
        total += F.kl_div(grid.graph(images).log_softmax(1), logs, reduction="sum", log_target=True).item()
        number += len(images)
    return total / number


def _scale(grid: GridGraph, group: str, factor: float) -> None:
    for quantiser in grid.groups[group]:
        quantiser.step.mul_(factor)
    for layer in grid.layers:
        if layer.source == group:
            set_input_step(grid, layer)
    mend(grid)


def _state(grid: GridGraph) -> Mapping[torch.Tensor, torch.Tensor]:
    """Every step of the grid, and a copy of it."""
    steps = [quantiser.step for members in grid.groups.values() for quantiser in members]
    steps += [step for layer in grid.layers for step in (layer.weights.step, layer.weights.input_step)]
    return {step: step.clone() for step in steps}


def _restore(kept: Mapping[torch.Tensor, torch.Tensor]) -> None:
    for step, value in kept.items():
        step.copy_(value)
