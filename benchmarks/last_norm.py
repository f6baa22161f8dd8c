"""MimicNorm's Table 2 in small: the last BatchNorm keeps large learning rates trainable.

    python -m benchmarks.last_norm --data DIR [--rates 0.01 ...] [--images 400 100]
        [--epochs 6] [--seeds 1] [--runs FOLDER]

VGG-11 on a part of CIFAR-10 as image files. DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg; the
first images of each class by name are taken. There are four variants at each rate: none, weight
mean alone, MimicNorm (weight mean and last norm), BatchNorm. Finished cells in FOLDER are only
read, and interrupted ones continue. A finished cell keeps its figures and drops its checkpoints,
which are large. Writes results/last_norm.json, and the table and picture into FOLDER.
"""

import argparse
import shutil
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result
from pipeline.cli.console import Console
from pipeline.reproduction.outputs import json_facts, markdown, write_outputs
from pipeline.reproduction.papers.table import CIFAR100, Row, Table
from pipeline.reproduction.planned_runs import Plan, PlanRequest, planned
from pipeline.reproduction.result import Result, result_of
from pipeline.reproduction.running import require_same_runs, run_plan
from pipeline.run_folder import RunFolder

CONFIGS = Path(__file__).parents[1] / "configs"
RATES = (0.01, 0.05, 0.2, 0.5, 1.0)
VARIANTS = {
    "none": ("mimicnorm-vgg11", ("method.weight_mean=false", "method.last_norm=false")),
    "weight mean": ("mimicnorm-vgg11", ("method.last_norm=false",)),
    "MimicNorm": ("mimicnorm-vgg11", ()),
    "BatchNorm": ("batchnorm-vgg11", ()),
}
BATCH_SIZE, NUM_CLASSES = 64, 10
WARM_UP_EPOCHS = 2.0
"""As in the authors' code."""
DEVIATIONS_ABOVE_CHANCE = 4
"""A cell is trainable if its last epoch's accuracy is this many standard deviations of guessing
above chance."""


def main() -> None:
    options = _options()
    images = _part_of(options.data, options.runs / "images", tuple(options.images))
    plan = planned(_table(options.rates, options.epochs), PlanRequest(num_seeds=options.seeds, data=images), CONFIGS, options.runs)
    _run(plan)
    result = result_of(plan)
    write_outputs(result, options.runs)
    print(markdown(result))
    print(write_result("last_norm", _facts(result, options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--images", type=int, nargs=2, metavar=("TRAIN", "TEST"), default=(400, 100), help="of each class")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "last_norm")
    return parser.parse_args()


def _part_of(data: Path, part: Path, numbers: tuple[int, int]) -> Path:
    """Link the first images of each class; those that an earlier run linked stay."""
    if all(sum(1 for _ in (part / split).glob("*/*")) == NUM_CLASSES * number for split, number in zip(("train", "test"), numbers, strict=True)):
        return part
    shutil.rmtree(part, ignore_errors=True)
    for split, number in zip(("train", "test"), numbers, strict=True):
        for folder in sorted(each for each in (data / split).iterdir() if each.is_dir()):
            (part / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:number]:
                (part / split / folder.name / image.name).symlink_to(image.resolve())
    return part


def _table(rates: Sequence[float], epochs: int) -> Table:
    return Table(
        name="last-norm",
        title="MimicNorm's Table 2 in small: VGG-11, a part of CIFAR-10 as image files",
        images=CIFAR100,
        columns=("rate", "variant"),
        quantities=("accuracy",),
        rows=tuple(_row(rate, variant, epochs) for rate in rates for variant in VARIANTS),
        num_runs=1,
        runs_stated=False,
        which_epoch="the best of the first 10 epochs, of VGG16 on CIFAR-100",
        picture="rates",
    )


def _row(rate: float, variant: str, epochs: int) -> Row:
    config, overrides = VARIANTS[variant]
    schedule = f"training.schedule={{name: constant, warmup_epochs: {WARM_UP_EPOCHS}}}"
    part = (f"data.batch_size={BATCH_SIZE}", "data.augment={flip: true, crop_padding: 4}")
    return Row(
        name=f"{variant.replace(' ', '-').lower()}-{rate:g}",
        cells=(f"{rate:g}", variant),
        config=f"cifar100/{config}.yaml",
        overrides=(*part, f"training.epochs={epochs}", schedule, f"training.learning_rate={rate}", *overrides),
        curve=variant,
    )


def _run(plan: Plan) -> None:
    require_same_runs(plan)
    for run in run_plan(plan, Console()):
        shutil.rmtree(RunFolder(run.folder).checkpoints, ignore_errors=True)


def _facts(result: Result, options: argparse.Namespace) -> dict[str, Any]:
    num_test = NUM_CLASSES * options.images[1]
    chance = 1 / NUM_CLASSES
    least = chance + DEVIATIONS_ABOVE_CHANCE * sqrt(chance * (1 - chance) / num_test)
    facts = json_facts(result)
    return {
        "what": f"test accuracy in {options.epochs} epochs, VGG-11 (form for small images), batch {BATCH_SIZE}, float32",
        "warm_up_epochs": WARM_UP_EPOCHS,
        "images": {"train": NUM_CLASSES * options.images[0], "test": num_test, "which": "the first of each class by name"},
        "seeds": options.seeds,
        "chance_percent": 100 * chance,
        "trainable_above_percent": round(100 * least, 2),
        "trainable": trainable(facts["rows"], least),
        **facts,
    }


def trainable(rows: Sequence[dict[str, Any]], least: float) -> dict[str, dict[str, bool]]:
    """Return, by variant and rate, whether every run reached its end with more than this
    accuracy."""
    found: dict[str, dict[str, bool]] = {variant: {} for variant in VARIANTS}
    for row in rows:
        last = [run["last_accuracy"] for run in row["runs"]]
        found[row["cells"]["variant"]][row["cells"]["rate"]] = all(each is not None and each > least for each in last)
    return found


if __name__ == "__main__":
    main()
