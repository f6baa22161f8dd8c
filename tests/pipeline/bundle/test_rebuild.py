"""What a bundle says about frozen batch statistics, and that it is rebuilt from its files alone."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from commands import pipeline
from made_once import MadeOnce
from pydantic import JsonValue
from quickstart import QUICKSTART

from deploy.verify.verdict import FrozenStatistics
from export.bundle import Facts, Manifest, write_manifest
from export.errors import DamagedError
from pipeline import run
from pipeline.bundle.contents import frozen_statistics
from pipeline.cli.console import Console
from pipeline.config import load_config
from pipeline.config.sections import FreezeStatistics, Training
from pipeline.methods.statistics import Statistics
from pipeline.run_folder import RunFolder
from pipeline.run_request import TrainExportRequest

SHORT = (
    "training.epochs=3",
    "training.schedule={name: constant}",
    "training.learning_rate=0.05",
    "training.freeze_statistics={epochs: 1}",
    "verify.samples=50",
)
STEPS = 22
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", params=["batchnorm", "mimicnorm", "equinorm"])
def frozen_run(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    config = load_config(QUICKSTART, (*SHORT, f"method={{name: {request.param}}}"))

    def make(folder: Path) -> None:
        assert run.carry_out(TrainExportRequest(config=config, folder=RunFolder(folder)), Console()).failure is None

    return made_once.path(f"frozen_{request.param}", make)


def records_of(folder: Path) -> list[dict[str, JsonValue]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_verdict_says_since_when_and_what_it_did_to_the_accuracy(frozen_run: Path) -> None:
    found = json.loads((frozen_run / "bundle" / "verification.json").read_text())
    records = records_of(frozen_run)
    assert found["frozen_statistics"] == {
        "since_step": 2 * STEPS,
        "last_step": 3 * STEPS,
        "accuracy_before": records[1]["test_accuracy"],
        "accuracy_recomputed": records[2]["test_accuracy_at_freezing"],
        "accuracy_at_end": records[2]["test_accuracy"],
    }
    assert {part["off_since_step"] for part in found["training_only"] if part["name"] != "precision"} == {2 * STEPS}
    assert [link["observed"] for link in found["links"][:3]] == ["bitwise"] * 3


def test_report_and_readme_say_it(frozen_run: Path) -> None:
    page = (frozen_run / "bundle" / "report.html").read_text()
    assert "After step 44 of 66 the training graph and the deployed graph were identical: " in page
    assert "right after recomputing" in page
    assert "so its training graph was another" not in page
    assert "frozen after step 44" in page
    assert "Batch statistics were frozen after step 44 of 66" in (frozen_run / "bundle" / "README.md").read_text()


def test_verifying_again_rebuilds_it_from_the_files(frozen_run: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "verify", frozen_run / "bundle")
    assert done.code == 0
    assert "without batch statistics after step 44 of 66; test accuracy " in done.out


def test_the_training_graph_is_compared_with_its_frozen_parts_left_on(frozen_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    """Frozen statistics must make no difference by themselves: with a broken switch, the comparison
    fails."""
    monkeypatch.setattr(Statistics, "acts", property(lambda part: part.active and part.training))
    done = pipeline(capfd, "verify", frozen_run / "bundle")
    assert done.code == 3
    assert "training graph -> evaluation graph failed" in done.error


def test_a_story_that_the_config_does_not_tell_is_not_believed(frozen_run: Path, tmp_path: Path, capfd: Capture) -> None:
    bundle = Path(shutil.copytree(frozen_run / "bundle", tmp_path / "bundle"))
    path = bundle / "training" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"frozen_at_step": 44', '"frozen_at_step": 22'))
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    write_manifest(bundle, Facts.model_validate(manifest.model_dump(exclude={"files", "format_version"})))
    done = pipeline(capfd, "verify", bundle)
    assert done.code == 5
    assert "frozen_at_step is not what training.freeze_statistics of the config makes it" in done.error


def epoch(number: int, **more: JsonValue) -> Mapping[str, JsonValue]:
    return {"epoch": number, "step": 10 * number, "test_accuracy": number / 10, **more}


FROZEN = Training(epochs=3, freeze_statistics=FreezeStatistics(epochs=2))
TOLD = [epoch(1), epoch(2, frozen_at_step=10, test_accuracy_at_freezing=0.15), epoch(3, frozen_at_step=10)]


def test_the_records_of_a_run_make_the_verdicts_part() -> None:
    expected = FrozenStatistics(since_step=10, last_step=30, accuracy_before=0.1, accuracy_recomputed=0.15, accuracy_at_end=0.3)
    assert frozen_statistics(TOLD, FROZEN, "here") == expected
    early = frozen_statistics(TOLD[:2], FROZEN, "here")
    assert early is not None
    assert (early.last_step, early.accuracy_at_end) == (20, 0.2)


@pytest.mark.parametrize(("records", "options"), [([], FROZEN), (TOLD[:1], FROZEN), ([epoch(1), epoch(2)], Training(epochs=2)), ([], Training())])
def test_a_run_that_froze_nothing_has_no_such_part(records: list[Mapping[str, JsonValue]], options: Training) -> None:
    """This includes a bundle that was exported before the freezing."""
    assert frozen_statistics(records, options, "here") is None


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (TOLD, Training(epochs=3), "here: frozen_at_step is not what"),
        ([epoch(1), epoch(2), epoch(3)], FROZEN, "here: frozen_at_step is not what"),
        ([TOLD[0], TOLD[1], epoch(3)], FROZEN, "here: frozen_at_step is not what"),
        ([TOLD[0], epoch(2, frozen_at_step=20), TOLD[2]], FROZEN, "here: frozen_at_step is not what"),
        ([epoch(1, frozen_at_step=10), *TOLD[1:]], FROZEN, "here: frozen_at_step is not what"),
        ([TOLD[0], epoch(2, frozen_at_step=10), TOLD[2]], FROZEN, "here: test_accuracy_at_freezing of epoch 2 is None, expected a number"),
        ([epoch(1, test_accuracy="high"), *TOLD[1:]], FROZEN, "here: test_accuracy of epoch 1 is 'high', expected a number"),
        ([{"epoch": 1, "test_accuracy": 0.1}, {"epoch": 2, "step": 20}], FROZEN, "here: step of epoch 1 is None, expected a number"),
    ],
)
def test_records_that_contradict_the_config_are_refused(records: list[Mapping[str, JsonValue]], options: Training, message: str) -> None:
    with pytest.raises(DamagedError) as caught:
        frozen_statistics(records, options, "here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
