"""Parameters of many layers, grouped by shape, so that one operation serves all layers of a shape at once."""

from collections.abc import Iterable, Iterator

from torch import nn


class Stacks:
    """Iterates over lists of parameters of one shape each."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            self._by_shape.setdefault(tuple(parameter.shape), []).append(parameter)

    def __iter__(self) -> Iterator[list[nn.Parameter]]:
        return iter(self._by_shape.values())
