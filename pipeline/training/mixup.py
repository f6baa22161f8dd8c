"""Mixup and manifold mixup: where in the graph samples are mixed, and the loss that goes with it.

Takes a graph and its options. Draws depend on (seed, epoch, step) alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from export.errors import UsageError
from export.graph.layers import TrainingKind, TrainingPart
from export.graph.operations import walk
from export.graph.parts import starts_of_units
from export.graph.rewriting import insert_between
from pipeline.config.sections import Mixup as MixupOptions
from pipeline.config.sections import Training

_HIDDEN = {"stages": "in front of residual units that make images smaller", "units": "in front of residual units"}


@dataclass(frozen=True)
class Mixing:
    """x becomes share * x + (1 - share) * x[partners]."""

    share: float
    partners: torch.Tensor


@final
class Mixup(TrainingPart):
    """A place at which a batch can be mixed; without a mixing it passes the batch on."""

    kind: ClassVar[TrainingKind] = "mixup"

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
    """Put the requested mixup places into a training graph; the first is at the images."""
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
    (pixels,) = (step.node for step in walk(graph) if step.kind == "pixels")
    if options.where == "input":
        return [pixels]
    inside = starts_of_units(graph, where_images_shrink=options.hidden_at == "stages")
    if not inside:
        units = "hidden_at: units, or where: input" if starts_of_units(graph, where_images_shrink=False) else "where: input"
        raise UsageError(f"training.mixup mixes {_HIDDEN[options.hidden_at]}, and the network has no such residual unit; set {units}")
    return [pixels, *(node for node in inside if node is not pixels)]


_PURPOSE = 0x6D697875
"""The letters "mixu" in ASCII. It separates these draws from others with the same seed."""


class Mixer:
    """Tells one of a graph's mixup places what to mix; the place is drawn again for each batch."""

    def __init__(self, graph: nn.Module, options: Training) -> None:
        self._places = [part for part in graph.modules() if isinstance(part, Mixup)]
        self._seed, self._alpha = options.seed, options.mixup.alpha
        if bool(self._places) != (self._alpha > 0):
            raise ValueError(f"mixup with alpha {self._alpha} and {len(self._places)} places in the graph")

    @contextmanager
    def mixing(self, batch: int, num_samples: int, device: torch.device) -> Iterator[Mixing | None]:
        """Make forward passes mix within this context; yield None if nothing is mixed."""
        if not self._places:
            yield None
            return
        share, place, partners = draw(self._seed, batch, self._alpha, len(self._places), num_samples)
        mixing = Mixing(share, torch.from_numpy(partners).to(device, non_blocking=True))
        self._places[place].mixing = mixing
        try:
            yield mixing
        finally:
            self._places[place].mixing = None


def draw(seed: int, batch: int, alpha: float, num_places: int, num_samples: int) -> tuple[float, int, "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    """Draw the share of each sample's own part, the place of the mixing, and each sample's
    partner."""
    generator = np.random.default_rng((seed, _PURPOSE, batch))
    return float(generator.beta(alpha, alpha)), int(generator.integers(num_places)), generator.permutation(num_samples)


def mixed_loss(logits: torch.Tensor, labels: torch.Tensor, mixing: Mixing | None, label_smoothing: float) -> torch.Tensor:
    """Return the cross entropy with the labels and the partners' labels, weighted by their
    shares."""
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if mixing is None:
        return own
    partners = F.cross_entropy(logits, labels[mixing.partners], label_smoothing=label_smoothing)
    return mixing.share * own + (1 - mixing.share) * partners


def mixed_num_correct(logits: torch.Tensor, labels: torch.Tensor, mixing: Mixing | None) -> torch.Tensor:
    """Return the number of right answers.

    For a mixed sample, an answer counts with the share of its label.
    """
    answers = logits.argmax(1)
    own = (answers == labels).sum()
    if mixing is None:
        return own
    return mixing.share * own + (1 - mixing.share) * (answers == labels[mixing.partners]).sum()
