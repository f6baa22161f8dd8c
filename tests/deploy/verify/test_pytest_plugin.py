"""The pytest plugin as its users have it: a test that passes, one that fails readably, in a pytest of their own."""

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
"""


def test_the_entry_point_is_declared() -> None:
    assert f'samegraph = "{PLUGIN}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    weights = random_weights()
    write_onnx(tmp_path / "model.onnx", weights)
    write_onnx(tmp_path / "wrong.onnx", weights.changed(last_bias=weights.last_bias + np.float32(0.01)))
    np.savez(tmp_path / "samples.npz", image=pixels(8))
    (tmp_path / "test_mine.py").write_text(TESTS)
    installed = any(each.value == PLUGIN for each in entry_points(group="pytest11"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *([] if installed else ["-p", PLUGIN]), "--rootdir", str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED test_mine.py::test_wrong_file - Failed: not the same function, on 8 samples (8 samples from samples.npz):",
        "FAILED test_mine.py::test_wrong_module - Failed: not the same function, on 8 samples (8 samples from 3.npz):",
    ], done.stdout + done.stderr
    assert "2 failed, 3 passed" in lines[-1]
    assert any("  reference -> candidate: failed: the error against float64 is max 0.01" in line for line in lines)
