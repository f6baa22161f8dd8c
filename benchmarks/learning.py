"""What each method learns in a short run on CIFAR-10 as image files, three seeds.

    python -m benchmarks.learning --data DIR [--methods batchnorm czmig ...] [--seeds 3]
        [--runs FOLDER] [--set key.path=value ...]

Runs every configs/cifar10/*-resnet20-6epochs.yaml. DIR holds train/CLASS/*.jpg and
test/CLASS/*.jpg. Each run is one of `pipeline train`, in FOLDER/METHOD-SEED; a finished run is only
read, an interrupted one continues. Writes results/learning.json: every run, mean and spread, and
where each config differs from batchnorm's.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result
from pipeline.cli.console import Console
from pipeline.config import Config, load_config
from pipeline.reproduction.figures import RunFigures, spread
from pipeline.reproduction.running import finished_run

CONFIGS = Path(__file__).parents[1] / "configs" / "cifar10"
SUFFIX = "-resnet20-6epochs"
METHODS = sorted(path.stem.removesuffix(SUFFIX) for path in CONFIGS.glob(f"*{SUFFIX}.yaml"))
BASELINE = "batchnorm"
LEAST = {"batchnorm": 76.0, "mimicnorm": 76.0, "czmig": 75.0}
"""Percent in the last epoch, mean over the seeds. equinorm: at most two points below batchnorm. The
others are reported as they come."""
WITHIN = {"equinorm": 2.0}

Results = dict[str, Any]


def main() -> None:
    options = _options()
    methods = {method: _method(method, options) for method in options.methods}
    images = {split: sum(1 for _ in (options.data / split).glob("*/*")) for split in ("train", "test")}
    facts = {"network": "resnet20", "data": "CIFAR-10 as image files", "images": images, "seeds": options.seeds, "set": options.overrides}
    targets = {"at_least": LEAST, "within_of_batchnorm": WITHIN, "reached": _reached(methods)}
    print(write_result("learning", {**facts, "targets": targets, "methods": methods}))
    print(_table(methods))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "learning")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY.PATH=VALUE")
    return parser.parse_args()


def _method(method: str, options: argparse.Namespace) -> Results:
    path = CONFIGS / f"{method}{SUFFIX}.yaml"
    runs = []
    for seed in range(options.seeds):
        settings = (f"data.root={options.data}", f"training.seed={seed}", "exact.enabled=false", *options.overrides)
        runs.append(finished_run(load_config(path, settings), options.runs / f"{method}-{seed}", seed, Console()))
    found = {
        "config": str(path.relative_to(CONFIGS.parents[1])),
        "its_words": _words(path),
        "differs_from_batchnorm": _differences(load_config(path), load_config(CONFIGS / f"{BASELINE}{SUFFIX}.yaml")),
        "last_accuracy": _percent(runs, "last"),
        "best_accuracy": _percent(runs, "best"),
        "runs": [_run(run) for run in runs],
    }
    print(json.dumps({"method": method, **{key: found[key] for key in ("last_accuracy", "best_accuracy")}}), flush=True)
    return found


def _words(path: Path) -> list[str]:
    """Return what the head of the config says about this method alone, including what was tuned."""
    shared = set(_comments(CONFIGS / f"{BASELINE}{SUFFIX}.yaml"))
    return [line for line in _comments(path) if line not in shared]


def _comments(path: Path) -> list[str]:
    return [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]


def _differences(config: Config, baseline: Config) -> Results:
    """Return how the training differs beyond the method itself, with both values."""
    ours, theirs = _flat(config.training.model_dump(mode="json")), _flat(baseline.training.model_dump(mode="json"))
    keys = dict.fromkeys([*ours, *theirs])
    return {key: {"here": ours.get(key), "batchnorm": theirs.get(key)} for key in keys if ours.get(key) != theirs.get(key)}


def _flat(values: Results, above: str = "") -> Results:
    found: Results = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def _percent(runs: Sequence[RunFigures], which: str) -> Results | None:
    """Return mean and standard deviation; None if every run diverged."""
    records = [getattr(run, which) for run in runs]
    found = spread([100 * record["test_accuracy"] for record in records if record], "mean and std")
    if found is None:
        return None
    return {"mean": round(found.middle, 2), "std": None if found.width is None else round(found.width, 2)}


def _run(run: RunFigures) -> Results:
    return {
        "seed": run.seed,
        "accuracies": [record["test_accuracy"] for record in run.records],
        "minutes": round(sum(record["seconds"] for record in run.records) / 60, 2),
        "images_per_second": round(statistics.mean(record["images_per_second"] for record in run.records)) if run.records else None,
        "diverged": run.diverged and asdict(run.diverged),
    }


def _reached(methods: dict[str, Results]) -> dict[str, bool]:
    means = {method: each["last_accuracy"]["mean"] for method, each in methods.items() if each["last_accuracy"]}
    least = LEAST | {method: means[BASELINE] - points for method, points in WITHIN.items() if BASELINE in means}
    return {method: means.get(method, 0.0) >= least[method] for method in methods if method in least}


def _table(methods: dict[str, Results]) -> str:
    lines = [f"{'method':12} {'last epoch':>16} {'best epoch':>16}"]
    for method, each in methods.items():
        lines.append(f"{method:12} {_spoken(each['last_accuracy']):>16} {_spoken(each['best_accuracy']):>16}")
    return "\n".join(lines)


def _spoken(figure: Results | None) -> str:
    if figure is None:
        return "diverged"
    return f"{figure['mean']:.2f}" + ("" if figure["std"] is None else f" +- {figure['std']:.2f}")


if __name__ == "__main__":
    main()
