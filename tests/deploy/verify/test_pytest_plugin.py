"""The pytest plugin as its users see it: a passing and a readable failing test, in a new pytest."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from onnx_files import pixels, random_weights, write_onnx

ROOT = Path(__file__).parents[3]
PLUGIN = "deploy.verify.pytest_plugin"
TESTS = """
import numpy as np
import torch
from torch import nn

SAMPLES = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}


class Net(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 3), scale
        nn.init.constant_(self.linear.weight, 0.3)
        nn.init.constant_(self.linear.bias, 0.1)

    def forward(self, x):
        return self.linear(x) * self.scale


def test_files(samegraph_verify):
    verdict = samegraph_verify.assert_same_function("model.onnx", "model.onnx", "samples.npz")
    assert verdict.passed


def test_wrong_file(samegraph_verify):
    samegraph_verify.assert_same_function("model.onnx", "wrong.onnx", "samples.npz")


def test_wrong_file_within_what_a_human_allows(samegraph_verify):
    samegraph_verify.assert_same_function("model.onnx", "wrong.onnx", "samples.npz", atol=0.02)


def test_modules(samegraph_verify):
    samegraph_verify.assert_same_function(Net(1.0), Net(1.0), SAMPLES)


def test_wrong_module(samegraph_verify):
    samegraph_verify.assert_same_function(Net(1.0), Net(1.01), SAMPLES)


def test_a_module_stays_in_training(samegraph_verify):
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    net[1].eval()
    samegraph_verify.assert_same_function(net, net, {"input": torch.ones(3, 4)})
    assert (net.training, net[0].training, net[1].training) == (True, True, False)


def test_tensors_in_bfloat16(samegraph_verify):
    net, rows = Net(1.0).bfloat16(), torch.randn(5, 4).bfloat16()
    samegraph_verify.assert_same_function(net, net, {"x": rows})


def test_an_array_without_a_name(samegraph_verify):
    samegraph_verify.assert_same_function("model.onnx", "model.onnx", SAMPLES["x"])


def test_a_module_with_other_names(samegraph_verify):
    samegraph_verify.assert_same_function(Net(1.0), Net(1.0), {"y": SAMPLES["x"]})


def test_a_module_without_arrays(samegraph_verify):
    samegraph_verify.assert_same_function(Net(1.0), Net(1.0), 3)


def test_a_file_that_is_not_there(samegraph_verify):
    samegraph_verify.assert_same_function("model.onnx", "other.onnx", 3)
"""

IN_THIS_PROCESS = """
import pytest
from in_process import HereHost


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    if request.node.name != "test_modules":  # for the others the seconds of a process of its own are saved
        monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)
"""
MISTAKES = {
    "test_an_array_without_a_name": "samples are a ndarray; give arrays by the names of the inputs, as in {'x': array}, a file, or a number",
    "test_a_module_with_other_names": "Net takes ['x'], the samples are ['y']; name them as its forward does",
    "test_a_module_without_arrays": "a module needs samples as arrays by the names of its inputs; give those, or pass a torch.export program",
    "test_a_file_that_is_not_there": "other.onnx does not exist; give a model (.onnx, .pt2, .plan, .engine), a bundle, "
    "or recorded outputs (.npz, .npy, .safetensors)",
}


def test_the_entry_point_is_declared() -> None:
    assert f'samegraph = "{PLUGIN}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    weights = random_weights()
    write_onnx(tmp_path / "model.onnx", weights)
    write_onnx(tmp_path / "wrong.onnx", weights.changed(last_bias=weights.last_bias + np.float32(0.01)))
    np.savez(tmp_path / "samples.npz", image=pixels(8))
    (tmp_path / "test_mine.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(IN_THIS_PROCESS)
    installed = any(each.value == PLUGIN for each in entry_points(group="pytest11"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *([] if installed else ["-p", PLUGIN]), "--rootdir", str(tmp_path)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED test_mine.py::test_wrong_file - Failed: not the same function, on 8 samples (8 samples from samples.npz):",
        "FAILED test_mine.py::test_wrong_module - Failed: not the same function, on 8 samples (8 samples from 3.safetensors):",
        *(f"FAILED test_mine.py::{name} - Failed: {message}" for name, message in MISTAKES.items()),
    ], done.stdout + done.stderr
    assert "6 failed, 5 passed" in lines[-1]
    assert any("  reference -> candidate: failed: the error against float64 is max 0.01" in line for line in lines)
    assert "torch.__trace" not in done.stdout, "notes of the exporter for its own developers"
