"""The acceptance script, as far as it goes without a GPU.

It reports what is not available, and no failure loses earlier results. ONNX Runtime on the CPU is
measured here in place of the runtimes that it is for; none of its figures are kept.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_acceptance, replayed_training
from benchmarks.gpu_acceptance import Contestant, Images, Part, main
from deploy.runners.runtimes import RunOptions, open_file
from deploy.verify.environment import nvidia_driver
from export.tensorrt.record import EnginePrecision
from pipeline.config import Config

SHORT = ["--network", "small", "--rounds", "2", "--seconds", "0", "--epochs", "1"]
Json = dict[str, Any]


def run(path: Path, *arguments: str) -> tuple[int, Json]:
    code = main([*SHORT, *arguments, "--out", str(path)])
    return code, json.loads(path.read_bytes())


@pytest.mark.slow
def test_without_a_gpu_it_runs_what_it_can_and_names_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(tmp_path / "result.json")
    assert (code, result["complete"], result["failed"]) == (0, False, [])
    assert result["gpu"].startswith("not here: no NVIDIA GPU is available")
    bundle, training, speed = result["bundle"], result["training"], result["speed"]
    assert "replayed training" in training["not_run"]
    assert training["same_bits_of_replayed"] == training["measured"] == {}
    assert {link["status"] for link in bundle["links"] if link["device"] == "cpu"} == {"passed"}
    assert {link["status"] for link in bundle["links"] if link["runtime"].startswith("tensorrt")} <= {"not run"}
    assert {"links to onnxruntime-cuda", "tensorrt float32", "tensorrt exact"} <= set(bundle["not_run"])
    assert {f"{form}, torch, compiled" for form in ("float32", "float16", "exact")} <= set(speed["not_run"])
    assert (speed["measured"], speed["finished"], bundle["finished"]) == ({}, True, True)
    out = capsys.readouterr().out
    assert "not run: " in out
    assert out.endswith(f"all that ran holds; {tmp_path / 'result.json'}\n")


@pytest.mark.slow
@pytest.mark.skipif(nvidia_driver() is None, reason="not run: there is no driver of NVIDIA's here")
def test_on_a_gpu_all_that_can_run_holds(tmp_path: Path) -> None:
    """Restore the GPU that conftest.py hides from all other tests."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-m", "benchmarks.gpu_acceptance", *SHORT, "--out", str(tmp_path / "result.json")]
    done = subprocess.run(command, env=environment, cwd=Path(gpu_acceptance.__file__).parents[1], capture_output=True, text=True, check=False)
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert (done.returncode, result["failed"]) == (0, []), done.stderr
    assert isinstance(result["gpu"], dict)


