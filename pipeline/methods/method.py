"""What a training method supplies: the rewritten graph, parameter groups and rules.

Also holds what several methods share. Knows no particular network.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.fx import GraphModule


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share their learning rate and decay."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    rate_share: float = 1.0
    """Their learning rate as a share of the schedule's."""
    weight_decay: float = 0.0


class TrainingRules(ABC):
    """What the loop does around a step on behalf of a method.

    It runs outside the graph and leaves no trace in it. The order of a step is: backward,
    `add_penalty_gradient`, `correct_gradients`, the clipping of the config, the optimiser's step,
    `project`.
    """

    @property
    @abstractmethod
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Every parameter of the graph, each in exactly one group."""

    def add_penalty_gradient(self) -> torch.Tensor | None:
        """Add the penalty's gradient to the parameters' gradients and return the penalty's value.

        None if there is no penalty.
        """
        return None

    def correct_gradients(self) -> None:
        """Change the gradients before the optimiser sees them."""
        return

    def project(self) -> None:
        """Move the weights back to where the method needs them, after the optimiser's step."""
        return


@dataclass(frozen=True)
class RewrittenGraph:
    """A network after a method's rewrite: the graph, from raw pixels to logits, and its rules."""

    graph: GraphModule
    rules: TrainingRules


class Method(ABC):
    """One training method with its options."""

    @abstractmethod
    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        """Turn a traced network (with BatchNorm, raw pixels in) into this method's training graph.

        The weights are newly initialised.
        """


class OneGroup(TrainingRules):
    """One learning rate.

    With `decay_on` "weights", parameters of fewer than two dimensions (biases and scales) have no
    decay.
    """

    def __init__(self, graph: nn.Module, weight_decay: float, decay_on: Literal["all", "weights"] = "all") -> None:
        decayed = tuple(p for p in graph.parameters() if decay_on == "all" or p.dim() > 1)
        kept = {id(parameter) for parameter in decayed}
        others = tuple(p for p in graph.parameters() if id(p) not in kept)
        groups = (
            ParameterGroup(name="all" if decay_on == "all" else "weights", parameters=decayed, weight_decay=weight_decay),
            ParameterGroup(name="biases and scales", parameters=others),
        )
        self._groups = tuple(group for group in groups if group.parameters)

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self._groups


class Stacks:
    """Lists of parameters, grouped by shape."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            self._by_shape.setdefault(tuple(parameter.shape), []).append(parameter)

    def __iter__(self) -> Iterator[list[nn.Parameter]]:
        return iter(self._by_shape.values())


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """Return the gradient that backward left."""
    if parameter.grad is None:
        raise RuntimeError("a filter has no gradient: the rules run after backward")
    return parameter.grad


class AdaptiveClipping:
    """G <- threshold max(|W|, eps) / |G| G wherever |G| is larger.

    A unit is a filter, a row, or a bias or gain as a whole.
    """

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
