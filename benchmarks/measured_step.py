"""One training step of a method on a network, to be timed or to have its memory measured.

It is the step that training runs. Takes a network's name and a method's options; draws images and
labels. Memory is what tensors allocate, not what the process holds: torch's profiler reports what
the allocator hands out and takes back. It is the same in every run.
"""

import itertools
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from export.graph import Normalise, trace
from pipeline.config.methods import MethodOptions
from pipeline.config.sections import Training
from pipeline.methods import method_from_options
from pipeline.networks import network_by_name
from pipeline.training.step import TrainingStep, seed_step

IMAGE, NUM_CLASSES = (3, 32, 32), 10
NOT_COUNTED = "bytes of torch's CPU allocator; a convolution library's own scratch memory is not in it"
_FEW = 8
"""Number of images of the step that only creates the momentum."""


@dataclass(frozen=True)
class OutputErrors:
    """One method's step on one batch."""

    step: TrainingStep
    images: torch.Tensor
    labels: torch.Tensor

    def turn(self) -> None:
        """Run one training step, as the loop does."""
        self._turn(len(self.labels))

    def _turn(self, num_images: int) -> None:
        seed_step(0, 0)
        self.step.set_learning_rate(0.01)
        self.step.backward(self.images[:num_images], self.labels[:num_images]).read()
        self.step.update()

    def peak_bytes(self) -> dict[str, int]:
        """Return the bytes that live between steps, and with them the most that a step adds."""
        self._turn(_FEW)
        self.step.optimiser.zero_grad(set_to_none=True)  # as the step would; freed before the profiler starts
        between = self._bytes_between_steps()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.turn()
        sums = list(itertools.accumulate(_changes(profiled)))
        return {"peak": between + max(sums), "between_steps": between, "gradients": sums[-1]}

    def _bytes_between_steps(self) -> int:
        """Return the bytes of weights, statistics and momentum."""
        momentum = [state["momentum_buffer"] for state in self.step.optimiser.state.values()]
        held = (*self.step.graph.parameters(), *self.step.graph.buffers(), *momentum)
        return sum(value.numel() * value.element_size() for value in held)


def measured_step(network: str, options: MethodOptions, batch_size: int, autocast: torch.dtype | None) -> OutputErrors:
    """Return the step of a method on a network, on the CPU, in channels_last as in training
    there."""
    written = network_by_name(network, NUM_CLASSES, IMAGE[0])
    graph = trace(written, Normalise((128.0,) * 3, (64.0,) * 3), IMAGE, NUM_CLASSES)
    rewritten = method_from_options(options).rewrite(graph, torch.Generator().manual_seed(0))
    rewritten.graph.to(memory_format=torch.channels_last)
    step = TrainingStep(rewritten, Training(learning_rate=0.01), torch.device("cpu"), autocast)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, *IMAGE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (batch_size,), generator=generator)
    return OutputErrors(step, images.contiguous(memory_format=torch.channels_last), labels)


def _changes(profiled: profile) -> list[int]:
    """Return what the allocator handed out (bytes, positive) and took back (negative), in order of
    time."""
    profiler = profiled.profiler
    assert profiler is not None
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # type: ignore[attr-defined]
