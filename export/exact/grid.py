"""Values, weights and layers on the exact grid, their graph, and its plain form with integers.

Steps are powers of two. Weights are even and biases odd, so that no accumulator is a tie.
Knows no file format.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule

from export.graph.fold import fold
from export.graph.layers import Derivation, DerivedLayer, LayerKind, WeightAndBias

SIGNED = (-128, 127)
UNSIGNED = (0, 127)
"""The values that every 8-bit type can hold, signed or not."""
LARGEST_WEIGHT = 126
LARGEST_WEIGHT_ON_SIGNED = 64
"""The limit for weights that meet a signed input.

Kernels without VNNI see such an input as 0..255. They add pairs of products in 16 bits, which
saturate: 2 * 255 * 64 < 2^15.
"""


class _RoundToGrid(torch.autograd.Function):
    """round(x / step) within [low, high], times step. Where nothing is clipped, gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, low: float, high: float) -> torch.Tensor:
        scaled = x / step
        # Beyond low and high by half a step a value still rounds to them, so it is not clipped.
        ctx.save_for_backward((scaled >= low - 0.5) & (scaled <= high + 0.5))
        return scaled.round_().clamp_(low, high).mul_(step).add_(0.0)  # + 0 turns -0 into +0, as an integer has no -0

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


