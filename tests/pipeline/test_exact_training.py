"""The exact stage works on a copy.

It trains the graph that goes onto the grid, and leaves the trained graph as it is.
"""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from commands import pipeline

from export.bundle import EXACT_TRAINING_WEIGHTS, TRAINING_WEIGHTS, open_bundle
from pipeline.run_folder import RunFolder
from pipeline.training import read_checkpoint

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
AS_IT_WAS_TRAINED = ["--set", "training.epochs=3", "--set", "training.schedule={name: constant}"]
FILTERS = "network.stages.0.0.conv1.derivation.direction"
ON_THE_GRID = "network.stages.0.0.conv1.derivation.inner.direction"


def test_it_trains_a_copy(finished_run: Path) -> None:
    bundle, folder = open_bundle(finished_run / "bundle"), RunFolder(finished_run)
    in_float = safetensors.torch.load(bundle.read(TRAINING_WEIGHTS))
    on_the_grid = safetensors.torch.load(bundle.read(EXACT_TRAINING_WEIGHTS))
    trained = read_checkpoint(folder.last_checkpoint).weights
    assert in_float.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in in_float.items())
    assert on_the_grid[ON_THE_GRID].shape == in_float[FILTERS].shape
    assert not torch.equal(on_the_grid[ON_THE_GRID], in_float[FILTERS])
    assert read_checkpoint(folder.exact.last_checkpoint).position["epoch"] == 2


@pytest.mark.parametrize(("options", "starts"), [([], False), (["--fresh"], True)])
def test_fresh_means_this_stage_too(finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], starts: bool) -> None:
    """Without it, what was done from the same weights is not done again."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    done = pipeline(capfd, "train", QUICKSTART, "--out", run, *AS_IT_WAS_TRAINED, *options)
    assert done.code == 0, done.err
    assert ("exact: choosing the steps of the grid" in done.err) == starts
    assert ("exact: epoch 1/2" in done.err) == starts
