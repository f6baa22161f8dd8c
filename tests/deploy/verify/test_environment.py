"""What is recorded about the machine."""

import json
import subprocess
import sys
from pathlib import Path

from deploy.verify.environment import cpu_model, environment, nvidia_driver, nvidia_gpus


def test_versions_and_machine() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == sys.version.split()[0]
    packages = found["packages"]
    assert isinstance(packages, dict)
    assert {"torch", "numpy", "onnxruntime-gpu"} <= set(packages)


def test_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU: 2 GHz\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Some CPU: 2 GHz"
    assert cpu_model(tmp_path / "none")


def test_verification_imports_no_runtime() -> None:
    code = "import sys, deploy.verify.run_chain; sys.exit(bool({'torch', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def test_the_models_of_the_gpus(tmp_path: Path) -> None:
    assert nvidia_gpus(tmp_path / "none") == []
    for bus, model in (("0000:02:00.0", "NVIDIA B"), ("0000:01:00.0", "NVIDIA A")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 9\n")
    assert nvidia_gpus(tmp_path) == ["NVIDIA A", "NVIDIA B"]


def test_the_driver_of_the_gpu(tmp_path: Path) -> None:
    version = tmp_path / "version"
    assert nvidia_driver(version) is None
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1\nGCC version: 12\n")
    assert nvidia_driver(version) == "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1"
