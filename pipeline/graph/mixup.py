"""Mixup as a part of the training graph: at one of its places the samples of a batch are mixed with each other.

Takes a training graph and the options; what is mixed with what is told to a place from outside, batch by batch. Folding takes the places out.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch.fx import GraphModule, Node

from export.derived import TrainingOnly
from export.errors import UsageError
from pipeline.config.sections import Mixup as MixupOptions
from pipeline.graph.rewrite import insert_between
from pipeline.graph.trained import starts_of_units

_HIDDEN = {"stages": "in front of residual units that make images smaller", "units": "in front of residual units"}


@dataclass(frozen=True)
class Mixing:
    """x becomes share * x + (1 - share) * x[partners]."""

    share: float
    partners: torch.Tensor


@final
class Mixup(TrainingOnly):
    """A place at which a batch can be mixed; without a mixing it passes the batch on."""

    def __init__(self, alpha: float, where: str) -> None:
        super().__init__()
        self.mixing: Mixing | None = None
        self._alpha, self._where = alpha, where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mixing is None or not self.acts:
            return x
        return self.mixing.share * x + (1 - self.mixing.share) * x[self.mixing.partners]

    @property
    def summary(self) -> str:
        return f"mixup with alpha {self._alpha:g}: the samples of a batch are mixed in pairs {self._where}"


def insert_mixup(graph: GraphModule, options: MixupOptions) -> None:
    """Put the places that the options ask for into a training graph; the first is at the images."""
    if options.alpha == 0:
        return
    where = "at the images"
    if options.where == "hidden":
        where = f"at the images or {_HIDDEN[options.hidden_at]}, at one place for each batch"
    for number, node in enumerate(_places(graph, options), start=1):
        insert_between(graph, node, list(node.users), f"mixup_{number}", Mixup(options.alpha, where))
    graph.graph.lint()
    graph.recompile()


def _places(graph: GraphModule, options: MixupOptions) -> list[Node]:
    (pixels,) = (node for node in graph.graph.nodes if node.target == "normalise")
    if options.where == "input":
        return [pixels]
    inside = starts_of_units(graph, where_images_shrink=options.hidden_at == "stages")
    if not inside:
        units = "hidden_at: units, or where: input" if starts_of_units(graph, where_images_shrink=False) else "where: input"
        raise UsageError(f"training.mixup mixes {_HIDDEN[options.hidden_at]}, and the network has no such residual unit; set {units}")
    return [pixels, *(node for node in inside if node is not pixels)]
