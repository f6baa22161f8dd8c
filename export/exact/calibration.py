"""Chooses the steps of a grid, by least squared error on images and by search.

Takes a grid graph and images. Makes steps coarser where a sum could grow too large, so that the
certificate of the graph holds.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from export.errors import UsageError
from export.exact.grid import GridGraph, GridLayer, Quantise, off_grid

LARGEST_SUM = 2**24 - 1
"""Every integer up to here is a float32. So is every partial sum, in any order of the terms."""
WIDEST_STEP = 2**16
"""The largest step of a quantiser, in units of the sums it rounds.

OpenVINO adds the zero point before it rounds: 8 bits of the result and these 16 fill the 24 bits
of a float32.
"""


@torch.no_grad()
def largest_sums(layer: GridLayer) -> torch.Tensor:
    """Per filter, the largest absolute value of a sum over any subset of its terms, with the bias.

    It is computed in float64, where it is exact.
    """
    weights, bias = (each.double() for each in layer.weights.integers())
    weights = weights.flatten(1)
    positive, negative = weights.clamp_min(0).sum(1), -weights.clamp_max(0).sum(1)
    terms = positive + negative if layer.signed_input else torch.maximum(positive, negative)
    return (terms * layer.largest_input + bias.abs()) * layer.positions


Batches = Callable[[], Iterable[torch.Tensor]]
_CANDIDATES = 4
"""How many steps are tried, from the one that clips nothing downwards.

