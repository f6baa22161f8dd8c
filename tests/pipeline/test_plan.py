"""A plan decides and refuses everything and touches nothing; what is carried out is what was
planned."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from commands import pipeline
from PIL import Image

from pipeline import training_graph as graphs
from pipeline.bundle import contents
from pipeline.cli.console import Console
from pipeline.config import loading
from pipeline.networks import network_by_name

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SHORT = ["--set", "training.epochs=3", "--set", "training.schedule={name: constant}", "--set", "verify.samples=100"]
"""As `finished_run` was trained."""
Capture = pytest.CaptureFixture[str]


def content_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change, and every folder."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    }


@pytest.fixture
def run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, in the folder where commands are run."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished_run, tmp_path / "run", copy_function=shutil.copy2))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The facts of each command: what --json writes."""
    found: list[Any] = []
    result = Console.result

    def kept(console: Console, facts: Any, text: str) -> None:
        found.append(json.loads(json.dumps(facts)))
        result(console, facts, text)

    monkeypatch.setattr(Console, "result", kept)
    return found


def planned(capfd: Capture, tmp_path: Path, *arguments: object) -> dict[str, str]:
    """Return the lines of a dry run that succeeds and leaves everything as it was."""
    before = content_of(tmp_path)
    done = pipeline(capfd, *arguments, "--dry-run")
    assert done.code == 0, done.err
    assert content_of(tmp_path) == before
    return dict(line.split(": ", 1) for line in done.out.splitlines())


