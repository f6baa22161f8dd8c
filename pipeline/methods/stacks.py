"""Parameters of many layers, grouped by shape, so that one operation serves all layers of a shape at once."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn


class Stacks:
    """Iterates over lists of parameters of one shape each."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            self._by_shape.setdefault(tuple(parameter.shape), []).append(parameter)

    def __iter__(self) -> Iterator[list[nn.Parameter]]:
        return iter(self._by_shape.values())


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """The gradient that backward left."""
    if parameter.grad is None:
        raise RuntimeError("a filter has no gradient: the rules run after backward")
    return parameter.grad
