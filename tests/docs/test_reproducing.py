"""The statements of docs/reproducing.md: figures, targets and tables.

Figures are those of the result files and reach the targets named there, and the tables are the
existing ones.
"""

import json
import re
from pathlib import Path
from typing import Any

from documents import in_one_line

from pipeline.config import load_config
from pipeline.config.methods import ZeroMeanOptions
from pipeline.reproduction.papers import TABLES
from pipeline.reproduction.planned_runs import needs_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TEXT = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## What was run for this repository\n")[1].split("\n## ")[0]


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_bytes())


def rows_below(start: str) -> list[list[str]]:
    """Return the table of the paragraph that starts with this text, without its head."""
    part = SECTION.split(f"**{start}")[1].split("\n**")[0]
    return [line.split(" | ") for line in re.findall(r"^\| (.+) \|$", part, flags=re.MULTILINE)[2:]]


def test_the_accuracies_of_the_methods_are_those_of_the_result() -> None:
    stated = {row[0].strip("`"): row[1:3] for row in rows_below("Eight methods")}
    assert stated == {
        method: [
            f"{found['last_accuracy']['mean']:.2f} ± {found['last_accuracy']['std']:.2f}",
            ", ".join(f"{100 * run['accuracies'][-1]:.2f}" for run in found["runs"]),
        ]
        for method, found in result("learning")["methods"].items()
    }
    assert len(stated) == 8


def test_every_target_of_learning_is_reached_over_three_seeds() -> None:
    found = result("learning")
    assert found["targets"]["reached"] == {"batchnorm": True, "czmig": True, "equinorm": True, "mimicnorm": True}
    for method, least in found["targets"]["at_least"].items():
        assert found["methods"][method]["last_accuracy"]["mean"] >= least
    assert {len(each["runs"]) for each in found["methods"].values()} == {3}


def test_what_was_tuned_is_said() -> None:
    said = {row[0].strip("`"): row[3] for row in rows_below("Eight methods")}
    for method, found in result("learning")["methods"].items():
        for key, values in found["differs_from_batchnorm"].items():
            assert values["here"] is None or f"{key} {values['here']}" in said[method]


def test_the_weight_decays_are_those_of_the_configs() -> None:
    spoken = {0: "none", 5e-4: "5e-4", 1e-4: "1e-4", 5e-5: "5e-5"}
    found: dict[str, list[str]] = {}
    for method, each in result("learning")["methods"].items():
        options = load_config(ROOT / each["config"]).method
        decay = 0 if isinstance(options, ZeroMeanOptions) else options.weight_decay
        found.setdefault(spoken[decay], []).append(f"`{method}`")
    usual = found.pop("5e-4")
    assert "`batchnorm`" in usual
    but = ", ".join(f"{' and '.join(methods)} {decay}" for decay, methods in sorted(found.items(), key=lambda item: item[1]) if decay != "none")
    assert f"(5e-4, but {but}, {' and '.join(found['none'])} none)" in in_one_line(SECTION)


def test_the_rates_with_and_without_the_last_norm_are_those_of_the_result() -> None:
    found = result("last_norm")
    cells = {(row["cells"]["variant"], row["cells"]["rate"]): row["runs"][0] for row in found["rows"]}
    rates = list(dict.fromkeys(rate for _, rate in cells))
    assert {row[0]: row[1:] for row in rows_below("MimicNorm's Table 2")} == {
        variant: [outcome(cells[variant, rate]) for rate in rates] for variant in found["trainable"]
    }


def outcome(run: dict[str, Any]) -> str:
    return f"diverged in epoch {run['diverged']['epoch']}" if run["diverged"] else f"{100 * run['last_accuracy']:.2f}"


def test_the_last_norm_keeps_every_rate_trainable_and_without_it_large_ones_are_not() -> None:
    kept = result("last_norm")["trainable"]
    assert all(kept["MimicNorm"].values())
    for variant in ("none", "weight mean"):
        assert [rate for rate, is_trainable in kept[variant].items() if is_trainable] == ["0.01", "0.05"]


def test_the_long_run_is_the_one_that_is_stated() -> None:
    epochs = [json.loads(line) for line in (RESULTS / "czmig_resnet110" / "metrics.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in epochs] == list(range(1, 201))
    best, last = (100 * value for value in (max(each["test_accuracy"] for each in epochs), epochs[-1]["test_accuracy"]))
    assert f"{last:.2f} % after the last epoch, {best:.2f} % in the best one" in in_one_line(SECTION)


def test_the_tables_are_those_of_the_document() -> None:
    listed = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if re.match(r"\| `[a-z]+-\w+` \|", line)]
    expected = []
    for table in TABLES.values():
        needs = needs_of(table, ROOT / "configs")
        epochs, rows = needs["epochs"], needs["rows"]
        assert isinstance(epochs, list)
        assert isinstance(rows, list)
        how = f"{table.num_runs}, {table.statistic if table.runs_stated else 'number not stated'}"
        expected.append([f"`{table.name}`", table.images.name, ", ".join(map(str, epochs)), str(len(rows)), how])
    assert [cells[:5] for cells in listed] == expected


def test_the_commands_of_the_document_name_what_there_is() -> None:
    for name in re.findall(r"pipeline reproduce (\w+-\w+)", TEXT):
        assert name in TABLES
