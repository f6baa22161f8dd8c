"""Training graphs for tests: a network by name, rewritten by a method.

The method has its default options unless others are given.
"""

from collections.abc import Callable

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

from export.graph import Normalise, trace
from pipeline.config.methods import MethodOptions
from pipeline.methods import METHODS, RewrittenGraph, method_from_options
from pipeline.networks import network_by_name

Shape = tuple[int, int, int]


class PreActivation(nn.Module):
    """One pre-activation unit. Its norm reads the sum, not a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.conv(F.relu(self.norm(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


DEFAULTS: dict[str, MethodOptions] = {name: TypeAdapter[MethodOptions](MethodOptions).validate_python({"name": name}) for name in METHODS}
_SHUFFLENETS = frozenset({"shufflenetv2_x0_5", "shufflenetv2_x1_0", "torchvision:shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x1_0"})
_MOBILENETS = frozenset({"mobilenetv2", "torchvision:mobilenet_v2"})
_SQUEEZENETS = frozenset({"squeezenet", "torchvision:squeezenet1_0", "torchvision:squeezenet1_1"})
_VGGS = frozenset({"vgg11", "vgg16"})
REFUSED: dict[str, frozenset[str]] = {
    "equinorm": _SHUFFLENETS | _MOBILENETS | {"own_networks:leaky"},
    "skipinit": _SHUFFLENETS | _SQUEEZENETS | _VGGS,
    "fixup": _SHUFFLENETS | _SQUEEZENETS | _VGGS,
    "groupnorm": frozenset({"torchvision:squeezenet1_0", "torchvision:squeezenet1_1"}),
}
"""The networks that a method refuses with its default options, because the pair makes no sense."""
STARTS_AT_ZERO = frozenset({"fixup"})
"""The methods whose classifier starts at zero, and so does every logit."""
NOT_FOLDABLE = frozenset({"groupnorm"})
"""The methods whose norms stay in the deployed graph."""
NUM_CLASSES = 10


def traced(network: str, image_shape: Shape, change: Callable[[nn.Module, Shape], None] = lambda network, image_shape: None) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    channels = image_shape[0]
    normalise = Normalise((128.0,) * channels, (64.0,) * channels)
    built = network_by_name(network, NUM_CLASSES, channels)
    change(built, image_shape)
    return trace(built, normalise, image_shape, NUM_CLASSES)


def rewritten(network: str, image_shape: tuple[int, int, int], options: MethodOptions) -> RewrittenGraph:
    return rewrite(traced(network, image_shape), options)


def rewrite(graph: torch.fx.GraphModule, options: MethodOptions) -> RewrittenGraph:
    return method_from_options(options).rewrite(graph, torch.Generator().manual_seed(0))


def images(number: int, image_shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, *image_shape), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def scatter(training: RewrittenGraph, share: float = 0.05, seed: int = 2) -> None:
    """Move every parameter off its initial value, so that no bias is 0 and no scale is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in training.graph.parameters():
        size = parameter.abs().mean().clamp_min(0.1) if parameter.dim() < 2 else parameter.abs().mean()
        parameter.add_(share * size.clamp_min(0.01) * torch.randn(parameter.shape, generator=generator))


def step(training: RewrittenGraph, batch: torch.Tensor, rate: float = 0.05) -> None:
    """Take one step of plain gradient descent, as the training loop does, to change the weights."""
    training.graph.train()
    labels = torch.arange(len(batch)) % NUM_CLASSES
    training.graph.zero_grad()
    torch.nn.functional.cross_entropy(training.graph(batch), labels).backward()  # type: ignore[no-untyped-call]
    training.rules.add_penalty_gradient()
    training.rules.correct_gradients()
    with torch.no_grad():
        for parameter in training.graph.parameters():
            if parameter.grad is not None:
                # Clipped, because the gradients of a deep network without norms would otherwise
                # leave nothing finite to compare.
                parameter.sub_(rate * parameter.grad / parameter.grad.norm().clamp_min(1.0))
    training.rules.project()
