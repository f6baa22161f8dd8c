"""What mixup draws for a batch, from (seed, batch) alone, and what it makes of the loss and of the count of right answers."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.sections import Training
from pipeline.graph.mixup import Mixing, Mixup

_PURPOSE = 0x6D697875
"""Keeps these draws apart from others that start from the same seed."""


class Mixer:
    """Tells one of a graph's mixup places, drawn anew for each batch, what to mix."""

    def __init__(self, graph: nn.Module, options: Training) -> None:
        self._places = [part for part in graph.modules() if isinstance(part, Mixup)]
        self._seed, self._alpha = options.seed, options.mixup.alpha
        if bool(self._places) != (self._alpha > 0):
            raise ValueError(f"mixup with alpha {self._alpha} and {len(self._places)} places in the graph")

    @contextmanager
    def mixing(self, batch: int, num_samples: int, device: torch.device) -> Iterator[Mixing | None]:
        """While it lasts, forward passes mix; None where nothing is mixed."""
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
    """The share of each sample's own part, the place at which to mix, and the partner of each sample."""
    generator = np.random.default_rng((seed, _PURPOSE, batch))
    return float(generator.beta(alpha, alpha)), int(generator.integers(num_places)), generator.permutation(num_samples)


def mixed_loss(logits: torch.Tensor, labels: torch.Tensor, mixing: Mixing | None, label_smoothing: float) -> torch.Tensor:
    """Cross entropy, that of the partners' labels with their share."""
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if mixing is None:
        return own
    partners = F.cross_entropy(logits, labels[mixing.partners], label_smoothing=label_smoothing)
    return mixing.share * own + (1 - mixing.share) * partners


def mixed_num_correct(logits: torch.Tensor, labels: torch.Tensor, mixing: Mixing | None) -> torch.Tensor:
    """How many answers are right; of a mixed sample as much as the label that was answered has in it."""
    answers = logits.argmax(1)
    own = (answers == labels).sum()
    if mixing is None:
        return own
    return mixing.share * own + (1 - mixing.share) * (answers == labels[mixing.partners]).sum()