class _StraightThrough(torch.autograd.Function):
    """The rounded values, with the gradient of the values that they replace."""

    @staticmethod
    def forward(ctx: Any, _x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def even(weight: torch.Tensor, step: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """The nearest even multiples of each filter's step, within the limit."""
    step = step.view(-1, *[1] * (weight.dim() - 1))
    with torch.no_grad():
        halves = torch.round(weight / (2 * step))
        # + 0.0 turns -0 into +0.
        rounded = torch.clamp(halves, -limit / 2, limit / 2) * (2 * step) + 0.0
    return _apply(_StraightThrough, weight, rounded)


def odd(bias: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """The nearest odd multiples of each filter's unit.

    With even weights every sum is odd, so rounding a sum is never a tie.
    """
    with torch.no_grad():
        rounded = (2 * torch.round((bias / unit - 1) / 2) + 1) * unit
    return _apply(_StraightThrough, bias, rounded)


def _apply(function: type[torch.autograd.Function], *arguments: object) -> torch.Tensor:
    result: torch.Tensor = function.apply(*arguments)
    return result


class Pixels(nn.Module):
    """Raw pixels to the grid: (p - offset) * step, exact for every byte."""

    offset: torch.Tensor
    step: torch.Tensor

    def __init__(self, offset: int, step: float) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(float(offset)))
        self.register_buffer("step", torch.tensor(step))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.to(self.step.dtype) - self.offset) * self.step


class Quantise(nn.Module):
    """Rounds values to multiples of the step, from `low` to `high` times the step.

    With a `low` of 0 it acts as a ReLU too. `ceiling` is the largest value that the rectifier it
    replaces lets pass (6 for a ReLU6).
    """

    step: torch.Tensor

    def __init__(self, limits: tuple[int, int], ceiling: float = math.inf) -> None:
        super().__init__()
        self.low, self._high, self.ceiling = *limits, ceiling
        self.register_buffer("step", torch.tensor(1.0))
        self.active = True

    @property
    def signed(self) -> bool:
        return self.low < 0

    @property
    def high(self) -> int:
        """The largest multiple of the step that may come out."""
        return self._high if math.isinf(self.ceiling) else min(self._high, max(1, math.floor(self.ceiling / self.step.item())))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.active:
            return _apply(_RoundToGrid, x, self.step, self.low, self.high)
        return x if self.signed else x.clamp(0, self.ceiling)


class BorrowedWeights(Derivation):
    """A weight and bias that belong to another module, as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self) -> WeightAndBias:
        return self.weight, self.bias


class MeanWeights(Derivation):
    """A mean as the weights of a depthwise convolution, because a mean itself would round ties."""

    weight: torch.Tensor

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1])))

    def forward(self) -> WeightAndBias:
        return self.weight, None


class ScaledDerivation(Derivation):
    """Another derivation times a constant.

    The constant makes up for what a neighbouring layer leaves out, such as the count where a sum
    stands for a mean.
    """

    def __init__(self, inner: Derivation, factor: float, *, on_bias: bool) -> None:
        super().__init__()
        self.inner, self.factor, self.on_bias = inner, factor, on_bias

    def forward(self) -> WeightAndBias:
        weight, bias = self.inner()
        return weight * self.factor, bias * self.factor if bias is not None and self.on_bias else bias


class PixelwiseLinear(Derivation):
    """The weights of a linear layer as those of a convolution over one pixel."""

    def __init__(self, inner: Derivation) -> None:
        super().__init__()
        self.inner = inner

    def forward(self) -> WeightAndBias:
        weight, bias = self.inner()
        return weight[:, :, None, None], bias


class PixelWeights(Derivation):
    """The weights for pixels as `Pixels` gives them, instead of the network's own normalisation.

    Inside the image this is the same function. Where zeros are padded, they now stand for the one
    offset instead of each channel's mean.
    """

    gain: torch.Tensor
    shift: torch.Tensor

    def __init__(self, inner: Derivation, gain: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("gain", gain.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self) -> WeightAndBias:
        weight, bias = self.inner()
        shifted = (weight * self.shift).flatten(1).sum(1)
        return weight * self.gain, shifted if bias is None else bias + shifted


class GridWeights(Derivation):
    """Another derivation's weight and bias on the grid, with a step for each output filter.

    The weights are even multiples, the biases odd ones.
    """

    step: torch.Tensor
    input_step: torch.Tensor
    limit: torch.Tensor

    def __init__(self, inner: Derivation, limit: int) -> None:
        super().__init__()
        self.inner = inner
        filters = inner()[0].shape[0]
        self.register_buffer("step", torch.ones(filters))
        self.register_buffer("input_step", torch.tensor(1.0))
        self.register_buffer("limit", torch.full((filters,), float(limit)))
        self.active = True

    def forward(self) -> WeightAndBias:
        weight, bias = self.inner()
        if not self.active:
            return weight, bias
        limit = self.limit.view(-1, *[1] * (weight.dim() - 1))
        bias = torch.zeros_like(self.step) if bias is None else bias
        return even(weight, self.step, limit), odd(bias, self.unit)

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.inner.filters_and_scale()

    @property
    def unit(self) -> torch.Tensor:
        """What one integer of a sum stands for, per filter."""
        return self.step * self.input_step

    @torch.no_grad()
    def integers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as exact integers: as multiples of the step and of the unit."""
        weight, bias = self()
        assert bias is not None
        return weight / self.step.view(-1, *[1] * (weight.dim() - 1)), bias / self.unit


class PooledSum(nn.Module):
    """The sum over an image times a power of two, in place of a mean over any other count."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(3, keepdim=True).sum(2, keepdim=True) * self.factor


@contextmanager
def off_grid(graph: nn.Module) -> Iterator[None]:
    """Switch off all rounding for as long as this lasts: calibration looks at these values."""
    parts = [part for part in graph.modules() if isinstance(part, (Quantise, GridWeights))]
    for part in parts:
        part.active = False
    try:
        yield
    finally:
        for part in parts:
            part.active = True


def is_power_of_two(count: int) -> bool:
    """Whether a mean over this many values is a shift."""
    return count & (count - 1) == 0


Kind = LayerKind | Literal["mean"]


@dataclass(frozen=True, kw_only=True)
class GridBits:
    """How many bits there are for the weights of each kind of layer and for rectified values.

    8 bits are what an int8 holds.
    """

    weights: int = 8
    first: int = 7
    classifier: int = 8
    depthwise: int | None = None
    pointwise: int | None = None
    linear: int | None = None
    """None means the same as `weights`."""
    activations: int = 7

    def of(self, kind: "Kind") -> int:
        given = {
            "first": self.first,
            "classifier": self.classifier,
            "depthwise": self.depthwise,
            "pointwise": self.pointwise,
            "linear": self.linear,
            "mean": 8,
        }.get(kind)
        return self.weights if given is None else given

    @property
    def rectified(self) -> tuple[int, int]:
        """The range of values behind a rectifier, in steps."""
        return 0, 2**self.activations - 1


@dataclass(frozen=True)
class GridLayer:
    """A layer on the grid.

    `source` and `target` are groups of values that share a step. The target is None for the logits,
    which have no step.
    """

    name: str
    kind: Kind
    source: str
    source_factor: float
    """The input's step as a share of its group's: 1, or 1/count behind a mean that is a shift."""
    signed_input: bool
    largest_input: int
    """Counted in steps of the input."""
    target: str | None
    layer: DerivedLayer
    positions: int = 1
    """How many of its sums are added up behind it: more than 1 for a classifier before its pool."""

    @property
    def weights(self) -> GridWeights:
        derivation = self.layer.derivation
        assert isinstance(derivation, GridWeights)
        return derivation


@dataclass(frozen=True)
class GridGraph:
    """A graph on the grid, with its layers in the order of computation.

    It also lists the quantisers of each group of values that share a step.
    """

    graph: GraphModule
    layers: tuple[GridLayer, ...]
    groups: dict[str, tuple[Quantise, ...]]
    pixels: Pixels


Tensors = Mapping[str, torch.Tensor]


def integers_of(grid: GridGraph) -> dict[str, torch.Tensor]:
    """Per layer: weight as int8, bias as int32, step of each filter's weights, unit of its sums."""
    tensors: dict[str, torch.Tensor] = {}
    for layer in grid.layers:
        weight, bias = layer.weights.integers()
        tensors |= {
            f"{layer.name}.weight": weight.to(torch.int8),
            f"{layer.name}.bias": bias.to(torch.int32),
            f"{layer.name}.step": layer.weights.step.clone(),
            f"{layer.name}.unit": layer.weights.unit.clone(),
        }
    return tensors


def folded_from_integers(grid: GridGraph, integers: Tensors) -> GraphModule:
    """The plain graph that runs with these integers."""
    folded = fold(grid.graph)
    for layer in grid.layers:
        weight, bias, step, unit = (integers[f"{layer.name}.{part}"] for part in ("weight", "bias", "step", "unit"))
        folded.get_parameter(f"{layer.name}.weight").copy_(weight.float() * step.view(-1, *[1] * (weight.dim() - 1)))
        folded.get_parameter(f"{layer.name}.bias").copy_(bias.float() * unit)
    return folded
