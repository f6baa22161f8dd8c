"""Adaptive gradient clipping, for all layers at once: a unit's gradient is at most so many times as long as the unit's weights."""

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.methods.stacks import Stacks, gradient_of


class AdaptiveClipping:
    """G <- threshold max(|W|, eps) / |G| G wherever |G| is larger; a unit is a filter, a row, or a bias or gain as a whole."""

    def __init__(self, parameters: Iterable[nn.Parameter], threshold: float, eps: float) -> None:
        self._clipped = Stacks(parameters)
        self._threshold, self._eps = threshold, eps

    @torch.no_grad()
    def __call__(self) -> None:
        for parameters in self._clipped:
            gradients = [gradient_of(each) for each in parameters]
            limit = self._threshold * _norm_of_units(list(parameters)).clamp_min(self._eps)
            norm = _norm_of_units(gradients)
            factor = torch.where(norm > limit, limit / norm, 1.0)
            torch._foreach_mul_(gradients, list(factor.view(*factor.shape, *[1] * (gradients[0].dim() + 1 - factor.dim())).unbind()))


def _norm_of_units(tensors: list[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(tensors)
    if stacked.dim() == 1:  # one scalar per layer, each a unit
        return stacked.abs()
    return torch.linalg.vector_norm(stacked.flatten(2) if stacked.dim() > 2 else stacked, dim=-1)
