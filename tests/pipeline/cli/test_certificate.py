"""`pipeline verify --certificate`: exit codes, table and JSON; it runs nothing of the file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import pipeline
from exact_files import PIXEL_STEP, Sketch


def written(path: Path, weight: int) -> Path:
    sketch = Sketch()
    sums = sketch.layer(sketch.pixels(), "first", np.full((1, 1, 4, 4), weight, np.int8), [1], PIXEL_STEP)
    path.write_bytes(sketch.content(sketch.flattened(sketch.quantised(sums, 2.0**-4, 0, 127), 1)))
    return path


def test_a_file_that_is_exact(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = pipeline(capfd, "verify", "--certificate", written(tmp_path / "model.onnx", 64))
    assert (done.code, done.err) == (0, "")
    assert "every sum is exact in float32 and int32 in any order" in done.out


def test_a_file_that_is_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = pipeline(capfd, "verify", "--certificate", written(tmp_path / "model.onnx", 66))
    assert done.code == 3
    assert done.error.startswith(f"error: {tmp_path / 'model.onnx'}: no certificate: 'first' has pairs of products up to 255 times 132")
    assert "refused:" in done.out


def test_a_file_that_is_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    assert pipeline(capfd, "verify", "--certificate", path).code == 5


@pytest.mark.parametrize("arguments", [(), ("bundle", "--certificate", "model.onnx")])
def test_either_a_bundle_or_a_file(arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    done = pipeline(capfd, "verify", *arguments)
    assert done.code == 2
    assert "give a BUNDLE, or both --reference and --candidate, or --certificate FILE.onnx" in done.error


def test_json_is_the_content_of_certificate_json_and_no_runtime_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, pipeline.cli as cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    print(sorted({'torch', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = ["verify", "--json", "--certificate", str(written(tmp_path / "model.onnx", 66))]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    content = json.loads(done.stdout)
    assert (done.returncode, content["verdict"], content["error"]["exit_code"]) == (3, "refused", 3)
    assert content["refusals"][0]["node"] == "first"
    assert done.stderr.splitlines()[-1] == "[]"
