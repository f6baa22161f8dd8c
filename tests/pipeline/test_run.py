"""The commands from end to end, on the built-in data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest
import quickstart
import safetensors.torch
import torch
from commands import pipeline
from quickstart import QUICKSTART, typed

from deploy.verify.invariance import OF_EVERY_STAGE
from export.bundle import open_bundle
from export.files import sole_use
from export.graph.fold import fold

SHORT = typed(*quickstart.SHORT)
SHORTEST = [*SHORT, *typed("training.epochs=1", "verify.samples=50")]
Capture = pytest.CaptureFixture[str]


def test_the_bundle_holds_what_is_promised(finished_run: Path) -> None:
    bundle = open_bundle(finished_run / "bundle")
    assert set(bundle.manifest.files) == {
        "README.md",
        "certificate.json",
        "labels.txt",
        "model.exact.onnx",
        "model.exact.trt.onnx",
        "model.onnx",
        "preprocess.py",
        "report.html",
        "training/config.yaml",
        "training/exact.metrics.jsonl",
        "training/exact.safetensors",
        "training/images.json",
        "training/images/cmyk.jpg",
        "training/images/gray.png",
        "training/images/palette.png",
        "training/images/progressive.jpg",
        "training/images/transparent.png",
        "training/images/turned.jpg",
        "training/metrics.jsonl",
        "training/samples.safetensors",
        "training/weights.safetensors",
        "verification.json",
        "weights.exact.safetensors",
        "weights.safetensors",
    }
    assert bundle.manifest.input.model_dump() == {"name": "image", "dtype": "uint8", "shape": [None, 1, 8, 8]}
    assert bundle.manifest.output.model_dump() == {"name": "logits", "dtype": "float32", "shape": [None, 10]}
    assert bundle.read("labels.txt").decode().split() == bundle.manifest.classes
    metadata = {each.key: each.value for each in onnx.load_from_string(bundle.read("model.onnx")).metadata_props}
    assert json.loads(metadata["classes"]) == bundle.manifest.classes
    assert json.loads(metadata["recipe"]) == json.loads(bundle.manifest.recipe.text)
    assert metadata["sha256.training/weights.safetensors"] == bundle.hashes["training/weights.safetensors"]
    assert {"network", "method", "version.torch", "sha256.weights.safetensors"} <= metadata.keys()
    assert str(finished_run).encode() not in b"".join(bundle.read(name) for name in bundle.manifest.files)


def test_the_verdict_names_links_files_and_samples(finished_run: Path) -> None:
    bundle = open_bundle(finished_run / "bundle")
    verification = json.loads(bundle.read("verification.json"))
    engines = [link for link in verification["links"] if link["runtime"] == "tensorrt"]
    assert [(link["from"], link["required"], link["status"]) for link in engines] == [
        ("ONNX file", "budget", "not run"),
        ("exact ONNX file for TensorRT", "bitwise", "not run"),
    ]
    assert all(link["reason"] and not link["samples"] for link in engines)
    verification["links"] = [link for link in verification["links"] if link not in engines]
    links = [(link["from"], link["to"], link["required"], link["status"]) for link in verification["links"]]
    assert links == [
        ("image file", "pixels", "bitwise", "passed"),
        ("training graph", "evaluation graph", "bitwise", "passed"),
        ("evaluation graph", "folded graph", "bitwise", "passed"),
        ("folded graph", "ONNX file", "budget", "passed"),
        ("ONNX file", "onnxruntime-cpu, all optimisations", "budget", "passed"),
        ("exact training graph", "exact evaluation graph", "bitwise", "passed"),
        ("exact evaluation graph", "exact folded graph", "bitwise", "passed"),
        ("exact folded graph", "exact ONNX file", "bitwise", "passed"),
        ("exact ONNX file", "exact onnxruntime-cpu, all optimisations", "bitwise", "passed"),
        ("exact ONNX file", "exact ONNX file for TensorRT", "bitwise", "passed"),
    ]
    assert verification["links"].pop(0)["samples"] == 6
    assert all(link["samples"] == 100 + 19 for link in verification["links"])
    in_bits = [*verification["links"][:2], *verification["links"][4:]]
    assert [link["max_ulp"] for link in in_bits] == [0] * 7
    assert all(link["max_abs"] <= link["budget"]["max"] * 2 for link in verification["links"][2:4])
    exact_checks = [entry for entry in verification["invariance"] if entry["stage"].startswith("exact")]
    assert {(entry["required"], entry["observed"], entry["status"]) for entry in exact_checks} == {("bitwise", "bitwise", "passed")}
    assert {name: bundle.hashes[name] for name in verification["files"]} == verification["files"]
    assert "model.onnx" in verification["files"]
    assert [part["name"] for part in verification["training_only"]][:3] == ["noise_1.noise", "noise_2.noise", "noise_3.noise"]
    stages = {entry["stage"] for entry in verification["invariance"]}
    checks = {entry["check"] for entry in verification["invariance"]}
    assert "onnxruntime-cpu, all optimisations" in stages
    assert checks == {*OF_EVERY_STAGE, "threads", "optimisation"}


def test_the_training_graph_is_compared_in_training_mode_with_gradients(finished_run: Path) -> None:
    stages = json.loads((finished_run / "bundle" / "verification.json").read_bytes())["stages"]
    how = {name: (facts["training_mode"], facts["gradients"]) for name, facts in stages.items() if facts.get("runtime") == "torch"}
    assert how == {
        "training graph": (True, True),
        "evaluation graph": (False, False),
        "folded graph": (False, False),
        "float64 evaluation": (False, False),
        "exact training graph": (True, True),
        "exact evaluation graph": (False, False),
        "exact folded graph": (False, False),
        "exact float64 evaluation": (False, False),
    }
    without_cudnn = {name for name, facts in stages.items() if facts.get("runtime") == "torch" and not facts["flags"]["cudnn"]}
    assert without_cudnn == {"exact training graph", "exact evaluation graph", "exact folded graph"}
    assert stages["ONNX file"]["flags"]["graph_optimization_level"] == "ORT_DISABLE_ALL"
    assert stages["onnxruntime-cpu, all optimisations"]["flags"]["graph_optimization_level"] == "ORT_ENABLE_ALL"


def test_the_augmentation_of_the_config_reaches_the_images(tmp_path: Path, capfd: Capture) -> None:
    weights = []
    for padding in (0, 1):
        run = tmp_path / str(padding)
        assert pipeline(capfd, "train", QUICKSTART, "--out", run, *SHORTEST, "--set", f"data.augment.crop_padding={padding}").code == 0
        tensors = safetensors.torch.load((run / "checkpoints" / "last.safetensors").read_bytes())
        weights.append(tensors["graph/network.classifier.derivation.weight"])
    assert not torch.equal(*weights)


class Addresses(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]


def test_the_report_shows_the_run_and_fetches_nothing(finished_run: Path) -> None:
    page = (finished_run / "bundle" / "report.html").read_text()
    addresses = Addresses()
    addresses.feed(page)
    assert not [each for each in addresses.found if not each.startswith(("#", "data:image/png;base64,"))]
    for part in ("training graph", "folded graph", "onnxruntime-cpu", "network.stages.0.0.conv1"):
        assert part in page


def test_a_second_call_goes_on_where_the_first_ended(finished_run: Path, tmp_path: Path, capfd: Capture) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    first = (run / "bundle" / "weights.safetensors").read_bytes()
    done = pipeline(capfd, "train-export", QUICKSTART, "--out", run, *SHORT)
    assert done.code == 0
    assert "continuing after step" in done.err
    assert "epoch" not in done.err
    assert (run / "bundle" / "weights.safetensors").read_bytes() == first
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_another_config_in_the_same_folder_is_refused_until_fresh(finished_run: Path, tmp_path: Path, capfd: Capture) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    checkpoint = (run / "checkpoints" / "last.safetensors").read_bytes()
    changed = [*SHORT, "--set", "method.noise=0"]
    done = pipeline(capfd, "train", QUICKSTART, "--out", run, *changed)
    assert done.code == 2
    assert "method.noise = 0.1" in done.error
    assert "--fresh" in done.error
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == checkpoint
    assert "noise: 0.1" in (run / "config.yaml").read_text()
    assert pipeline(capfd, "train", QUICKSTART, "--out", run, "--fresh", *changed, *typed("training.epochs=1")).code == 0
    assert "noise: 0.0" in (run / "config.yaml").read_text()


def test_resume_without_a_run_is_the_users_mistake(tmp_path: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "train", QUICKSTART, "--out", tmp_path / "run", "--resume", *SHORT)
    assert done.code == 2
    assert "there is no checkpoint" in done.error
    assert not (tmp_path / "run").exists()


def test_exporting_a_run_gives_the_bundle_of_the_whole_command(finished_run: Path, tmp_path: Path, capfd: Capture) -> None:
    assert pipeline(capfd, "train", QUICKSTART, "--out", tmp_path / "halves", *SHORT).code == 0
    assert pipeline(capfd, "export", tmp_path / "halves").code == 0
    for name in ("model.onnx", "weights.safetensors", "training/weights.safetensors"):
        assert (finished_run / "bundle" / name).read_bytes() == (tmp_path / "halves" / "bundle" / name).read_bytes()


def test_a_run_folder_has_one_user(finished_run: Path, tmp_path: Path, capfd: Capture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = (run / "config.yaml").read_bytes()
    commands = (["train", QUICKSTART, "--out", run, *SHORT], ["train-export", QUICKSTART, "--out", run, *SHORT], ["export", run])
    with sole_use(run):
        for command in commands:
            done = pipeline(capfd, *command)
            assert done.code == 2
            assert done.error == f"error: another run is using {run}; wait for it, or use another folder"
    assert (run / "config.yaml").read_bytes() == config


def test_what_a_killed_run_left_is_removed(finished_run: Path, tmp_path: Path, capfd: Capture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / ".in-work.0123456789ab" / "inner").mkdir(parents=True)
    assert pipeline(capfd, "export", run).code == 0
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_exporting_a_missing_folder_makes_none(tmp_path: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "export", tmp_path / "none")
    assert done.code == 2
    assert not (tmp_path / "none").exists()


def test_exporting_what_is_no_run(tmp_path: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "export", tmp_path)
    assert done.code == 2
    assert "holds no run" in done.error


@pytest.mark.parametrize("method", ["batchnorm", "nonorm", "czmi", "fixup", "groupnorm"])
def test_the_other_methods_pass_the_same_chain(tmp_path: Path, capfd: Capture, method: str) -> None:
    options = [*SHORTEST, *typed(f"method={{name: {method}}}", "training.learning_rate=0.05")]
    done = pipeline(capfd, "train-export", QUICKSTART, "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err
    verification = json.loads((tmp_path / "run" / "bundle" / "verification.json").read_bytes())
    assert [link["observed"] for link in verification["links"][:3]] == ["bitwise"] * 3
    expected = {"batchnorm": 7, "czmi": 3}.get(method, 0)
    assert len(verification["training_only"]) == expected
    is_foldable = method != "groupnorm"
    assert len(verification["not_foldable"]) == (0 if is_foldable else 7)
    for place in (done.out + done.err, *((tmp_path / "run" / "bundle" / name).read_text() for name in ("README.md", "report.html"))):
        assert ("ot foldable" not in place) == is_foldable


def test_a_bundle_that_fails_is_kept_apart_and_the_good_one_stays(
    finished_run: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    good = (run / "bundle" / "manifest.json").read_bytes()
    from pipeline.bundle import make

    def rounding_fold(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
        folded = fold(graph)
        for parameter in folded.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
        return folded

    monkeypatch.setattr(make, "fold", rounding_fold)
    done = pipeline(capfd, "train-export", QUICKSTART, "--out", run, *SHORT)
    assert done.code == 3
    assert "evaluation graph -> folded graph failed" in done.error
    assert (run / "bundle" / "manifest.json").read_bytes() == good
    assert json.loads((run / "bundle-failed" / "verification.json").read_bytes())["verdict"] == "fail"
    assert open_bundle(run / "bundle-failed")
    monkeypatch.undo()
    assert pipeline(capfd, "export", run).code == 0
    assert not (run / "bundle-failed").exists()


@pytest.mark.parametrize("name", ["bundle", "bundle-failed"])
@pytest.mark.parametrize("kind", ["a folder without manifest.json", "a file", "a link"])
def test_what_is_no_bundle_is_never_replaced(finished_run: Path, tmp_path: Path, capfd: Capture, name: str, kind: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("bundle"))
    in_the_way = run / name
    if kind == "a file":
        in_the_way.write_text("mine")
    elif kind == "a link":
        in_the_way.symlink_to(finished_run / "bundle")
    else:
        in_the_way.mkdir()
    for command in (["train-export", QUICKSTART, "--out", run, "--fresh", *SHORT], ["export", run]):
        done = pipeline(capfd, *command)
        assert done.code == 2
        assert f"{in_the_way} is in the way: expected a bundle or nothing, got {kind}; move it away" in done.error
        assert "epoch" not in done.err
    assert in_the_way.is_symlink() == (kind == "a link")
    assert in_the_way.is_file() == (kind == "a file")


def test_json_is_one_object_on_standard_output(tmp_path: Path, capfd: Capture) -> None:
    done = pipeline(capfd, "train-export", QUICKSTART, "--out", tmp_path / "run", "--json", *SHORTEST)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["bundle"] == str(tmp_path / "run" / "bundle")
    assert result["verification"]["verdict"] == "pass"
    assert "epoch 1/1" in done.err


@pytest.mark.slow
def test_an_interrupted_run_ends_with_130_and_goes_on_to_the_same_bits(tmp_path: Path, capfd: Capture) -> None:
    options = [*SHORT, *typed("training.epochs=8")]
    run = tmp_path / "run"
    arguments = [sys.executable, "-m", "pipeline", "train", str(QUICKSTART), "--out", str(run), *options]
    with subprocess.Popen(
        arguments, cwd=QUICKSTART.parents[1], stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2/8" in line:
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, rest
    assert "interrupted; what was done is kept" in rest
    assert pipeline(capfd, "train", QUICKSTART, "--out", run, "--resume", *options).code == 0
    assert pipeline(capfd, "train", QUICKSTART, "--out", tmp_path / "whole", *options).code == 0
    interrupted, whole = (safetensors.torch.load((folder / "checkpoints" / "last.safetensors").read_bytes()) for folder in (run, tmp_path / "whole"))
    assert interrupted.keys() == whole.keys()
    assert all(torch.equal(interrupted[name], whole[name]) for name in whole)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8


def test_divergence_stops_with_the_place_and_one_line(tmp_path: Path, capfd: Capture) -> None:
    options = [*SHORT, "--set", "training.learning_rate=1e30"]
    done = pipeline(capfd, "train-export", QUICKSTART, "--out", tmp_path / "run", *options)
    assert done.code == 2
    assert "training diverged in epoch 1, step" in done.error
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize("asked", [["--require", "tensorrt"], ["--require", "onnxruntime-cuda"], ["--set", "verify.runtimes=[onnxruntime-cuda]"]])
def test_a_runtime_that_is_not_here_is_said_before_training(tmp_path: Path, capfd: Capture, asked: list[str]) -> None:
    done = pipeline(capfd, "train-export", QUICKSTART, "--out", tmp_path / "run", *SHORT, *asked)
    assert done.code == 4
    assert "was requested" in done.error
    assert not (tmp_path / "run").exists()