The least error lies among these for all but pathological values.
"""
_SMALLEST_STEP = 2.0**-60  # in place of 0, which has no logarithm


@torch.no_grad()
def calibrate(grid: GridGraph, batches: Batches) -> None:
    """Choose every step of the graph from the values that occur on these images."""
    with off_grid(grid.graph):
        largest = _largest_values(grid, batches)
        candidates = {group: _candidates(largest[group], members) for group, members in grid.groups.items()}
        errors = _squared_errors(grid, candidates, batches)
    for group, members in grid.groups.items():
        step = min(zip(errors[group], candidates[group], strict=True))[1]
        for quantiser in members:
            quantiser.step.fill_(step)
    for layer in grid.layers:
        set_input_step(grid, layer)
        _choose_filter_steps(layer)
    coarsen_steps(grid)


def set_input_step(grid: GridGraph, layer: GridLayer) -> None:
    """Give a layer the step of the values that it reads."""
    step = grid.groups[layer.source][0].step if layer.source in grid.groups else grid.pixels.step
    layer.weights.input_step.copy_(step * layer.source_factor)


def coarsen_steps(grid: GridGraph) -> tuple[str, ...]:
    """Double the steps of filters whose sums could be too large, or whose rounding could go wrong.

    A rounding goes wrong where it could be a tie or inexact. Returns the names of changed layers.
    """
    return tuple(layer.name for layer in grid.layers if _coarsened(grid, layer))


def _coarsened(grid: GridGraph, layer: GridLayer) -> bool:
    weights, before = layer.weights, layer.weights.step.clone()
    while bool((unfit := _unfit(grid, layer)).any()):
        weights.step.mul_(torch.where(unfit, 2.0, 1.0))
        if weights.step.max() > 2.0**60:
            raise UsageError(f"layer {layer.name!r} has no exact form: its bias alone is too large for its sums; train it with smaller biases")
    return not torch.equal(before, weights.step)


def _unfit(grid: GridGraph, layer: GridLayer) -> torch.Tensor:
    too_large = largest_sums(layer) > LARGEST_SUM
    if layer.target is None:
        return too_large
    step = grid.groups[layer.target][0].step / layer.weights.unit
    # Sums are odd: in steps of 2 every one of them would be a tie.
    return too_large | (step == 2) | (step > WIDEST_STEP)


def _choose_filter_steps(layer: GridLayer) -> None:
    """The step that clips no weight, or the one below it if that has the smaller error."""
    weights = layer.weights
    values = weights.inner()[0].flatten(1)
    limit = weights.limit
    exponent = torch.ceil(torch.log2((values.abs().amax(1) / limit).clamp_min(_SMALLEST_STEP)))
    choices = torch.stack([torch.ldexp(torch.ones_like(exponent), (exponent - lower).int()) for lower in (0, 1)])
    errors = torch.stack([_weight_errors(values, step, limit) for step in choices])
    weights.step.copy_(choices.gather(0, errors.argmin(0, keepdim=True)).squeeze(0))


def _weight_errors(values: torch.Tensor, step: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    step, limit = step.unsqueeze(1), limit.unsqueeze(1)
    rounded = torch.clamp(2 * torch.round(values / (2 * step)), -limit, limit) * step
    return (rounded - values).double().square().sum(1)


def _candidates(largest: float, members: tuple[Quantise, ...]) -> list[float]:
    """Powers of two, downwards from the one at which nothing is clipped."""
    exponent = math.ceil(math.log2(max(largest, _SMALLEST_STEP) / members[0].high))
    return [2.0 ** (exponent - lower) for lower in range(_CANDIDATES)]


@dataclass
class _InputWatcher:
    """Hands what a quantiser sees to a function."""

    group: str
    see: Callable[[str, Quantise, torch.Tensor], None]

    def __call__(self, module: nn.Module, arguments: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        assert isinstance(module, Quantise)
        self.see(self.group, module, arguments[0])


def _watch(grid: GridGraph, batches: Batches, see: Callable[[str, Quantise, torch.Tensor], None]) -> None:
    hooks = [each.register_forward_hook(_InputWatcher(group, see)) for group, members in grid.groups.items() for each in members]
    try:
        for images in batches():
            grid.graph(images)
    finally:
        for hook in hooks:
            hook.remove()


def _largest_values(grid: GridGraph, batches: Batches) -> dict[str, float]:
    largest = dict.fromkeys(grid.groups, 0.0)

    def see(group: str, quantiser: Quantise, x: torch.Tensor) -> None:
        value = (x.abs() if quantiser.signed else x).amax().item()
        if not math.isfinite(value):
            raise UsageError("the network has values that are not finite on its own training images; it cannot go onto the exact grid")
        largest[group] = max(largest[group], min(value, quantiser.ceiling))

    _watch(grid, batches, see)
    return largest


def _squared_errors(grid: GridGraph, candidates: dict[str, list[float]], batches: Batches) -> dict[str, list[float]]:
    errors = {group: [0.0] * len(steps) for group, steps in candidates.items()}

    def see(group: str, quantiser: Quantise, x: torch.Tensor) -> None:
        wanted = x if quantiser.signed else x.clamp(0, quantiser.ceiling)
        for number, step in enumerate(candidates[group]):
            rounded = torch.clamp(torch.round(wanted / step), quantiser.low, quantiser.high) * step
            errors[group][number] += (rounded - wanted).square().sum(dtype=torch.float64).item()

    _watch(grid, batches, see)
    return errors


@dataclass(frozen=True)
class SearchResult:
    """What a search achieved, and the groups whose steps it moved.

    `before` and `after` are the mean divergence of the class probabilities from the float ones.
    """

    before: float
    after: float
    moved: tuple[str, ...]


@torch.no_grad()
def search(grid: GridGraph, batches: Batches, rounds: int) -> SearchResult:
    """Try half and twice the step of each group, and keep what brings the outputs nearer to float.

    The groups are taken in the order of computation.
    """
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
    return SearchResult(before, best, tuple(moved))


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
    coarsen_steps(grid)


def _state(grid: GridGraph) -> Mapping[torch.Tensor, torch.Tensor]:
    """Every step of the grid, and a copy of it."""
    steps = [quantiser.step for members in grid.groups.values() for quantiser in members]
    steps += [step for layer in grid.layers for step in (layer.weights.step, layer.weights.input_step)]
    return {step: step.clone() for step in steps}


def _restore(kept: Mapping[torch.Tensor, torch.Tensor]) -> None:
    for step, value in kept.items():
        step.copy_(value)
