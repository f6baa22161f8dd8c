"""What a method cannot do with a network or a batch gives one line and exit 2.

This happens before any training and leaves no trace in the run folder.
"""

from pathlib import Path

import pytest
from commands import pipeline

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SHORT = ["--set", "training.epochs=1", "--set", "training.schedule={name: constant}", "--set", "training.learning_rate=0.01"]
NETWORKS = """
import torch
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self, kind, num_classes, in_channels):
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Conv2d(8, num_classes, 1) if kind == "peak" else nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.first(x)
        x = self.second(x if self.kind == "signed" else torch.relu(x))
        if self.kind == "peak":
            return torch.flatten(F.max_pool2d(self.classifier(torch.relu(x)), 8), 1)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(torch.relu(x), 1), 1))


def straight(num_classes, in_channels):
    return Network("straight", num_classes, in_channels)


def signed(num_classes, in_channels):
    return Network("signed", num_classes, in_channels)


def peak(num_classes, in_channels):
    return Network("peak", num_classes, in_channels)
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _networks_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_for_refusals.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def refused(capfd: Capture, *settings: str) -> str:
    """Return the one line; nothing was trained, and no run folder is left."""
    options = [word for setting in settings for word in ("--set", setting)]
    for command in ("train", "train-export"):
        done = pipeline(capfd, command, QUICKSTART, "--out", "run", *SHORT, *options)
        assert done.code == 2
        assert "epoch" not in done.err.replace("epochs", "")
        assert not Path("run").exists()
    return done.error


@pytest.mark.parametrize(
    ("method", "network", "message"),
    [
        ("skipinit", "straight", "method skipinit scales residual branches, and the network has none"),
        ("fixup", "straight", "method fixup scales residual branches, and the network has none"),
        ("groupnorm", "straight", "method groupnorm replaces norms, and the network has none"),
        ("equinorm", "signed", "method equinorm needs inputs that are never negative"),
        ("mimicnorm", "peak", "stands between the classifier and the logits and is no average"),
    ],
)
def test_a_method_on_a_network_that_it_cannot_serve(capfd: Capture, method: str, network: str, message: str) -> None:
    assert message in refused(capfd, f"method={{name: {method}}}", f"network.name=networks_for_refusals:{network}")


@pytest.mark.parametrize(
    ("method", "statistics"),
    [
        ("batchnorm", "batch statistics of a BatchNorm"),
        ("mimicnorm", "batch statistics of a BatchNorm over the logits"),
        ("equinorm", "channel means of the batch, in the filters"),
    ],
)
def test_a_batch_of_one_where_its_statistics_are_used(capfd: Capture, method: str, statistics: str) -> None:
    line = refused(capfd, f"method={{name: {method}}}", "data.batch_size=1")
    assert line == (
        f"error: training steps on 1 image cannot use {statistics}: those of a single image say nothing about others; "
        "set data.batch_size to 2 or more, or choose a method without batch statistics"
    )


def test_a_quarter_of_a_batch_that_is_one_image(capfd: Capture) -> None:
    quarter = "method={name: equinorm, statistics: first_quarter}"
    line = refused(capfd, quarter, "data.batch_size=7")
    assert "training steps on 7 images cannot use channel means of a quarter of the batch, in the filters" in line
    assert "set data.batch_size to 8 or more" in line
    enough = ["--set", quarter, "--set", "data.batch_size=8", "--set", "exact.enabled=false"]
    assert pipeline(capfd, "train", QUICKSTART, "--out", "run", *SHORT, *enough).code == 0


@pytest.mark.parametrize("method", ["batchnorm", "mimicnorm", "equinorm"])
def test_an_image_too_many_for_the_last_batch_makes_no_batch_of_one(capfd: Capture, method: str) -> None:
    """1,442 training images are 11 batches of 131 and one image.

    The image is left out of the epoch, and the recomputing pass has 11 batches too.
    """
    options = ["--set", f"method={{name: {method}}}", "--set", "data.batch_size=131", "--set", "training.epochs=2"]
    freezing = ["--set", "training.freeze_statistics.epochs=1"]
    done = pipeline(capfd, "train", QUICKSTART, "--out", "run", *SHORT, *options, *freezing)
    assert done.code == 0, done.err
    assert "frozen after step 11 " in done.err


def test_nothing_to_freeze(capfd: Capture) -> None:
    assert refused(capfd, "training.epochs=2", "training.freeze_statistics.epochs=1") == (
        "error: training.freeze_statistics.epochs is 1, but this method has no batch statistics on this network: "
        "its training graph is the deployed one from the first step; set it to 0"
    )
