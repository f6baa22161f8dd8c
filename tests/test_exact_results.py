"""The figures that docs/exact.md states are those of the result files, and the targets that those name are met."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_bytes())


def rows_of(section: str) -> list[list[str]]:
    """The table below a heading of docs/exact.md, without its head."""
    text = (ROOT / "docs" / "exact.md").read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.+) \|$", text, flags=re.MULTILINE)
    return [line.split(" | ") for line in lines[1:]]


def test_the_accuracies_are_those_of_the_result() -> None:
    runs = result("exact_accuracy")["runs"]
    assert rows_of("What it costs in accuracy") == [
        [
            f"`{run['method']}`",
            *(f"{100 * run[key]:.2f} %" for key in ("float32", "exact_at_once", "exact")),
            f"{run['room_bits']['mean_gain_of_signs']:.3f}",
            f"{run['room_bits']['least']:.3f}",
        ]
        for run in runs
    ]
    assert {run["method"] for run in runs} == {"czmig", "mimicnorm", "batchnorm"}


def test_the_targets_of_accuracy_are_met() -> None:
    found = result("exact_accuracy")
    for run in found["runs"]:
        assert run["verdict"] == "pass"
        assert run["points_lost"] <= found["targets"]["points lost after training on the grid"]
        assert run["points_lost_at_once"] <= found["targets"]["points lost at once"]
        ran = [said for said in run["exact_links"].values() if said != "not run"]
        assert ran == ["passed, max_ulp 0"] * 5
