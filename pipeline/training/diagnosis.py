"""Figures of a graph's layers: filter norms, means, scales, variances, gradients.

Takes the layers of a training graph; returns plain JSON. The report draws the figures; the loop
keeps them, epoch by epoch.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch

from deploy.report.filters import filter_figures, quantiles
from export.graph.parts import TrainedLayer

Figures = dict[str, Any]


@torch.no_grad()
def layer_figures(layers: Sequence[TrainedLayer], deflated_below: float) -> list[Figures]:
    """Return the figures of each layer's weights, in the order of the layers."""
    return [_figures_of(layer, deflated_below) for layer in layers]


def _figures_of(layer: TrainedLayer, deflated_below: float) -> Figures:
    filters, scale = layer.filters_and_scale()
    variance = layer.output_variance()
    deflated = torch.linalg.vector_norm(filters.flatten(1), dim=1) < deflated_below
    figures = filter_figures(layer.name, layer.kind, filters.cpu().numpy(), None if scale is None else scale.cpu().numpy())
    figures["deflated"], figures["deflated_below"] = deflated.double().mean().item(), deflated_below
    figures["variance"] = None if variance is None else quantiles(variance.double().cpu().numpy())
    return figures


@final
class GradientNorms:
    """The norm of the gradient of each layer, over all parameters of the layer.

    It is computed for all layers at once, on the device.
    """

    def __init__(self, layers: Sequence[TrainedLayer]) -> None:
        owned = [(number, each) for number, layer in enumerate(layers) for each in layer.module.parameters() if each.requires_grad]
        self._parameters = [each for _, each in owned]
        self._members = torch.zeros(len(layers), len(owned), dtype=torch.float64, device=self._parameters[0].device)
        self._members[[number for number, _ in owned], range(len(owned))] = 1.0

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        return (self._members @ norms.square()).sqrt()


def with_gradient_norms(figures: Sequence[Figures], means: Sequence[float]) -> list[Figures]:
    """Return the figures of each layer with the mean norm of its gradient, to six digits.

    They make a line of diagnosis.jsonl.
    """
    return [_rounded({**each, "gradient_norm": mean if math.isfinite(mean) else None}) for each, mean in zip(figures, means, strict=True)]


def _rounded(figures: Figures) -> Figures:
    """Round floats and lists of floats; numbers of filters and shapes are whole numbers."""
    return {key: [_short(each) for each in value] if isinstance(value, list) else _short(value) for key, value in figures.items()}


def _short(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
