"""What freezing batch statistics for the last epochs does to the test accuracy, per method.

    python -m benchmarks.freezing [--epochs 8] [--frozen 3] [--seeds 3]

Uses the built-in digits. Each seed is trained twice, with and without frozen last epochs. Until
then the two runs are the same to the last bit, which is checked. Writes results/freezing.json and
prints a table: before freezing, right after recomputing, at the end, and the end without freezing.
There are 355 test images, so one of them is 0.28 points.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import write_result
from pipeline import run
from pipeline.cli.console import Console
from pipeline.config import load_config
from pipeline.run_folder import RunFolder
from pipeline.run_request import TrainRequest

ROOT = Path(__file__).parents[1]
RATES = {"batchnorm": 0.05, "mimicnorm": 0.05, "equinorm": 0.05}
FIGURES = ("before", "recomputed", "end", "end without freezing")

Records = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--frozen", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {method: [_figures(method, seed, options.epochs, options.frozen) for seed in range(options.seeds)] for method in RATES}
    circumstances = {
        "what": f"test accuracy on digits, network small, {options.epochs} epochs, the last {options.frozen} with frozen statistics",
        "runs": {"seeds": options.seeds},
        "learning_rates": RATES,
    }
    print(write_result("freezing", {**circumstances, "results": {method: _summary(runs) for method, runs in found.items()}}))
    print(_table(found))


def _figures(method: str, seed: int, epochs: int, num_frozen: int) -> dict[str, float]:
    frozen, plain = (_records(method, seed, epochs, number) for number in (num_frozen, 0))
    first = epochs - num_frozen
    if [each["train_loss"] for each in frozen[:first]] != [each["train_loss"] for each in plain[:first]]:
        raise RuntimeError(f"{method}, seed {seed}: the two runs differ before the statistics are frozen")
    values = (frozen[first - 1]["test_accuracy"], frozen[first]["test_accuracy_at_freezing"], frozen[-1]["test_accuracy"], plain[-1]["test_accuracy"])
    return dict(zip(FIGURES, values, strict=True))


def _records(method: str, seed: int, epochs: int, num_frozen: int) -> Records:
    settings = (
        f"method={{name: {method}}}",
        f"training.epochs={epochs}",
        f"training.seed={seed}",
        f"training.learning_rate={RATES[method]}",
        "training.schedule={name: cosine}",
        f"training.freeze_statistics={{epochs: {num_frozen}}}",
    )
    config = load_config(ROOT / "configs" / "quickstart.yaml", settings)
    with tempfile.TemporaryDirectory() as folder:
        run.carry_out(TrainRequest(config=config, folder=RunFolder(Path(folder))), Console())
        return [json.loads(line) for line in RunFolder(Path(folder)).metrics.read_text().splitlines()]


def _summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float | list[float]]]:
    return {
        name: {"mean": round(statistics.mean(each[name] for each in runs), 5), "values": [round(each[name], 5) for each in runs]} for name in FIGURES
    }


def _table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"{'':10}" + "".join(f"{name:>26}" for name in FIGURES)]
    for method, runs in found.items():
        spreads = [[100 * each[name] for each in runs] for name in FIGURES]
        lines.append(f"{method:10}" + "".join(f"{f'{statistics.mean(s):.2f} ({min(s):.2f} to {max(s):.2f})':>22}" for s in spreads))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
