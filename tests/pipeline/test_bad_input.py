"""Input that cannot be trained on gives one line and exit code 2.

This happens before anything is trained or written.
"""

from pathlib import Path

import numpy as np
import pytest
from commands import pipeline
from PIL import Image

Capture = pytest.CaptureFixture[str]
MIXED = "training.mixup={alpha: 1}"


def folders(root: Path, *classes: str) -> None:
    """Write an image folder with two images of each class in either split."""
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for name in classes:
            (root / split / name).mkdir()
            for number in range(2):
                Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(root / split / name / f"{number}.png")


def refused(capfd: Capture, tmp_path: Path, *settings: str) -> str:
    (config := tmp_path / "a.yaml").write_text("data: {name: digits}\nnetwork: {name: small}\nmethod: {name: batchnorm}\n")
    run = tmp_path / "run"
    options = [option for setting in settings for option in ("--set", setting)]
    done = pipeline(capfd, "train-export", config, "--out", run, *options)
    assert done.code == 2
    assert "epoch 1/" not in done.err
    assert not (run / "config.yaml").exists()
    assert not (run / "checkpoints").exists()
    return done.error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["training.epochs=3", "training.schedule.milestones=[1, 3]"],
            "milestones [3] are never reached in 3 epochs; lower them, leave them out, or raise epochs",
        ),
        (
            ["training.epochs=3", "training.schedule={name: points, rate_points: [[0, 1], [9, 0]]}"],
            "rate_points at epochs [9.0] are never reached in 3 epochs; leave them out, or raise epochs",
        ),
        (
            ["training.epochs=3", "training.schedule.momentum_points=[[9, 0]]"],
            "momentum_points at epochs [9.0] are never reached in 3 epochs; leave them out, or raise epochs",
        ),
        (
            ["training.epochs=3", "training.schedule={name: one_cycle, cycle_epochs: 4}"],
            "cycle_epochs 4.0 is more than epochs 3; lower it or raise epochs",
        ),
        (["training.epochs=3", "training.schedule={name: cyclic}"], "cycle_epochs 10.0: 3 epochs do not reach the top of a triangle; give at most 6"),
        (["training.epochs=3", "training.schedule.warmup_epochs=4"], "warmup_epochs 4.0 is more than epochs 3; lower it or raise epochs"),
        (["training.schedule={name: points, rate_points: [[0, 0], [9, 0]]}"], "rate_points are all 0, so nothing would be learned"),
        (["training.nesterov=true", "training.momentum=0"], "nesterov looks ahead along the momentum, and momentum is 0"),
        (["method={name: weightnorm, dropout: 1}"], "method.dropout: got 1, expected a number, at least 0 and below 1"),
        (["training.mixup.alpha=-0.5"], "training.mixup.alpha: got -0.5, expected a number, at least 0"),
        (["training.mixup.alpha=1e-30"], "alpha 1e-30 mixes nothing"),
        ([MIXED, "data.batch_size=1"], "data.batch_size is 1; set it to 2 or more"),
        (["training.clip={name: norm, threshold: 0}"], "training.clip.threshold: got 0, expected a number, above 0"),
        (["training.accumulate=12"], "training.accumulate 12 is more than the 11 batches of an epoch; set it to 11 or less"),
    ],
)
def test_a_config_that_makes_no_sense(tmp_path: Path, capfd: Capture, settings: list[str], message: str) -> None:
    assert message in refused(capfd, tmp_path, *settings)


@pytest.mark.parametrize("training", ["training.epochs=1", MIXED])
def test_a_data_set_of_one_class(tmp_path: Path, capfd: Capture, training: str) -> None:
    folders(tmp_path / "data", "only")
    message = refused(capfd, tmp_path, f"data={{name: imagefolder, root: {tmp_path / 'data'}, batch_size: 2}}", training)
    assert message == "error: imagefolder has one class, only; add at least a second"


def test_a_mixup_of_no_classes(tmp_path: Path, capfd: Capture) -> None:
    folders(tmp_path / "data")
    message = refused(capfd, tmp_path, f"data={{name: imagefolder, root: {tmp_path / 'data'}, batch_size: 2}}", MIXED)
    assert f"{tmp_path / 'data' / 'train'} holds no class folders" in message


def test_manifold_mixup_without_residual_units(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "plain_net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        message = refused(capfd, tmp_path, "network.name=plain_net:build", "training.mixup={alpha: 1, where: hidden}")
    assert "the network has no such residual unit; set where: input" in message
