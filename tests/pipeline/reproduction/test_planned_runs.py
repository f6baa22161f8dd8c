"""What will run: which rows and seeds, on which images, and the differences from the paper."""

from pathlib import Path

import pytest
from small_table import CONFIGS, small_table

from export.errors import UsageError
from pipeline.reproduction.papers import TABLES
from pipeline.reproduction.planned_runs import Plan, PlanRequest, chosen_rows, planned

OUT = Path("out")


def plan(name: str, **asked: object) -> Plan:
    return planned(TABLES[name], PlanRequest(**asked), CONFIGS, OUT)  # type: ignore[arg-type]


def images(folder: Path, num_classes: int) -> Path:
    for number in range(num_classes):
        (folder / "train" / f"class-{number}").mkdir(parents=True)
    (folder / "train" / ".cache").mkdir()
    return folder


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_asked_for_nothing_else_a_row_is_run_as_the_paper_states_it(table: object) -> None:
    (name,) = (key for key, each in TABLES.items() if each is table)
    found = plan(name)
    assert found.deviations == ()
    assert found.left_out == ()
    assert [row.row for row in found.rows] == [row for row in TABLES[name].rows if not row.by_name_only]
    for row in found.rows:
        assert [run.config.training.seed for run in row.runs] == list(range(TABLES[name].num_runs))
        assert len({run.folder for run in row.runs}) == len(row.runs)
        assert row.config.training.epochs == row.epochs_of_the_paper
        assert (row.config.training.precision, row.config.exact.enabled) == ("float32", False)


def test_the_protocol_of_the_best_row_of_czmig() -> None:
    row = plan("czmig-table1").rows[0]
    training = row.config.training
    assert (training.epochs, training.learning_rate, training.momentum, training.schedule.milestones) == (200, 0.4, 0.9, (100, 150))
    assert (row.config.data.batch_size, len(row.runs)) == (128, 8)


def test_rows_by_name_and_by_pattern_in_the_order_of_the_table() -> None:
    found = plan("mimicnorm-table2", rows=("mimicnorm-1.0", "*-0.01", "batchnorm-0.01"))
    assert [row.row.name for row in found.rows] == ["none-0.01", "weight-mean-0.01", "mimicnorm-0.01", "batchnorm-0.01", "mimicnorm-1.0"]
    assert len(found.left_out) == 28 - 5


def test_another_reading_runs_only_by_name() -> None:
    table = TABLES["mimicnorm-table1"]
    assert len(chosen_rows(table, ())) == 16
    assert [row.name for row in chosen_rows(table, ("vgg11-mimicnorm*",))] == ["vgg11-mimicnorm", "vgg11-mimicnorm-paper"]


def test_fewer_epochs_are_said_of_each_row_that_has_fewer() -> None:
    found = plan("gaur-table5", epochs=90)
    assert [row.deviations for row in found.rows] == [(), ("shortened to 90 of 120 epochs",)]
    assert [row.config.training.epochs for row in found.rows] == [90, 90]
    assert found.rows[1].notes == ("the clipping threshold goes by the number of the epoch and is that of the first ones",)


def test_fewer_seeds_are_said_and_more_are_not() -> None:
    assert plan("mimicnorm-table1", num_seeds=2).deviations == ("2 of 3 seeds",)
    assert plan("mimicnorm-table1", num_seeds=5).deviations == ()


def test_image_files_in_place_of_the_data_set_are_said(tmp_path: Path) -> None:
    found = plan("czmig-table1", data=images(tmp_path, 10))
    assert found.deviations == ("other data: image files in 10 classes instead of CIFAR-10",)
    data = found.rows[0].config.data
    assert (data.name, data.root, data.normalisation, data.augment.crop_padding) == ("imagefolder", str(tmp_path), "imagenet", 4)
    assert plan("equinorm-svhn", data=tmp_path).rows[0].config.data.extra is False


def test_the_data_set_in_another_folder_is_the_data_set(tmp_path: Path) -> None:
    found = plan("czmig-table1", data=tmp_path)
    assert found.deviations == ()
    assert (found.rows[0].config.data.name, found.rows[0].config.data.root) == ("cifar10", str(tmp_path))


def test_an_image_folder_is_not_imagenet_unless_it_has_its_classes(tmp_path: Path) -> None:
    assert plan("mimicnorm-table3", data=images(tmp_path / "few", 10)).deviations == ("other data: image files in 10 classes instead of ImageNet",)
    assert plan("mimicnorm-table3", data=images(tmp_path / "all", 1000)).deviations == ()


def test_the_folder_of_the_config_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "data" / "imagenet", 10)
    monkeypatch.chdir(tmp_path)
    assert plan("gaur-table1").deviations == ("other data: image files in 10 classes instead of ImageNet",)


def test_a_value_of_the_protocol_that_is_set_is_said_and_another_is_not() -> None:
    free = ("data.workers=4", "training.device=cpu", "training.threads=1", "training.diagnosis=epoch", "verify.samples=10", "exact.epochs=1")
    assert plan("mimicnorm-table1", overrides=(*free, "training.momentum=0.8")).deviations == ("--set training.momentum=0.8",)
    assert plan("mimicnorm-table1", overrides=("training.precision=bfloat16",)).deviations == ("--set training.precision=bfloat16",)
    assert plan("mimicnorm-table1", overrides=("data.batch_size=64",)).rows[0].config.data.batch_size == 64


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rows": ("batchnom",)}, "czmig-table1 has no row 'batchnom', did you mean batchnorm?"),
        ({"rows": ("zzz*",)}, "czmig-table1 has no row 'zzz*', expected one of czmig-0.4-z0.85-noise0.1, batchnorm, "),
        ({"epochs": 201}, "--epochs 201 is more than the 200 epochs of czmig-table1; it only shortens"),
        ({"overrides": ("training.epochs=3",)}, "--set training.epochs is not for reproduce; give --epochs"),
        ({"overrides": ("training.seed=3",)}, "--set training.seed is not for reproduce; give --seeds"),
        ({"overrides": ("data.root=x",)}, "--set data.root is not for reproduce; give --data"),
        ({"overrides": ("data.name=cifar100",)}, "--set data.name is not for reproduce; give --data"),
        ({"overrides": ("data={name: digits}",)}, "--set data is not for reproduce; give --data"),
        ({"overrides": ("training={epochs: 3}",)}, "--set training is not for reproduce; give the values in it that shall change"),
        ({"overrides": ("method.zmg=0.5",)}, "row batchnorm: --set method.zmg=0.5: method.zmg: unknown key"),
        (
            {"overrides": ("training.momentum=2",)},
            "row czmig-0.4-z0.85-noise0.1: --set training.momentum=2: training.momentum: got 2, expected a number",
        ),
    ],
)
def test_wrong_use_is_said_before_anything_runs(asked: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan("czmig-table1", **asked)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_small_table_is_planned_into_its_folder() -> None:
    found = planned(small_table(), PlanRequest(), CONFIGS, OUT)
    assert found.rows[1].runs[1].folder == OUT / "runs" / "czmig-0.2" / "seed-1"
