"""The folder of a run: the names in it, where it can be, and where its bundle goes."""

from pathlib import Path

import pytest

from export.errors import UsageError
from pipeline.config import parse_config
from pipeline.run_folder import BundlePlace, RunFolder

HERE = Path(__file__)


def test_what_a_finished_run_left_has_the_names_that_the_folder_gives(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    for each in (folder, folder.exact):
        assert {each.metrics, each.last_checkpoint, each.best_checkpoint} <= set(each.path.rglob("*"))
        assert each.tensorboard.is_dir()
    named = {folder.config, folder.metrics, folder.tensorboard, folder.last_checkpoint.parent, folder.exact.path, folder.bundle.path}
    assert set(finished_run.iterdir()) == named
    assert folder.exact.calibration.is_file()
    assert folder.last_record()["epoch"] == 3


def test_a_config_is_stored_as_it_is(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "a" / "run"), parse_config({"method": {"name": "czmig"}})
    folder.store_config(config)
    assert folder.stored_config() == config
    with pytest.raises(UsageError, match=r"run holds no run: there is no .*metrics\.jsonl; train one"):
        folder.require_run("train one")
    folder.metrics.touch()
    folder.require_run("train one")
    assert folder.last_record() == {}


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    RunFolder(tmp_path / "a" / "b").require_makeable()
    RunFolder(tmp_path).require_makeable()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"no folder can be made at .*: .*file is a file; choose another path"):
            RunFolder(path).require_makeable()
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_a_bundle_that_failed_stays_beside_one_that_passed(tmp_path: Path) -> None:
    place = RunFolder(tmp_path).bundle
    for content, passed in (("good", True), ("bad", False)):
        with place.in_work() as staged:
            (staged / "manifest.json").write_text(content)
            assert place.publish(staged, passed=passed) == (place.path if passed else place.failed)
    assert (place.path / "manifest.json").read_text() == "good"
    assert (place.failed / "manifest.json").read_text() == "bad"
    place.require_free("move it away")
    place.forget_failed()
    place.forget_failed()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with BundlePlace(tmp_path / "bundle").in_work() as staged:
        (staged / "manifest.json").touch()
    assert list(tmp_path.iterdir()) == []
