"""Time and memory of a training step: czmig against batchnorm and nonorm.

    python -m benchmarks.training_step [--rounds 15] [--threads 2]

Same network, batch and machine. The step is the one that training runs (`pipeline.training.step`):
forward, backward, the method's rules, the optimiser. Rounds are interleaved: in each, every method
makes a few steps in turn, and ratios are taken within the round, so that other load on the machine
affects all alike. Writes results/training_step.json and prints a table.

Memory is what tensors allocate (`benchmarks/measured_step.py`): the peak over one step, with the
weights and the momentum that live between steps.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.environment import write_result
from benchmarks.measured_step import IMAGE, NOT_COUNTED, OutputErrors, measured_step
from pipeline.config.methods import BatchnormOptions, CzmigOptions, MethodOptions, NonormOptions
from pipeline.training.device import arithmetic

NETWORK, BATCH_SIZE = "resnet20", 128
METHODS: dict[str, MethodOptions] = {
    "czmig": CzmigOptions(name="czmig"),
    "batchnorm": BatchnormOptions(name="batchnorm"),
    "nonorm": NonormOptions(name="nonorm"),
}
PRECISIONS: dict[str, torch.dtype | None] = {"bfloat16": torch.bfloat16, "float32": None}
TARGETS = {"batchnorm": {"time": 0.90, "memory": 0.85}, "nonorm": {"time": 1.10}}
STEPS_PER_TURN, WARM_UP_ROUNDS = 3, 2

Results = dict[str, Any]


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
    steps = {name: measured_step(NETWORK, options, BATCH_SIZE, autocast) for name, options in METHODS.items()}
    rounds = [{name: _seconds(step) for name, step in steps.items()} for _ in range(WARM_UP_ROUNDS + num_rounds)]
    rounds = rounds[WARM_UP_ROUNDS:]
    memory = {name: step.peak_bytes() for name, step in steps.items()}
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


def _seconds(measured: OutputErrors) -> float:
    """Return the seconds per step, over one turn."""
    started = time.perf_counter()
    for _ in range(STEPS_PER_TURN):
        measured.turn()
    return (time.perf_counter() - started) / STEPS_PER_TURN


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    named = {"median": middle, "quartile_low": low, "quartile_high": high, "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def _circumstances(num_rounds: int) -> dict[str, object]:
    return {
        "what": f"training step, {NETWORK}, batch {BATCH_SIZE}, {'x'.join(map(str, IMAGE))}, channels_last, CPU",
        "runs": {"rounds": num_rounds, "steps_a_round": STEPS_PER_TURN, "warm_up_rounds": WARM_UP_ROUNDS},
        "memory": NOT_COUNTED,
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
