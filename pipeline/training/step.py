"""One training step: forward, loss, backward, clipping, optimiser, the method's rules.

It is replayed as a CUDA graph where possible. Takes a graph and its rules. Draws depend on (seed,
step) alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch

from pipeline.config.sections import Training
from pipeline.methods.method import ParameterGroup, RewrittenGraph
from pipeline.training.mixup import Mixer, Mixing, mixed_loss, mixed_num_correct
from pipeline.training.optimiser import clipping


class StepResult(NamedTuple):
    """The result of a batch, on the device; the gradients are in the parameters."""

    loss: torch.Tensor
    num_correct: torch.Tensor
    penalty: torch.Tensor | None


Computation = Callable[[torch.Tensor, torch.Tensor], StepResult]


class Replay:
    """A computation for batches of one shape, captured as a CUDA graph.

    Its allocations stay in place, and so do its results, which the next replay overwrites. The
    computation must have run once before without capture: libraries then choose their algorithms,
    which a capture does not allow.
    """

    def __init__(self, compute: Computation, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of the process may allocate and copy during the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._computed = compute(self._images, self._labels)

    def fits(self, images: torch.Tensor, labels: torch.Tensor) -> bool:
        """Return whether it was captured for such a batch."""
        return images.shape == self._images.shape and images.stride() == self._images.stride() and labels.shape == self._labels.shape

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> StepResult:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._computed


# 2^64 divided by the golden ratio: an odd factor that spreads neighbouring seeds over all bits.
_MIXED = 0x9E3779B97F4A7C15
_LARGEST_SEED = (1 << 63) - 1


def seed_step(seed: int, step: int) -> None:
    """Seed a step.

    Its draws depend only on the run's seed and the step's number, so a resumed run draws the same.
    """
    torch.manual_seed((seed * _MIXED + step) & _LARGEST_SEED)


def sgd(groups: Sequence[ParameterGroup], options: Training) -> torch.optim.SGD:
    """Return the optimiser with one group per parameter group, in their order.

    All parameters of a group are changed in one fused update.
    """
    described = [{"params": list(group.parameters), "weight_decay": group.weight_decay} for group in groups]
    return torch.optim.SGD(described, lr=options.learning_rate, momentum=options.momentum, nesterov=options.nesterov, fused=True)


class BatchFigures:
    """The loss and the number of right answers of a batch, on their way from the device."""

    def __init__(self, loss: torch.Tensor, num_correct: torch.Tensor) -> None:
        both = torch.stack((loss.detach(), num_correct.to(loss.dtype)))
        self._event: torch.cuda.Event | None = None
        self._values = both
        if both.is_cuda:
            self._values = torch.empty(2, dtype=both.dtype, pin_memory=True).copy_(both, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> tuple[float, float]:
        """Return loss and number of right answers.

        This waits for the forward pass, but not for what was launched after it.
        """
        if self._event is not None:
            self._event.synchronize()
        loss, num_correct = self._values.tolist()
        return loss, num_correct


class TrainingStep:
    """The graph, its rules and its optimiser.

    Call `backward` for each batch of a step, then `update`. Between them a bad loss can be refused.
    """

    def __init__(self, network: RewrittenGraph, options: Training, device: torch.device, autocast: torch.dtype | None) -> None:
        self.graph, self.rules = network.graph, network.rules
        self._groups = [group for group in self.rules.parameter_groups if group.parameters]
        self.optimiser = sgd(self._groups, options)
        self.device = device
        self._options = options
        self._mixer = Mixer(self.graph, options)
        self._clip = clipping(self.graph, options.clip)
        self._autocast = autocast
        self._num_batches = 0
        alike = options.accumulate == 1 and options.mixup.alpha == 0
        self._replays = device.type == "cuda" and options.cuda_graphs and alike
        self._replay: Replay | None = None
        self._penalty: torch.Tensor | None = None
        self._rules_have_run = False
        self._num_in_epoch = 0

    def begin_epoch(self) -> None:
        """Drop what was captured.

        Call this when the graph's tensors may have moved or the graph has changed.
        """
        self._replay, self._num_in_epoch = None, 0

    def set_momentum(self, momentum: float) -> None:
        """Set the same momentum for every group."""
        for described in self.optimiser.param_groups:
            described["momentum"] = momentum

    def set_learning_rate(self, rate: float) -> None:
        """Give each group its share of the rate."""
        for described, group in zip(self.optimiser.param_groups, self._groups, strict=True):
            described["lr"] = rate * group.rate_share

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        return torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None)

    @contextmanager
    def as_in_training(self, batch: int, num_samples: int) -> Iterator[Mixing | None]:
        """Set up the draws, the mixing and the precision of the run's batch of this number."""
        seed_step(self._options.seed, batch)
        with self._mixer.mixing(batch, num_samples, self.device) as mixing, self.autocast():
            yield mixing

    def backward(self, images: torch.Tensor, labels: torch.Tensor, batch: int = 0) -> BatchFigures:
        """Run forward and backward on the run's batch of this number; the loss is computed in
        float32.

        Before an update it is called once for each batch of the step; what remains is the mean
        gradient.
        """
        self._num_in_epoch += 1
        if self._replays and self._num_in_epoch > 1:
            return self._backward_replayed(images, labels, batch)
        if self._num_batches == 0:
            self.optimiser.zero_grad(set_to_none=True)
        self._num_batches += 1
        with self.as_in_training(batch, len(labels)) as mixing:
            logits = self.graph(images)
        loss, num_correct = self._loss(logits, labels, mixing)
        figures = BatchFigures(loss, num_correct)
        self._propagate(loss)
        return figures

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, mixing: Mixing | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and the number of right answers."""
        logits = logits.float()
        return mixed_loss(logits, labels, mixing, self._options.label_smoothing), mixed_num_correct(logits.detach(), labels, mixing)

    def _propagate(self, loss: torch.Tensor) -> None:
        (loss / self._options.accumulate).backward()  # type: ignore[no-untyped-call]

    def _backward_replayed(self, images: torch.Tensor, labels: torch.Tensor, batch: int) -> BatchFigures:
        """Run the same, and the rules before clipping, as one captured graph."""
        seed_step(self._options.seed, batch)
        if self._replay is None or not self._replay.fits(images, labels):
            self.optimiser.zero_grad(set_to_none=True)
            self._replay = Replay(self._computed, images, labels)
        computed = self._replay(images, labels)
        self._penalty, self._rules_have_run = computed.penalty, True
        return BatchFigures(computed.loss, computed.num_correct)

    def _computed(self, images: torch.Tensor, labels: torch.Tensor) -> StepResult:
        with self.autocast():
            logits = self.graph(images)
        loss, num_correct = self._loss(logits, labels, None)
        self._propagate(loss)
        return StepResult(loss.detach(), num_correct, self._correct())

    def _correct(self) -> torch.Tensor | None:
        """Run the rules before clipping and return the penalty."""
        penalty = self.rules.add_penalty_gradient()
        self.rules.correct_gradients()
        return penalty

    def update(self, epoch: int = 0, before_clipping: Callable[[], None] = lambda: None) -> torch.Tensor | None:
        """Apply the rules, clipping and the optimiser, in the order that `TrainingRules` states.

        Returns the penalty, on the device.
        """
        self._num_batches = 0
        penalty = self._penalty if self._rules_have_run else self._correct()
        self._rules_have_run = False
        before_clipping()
        self._clip(epoch)
        self.optimiser.step()
        self.rules.project()
        return penalty
