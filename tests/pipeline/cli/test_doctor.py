"""What `doctor` finds: once for real, and with probes that crash, hang, print noise or answer
nonsense."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.runners.probe import LOOKS
from deploy.runners.runner import Finding
from deploy.runners.runtimes import RUNTIMES
from export.errors import NotHereError
from pipeline.cli import doctor
from pipeline.cli.console import Console
from pipeline.cli.doctor.survey import problems, run_probe

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def findings() -> dict[str, Any]:
    command = [sys.executable, "-m", "pipeline", "doctor", "--json", "--require", "onnxruntime-cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    assert set(report) == {"findings", "problems"}
    found: dict[str, Any] = report["findings"]
    return found


def test_the_real_machine(findings: dict[str, Any]) -> None:
    import onnxruntime
    import torch

    assert findings["torch"]["facts"]["version"] == torch.__version__
    assert findings["cuda"]["here"] == torch.cuda.is_available()
    assert findings["onnxruntime"]["facts"]["version"] == onnxruntime.__version__
    assert findings["onnxruntime-cpu"]["here"]
    assert findings["memory"]["facts"]["bytes"] > 2**28
    assert findings["disk"]["facts"]["free_bytes"] > 0
    assert findings["cpu"]["facts"]["cores"] >= 1


def test_a_provider_that_is_listed_is_not_believed(findings: dict[str, Any]) -> None:
    listed = findings["onnxruntime"]["facts"]["listed_providers"]
    if "CUDAExecutionProvider" not in listed or findings["cuda"]["here"]:
        pytest.skip("needs an ONNX Runtime that lists CUDA on a machine without it")
    assert findings["onnxruntime-cuda"]["facts"]["session_providers"] == ["CPUExecutionProvider"]
    assert not findings["onnxruntime-cuda"]["here"]
    assert findings["onnxruntime-cuda"]["detail"].startswith("listed, but does not load (")


def test_every_requirement_is_a_finding_with_a_remedy(findings: dict[str, Any]) -> None:
    assert set(doctor.remedies()) < set(findings)
    assert {name for names in LOOKS.values() for name in names} < set(findings)


PROBE = "import os, sys, time, json, signal\n"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("print('loading', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV) (loading)"),
        ("sys.exit('broken\\nat the end')", "its probe ended with 1 (at the end)"),
        ("time.sleep(60)", "gave no answer in 1 s"),
        ("print('nonsense')", "gave an answer that cannot be read"),
        ("print('[]')", "gave an answer that cannot be read"),
        ("print('{}')", "gave an answer that cannot be read"),
        ("pass", "gave an answer that cannot be read"),
        (
            "print('\\x1b[31mx with error: libfoo.so: no such file\\x1b[m\\nand more', file=sys.stderr); "
            "print(json.dumps({'torch': {'here': False, 'detail': 'does not load', 'facts': {}}}))",
            "does not load (libfoo.so: no such file)",
        ),
    ],
)
def test_a_broken_runtime_is_a_finding_for_all_that_depends_on_it(tmp_path: Path, body: str, detail: str) -> None:
    (script := tmp_path / "probe.py").write_text(PROBE + body, encoding="utf-8")
    found = run_probe("torch", script, seconds=1)
    assert {name: (finding.here, finding.detail) for name, finding in found.items()} == {
        "torch": (False, detail),
        "cuda": (False, found["cuda"].detail),
    }
    assert found["cuda"].detail == detail


def test_the_chatter_of_a_runtime_that_works_is_dropped(tmp_path: Path) -> None:
    answer = "print(json.dumps({'tensorrt': {'here': True, 'detail': 'fine', 'facts': {'a': 1}}}))"
    (script := tmp_path / "probe.py").write_text(PROBE + "print('noise', file=sys.stderr);" + answer, encoding="utf-8")
    assert run_probe("tensorrt", script) == {"tensorrt": Finding(True, "fine", {"a": 1})}


def test_what_a_runtime_prints_while_loading_is_not_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatter = "import os\nprint('hello', flush=True)\nos.write(1, b'native')\nraise RuntimeError('not\\nwell')"
    (tmp_path / "tensorrt.py").write_text(chatter, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_probe("tensorrt") == {"tensorrt": Finding(False, "RuntimeError: not well (native)")}


def test_every_runtime_of_the_table_is_looked_at() -> None:
    assert set(RUNTIMES) < set(LOOKS)
    assert all(name in answers for name, answers in LOOKS.items())


def test_two_onnxruntimes_at_once_are_a_problem_with_its_remedy() -> None:
    assert problems(["onnxruntime-gpu"]) == []
    assert problems(["onnxruntime", "onnxruntime-gpu"]) == [
        "onnxruntime and onnxruntime-gpu are installed together and share a folder, so one hides the other; "
        "fix it with: pip uninstall --yes onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    ]


def test_what_is_required_and_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"cuda": Finding(True, "a GPU"), "tensorrt": Finding(False, "no module tensorrt")}
    monkeypatch.setattr("pipeline.cli.doctor.survey.survey", lambda: found)
    monkeypatch.setattr("pipeline.cli.doctor.survey.installed_onnxruntimes", lambda: ["onnxruntime", "onnxruntime-gpu"])
    arguments = ["--require", "cuda", "--require", "tensorrt"]
    with pytest.raises(NotHereError) as caught:
        doctor.doctor.main(arguments, standalone_mode=False, obj=Console())
    assert str(caught.value) == f"tensorrt: no module tensorrt; {doctor.remedies()['tensorrt']}"
    cuda, tensorrt, problem = capsys.readouterr().out.splitlines()
    assert cuda == "cuda      yes  a GPU"
    assert tensorrt == "tensorrt  no   no module tensorrt"
    assert problem.startswith("problem: onnxruntime and onnxruntime-gpu are installed together")
