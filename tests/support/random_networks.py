"""Random networks of every kind of layer that the exact grid knows, with random integers.

The integers go up to the edge of what is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from export.exact.calibration import LARGEST_SUM, set_input_step
from export.exact.grid import BorrowedWeights, GridBits, GridGraph, GridLayer
from export.exact.rewrite import grid_graph
from export.graph import trace
from export.graph.layers import Normalise

CLASSES = 5
Shape = tuple[int, int, int]
Block = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Form:
    """What a random network is made of."""

    image: Shape
    offset: float
    blocks: tuple[nn.Module, ...]
    head: nn.Module
    activation_bits: int


class Network(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*form.blocks)
        self.head = form.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


class Residual(nn.Module):
    """A branch next to the value itself or another branch, rectified behind the join or not."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, rectified: bool) -> None:
        super().__init__()
        self.branch, self.shortcut, self.rectified = branch, shortcut, rectified

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branch(x) + self.shortcut(x)
        return F.relu(x) if self.rectified else x


class SideBySide(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.one(x), self.other(x)), 1)


class Halved(nn.Module):
    """One half goes through a layer, one past it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.cat((left, self.layer(right)), 1)


class Shuffle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class Head(nn.Module):
    """Linear layers on all pixels, or on their mean; or the mean of a convolution's classes."""

    def __init__(self, kind: str, channels: int, height: int, width: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        features = channels * height * (width or height) if kind in ("flat", "hidden") else channels
        self.hidden = nn.Linear(features, 6) if "hidden" in kind else None
        self.last: nn.Module = nn.Linear(6 if "hidden" in kind else features, CLASSES)
        if kind == "convolution":
            self.last = nn.Conv2d(channels, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "convolution":
            return torch.flatten(F.adaptive_avg_pool2d(F.relu(self.last(x)), 1), 1)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1) if "mean" in self.kind else x, 1)
        if self.hidden is not None:
            x = self.hidden(x) if "plain" in self.kind else F.relu(self.hidden(x))
        return self.last(x)


@dataclass(frozen=True)
class _Place:
    """How many channels and pixels there are where a block is put."""

    channels: int
    size: int


Drawn = tuple[nn.Module, _Place]


@st.composite
def forms(draw: st.DrawFn) -> Form:
    """A few blocks behind a first convolution, and a head."""
    channels, size = draw(st.sampled_from([1, 3])), draw(st.sampled_from([5, 6, 8]))
    first, place = draw(_convolution(_Place(channels, size)))
    blocks = [first]
    for _ in range(draw(st.integers(0, 4))):
        block, place = draw(draw(st.sampled_from(_blocks(place)))(place))
        blocks.append(block)
    kind = draw(st.sampled_from(["flat", "hidden", "mean", "mean, hidden", "mean, plain hidden", "convolution"]))
    head = Head(kind, place.channels, place.size)
    return Form((channels, size, size), draw(st.sampled_from([128.0, 128.0, 0.0, 33.0])), tuple(blocks), head, draw(st.sampled_from([7, 7, 8, 5])))


def _blocks(place: _Place) -> list[Callable[[_Place], st.SearchStrategy[Drawn]]]:
    return [
        *(_convolution, _convolution, _residual, _side_by_side, _padded),
        *((_halved, _shuffled) if place.channels % 2 == 0 else ()),
        *((_max_pool, _mean_pool) if place.size >= 3 else ()),
    ]


