"""Any run folders side by side: what is one group, how groups are named, what is refused."""

import json
from pathlib import Path

import pytest

from export.errors import UsageError
from pipeline.config import dump_config, parse_config
from pipeline.reproduction.commands import compare
from pipeline.reproduction.comparison import comparison_of


def run(folder: Path, method: str = "batchnorm", accuracies: tuple[float, ...] = (0.5, 0.75, 0.7), seed: int = 0, **training: object) -> Path:
    """A folder as `pipeline train` leaves it, without the training."""
    folder.mkdir()
    config = parse_config({"method": {"name": method}, "training": {"epochs": 3, "seed": seed, "schedule": {"name": "constant"}, **training}})
    (folder / "config.yaml").write_text(dump_config(config))
    records = [
        {"epoch": epoch, "train_accuracy": 0.5, "test_accuracy": value, "seconds": 60.0, "peak_memory_bytes": 2**20 * epoch}
        for epoch, value in enumerate(accuracies, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a", seed=0), run(tmp_path / "b", seed=1, accuracies=(0.5, 0.77, 0.6)), run(tmp_path / "c", "czmig")]
    result = comparison_of(folders)
    first, second = result.groups
    assert [each.seed for each in first.runs] == [0, 1]
    assert (first.cells, second.cells) == (("resnet20", "batchnorm", ""), ("resnet20", "czmig", ""))
    best, last = result.figures(first).best, result.figures(first).last
    assert best is not None
    assert last is not None
    assert (best.middle, best.width) == pytest.approx((76.0, 2**0.5))
    assert (last.middle, last.width) == pytest.approx((65.0, 50**0.5))


def test_groups_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"{rate}", learning_rate=rate) for rate in (0.1, 0.2)]
    folders.append(run(tmp_path / "other", learning_rate=0.1, momentum=0.8))
    assert [group.cells[2] for group in comparison_of(folders).groups] == [
        "training.learning_rate=0.1, training.momentum=0.9",
        "training.learning_rate=0.2, training.momentum=0.9",
        "training.learning_rate=0.1, training.momentum=0.8",
    ]


def test_what_differs_beside_network_and_method_stands_below_the_table(tmp_path: Path) -> None:
    clipped = run(tmp_path / "b", "czmig", learning_rate=0.2, clip={"name": "norm"})
    notes = comparison_of([run(tmp_path / "a", learning_rate=0.1), clipped]).notes
    assert [note for note in notes if note.startswith("Beside")] == [
        'Beside that, resnet20 batchnorm has training.learning_rate=0.1, training.clip.name="none"',
        'Beside that, resnet20 czmig has training.learning_rate=0.2, training.clip.name="norm", '
        'training.clip.threshold=5.0, training.clip.growth="constant"',
    ]


def test_groups_that_differ_in_the_method_alone_have_nothing_to_add(tmp_path: Path) -> None:
    notes = comparison_of([run(tmp_path / "a"), run(tmp_path / "b", "czmig"), run(tmp_path / "c", "czmig", seed=1)]).notes
    assert not any(note.startswith("Beside") for note in notes)


def test_a_run_that_is_not_finished_counts_for_nothing_and_is_said(tmp_path: Path) -> None:
    result = comparison_of([run(tmp_path / "a"), run(tmp_path / "b", seed=1, accuracies=(0.9,))])
    assert result.groups[0].state == "1 of 2 runs"
    best = result.figures(result.groups[0]).best
    assert best is not None
    assert (best.middle, best.width) == (75.0, None)
    assert result.title == "Comparison of 2 runs (1 of 2 runs finished)"


def test_a_seed_that_is_there_twice_is_said(tmp_path: Path) -> None:
    result = comparison_of([run(tmp_path / "a"), run(tmp_path / "b")])
    assert result.notes[-1] == "resnet20 batchnorm: seed 0 is there more than once, so the spread is not one of seeds"


def test_memory_and_time_are_those_of_the_records(tmp_path: Path) -> None:
    result = comparison_of([run(tmp_path / "a")])
    figures = result.figures(result.groups[0])
    assert figures.memory is not None
    assert figures.minutes is not None
    assert (figures.memory.middle, figures.minutes.middle) == (3.0, 1.0)


def test_a_comparison_claims_nothing_of_a_paper(tmp_path: Path) -> None:
    outcome = compare([run(tmp_path / "a")], tmp_path / "out")
    assert "reproduction" not in outcome.text
    assert "paper" not in outcome.text
    assert "reproduction" not in outcome.facts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["accuracy.png", "accuracy.svg", "table.csv", "table.json", "table.md"]
    assert outcome.facts["files"] == [
        str(tmp_path / "out" / name) for name in ("table.md", "table.csv", "table.json", "accuracy.svg", "accuracy.png")
    ]
    assert compare([tmp_path / "a"], None).facts["files"] == []


def test_one_run_given_twice_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    with pytest.raises(UsageError, match="are one run; give each once"):
        comparison_of([folder, tmp_path / "." / "a" / ".." / "a"])


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path, missing: str) -> None:
    (run(tmp_path / "a") / missing).unlink()
    with pytest.raises(UsageError, match=f"holds no run: there is no .*{missing}; give the folders that pipeline train wrote"):
        comparison_of([tmp_path / "a"])
