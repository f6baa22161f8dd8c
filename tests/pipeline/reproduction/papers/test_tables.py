"""The tables are those of the papers.

Each figure is compared with a literal copy of the specification, each row with its run.
"""

import re
from pathlib import Path

import pytest

from pipeline.config.methods import CzmigOptions, CzmiOptions, MimicnormOptions, ZeroMeanOptions
from pipeline.reproduction.papers import TABLES, PrintedFigure, Row
from pipeline.reproduction.papers.table import Quantity
from pipeline.reproduction.planned_runs import config_of

CONFIGS = Path(__file__).parents[4] / "configs"
ROWS = [(table, row) for table in TABLES.values() for row in table.rows]

CZMIG_TABLE_1 = """
| CZMIG | 0.4 | 0.85 | 0.1 | 94.03 +-0.14 |
| BatchNorm | 0.1 | 0 | 0 | 93.70 +-0.55 |
| CZMIG | 0.4 | 0.98 | 0.1 | 93.64 +-0.11 |
| CZMIG | 0.4 | 0.85 | 0 | 93.57 +-0.12 |
| CZMIG | 0.2 | 0.85 | 0 | 93.44 +-0.18 |
| CZMI | 0.4 | 0 | 0.1 | 93.33 +-0.11 |
| CZMI | 0.1 | 0 | 0 | 93.06 +-0.22 |
| CZMI | 0.2 | 0 | 0 | 92.95 +-0.23 |
| CZMI | 0.4 | 0 | 0 | 92.13 +-0.26 |
| CZMIG | 0.1 | 0.85 | 0 | 92.95 +-0.20 |
| "CZMI", must be CZMIG | 0.1 | 1 | 0.1 | 91.03 +-0.25 |
"""

MIMICNORM_TABLE_1 = """
| VGG11 | BN | 67.90 +-0.14 | 2971 | | ResNet50 | BN | 78.53 +-0.26 | 8533 |
| VGG11 | MimicNorm | 67.87 +-0.20 | 2851 | | ResNet50 | Fixup | 72.81 +-0.10 (unstable) | 10283 |
| VGG11 | NoNorm | 65.33 +-0.08 | 2831 | | ResNet50 | MimicNorm | 77.91 +-0.20 | 7533 |
| VGG16 | BN | 72.28 +-0.05 | 3745 | | SqueezeNet | BN | 70.88 +-0.08 | 3687 |
| VGG16 | MimicNorm | 72.47 +-0.02 | 3489 | | SqueezeNet | MimicNorm | 71.15 +-0.10 | 2693 |
| VGG16 | NoNorm | 68.97 +-0.36 (unstable) | 3469 | | ShuffleNetV2 | BN | 71.10 +-0.49 | 3915 |
| ResNet18 | BN | 74.72 +-0.31 | 4447 | | ShuffleNetV2 | MimicNorm | 70.93 +-0.13 | 3141 |
| ResNet18 | Fixup | 70.48 +-0.18 | 4743 | | | | | |
| ResNet18 | MimicNorm | 74.96 +-0.14 | 4157 | | | | | |
"""

MIMICNORM_TABLE_2 = """
| lr | None | Weight mean | MimicNorm | BN |
| 0.01 | 22.12 | 34.81 | 38.39 | 37.82 |
| 0.02 | 26.76 | 43.07 | 44.32 | 40.49 |
| 0.05 | 25.63 | 42.63 | 49.53 | 37.97 |
| 0.1 | 1.24 | 36.49 | 46.92 | 32.4 |
| 0.2 | 1.77 | 1.00 | 39.41 | 25.5 |
| 0.5 | 1.00 | 1.00 | 22.03 | 8.26 |
| 1.0 | 1.00 | 1.00 | 9.83 | 3.93 |
"""

MIMICNORM_TABLE_3 = """
| VGG16 (2 GPUs) | BN / MimicNorm / NoNorm | 73.89 / 73.31 / 71.59 | 62162 / 56410 / 56388 | 9.3% |
| ResNet18 | BN / MimicNorm | 69.76 / 70.15 | 8057 / 5603 | 30.5% |
| ResNet50 | BN / Fixup / MimicNorm | 76.48 / 72.40 / 76.84 | 27083 / 29267 / 22489 | 17.0% |
| ResNet101 (2 GPUs) | BN / MimicNorm | 77.37 / 77.52 | 37168 / 30363 | 18.3% |
| ShuffleNetV2 0.5x | BN / MimicNorm | 59.77 / 58.31 | 4385 / 3603 | 17.8% |
"""