def test_of_a_first_run(tmp_path: Path, capfd: Capture, given: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = planned(capfd, tmp_path, "train-export", QUICKSTART, "--set", "export.tensorrt=false")
    assert lines == {
        "plan of": "pipeline train-export; nothing has been done yet",
        "run folder": "runs/quickstart",
        "device": "cpu",
        "data": "digits, 1,442 training and 355 test images of 1 x 8 x 8, 10 classes",
        "network": "small with czmig, 74,762 parameters",
        "weights": "from scratch",
        "training": "30 epochs of 22 steps, batches of 64, in float32",
        "exact stage": "8 layers on the grid, 2 epochs there",
        "engines": "none, switched off by export.tensorrt",
        "verification": "on 355 test images and hostile images, in onnxruntime-cpu",
        "bundle": "runs/quickstart/bundle",
    }
    (facts,) = given
    plan = facts["plan"]
    assert (plan["command"], plan["device"], plan["training"]["steps"]) == ("train-export", "cpu", 660)
    assert plan["export"]["engines"] == {"not_built": "switched off by export.tensorrt"}
    assert plan["weights"] == {"from": "scratch", "replaces_a_run": False}


def test_of_training_alone(tmp_path: Path, capfd: Capture) -> None:
    lines = planned(capfd, tmp_path, "train", QUICKSTART, "--out", tmp_path / "run", "--set", "method.name=groupnorm")
    assert not {"engines", "verification", "bundle"} & lines.keys()
    assert lines["exact stage"].startswith("none, node 'network_bn1' cannot go onto the exact grid")


@pytest.mark.parametrize(
    ("option", "weights"),
    [("--resume", "continuing from {}, after step 66"), ("--fresh", "from scratch, which replaces the existing run"), (None, None)],
)
def test_of_a_run_that_is_there(run: Path, tmp_path: Path, capfd: Capture, option: str | None, weights: str | None) -> None:
    """Without either option, an existing run is continued."""
    lines = planned(capfd, tmp_path, "train-export", QUICKSTART, "--out", run, *SHORT, *([option] if option else []))
    expected = weights or "continuing from {}, after step 66"
    assert lines["weights"] == expected.format(run / "checkpoints" / "last.safetensors")
    assert lines["bundle"] == f"{run / 'bundle'}, which replaces the existing one"


def test_of_an_export(run: Path, tmp_path: Path, capfd: Capture, given: list[Any]) -> None:
    lines = planned(capfd, tmp_path, "export", "run")
    assert lines["weights"] == "those of run/checkpoints/last.safetensors, after 3 epochs"
    assert lines["verification"].startswith("on 100 test images")
    assert "training" not in lines
    assert given[0]["plan"]["weights"] == {"from": "checkpoint", "path": "run/checkpoints/last.safetensors", "epoch": 3, "step": 66}


def test_of_engines(run: Path, tmp_path: Path, capfd: Capture, given: list[Any]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="not run: tensorrt-rtx is not installed")
    lines = planned(capfd, tmp_path, "export", "--tensorrt", "run/bundle", "--flavour", "rtx", "--precision", "float16")
    assert lines["engines"] == "float16, built for rtx, GPUs: same"
    assert given[0]["plan"]["precisions"] == ["float16"]
    (tmp_path / "run" / "bundle-failed").write_text("mine")
    done = pipeline(capfd, "export", "--tensorrt", "run/bundle", "--dry-run")
    assert (done.code, "run/bundle-failed is in the way" in done.error) == (2, True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for split, number in (("train", 10), ("test", 4)):
        for shade, name in ((40, "dark"), (200, "light")):
            (folder := tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (16, 16), (shade + index, shade, shade - index)).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_of_an_import(tmp_path: Path, capfd: Capture, images: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(safetensors.torch.save(network_by_name("small", 2, 3).state_dict()))
    options = ("--network", "small", "--weights", weights, "--calibrate", images, "--set", "data.batch_size=8", "--out", tmp_path / "run")
    lines = planned(capfd, tmp_path, "export", *options)
    assert lines["weights"] == f"those of {weights}"
    assert lines["network"].startswith("small with batchnorm")
    assert lines["exact stage"] == "8 layers on the grid, 0 epochs there"


def test_a_network_of_the_user_leaves_no_bytecode(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "net_of_a_dry_run.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    planned(capfd, tmp_path, "train", QUICKSTART, "--set", "network.name=net_of_a_dry_run:build", "--set", "method.name=nonorm")
    assert sys.dont_write_bytecode is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", QUICKSTART, "--resume"), 2, "there is no checkpoint runs/quickstart/checkpoints/last.safetensors to go on from"),
        (("train", QUICKSTART, "--out", "file/run"), 2, "no folder can be made at file/run: "),
        (("train", QUICKSTART, "--set", "training.freeze_statistics.epochs=1"), 2, "has no batch statistics on this network"),
        (("train", QUICKSTART, "--set", "training.accumulate=99"), 2, "training.accumulate 99 is more than the 22 batches"),
        (("train", QUICKSTART, "--set", "training.device=cuda:7"), 4, "cuda:7 is not on this machine"),
        (("train", QUICKSTART, "--set", "method.name=groupnorm", "--set", "exact.enabled=true"), 2, "cannot go onto the exact grid"),
        (("train-export", QUICKSTART, "--require", "tensorrt"), 4, "tensorrt was requested"),
        (("train-export", QUICKSTART, "--set", "export.tensorrt=true"), 4, "export.tensorrt: true requires engines"),
        (("train", QUICKSTART, "--set", "data={name: cifar10, download: true}"), 2, "cifar10 is not in data yet, and a dry run does not fetch it"),
        (("train", QUICKSTART, "--set", "data={name: svhn, download: true}"), 2, "svhn is not in data yet, and a dry run does not fetch it"),
        (("train", QUICKSTART, "--set", "data={name: cifar10}"), 2, "set data.download: true"),
        (("export", "nowhere"), 2, "nowhere holds no run"),
        (("export", "--tensorrt", "nowhere"), 2, "nowhere is not a folder"),
    ],
    ids=lambda each: " ".join(str(word).rpartition("/")[2] for word in each) if isinstance(each, tuple) else "",
)
def test_a_dry_run_refuses_what_the_run_would(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    before = content_of(tmp_path)
    done = pipeline(capfd, *arguments, "--dry-run")
    assert done.code == code
    assert message in done.error
    assert content_of(tmp_path) == before


def test_a_checkpoint_of_another_data_set_is_refused_before_training(run: Path, capfd: Capture) -> None:
    """Its config is the same, but an epoch had another number of steps."""
    from pipeline.training.checkpoint import checkpoint_bytes, read_checkpoint

    path = run / "checkpoints" / "last.safetensors"
    stored = read_checkpoint(path)
    graph = torch.nn.Linear(1, 1)
    optimiser = torch.optim.SGD(graph.parameters())
    path.write_bytes(checkpoint_bytes(graph, optimiser, {**stored.position, "steps_per_epoch": 21}, stored.config))
    for more in ((), ("--dry-run",)):
        done = pipeline(capfd, "train", QUICKSTART, "--out", run, *SHORT, *more)
        assert (done.code, "was made with 21 steps an epoch, the data now gives 22" in done.error) == (2, True)
        assert "training small" not in done.err


def test_the_graph_is_built_once_to_train_and_once_to_verify(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training has one graph and puts a copy of it onto the grid; verification rebuilds one from
    the files.

    The same holds for the config.
    """
    calls = {"trace": 0, "parse_config": 0}

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, counting)

    counted(graphs, "trace")
    counted(loading, "parse_config")
    counted(contents, "parse_config")
    options = ["--set", "training.epochs=1", "--set", "training.schedule={name: constant}", "--set", "verify.samples=20"]
    assert pipeline(capfd, "train-export", QUICKSTART, "--out", tmp_path / "run", *options).code == 0
    assert calls == {"trace": 2, "parse_config": 2}
