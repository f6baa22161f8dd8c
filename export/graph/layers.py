"""Layers that plain networks lack, and layers with derived weights, which can be folded.

Takes modules. Knows no method and no network.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional as F


class Normalise(nn.Module):
    """Raw pixels to network input: (p - mean) / deviation.

    It is a subtraction and a division, because every runtime rounds these two alike.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.to(self.mean.dtype) - self.mean) / self.deviation


class GlobalAveragePool(nn.Module):
    """The mean over rows, then over columns.

    Runtimes compute a mean by adding one value after another. Two short sums round far less than
    one long sum.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(3, keepdim=True).mean(2, keepdim=True)


class ScalarBias(nn.Module):
    """x + b with one learned b, for places where no layer's own bias does the same.

    Such a place is in front of zero padding, or in front of a ReLU that does not follow a layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width, where both may be given as one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


WeightAndBias = tuple[torch.Tensor, torch.Tensor | None]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Derivation(nn.Module, ABC):
    """A small differentiable function from parameters to the weight and bias of a plain layer."""

    @abstractmethod
    def forward(self) -> WeightAndBias:
        """The weight and bias that the plain operation runs with."""

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """For reports: the filters before a learned scale per filter, and that scale, or None."""
        return self()[0], None

    def output_variance(self) -> torch.Tensor | None:
        """For reports: the running variances whose roots divide the outputs, or None."""
        return None


class PlainDerivation(Derivation):
    """Weight and bias are the parameters themselves."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self) -> WeightAndBias:
        return self.weight, self.bias


class FoldableLayer(nn.Module, ABC):
    """A layer of the training graph that a plain layer replaces in the folded graph."""

    def evaluated(self) -> nn.Module:
        """The layer that computes what this one does in evaluation.

        It has the same parameters and lacks the parts of training.
        """
        return self

    @abstractmethod
    def folded(self) -> nn.Module:
        """The plain layer that computes, bit for bit, what this one computes in evaluation."""


class DerivedConv2d(FoldableLayer):
    """A convolution with a derived weight, and the stride, padding, dilation, groups of `like`."""

    def __init__(self, like: nn.Conv2d, derivation: Derivation) -> None:
        super().__init__()
        if like.padding_mode != "zeros" or isinstance(like.padding, str):
            raise ValueError(f"padding {like.padding!r} in mode {like.padding_mode!r} has no derived form")
        self.derivation = derivation
        self.in_channels = like.in_channels
        self.kernel_size, self.stride, self.dilation = pair(like.kernel_size), pair(like.stride), pair(like.dilation)
        self.padding, self.groups = pair(like.padding), like.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x, *self.derivation())

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The plain operation on a given weight and bias."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def folded(self) -> nn.Conv2d:
        weight, bias = _stored(self.derivation)
        plain = nn.Conv2d(
            self.in_channels,
            weight.shape[0],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=bias is not None,
            device="meta",
        )
        return _with_values(plain, weight, bias)


class DerivedLinear(FoldableLayer):
    """A linear layer with a derived weight."""

    def __init__(self, derivation: Derivation) -> None:
        super().__init__()
        self.derivation = derivation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x, *self.derivation())

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The plain operation on a given weight and bias."""
        return F.linear(x, weight, bias)

    def folded(self) -> nn.Linear:
        weight, bias = _stored(self.derivation)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        return _with_values(plain, weight, bias)


DerivedLayer = DerivedConv2d | DerivedLinear


def derived(like: nn.Conv2d | nn.Linear, derivation: Derivation) -> DerivedLayer:
    """The operation of `like` with a derived weight."""
    return DerivedConv2d(like, derivation) if isinstance(like, nn.Conv2d) else DerivedLinear(derivation)


FilterKind = Literal["spatial", "pointwise", "depthwise", "linear"]
LayerKind = FilterKind | Literal["first", "classifier"]


def filter_kind(layer: nn.Conv2d | nn.Linear | DerivedLayer) -> FilterKind:
    """What the filters of a layer look at."""
    if isinstance(layer, (nn.Linear, DerivedLinear)):
        return "linear"
    if layer.groups == layer.in_channels > 1:
        return "depthwise"
    return "pointwise" if layer.kernel_size == (1, 1) else "spatial"


TrainingKind = Literal["noise", "dropout", "statistics", "mixup"]
"""What a part does to training. With statistics or mixup, a result depends on the whole batch."""


class TrainingPart(nn.Module, ABC):
    """A part that acts in training mode only: noise, dropout, batch statistics.

    `active` switches it off without leaving training mode.
    """

    kind: ClassVar[TrainingKind]

    def __init__(self) -> None:
        super().__init__()
        self.active = True

    @property
    def acts(self) -> bool:
        """Whether the part acts in the next forward pass."""
        return self.active and self.training

    @property
    @abstractmethod
    def summary(self) -> str:
        """What it does, in a few words for the report."""


class UnfoldableLayer(nn.Module, ABC):
    """A layer that computes what no plain layer can, in training and in deployment.

    It is exported as it is, and the report says so.
    """

    @property
    @abstractmethod
    def summary(self) -> str:
        """What it does, in a few words for the report."""

    @abstractmethod
    def written_out(self) -> nn.Module:
        """The same function in the operations that a file gets.

        Its sums are written so that every runtime rounds them about as well as PyTorch does.
        """

    @property
    @abstractmethod
    def onnx_operations(self) -> Counter[str]:
        """The operations beyond plain layers that `written_out` becomes, and the number of each."""


def not_foldable_parts(graph: nn.Module) -> dict[str, UnfoldableLayer]:
    """The parts of a graph that are deployed as they are, by name."""
    return {name: part for name, part in graph.named_modules() if isinstance(part, UnfoldableLayer)}


def training_only_parts(graph: nn.Module) -> dict[str, TrainingPart]:
    """The parts of a graph that exist in training only, by name."""
    return {name: part for name, part in graph.named_modules() if isinstance(part, TrainingPart)}


@contextmanager
def training_only_parts_off(graph: nn.Module) -> Iterator[None]:
    """Switch every training-only part off for a while. The graph keeps its mode."""
    with parts_off(training_only_parts(graph).values()):
        yield


@contextmanager
def parts_off(parts: Iterable[TrainingPart]) -> Iterator[None]:
    """Switch these parts off for a while."""
    parts = list(parts)
    before = [part.active for part in parts]
    for part in parts:
        part.active = False
    try:
        yield
    finally:
        for part, active in zip(parts, before, strict=True):
            part.active = active


def _stored(derivation: Derivation) -> WeightAndBias:
    with torch.no_grad():
        weight, bias = derivation()
        return weight.detach().clone(), None if bias is None else bias.detach().clone()


def _with_values(plain: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> Layer:
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return plain
