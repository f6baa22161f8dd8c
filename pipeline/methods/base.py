"""What a training method is: a rewrite of a traced network, and the rules by which the rewritten one is trained.

A method knows graph parts (`pipeline.graph`), never a particular network. All it does per layer it does for all layers at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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
    """What the loop does around a step, on behalf of a method. It runs outside the graph and leaves no trace in it.

    The order of a step: backward, `add_penalty_gradient`, `correct_gradients`, the clipping that the config asks for, the optimiser's step,
    `project`.
    """

    @property
    @abstractmethod
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Every parameter of the graph, each in exactly one group."""

    def add_penalty_gradient(self) -> torch.Tensor | None:
        """Add the penalty's gradient to the parameters' gradients and return the penalty's value; None where there is none."""
        return None

    def correct_gradients(self) -> None:
        """Change the gradients before the optimiser sees them."""
        return

    def project(self) -> None:
        """Bring the weights back to where the method wants them, after the optimiser's step."""
        return


@dataclass(frozen=True)
class Rewritten:
    """A network after a method's rewrite: the training graph, from raw pixels to logits, and its rules."""

    graph: GraphModule
    rules: TrainingRules


class Method(ABC):
    """One training method with its options."""

    @abstractmethod
    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> Rewritten:
        """Turn a traced network (with BatchNorm, raw pixels in) into this method's training graph, freshly initialised."""
