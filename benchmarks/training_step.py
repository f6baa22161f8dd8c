"""Time and memory of a training step: czmig against batchnorm and nonorm, same network, batch and machine.

    python -m benchmarks.training_step [--rounds 15] [--threads 2]

The step is the one that training runs (`pipeline.training.step`): forward, backward, the method's rules, the optimiser.
Rounds are interleaved: in each, every method makes a few steps in turn, and ratios are taken within the round, so that
what else the machine does weighs on all alike. Writes results/training_step.json and prints a table.

Memory is what tensors allocate, not what the process holds: torch's profiler reports what the allocator hands out and
takes back. The peak of their running sum over one step counts, on top of the weights and the momentum that live between
steps. It is the same in every run.
"""

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.environment import write_result
from pipeline.config.methods import BatchnormOptions, CzmigOptions, MethodOptions, NonormOptions
from pipeline.config.sections import Training
from pipeline.graph import Normalise, trace
from pipeline.methods import method_from_options
from pipeline.networks import network_by_name
from pipeline.training.device import arithmetic
from pipeline.training.step import TrainingStep, seed_step

NETWORK, BATCH_SIZE, IMAGE, NUM_CLASSES = "resnet20", 128, (3, 32, 32), 10
METHODS: dict[str, MethodOptions] = {
    "czmig": CzmigOptions(name="czmig"),
    "batchnorm": BatchnormOptions(name="batchnorm"),
    "nonorm": NonormOptions(name="nonorm"),
}
PRECISIONS: dict[str, torch.dtype | None] = {"bfloat16": torch.bfloat16, "float32": None}
TARGETS = {"batchnorm": {"time": 0.90, "memory": 0.85}, "nonorm": {"time": 1.10}}
STEPS_PER_TURN, WARM_UP_ROUNDS = 3, 2

Results = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One method's step on one batch."""

    step: TrainingStep
    images: torch.Tensor
    labels: torch.Tensor

    def turn(self) -> None:
        """One training step, as the loop makes it."""
        seed_step(0, 0)
        self.step.set_learning_rate(0.01)
        self.step.backward(self.images, self.labels).read()
        self.step.update()

    def bytes_between_steps(self) -> int:
        """Weights, statistics and momentum."""
        momentum = [state["momentum_buffer"] for state in self.step.optimiser.state.values()]
        held = (*self.step.graph.parameters(), *self.step.graph.buffers(), *momentum)
        return sum(value.numel() * value.element_size() for value in held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    circumstances = _circumstances(options.rounds)
    with arithmetic(deterministic=False):
        measured = {name: _measured(autocast, options.rounds) for name, autocast in PRECISIONS.items()}
    print(write_result("training_step", {**circumstances, "results": measured}))
    print(_table(measured))


def _measured(autocast: torch.dtype | None, num_rounds: int) -> Results:
    steps = {name: _step(options, autocast) for name, options in METHODS.items()}
    rounds = [{name: _seconds(step) for name, step in steps.items()} for _ in range(WARM_UP_ROUNDS + num_rounds)]
    rounds = rounds[WARM_UP_ROUNDS:]
    memory = {name: _peak_bytes(step) for name, step in steps.items()}
    return {
        "milliseconds": {name: _spread([1e3 * turn[name] for turn in rounds]) for name in METHODS},
        "peak_bytes": memory,
        "czmig_over": {
            other: {
                "time": _spread([turn["czmig"] / turn[other] for turn in rounds]),
                "memory": round(memory["czmig"]["peak"] / memory[other]["peak"], 4),
                "target": TARGETS[other],
            }
            for other in TARGETS
        },
    }


def _step(options: MethodOptions, autocast: torch.dtype | None) -> Measured:
    written = network_by_name(NETWORK, NUM_CLASSES, IMAGE[0])
    graph = trace(written, Normalise((128.0,) * 3, (64.0,) * 3), IMAGE, NUM_CLASSES)
    network = method_from_options(options).rewrite(graph, torch.Generator().manual_seed(0))
    network.graph.to(memory_format=torch.channels_last)
    step = TrainingStep(network, Training(learning_rate=0.01), torch.device("cpu"), autocast)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH_SIZE, *IMAGE), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (BATCH_SIZE,), generator=generator)

    return Measured(step, images, labels)


def _seconds(measured: Measured) -> float:
    """Per step, over one turn."""
    started = time.perf_counter()
    for _ in range(STEPS_PER_TURN):
        measured.turn()
    return (time.perf_counter() - started) / STEPS_PER_TURN


def _peak_bytes(measured: Measured) -> dict[str, int]:
    """What lives between steps, and the most that a step adds to it."""
    measured.turn()
    measured.step.optimiser.zero_grad(set_to_none=True)  # as the step would; freed before the profiler listens
    between = measured.bytes_between_steps()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        measured.turn()
    sums = list(itertools.accumulate(_changes(profiled)))
    return {"peak": between + max(sums), "between_steps": between, "gradients": sums[-1]}


def _changes(profiled: profile) -> list[int]:
    """What the allocator handed out (bytes, positive) and took back (negative), in the order of time."""
    profiler = profiled.profiler
    assert profiler is not None
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # type: ignore[attr-defined]


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    named = {"median": middle, "quartile_low": low, "quartile_high": high, "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def _circumstances(num_rounds: int) -> dict[str, object]:
    return {
        "what": f"training step, {NETWORK}, batch {BATCH_SIZE}, {'x'.join(map(str, IMAGE))}, channels_last, CPU",
        "runs": {"rounds": num_rounds, "steps_a_round": STEPS_PER_TURN, "warm_up_rounds": WARM_UP_ROUNDS},
        "memory": "bytes of torch's CPU allocator; a convolution library's own scratch memory is not in it",
    }


def _table(results: dict[str, Results]) -> str:
    lines = [f"{'':10} {'':10} {'time':>8} {'quartiles':>16} {'target':>7} {'memory':>8} {'target':>7}"]
    for precision, result in results.items():
        for other, ratio in result["czmig_over"].items():
            time_, target = ratio["time"], ratio["target"]
            quartiles = f"{time_['quartile_low']:.3f} .. {time_['quartile_high']:.3f}"
            lines.append(
                f"{precision:10} {'/ ' + other:10.11} {time_['median']:8.3f} {quartiles:>16} {target['time']:7.2f} "
                f"{ratio['memory']:8.3f} {target.get('memory', ''):>7}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