EQUINORM = """
CIFAR-10 WRN with quarter-batch statistics: 95.8% EquiNorm vs 94.7% BN. 30-epoch: median 94.0% (IQR 0.22) vs 93.3% (IQR 0.77).
"""

GAUR = {
    1: "BN 73.01/66.5; constant clipping 70.50/58.2; weight norm 71.01/58.5",
    2: "BN (0.1) 73.01/66.5; WN+adaptive clip+dropout (0.01) 72.34/64.7; WN+adaptive clip (0.01) 79.3/63.6; WN+adaptive clip (0.001) 76.25/59.6",
    3: "initial clip: 5 -> 72.3/64.7; 10 -> 72.2/64.6",
    4: "BN monotonic 0.1 73.01/66.5; monotonic 0.01 72.34/64.7; cyclic 0.01 54.87/54.87; cyclic 0.001 64.65/59.7; step 0.001 68.9/61.95",
    5: "BN 73.01/66.5; non-BN 74.7/65.1",
    6: "ResNet-18 BN 73.01/66.5, monotonic 72.34/64.7, warm-up 74.7/65.1. ResNet-34 BN 77.6/70.1, 75.5/67.4, 75.2/68.01. "
    "ResNet-50 BN 79.4/72.6, 82.4/62.8, 86.01/62.22",
}
GAUR_7 = "BN 16 / 7; WN 21 / 1.4; +adaptive clip 23 / 1.4; +dropout 26 / 1.5"


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]


def rows_of(name: str) -> list[Row]:
    """Those of the table itself, not other readings."""
    return [row for row in TABLES[name].rows if not row.by_name_only]


def spoken(printed: PrintedFigure) -> str:
    return f"{printed.value} +-{printed.spread}" if printed.spread else printed.value


def figures(name: str, *quantities: Quantity) -> list[tuple[str, ...]]:
    return [tuple(spoken(row.printed[quantity]) for quantity in quantities) for row in rows_of(name)]


def short(name: str) -> str:
    return {"BatchNorm": "BN"}.get(name, name)


def test_czmig_table_1() -> None:
    assert [[*row.cells, spoken(row.printed["accuracy"])] for row in rows_of("czmig-table1")] == cells(CZMIG_TABLE_1)


def test_mimicnorm_table_1() -> None:
    printed = [row[start : start + 4] for row in cells(MIMICNORM_TABLE_1) for start in (0, 5) if row[start]]
    found = {(row.cells[0], short(row.cells[1])): row.printed for row in rows_of("mimicnorm-table1")}
    assert len(found) == len(printed) == 16
    for model, method, accuracy, memory in printed:
        ours = found[model, method]
        assert (spoken(ours["accuracy"]), ours["memory"].value) == (accuracy.removesuffix(" (unstable)"), memory)
        assert ("unstable" in ours["accuracy"].remark) == accuracy.endswith("(unstable)")


def test_mimicnorm_table_2() -> None:
    (_, *columns), *lines = cells(MIMICNORM_TABLE_2)
    expected = {(rate, column): value for rate, *values in lines for column, value in zip(columns, values, strict=True)}
    assert {row.cells: spoken(row.printed["accuracy"]) for row in rows_of("mimicnorm-table2")} == expected


def test_mimicnorm_table_3() -> None:
    expected = []
    for model, *columns, _saving in cells(MIMICNORM_TABLE_3):
        for method, accuracy, memory in zip(*(column.split(" / ") for column in columns), strict=True):
            expected.append((model.removesuffix(" (2 GPUs)"), method, accuracy, memory, "(2 GPUs)" in model))
    found = [
        (row.cells[0], short(row.cells[1]), row.printed["accuracy"].value, row.printed["memory"].value, "memory of two GPUs together" in row.notes)
        for row in rows_of("mimicnorm-table3")
    ]
    assert found == expected


def test_equinorms_figures() -> None:
    percents = re.findall(r"([\d.]+)%(?: \(IQR ([\d.]+)\))?", EQUINORM)
    assert [(row.printed["accuracy"].value, row.printed["accuracy"].spread) for row in rows_of("equinorm-cifar10") if row.printed] == percents
    without = [row for name in ("equinorm-cifar10", "equinorm-cifar100", "equinorm-svhn") for row in rows_of(name) if not row.printed]
    assert len(without) == 7
    assert all("the result is in a figure alone" in row.notes for row in without)