@st.composite
def _convolution(draw: st.DrawFn, place: _Place, keep: bool = False) -> Drawn:
    """A convolution of any stride, dilation and number of groups.

    With `keep`, it changes no size.
    """
    kernel = draw(st.sampled_from([1, 3])) if keep else draw(st.integers(1, min(3, place.size)))
    dilation = draw(st.integers(1, 2)) if place.size >= 5 else 1
    reach = dilation * (kernel - 1)
    padding = reach // 2 if keep else draw(st.integers(0, kernel))
    stride = 1 if keep else draw(st.integers(1, 2))
    if place.size + 2 * padding <= reach:
        padding = kernel - 1
    groups = draw(st.sampled_from([number for number in range(1, place.channels + 1) if place.channels % number == 0]))
    channels = place.channels if keep else groups * draw(st.integers(1, max(1, 8 // groups)))
    layer = nn.Conv2d(place.channels, channels, kernel, stride, padding, dilation, groups)
    size = (place.size + 2 * padding - reach - 1) // stride + 1
    return _activated(layer, draw(st.sampled_from(["relu", "relu", "relu6", "none"]))), _Place(channels, size)


@st.composite
def single_convolutions(draw: st.DrawFn) -> Form:
    """One convolution of any shape, behind pointwise ones or on the image.

    The kernels of runtimes differ in the odd shapes.
    """
    groups, of_group, filters = (draw(st.sampled_from(each)) for each in ([1, 2, 2, 3, 4, 8], [1, 1, 2, 3, 4], [1, 2, 3, 4, 8, 16]))
    sides = [draw(_side()) for _ in range(2)]
    kernel, image, stride, padding, dilation = ((one, other) for one, other in zip(*sides, strict=True))
    channels = groups * of_group
    layer = nn.Conv2d(channels, groups * filters, kernel, stride, padding, dilation, groups)
    height, width = layer(torch.zeros(1, channels, *image)).shape[2:]
    front: tuple[nn.Module, ...] = ()
    if draw(st.booleans()):
        front, channels = (_activated(nn.Conv2d(2, channels, 1), draw(st.sampled_from(["relu", "none"]))),), 2
    block = _activated(layer, draw(st.sampled_from(["relu", "none"])))
    return Form((channels, *image), draw(st.sampled_from([128.0, 0.0])), (*front, block), Head("flat", groups * filters, height, width), 7)


@st.composite
def _side(draw: st.DrawFn) -> tuple[int, ...]:
    """Kernel, image, stride, padding and dilation along one axis."""
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, kernel))
    reach = dilation * (kernel - 1) + 1
    return kernel, draw(st.integers(max(1, reach - 2 * padding), 9)), stride, padding, dilation


def _activated(layer: nn.Module, kind: str) -> nn.Module:
    return layer if kind == "none" else nn.Sequential(layer, nn.ReLU6() if kind == "relu6" else nn.ReLU())


@st.composite
def _residual(draw: st.DrawFn, place: _Place) -> Drawn:
    branch, _ = draw(_convolution(place, keep=True))
    if draw(st.booleans()):
        branch = nn.Sequential(branch, nn.Conv2d(place.channels, place.channels, 1))
    shortcut = nn.Conv2d(place.channels, place.channels, 1) if draw(st.booleans()) else nn.Identity()
    return Residual(branch, shortcut, draw(st.booleans())), place


@st.composite
def _side_by_side(draw: st.DrawFn, place: _Place) -> Drawn:
    one, other = (draw(_convolution(place, keep=True))[0] for _ in range(2))
    return SideBySide(one, other), _Place(2 * place.channels, place.size)


@st.composite
def _halved(draw: st.DrawFn, place: _Place) -> Drawn:
    layer, _ = draw(_convolution(_Place(place.channels // 2, place.size), keep=True))
    return Halved(layer), place


def _shuffled(place: _Place) -> st.SearchStrategy[Drawn]:
    return st.builds(lambda: (Shuffle(), place))


def _padded(place: _Place) -> st.SearchStrategy[Drawn]:
    return st.builds(lambda: (nn.ZeroPad2d((1, 0, 0, 1)), _Place(place.channels, place.size + 1)))


@st.composite
def _max_pool(draw: st.DrawFn, place: _Place) -> Drawn:
    kernel, stride, padding, ceil = draw(st.integers(2, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.booleans())
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    return pool, _Place(place.channels, pool(torch.zeros(1, 1, place.size, place.size)).shape[-1])


@st.composite
def _mean_pool(draw: st.DrawFn, place: _Place) -> Drawn:
    pool = nn.AvgPool2d(draw(st.integers(2, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1)))
    return pool, _Place(place.channels, pool(torch.zeros(1, 1, place.size, place.size)).shape[-1])


def on_grid(form: Form, seed: int) -> GridGraph:
    """The network on the grid, with random steps and integers."""
    shape = form.image
    normalise = Normalise((form.offset,) * shape[0], (64.0,) * shape[0])
    grid = grid_graph(trace(Network(form), normalise, shape, CLASSES).eval(), shape, GridBits(activations=form.activation_bits))
    draw_integers(grid, np.random.default_rng(seed))
    return grid


def draw_integers(grid: GridGraph, rng: np.random.Generator) -> None:
    """Draw the steps and integers of a grid.

    The steps are so far from those of the sums that many values are neither 0 nor clipped. Some
    biases put sums right on the edge.
    """
    for members in grid.groups.values():
        step = 2.0 ** -rng.integers(0, 7)
        for quantiser in members:
            quantiser.step.fill_(step)
    for layer in grid.layers:
        set_input_step(grid, layer)
        _draw_layer(grid, layer, rng)


def _draw_layer(grid: GridGraph, layer: GridLayer, rng: np.random.Generator) -> None:
    shape = layer.weights.inner()[0].shape
    largest = (LARGEST_SUM // layer.positions - 1) | 1  # odd, as every bias is
    weights = _weights(shape, int(layer.weights.limit.min()), layer.largest_input, largest, rng)
    terms = _largest_terms(weights, layer)
    at_edge = rng.random(len(weights)) < 0.25
    bias = np.where(at_edge, largest - terms, 2 * rng.integers(-terms // 4 - 1, terms // 4 + 1) + 1) * rng.choice([-1, 1], len(weights))
    units = _units(grid, layer, terms, rng)
    step = units / layer.weights.input_step.item()
    layer.weights.step.copy_(torch.tensor(step))
    values = torch.tensor(weights * step.reshape(-1, *[1] * (len(shape) - 1)), dtype=torch.float32)
    layer.weights.inner = BorrowedWeights(values, torch.tensor(bias * units, dtype=torch.float32))


def _weights(shape: torch.Size, limit: int, largest_input: int, largest_sum: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Even weights within the limit. They are smaller where there are too many for large ones."""
    room = largest_sum // max(1, largest_input * int(np.prod(shape[1:])))
    half = max(1, min(limit, room) // 2)
    drawn = rng.integers(-half, half + 1, tuple(shape))
    extreme = np.where(rng.random(shape) < 0.2, half * rng.choice([-1, 1], shape), drawn)
    return np.asarray(2 * extreme if 2 * half <= room else np.zeros_like(extreme))


def _largest_terms(weights: NDArray[np.int64], layer: GridLayer) -> NDArray[np.int64]:
    flat = weights.reshape(len(weights), -1)
    positive, negative = np.maximum(flat, 0).sum(1), -np.minimum(flat, 0).sum(1)
    return np.asarray((positive + negative if layer.signed_input else np.maximum(positive, negative)) * layer.largest_input)


def _units(grid: GridGraph, layer: GridLayer, terms: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Units of the sums. A quantiser's step is a power of two times them, but not 2: a tie."""
    if layer.target is None:
        return np.asarray(2.0 ** rng.integers(-12, 0, len(terms)))
    wanted = np.ceil(np.log2(np.maximum(terms, 1) / 127)) - rng.integers(0, 4, len(terms))
    exponents = np.clip(np.where(wanted == 1, 2, wanted), -6, 16)  # below, sums reach 2^31 steps; above, a zero point has no room
    return np.asarray(grid.groups[layer.target][0].step.item() / 2.0**exponents)