def test_replayed_training_is_compared_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU both ways are the same, so nothing differs until one of them trains at another
    rate."""
    monkeypatch.setattr(replayed_training, "SETTINGS", (("float32", "none"),))
    assert replayed_training.different_tensors("czmig", "cpu") == {"float32, clip none": []}
    config = replayed_training._config

    def disturbed(network: str, method: str, training: dict[str, Any]) -> Config:
        return config(network, method, training | ({"learning_rate": 0.0101} if training["cuda_graphs"] else {}))

    monkeypatch.setattr(replayed_training, "_config", disturbed)
    (different,) = replayed_training.different_tensors("czmig", "cpu").values()
    assert "figures" in different
    assert len(different) > 20


class BrokenError(Exception):
    """The errors that a runtime may raise."""


def on_the_cpu(forms: Any, held: ExitStack, part: Part) -> Iterator[Contestant]:
    """Contestants in place of those on a GPU.

    Sound ones in float32 and in exact, and one that breaks in the second round.
    """
    forms_in_both: tuple[EnginePrecision, ...] = ("float32", "exact")
    for form in forms_in_both:
        yield Contestant(form, "torch", gpu_acceptance._torch(forms, form, compiled=False, device="cpu"))
        runner = held.enter_context(open_file("onnxruntime-cpu", forms.files[form], RunOptions(optimisation="none")))
        yield Contestant(form, "sound", lambda images, runner=runner: runner.run({"image": images})["logits"])  # type: ignore[misc]
    calls: list[int] = []

    def breaks(images: Images) -> Any:
        calls.append(len(images))
        if len(calls) > 20:
            raise BrokenError("it broke\nin the middle")
        return np.zeros((len(images), 10), np.float32)

    yield Contestant("float16", "brittle", breaks)
    part.attempt("float16, absent", lambda: gpu_acceptance._is_here("onnxruntime-cuda"))


def test_one_that_breaks_drops_out_and_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_acceptance, "_contestants", on_the_cpu)
    monkeypatch.setattr(gpu_acceptance, "BATCHES", (1, 4))
    settings = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.enabled
    code, result = run(tmp_path / "result.json", "--parts", "speed")
    speed = result["speed"]
    assert code == 3
    (failed,) = result["failed"]
    assert failed.startswith("float16, brittle, batch ")
    assert failed.endswith(": BrokenError: it broke in the middle")
    for name in ("float32, sound", "exact, sound", "float32, torch", "exact, torch"):
        measured = speed["measured"][name]
        assert list(measured) == ["1", "4"]
        assert {figures["calls"] for figures in measured.values()} == {2 * gpu_acceptance.FEWEST_CALLS}
        assert all(0 < figures["quartile_ms"] <= figures["median_ms"] <= figures["p99_ms"] for figures in measured.values())
    assert speed["measured"]["float16, brittle"]["1"]["calls"] >= gpu_acceptance.FEWEST_CALLS
    same = {"1": True, "4": True}
    assert speed["same_bits_of_exact"] == {"sound": same, "torch": same}
    assert speed["errors"]["float32, sound"]["max_abs_from_torch_cpu"] < 1e-4
    assert "onnxruntime-cuda" in speed["not_run"]["float16, absent"]
    assert result["complete"] is False
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.enabled) == settings


def test_pytorch_is_asked_for_true_float32_and_without_cudnn_for_the_exact_form(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Looks(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            # torch.compile reads them too; this is an error if the flags contradict each other.
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.enabled))
            return torch.zeros(len(image), 10)

    forms: Any = SimpleNamespace(exact=Looks(), float32=Looks())
    with gpu_acceptance._without_tf32():
        for form in ("float32", "exact"):
            gpu_acceptance._torch(forms, form, compiled=False, device="cpu")(gpu_acceptance._images(1))
    assert seen == [(False, False, True), (False, False, False)]


def test_other_bits_in_the_exact_form_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(forms: Any, held: ExitStack, part: Part) -> Iterator[Contestant]:
        def ran(images: Images) -> Any:
            outputs = forms.exact_outputs[: len(images)].copy()
            outputs[-1, 0] += np.float32(len(images) == 1)
            return outputs

        yield Contestant("exact", "wrong", ran)

    monkeypatch.setattr(gpu_acceptance, "_contestants", wrong)
    monkeypatch.setattr(gpu_acceptance, "BATCHES", (1, 4))
    code, result = run(tmp_path / "result.json", "--parts", "speed")
    assert code == 3
    assert result["failed"] == ["exact, wrong, batch 1: other bits than PyTorch on the CPU"]
    assert result["speed"]["same_bits_of_exact"]["wrong"]["4"] is True


def test_what_was_found_is_on_the_disk_before_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the process, the file has all steps but the last."""

    def killed(part: Part, options: Any) -> None:
        part.found["links"] = ["found"]
        part.attempt("a step", lambda: None)
        raise SystemExit

    monkeypatch.setattr(gpu_acceptance, "PARTS", {"bundle": killed, "speed": killed})
    with pytest.raises(SystemExit):
        run(tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert (result["bundle"]["links"], result["bundle"]["finished"], result["complete"]) == (["found"], False, False)
    assert "speed" not in result


def test_after_its_minutes_no_step_begins(tmp_path: Path) -> None:
    code, result = run(tmp_path / "result.json", "--minutes", "0")
    assert (code, result["complete"]) == (0, False)
    assert result["bundle"]["not_run"] == {"bundle": "there was no time left for it"}
    assert result["speed"]["not_run"] == {"speed": "there was no time left for it"}


def test_a_part_is_kept_for_the_other_where_the_machine_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(part: Part, options: Any) -> None:
        part.found["links"] = ["found"]

    path = tmp_path / "result.json"
    monkeypatch.setattr(gpu_acceptance, "PARTS", {"bundle": found, "speed": found})
    _, first = run(path, "--parts", "bundle")
    assert ("speed" in first, first["complete"]) == (False, False)
    _, both = run(path, "--parts", "speed")
    assert (set(both) >= {"bundle", "speed"}, both["complete"]) == (True, True)
    both["gpu"] = "another"
    path.write_text(json.dumps(both), encoding="utf-8")
    _, alone = run(path, "--parts", "speed")
    assert "bundle" not in alone