@pytest.mark.parametrize("number", GAUR)
def test_gaurs_accuracies(number: int) -> None:
    assert figures(f"gaur-table{number}", "train_accuracy", "accuracy") == re.findall(r"(\d+\.\d+)/(\d+\.\d+)", GAUR[number])


def test_gaurs_costs() -> None:
    assert figures("gaur-table7", "minutes", "memory") == re.findall(r"([\d.]+) / ([\d.]+)", GAUR_7)


def test_there_is_an_entry_for_each_table() -> None:
    mimicnorm, equinorm = ("mimicnorm-table1", "mimicnorm-table2", "mimicnorm-table3"), ("equinorm-cifar10", "equinorm-cifar100", "equinorm-svhn")
    assert list(TABLES) == ["czmig-table1", *mimicnorm, *equinorm, *(f"gaur-table{number}" for number in (*GAUR, 7))]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=lambda each: each.name)
def test_a_row_is_complete_and_its_config_loads(table: object, row: Row) -> None:
    (home,) = (each for each in TABLES.values() if each is table)
    assert len(row.cells) == len(home.columns)
    assert set(row.printed) <= set(home.quantities)
    config = config_of(row, CONFIGS)
    folder = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "SVHN with extra": "svhn", "ImageNet": "imagenet"}[home.images.name]
    assert row.config.startswith(f"{folder}/")
    assert config.data.name == folder.replace("imagenet", "imagefolder")
    assert config.data.extra == (folder == "svhn")


def test_names_of_rows_are_folders_and_differ() -> None:
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_a_rows_cells_are_what_it_runs() -> None:
    """Rates, z, noise and thresholds as printed are those of the config."""
    for row in rows_of("czmig-table1"):
        config = config_of(row, CONFIGS)
        assert config.training.learning_rate == float(row.cells[1])
        if isinstance(config.method, ZeroMeanOptions):
            z = config.method.zmg if isinstance(config.method, CzmigOptions) else 0
            assert (z, config.method.noise) == (float(row.cells[2]), float(row.cells[3]))
            assert isinstance(config.method, CzmiOptions) == (row.cells[0] == "CZMI")
    for name, cell in (("mimicnorm-table2", 0), ("gaur-table2", 1), ("gaur-table4", 2)):
        assert all(config_of(row, CONFIGS).training.learning_rate == float(row.cells[cell]) for row in TABLES[name].rows)
    thresholds = [config_of(row, CONFIGS).training.clip for row in rows_of("gaur-table3")]
    assert [clip.threshold for clip in thresholds if clip.name == "norm"] == [5.0, 10.0]


def test_the_last_row_of_czmig_is_run_as_czmig() -> None:
    row = rows_of("czmig-table1")[-1]
    method = config_of(row, CONFIGS).method
    assert isinstance(method, CzmigOptions)
    assert (method.name, method.zmg) == ("czmig", 1)
    assert any("must be CZMIG" in note for note in row.notes)


def test_the_four_variants_of_table_2() -> None:
    """Ten epochs of the same schedule, with and without weight mean and last norm."""
    found = {}
    for row in rows_of("mimicnorm-table2"):
        config = config_of(row, CONFIGS)
        assert (config.training.epochs, config.training.schedule.milestones, config.training.schedule.warmup_epochs) == (10, (), 2)
        method = config.method
        found[row.curve] = (method.weight_mean, method.last_norm) if isinstance(method, MimicnormOptions) else method.name
    assert found == {"None": (False, False), "Weight mean": (True, False), "MimicNorm": (True, True), "BN": "batchnorm"}


def test_both_readings_of_mimicnorm_are_there() -> None:
    for name in ("mimicnorm-table1", "mimicnorm-table3"):
        rows = TABLES[name].rows
        methods = {row.name: config_of(row, CONFIGS).method for row in rows}
        of_the_code = [row.name for row in rows_of(name) if row.name.endswith("-mimicnorm")]
        assert [row.name for row in rows if row.by_name_only] == [f"{each}-paper" for each in of_the_code]
        for each in of_the_code:
            code, paper = methods[each], methods[f"{each}-paper"]
            assert isinstance(code, MimicnormOptions)
            assert isinstance(paper, MimicnormOptions)
            assert (code.gain, code.branch_scale, paper.gain, paper.branch_scale) == ("code", "code", "paper", "paper")
